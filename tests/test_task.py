from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from adamtune.errors import ExitCode, InputError, TaskError, TaskReferenceError
from adamtune.task import Task, TaskReference, batch_rows, batch_to, load_task

ROWS = 12
X = torch.arange(float(ROWS))[:, None]  # a row is known by its number
Y = -X
SOURCES: dict[str, Callable[[], Any]] = {
    "tensors": lambda: (X, Y),
    "a list of tensors": lambda: [X, Y],
    "a dataset": lambda: TensorDataset(X, Y),
    "a loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
}
every_source = pytest.mark.parametrize("source", SOURCES)


def supervised(train: Any, val: Any = (X, Y), **settings: Any) -> Task:
    return Task.supervised(lambda: nn.Linear(1, 1), train, val, nn.functional.mse_loss, **{"batch_size": 4} | settings)


def batches(task: Task, seed: int = 0) -> Iterator[Any]:
    return iter(task.train_batches(torch.Generator().manual_seed(seed)))


def take(task: Task, count: int, seed: int = 0) -> list[list[float]]:
    """The row numbers of the first `count` batches."""
    return [batch[0].flatten().tolist() for batch in itertools.islice(batches(task, seed), count)]


def flat(taken: list[list[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(taken))


# --- Task.supervised: training batches


@every_source
def test_the_same_seed_gives_the_same_batches_and_another_seed_others(source: str) -> None:
    task = supervised(SOURCES[source]())
    assert take(task, 9, seed=3) == take(task, 9, seed=3) == take(supervised(SOURCES[source]()), 9, seed=3)
    assert take(task, 9, seed=3) != take(task, 9, seed=4)


@every_source
def test_batches_never_end_and_each_epoch_has_every_row_once_in_a_new_order(source: str) -> None:
    taken = take(supervised(SOURCES[source]()), 60)
    epochs = [flat(taken[at : at + 3]) for at in range(0, 60, 3)]
    assert all(sorted(epoch) == X.flatten().tolist() for epoch in epochs)
    assert len(set(map(tuple, epochs))) == len(epochs) == 20


@every_source
def test_shuffling_follows_the_trials_generator_alone(source: str) -> None:
    task = supervised(SOURCES[source]())
    expected = take(task, 6)
    mine, other = batches(task), batches(task, seed=1)
    taken = []
    for _ in range(6):
        torch.rand(3)
        taken.append(next(mine)[0].flatten().tolist())
        next(other)  # another trial on the same data takes its turn
    assert taken == expected


@every_source
def test_inputs_and_targets_of_a_row_stay_together(source: str) -> None:
    assert all(torch.equal(y, -x) for x, y in itertools.islice(batches(supervised(SOURCES[source]())), 7))


@pytest.mark.parametrize("source", ["tensors", "a dataset"])
def test_the_rest_of_an_epoch_too_small_for_a_batch_is_left_out(source: str) -> None:
    taken = take(supervised(SOURCES[source](), batch_size=5), 4)
    assert [len(rows) for rows in taken] == [5, 5, 5, 5]
    assert len(set(taken[0] + taken[1])) == 10  # two batches an epoch, no row twice


@pytest.mark.parametrize("source", ["tensors", "a dataset"])
def test_data_of_fewer_rows_than_a_batch_are_one_batch(source: str) -> None:
    assert [len(rows) for rows in take(supervised(SOURCES[source](), batch_size=100), 3)] == [ROWS] * 3


def test_a_loader_keeps_its_batch_size_its_last_batch_and_its_collate_function() -> None:
    def doubled(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return 2 * torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])

    data = TensorDataset(X, Y)
    loader = DataLoader(data, batch_size=5, shuffle=True, collate_fn=doubled)
    taken = take(supervised(loader, batch_size=3), 3)
    assert [len(rows) for rows in taken] == [5, 5, 2]
    assert sorted(flat(taken)) == (2 * X).flatten().tolist()
    whole = DataLoader(data, batch_size=5, shuffle=True, drop_last=True)
    assert [len(rows) for rows in take(supervised(whole), 3)] == [5, 5, 5]


def test_a_loader_that_does_not_shuffle_keeps_its_order() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=6)
    assert take(supervised(loader), 4, seed=5) == [list(map(float, range(6))), list(map(float, range(6, 12)))] * 2


class Backwards(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return reversed(range(ROWS))

    def __len__(self) -> int:
        return ROWS


def test_a_loader_keeps_a_sampler_of_its_own() -> None:
    data = TensorDataset(X, Y)
    assert take(supervised(DataLoader(data, batch_size=3, sampler=Backwards())), 2) == [[11, 10, 9], [8, 7, 6]]
    pairs = DataLoader(data, batch_sampler=[[1, 2], [5, 7]])
    assert take(supervised(pairs), 3) == [[1, 2], [5, 7], [1, 2]]
    weighted = DataLoader(data, batch_size=8, sampler=WeightedRandomSampler([1.0] * 3 + [0.0] * 9, num_samples=40))
    assert set(flat(take(supervised(weighted), 5))) == {0, 1, 2}


class Tenfold(DataLoader[Any]):
    """Turns batches into what its model takes."""

    def __iter__(self) -> Any:
        return ({"x": 10 * x, "labels": y} for x, y in super().__iter__())


@pytest.mark.parametrize("settings", [{"batch_size": 4, "shuffle": True}, {"batch_sampler": [[0, 1], [2, 3]]}])
def test_a_subclass_of_a_loader_keeps_its_own_iteration(settings: dict[str, Any]) -> None:
    loader = Tenfold(TensorDataset(X, Y), **settings)
    task = supervised(loader, loader)
    first, again, other = (
        [batch["x"].tolist() for batch in itertools.islice(batches(task, seed), 6)] for seed in (1, 1, 2)
    )
    assert first == again
    assert (first != other) == ("shuffle" in settings)
    assert all(torch.equal(batch["x"], -10 * batch["labels"]) for batch in itertools.islice(batches(task), 4))


def test_a_loader_keeps_how_its_workers_work(monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"num_workers": 1, "timeout": 7.0, "prefetch_factor": 3, "persistent_workers": True}
    loader = DataLoader(TensorDataset(X, Y), shuffle=True, multiprocessing_context="spawn", **how)  # type: ignore[arg-type]
    seen: list[DataLoader[Any]] = []
    monkeypatch.setattr(DataLoader, "__iter__", lambda self: iter([seen.append(self)]))
    next(batches(supervised(loader)))
    assert {name: getattr(seen[0], name) for name in how} == how
    assert seen[0].multiprocessing_context is loader.multiprocessing_context
    assert seen[0] is not loader


def test_a_loader_without_batches_of_its_own_gives_what_its_dataset_holds() -> None:
    task = supervised(DataLoader(TensorDataset(X.view(3, 4), Y.view(3, 4)), batch_size=None))
    assert take(task, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3]]


def test_a_sampler_within_a_batch_sampler_follows_the_trials_generator() -> None:
    data = TensorDataset(X, Y)
    for generator in (None, torch.Generator().manual_seed(3)):
        task = supervised(
            DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, generator=generator), 4, True))
        )
        assert take(task, 9, seed=1) == take(task, 9, seed=1) != take(task, 9, seed=2)


class ByNumpy:
    """Batches drawn by a generator of NumPy's, of samples that it lets nobody replace."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    @property
    def sampler(self) -> range:
        return range(ROWS)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.generator.permutation(self.sampler).reshape(-1, 4).tolist())


@pytest.mark.parametrize("sampler", [ByNumpy, lambda: (list(range(4 * i, 4 * i + 4)) for i in range(3))])
def test_a_sampler_that_cannot_follow_the_trials_generator_draws_by_itself(sampler: Callable[[], Any]) -> None:
    taken = take(supervised(DataLoader(TensorDataset(X, Y), batch_sampler=sampler())), 3)
    assert sorted(flat(taken)) == list(range(ROWS))


@pytest.mark.parametrize("accelerated", [False, True])
def test_memory_is_pinned_where_there_is_an_accelerator(monkeypatch: pytest.MonkeyPatch, accelerated: bool) -> None:
    seen: list[DataLoader[Any]] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerated)
    monkeypatch.setattr(DataLoader, "__iter__", lambda self: iter([seen.append(self)]))
    for asked in (False, True):
        next(batches(supervised(DataLoader(TensorDataset(X, Y), pin_memory=asked))))
    assert [loader.pin_memory for loader in seen] == [False, accelerated]


def test_an_iterable_dataset_is_begun_again_when_it_ends() -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return zip(X, Y, strict=True)

    taken = take(supervised(Stream(), batch_size=6), 4)
    assert taken == [list(map(float, range(6))), list(map(float, range(6, 12)))] * 2


def test_training_data_without_a_whole_batch_say_so() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=50, shuffle=True, drop_last=True)
    with pytest.raises(ValueError, match="smaller than one batch"):
        next(batches(supervised(loader)))


# --- Task.supervised: loss, metrics, validation


def test_the_last_entry_of_a_batch_is_the_target_and_all_before_it_go_to_the_model() -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + 10 * b

    def distance(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).mean()

    data = (X, X + 1, X + 2)
    task = Task.supervised(Sum, data, data, distance, batch_size=4, metrics={"halved": lambda o, t: distance(o, t) / 2})
    batch = next(batches(task))
    assert len(batch) == 3
    expected = (batch[0] + 10 * batch[1] - batch[2]).mean()
    assert task.loss(task.make_model(), batch) == expected
    assert task.metrics["halved"](task.make_model(), batch) == expected / 2


@every_source
def test_validation_has_every_row_once_in_order_and_each_time_the_same(source: str) -> None:
    given = SOURCES[source]() if source != "a loader" else DataLoader(TensorDataset(X, Y), batch_size=4)
    task = supervised((X, Y), given)
    for _ in range(2):
        assert torch.equal(torch.cat([x for x, _ in task.val_batches()]), X)


def test_validation_keeps_a_loaders_batch_size_and_a_short_last_batch() -> None:
    task = supervised((X, Y), DataLoader(TensorDataset(X, Y), batch_size=5))
    assert [len(x) for x, _ in task.val_batches()] == [5, 5, 2]


def test_a_supervised_task_has_the_name_it_is_given() -> None:
    assert supervised((X, Y)).name == "supervised"
    assert supervised((X, Y), name="mine").name == "mine"


# --- batches of any shape


class Pair(NamedTuple):
    left: Any
    right: Any


class Graph:
    """A stranger's batch type with a `.to` of its own."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def to(self, device: torch.device) -> Graph:
        return Graph(device.type)


def test_every_tensor_of_a_batch_moves_and_everything_else_stays_as_it_is() -> None:
    batch = {"pair": Pair(X, [Y, "text"]), "deep": ((X, {"inner": Y}), 7), "none": None, "graph": Graph()}
    moved = batch_to(batch, torch.device("meta"))
    assert isinstance(moved["pair"], Pair)
    assert isinstance(moved["pair"].right, list)
    assert isinstance(moved["deep"], tuple)
    tensors = [moved["pair"].left, moved["pair"].right[0], moved["deep"][0][0], moved["deep"][0][1]["inner"]]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 4
    assert (moved["pair"].right[1], moved["deep"][1], moved["none"]) == ("text", 7, None)
    assert moved["graph"].device == "meta"
    assert batch["pair"].left.device.type == "cpu"  # the caller's batch is left alone


def test_a_tensor_that_requires_a_gradient_does_so_where_it_moves_too() -> None:
    with torch.no_grad():  # as in evaluation
        moved = batch_to((X.clone().requires_grad_(), Y), torch.device("meta"))
    assert [tensor.requires_grad for tensor in moved] == [True, False]


def test_a_batch_on_its_device_keeps_its_values() -> None:
    moved = batch_to((X, {"y": Y}), torch.device("cpu"))
    assert torch.equal(moved[0], X)
    assert torch.equal(moved[1]["y"], Y)


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        (torch.zeros(5, 2), 5),
        ((torch.zeros(5, 2), torch.zeros(7)), 5),
        ([torch.zeros(0, 2)], 0),
        (Pair("text", torch.zeros(6)), 6),
        ({"id": 3, "x": torch.zeros(4, 1)}, 4),
        ((3, [("a", None), {"x": [torch.zeros(8)]}], torch.zeros(2)), 8),
        (((), {}, torch.zeros(9)), 9),
        (torch.zeros(()), 1),
        ("nothing to count", 1),
        ((), 1),
    ],
)
def test_a_batch_has_as_many_rows_as_its_first_tensor_is_long(batch: Any, rows: int) -> None:
    assert batch_rows(batch) == rows


# --- references


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


TASK_FILE = """\
import torch
from torch import nn
from adamtune.task import Task

def task(width=2, name="mine"):
    data = (torch.zeros(8, width), torch.zeros(8, 1))
    return Task.supervised(lambda: nn.Linear(width, 1), data, data, nn.functional.mse_loss, name=name)
"""


def test_a_reference_reads_back_as_it_is_written() -> None:
    reference = TaskReference.parse("adamtune.tasks.digits:task")
    assert reference == TaskReference("adamtune.tasks.digits", "task")
    assert str(reference) == "adamtune.tasks.digits:task"


@pytest.mark.parametrize("text", ["digits", "", ":task", "module:", "module:not-a-name", "module:two words"])
def test_what_is_no_reference_is_refused_with_the_two_forms_there_are(text: str) -> None:
    with pytest.raises(TaskReferenceError, match=r"no task reference; write package\.module:function or .*\.py:func"):
        TaskReference.parse(text)


def test_a_file_without_a_function_is_answered_with_one() -> None:
    with pytest.raises(TaskReferenceError, match=r"the function is missing, as in mine\.py:task$"):
        TaskReference.parse("mine.py")


@pytest.mark.parametrize("place", ["my-task", "folder/file", "file.py.txt/", "a..b"])
def test_a_place_that_is_neither_module_nor_file_is_refused(place: str) -> None:
    with pytest.raises(TaskReferenceError, match=f"'{place}' in .* is neither a module name nor a path"):
        TaskReference.parse(f"{place}:task")


def test_a_reference_error_is_the_users_to_mend() -> None:
    with pytest.raises(InputError) as caught:
        TaskReference.parse("nothing")
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_missing_file_is_named_with_every_place_tried(folder: Path) -> None:
    with pytest.raises(TaskReferenceError) as caught:
        TaskReference.parse("sub/mine.py:task", [folder / "specs", folder / "shared"])
    for place in ("specs", "shared", "."):
        assert str(folder / place / "sub/mine.py") in str(caught.value)
    with pytest.raises(TaskReferenceError) as caught:
        TaskReference.parse("mine.py:task", [folder])
    assert str(caught.value).count(str(folder / "mine.py")) == 1  # a place tried twice is said once


def test_a_file_is_looked_for_in_the_given_folders_before_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("specs", "work"):
        (folder / place).mkdir()
        (folder / place / "mine.py").write_text(TASK_FILE.replace('"mine"', f'"{place}"'))
    monkeypatch.chdir(folder / "work")
    assert load_task(TaskReference.parse("mine.py:task")).name == "work"
    near_the_spec = TaskReference.parse("mine.py:task", [folder / "none", folder / "specs"])
    assert near_the_spec.place == str((folder / "specs/mine.py").resolve())
    monkeypatch.chdir(folder)  # by now the reference means the same wherever one stands
    assert load_task(near_the_spec).name == "specs"
    assert load_task(f"{folder / 'work/mine.py'}:task").name == "work"


def test_the_functions_arguments_are_the_specs(folder: Path) -> None:
    (folder / "mine.py").write_text(TASK_FILE)
    task = load_task("mine.py:task", {"width": 5, "name": "wide"})
    assert task.name == "wide"
    assert next(batches(task))[0].shape == (8, 5)


def test_a_task_file_may_import_the_file_beside_it_and_use_dataclasses(folder: Path) -> None:
    (folder / "tasks").mkdir()
    (folder / "tasks/beside_it.py").write_text("NAME = 'from the neighbour'\n")
    (folder / "tasks/with_neighbour.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom beside_it import NAME\n"
        "@dataclass\nclass Options:\n    name: str = NAME\n"
        f"{TASK_FILE}\ndef named():\n    return task(name=Options().name)\n"
    )
    assert load_task("tasks/with_neighbour.py:named").name == "from the neighbour"


def test_a_module_is_found_in_the_working_directory(folder: Path) -> None:
    (folder / "my_pack").mkdir()
    (folder / "my_pack/__init__.py").touch()
    (folder / "my_pack/work.py").write_text(TASK_FILE)
    assert load_task("my_pack.work:task").name == "mine"


@pytest.mark.parametrize(
    ("reference", "missing"),
    [
        ("no_such_pack:task", "no_such_pack"),
        ("no_such_pack.deep:task", "no_such_pack"),
        ("adamtune.tasks.no_such:task", "adamtune.tasks.no_such"),
    ],
)
def test_a_module_that_is_not_there_is_named(folder: Path, reference: str, missing: str) -> None:
    with pytest.raises(TaskReferenceError, match=f"{reference} does not import: there is no module '{missing}'"):
        load_task(reference)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("import no_such_helper", r"ModuleNotFoundError: No module named 'no_such_helper' \(mine\.py, line 2\)"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(mine\.py, line 2\)"),
        ("def task(:", "SyntaxError"),
    ],
)
@pytest.mark.parametrize("reference", ["mine.py:task", "mine:task"])
def test_a_task_that_does_not_import_says_why_and_where(folder: Path, reference: str, line: str, what: str) -> None:
    (folder / "mine.py").write_text(f"# a comment\n{line}\n")
    with pytest.raises(TaskReferenceError, match=f"does not import: {what}"):
        load_task(reference)


def test_a_missing_function_is_told_with_the_nearest_name(folder: Path) -> None:
    (folder / "mine.py").write_text("def make_task(): ...\ndef _private(): ...\ntask = 3\n")
    with pytest.raises(TaskReferenceError, match=r"mine\.py has no function 'make_tusk'; did you mean 'make_task'\?"):
        load_task("mine.py:make_tusk")
    with pytest.raises(TaskReferenceError, match=r"has no function 'zzz'; known are: make_task$"):
        load_task("mine.py:zzz")
    with pytest.raises(TaskReferenceError, match="has no function 'task'"):  # it is there but cannot be called
        load_task("mine.py:task")
    (folder / "bare.py").write_text("task = 3\n")
    with pytest.raises(TaskReferenceError, match="no functions at all"):
        load_task("bare.py:task")


def test_a_task_in_place_of_the_function_that_returns_it_is_told(folder: Path) -> None:
    (folder / "mine.py").write_text(TASK_FILE + "\ntask = task()\n")
    with pytest.raises(TaskReferenceError, match=r"mine\.py:task is a Task; it must be a function that returns one"):
        load_task("mine.py:task")


def test_what_a_file_has_imported_is_not_suggested(folder: Path) -> None:
    (folder / "mine.py").write_text("from adamtune import Task\ndef make_it(): ...\n")
    with pytest.raises(TaskReferenceError, match=r"has no function 'Tasks'; known are: make_it$"):
        load_task("mine.py:Tasks")


def test_a_file_that_defines_no_function_suggests_those_it_has_imported_or_bound(folder: Path) -> None:
    (folder / "other.py").write_text("def make_task(width): ...\n")
    (folder / "mine.py").write_text(
        "import functools\nfrom adamtune import Task\nfrom other import make_task\n"
        "narrow = functools.partial(make_task, 3)\n"
    )
    with pytest.raises(TaskReferenceError, match=r"has no function 'zzz'; known are: make_task, narrow$"):
        load_task("mine.py:zzz")


@pytest.mark.parametrize("args", [{"wdith": 3}, {"width": 3, "depth": 1}])
def test_arguments_the_function_does_not_take_are_told_with_those_it_takes(folder: Path, args: dict[str, Any]) -> None:
    (folder / "mine.py").write_text(TASK_FILE)
    with pytest.raises(TaskReferenceError, match=rf"'{list(args)[-1]}'; it takes: width, name$"):
        load_task("mine.py:task", args)


def test_a_missing_argument_is_named(folder: Path) -> None:
    (folder / "mine.py").write_text("def task(root): ...\ndef bare(): ...\n")
    with pytest.raises(TaskReferenceError, match="missing a required argument: 'root'; it takes: root"):
        load_task("mine.py:task")
    with pytest.raises(TaskReferenceError, match="it takes: none"):
        load_task("mine.py:bare", {"root": 1})


def test_a_module_that_lies_here_and_not_beside_the_task_file_is_told_how_to_find(folder: Path) -> None:
    (folder / "deeper").mkdir()
    (folder / "training_code.py").touch()
    (folder / "deeper" / "mine.py").write_text("import training_code.model\n")
    with pytest.raises(TaskReferenceError, match=r"beside it: set PYTHONPATH=\. to let it find the 'training_code'"):
        load_task("deeper/mine.py:task")
    (folder / "deeper" / "other.py").write_text("import no_such_code\n")
    with pytest.raises(TaskReferenceError) as caught:
        load_task("deeper/other.py:task")
    assert "PYTHONPATH" not in str(caught.value)
    (folder / "adamtune").mkdir()  # as in a clone: what is missing is not the package
    with pytest.raises(TaskReferenceError) as caught:
        load_task("adamtune.tasks.digit:task")
    assert "PYTHONPATH" not in str(caught.value)


def test_a_function_that_forgot_to_return_is_asked_whether_it_did(folder: Path) -> None:
    (folder / "mine.py").write_text("def task():\n    pass\n")
    with pytest.raises(TaskReferenceError, match=r"returned nothing \(has it no `return`\?\); it must return"):
        load_task("mine.py:task")


def test_a_function_that_returns_something_else_is_refused(folder: Path) -> None:
    (folder / "mine.py").write_text("def task():\n    return {'name': 'mine'}\n")
    with pytest.raises(TaskReferenceError, match=r"mine\.py:task returned a dict; it must return an adamtune\.Task"):
        load_task("mine.py:task")


def test_a_function_that_raises_is_a_task_error_with_file_and_line(folder: Path) -> None:
    (folder / "mine.py").write_text("def deep():\n    raise OSError('no data here')\ndef task():\n    deep()\n")
    with pytest.raises(TaskError, match=r"raised OSError: no data here \(mine\.py, line 2\) while making the task"):
        load_task("mine.py:task")


def test_the_place_named_may_be_in_one_of_the_example_tasks() -> None:
    with pytest.raises(TaskError, match=r"chars:task raised TypeError: .* \(chars\.py, line \d+\) while making"):
        load_task("adamtune.tasks.chars:task", {"length": "a text"})


def test_a_type_error_inside_the_function_is_no_matter_of_its_arguments(folder: Path) -> None:
    (folder / "mine.py").write_text("def task(size=1):\n    return len(size)\n")
    with pytest.raises(TaskError, match=r"TypeError: .* \(mine\.py, line 2\)"):
        load_task("mine.py:task", {"size": 3})


def test_an_error_adamtune_raised_in_the_function_is_passed_on(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from adamtune.errors import TaskError\ndef task():\n    raise TaskError('mend this')\n"
    )
    with pytest.raises(TaskError, match=r"^mend this$"):
        load_task("mine.py:task")


def test_the_error_of_a_task_keeps_its_cause(folder: Path) -> None:
    (folder / "mine.py").write_text("def task():\n    raise LookupError('cause')\n")
    with pytest.raises(TaskError) as caught:
        load_task("mine.py:task")
    assert isinstance(caught.value.__cause__, LookupError)


def test_two_task_files_of_one_name_in_different_folders_are_kept_apart(folder: Path) -> None:
    for place in ("a", "b"):
        (folder / place).mkdir()
        (folder / place / "same.py").write_text(TASK_FILE.replace('"mine"', f'"{place}"'))
    assert [load_task(f"{place}/same.py:task").name for place in ("a", "b", "a")] == ["a", "b", "a"]


CHANCE_FILE = """\
import random, numpy, torch
from torch import nn
from torch.utils.data import TensorDataset, random_split
from adamtune.task import Task

SHIFT = random.random() + numpy.random.rand() + float(torch.rand(()))

def task():
    x = torch.rand(40, 1) + random.random() + numpy.random.rand() + SHIFT
    train, val = random_split(TensorDataset(x, x), [30, 10])
    return Task.supervised(lambda: nn.Linear(1, 1), train, val, nn.functional.mse_loss)
"""


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("reference", ["chance.py:task", "chance:task"])
def test_data_made_and_split_without_a_seed_are_the_same_wherever_the_task_is_loaded(
    folder: Path, reference: str
) -> None:
    (folder / "chance.py").write_text(CHANCE_FILE)
    loaded = []
    for seed in (1, 2):
        seed_all(seed)
        loaded.append(load_task(reference))
    assert take(loaded[0], 3) == take(loaded[1], 3)
    judged = [torch.cat([x for x, _ in task.val_batches()]) for task in loaded]
    assert torch.equal(*judged)


def test_loading_a_task_leaves_the_callers_random_streams_alone(folder: Path) -> None:
    (folder / "seeding.py").write_text("import random\nrandom.seed(3)\n" + CHANCE_FILE)

    def drawn() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), float(torch.rand(()))

    seed_all(0)
    expected = drawn()
    seed_all(0)
    load_task("seeding.py:task")
    (folder / "chance.py").write_text(CHANCE_FILE.replace("    train, val", "    raise OSError\n    train, val"))
    with pytest.raises(TaskError):
        load_task("chance.py:task")
    assert drawn() == expected


# --- dicts, models that return their loss, rollouts


class Keyed(nn.Module):
    """Takes its inputs by name; given `labels`, returns its loss as models of transformers do."""

    def __init__(self, form: str = "attribute") -> None:
        super().__init__()
        self.body, self.form = nn.Linear(1, 1), form

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        out = self.body(x)
        if labels is None:
            return out
        loss = nn.functional.mse_loss(out, labels)
        if self.form == "attribute":
            return SimpleNamespace(loss=loss, logits=out)
        return {"scalar": loss, "tuple": (loss, out), "mapping": {"loss": loss}, "none": {"logits": out}}[self.form]


class Dicts(Dataset[dict[str, Tensor]]):
    def __init__(self, target: str = "labels") -> None:
        self.target = target

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"x": X[row], self.target: Y[row]}


@pytest.mark.parametrize("target", ["labels", "y"])
def test_dicts_are_given_by_name_and_the_target_to_the_loss(target: str) -> None:
    loss_fn = nn.functional.mse_loss
    task = Task.supervised(
        Keyed, Dicts(target), Dicts(target), loss_fn, 4, metrics={"off": lambda out, y: (out - y).mean()}, target=target
    )
    model, batch = Keyed(), next(batches(task))
    assert torch.equal(batch[target], -batch["x"])
    assert task.loss(model, batch) == loss_fn(model.body(batch["x"]), batch[target])
    assert task.metrics["off"](model, batch) == (model.body(batch["x"]) - batch[target]).mean()
    assert sum(map(batch_rows, task.val_batches())) == ROWS


@pytest.mark.parametrize("form", ["attribute", "scalar", "tuple", "mapping"])
def test_without_a_loss_function_the_model_returns_its_loss(form: str) -> None:
    task = Task.supervised(lambda: Keyed(form), Dicts(), Dicts(), batch_size=4)
    model, batch = task.make_model(), next(batches(task))
    assert task.loss(model, batch) == nn.functional.mse_loss(model.body(batch["x"]), batch["labels"])  # type: ignore[operator]


def test_metrics_of_a_model_that_returns_its_loss_get_its_output_and_the_labels() -> None:
    off = {"off": lambda out, y: (out.logits - y).mean()}
    task = Task.supervised(Keyed, Dicts(), Dicts(), batch_size=4, metrics=off)
    model, batch = Keyed(), next(batches(task))
    assert task.metrics["off"](model, batch) == (model.body(batch["x"]) - batch["labels"]).mean()


def test_a_dict_without_its_target_and_a_model_without_a_loss_are_said_plainly() -> None:
    task = Task.supervised(Keyed, Dicts("label"), Dicts("label"), nn.functional.mse_loss, 4)
    with pytest.raises(TaskError, match=r"no 'labels' \(did you mean 'label'\?\); name .* by target='\.\.\.'$"):
        task.loss(Keyed(), next(batches(task)))
    task = Task.supervised(lambda: Keyed("none"), Dicts(), Dicts(), batch_size=4)
    with pytest.raises(TypeError, match="returned a dict without a loss; give a loss_fn"):
        task.loss(task.make_model(), next(batches(task)))


def test_a_model_that_has_no_room_for_the_target_is_told_to_need_a_loss_function() -> None:
    task = Task.supervised(lambda: nn.Linear(1, 1), (X, Y), (X, Y), batch_size=4)
    with pytest.raises(TaskError, match=r"called with all of a batch .*; give a loss_fn"):
        task.loss(task.make_model(), next(batches(task)))


class Rebuilding(nn.Module):
    """Its loss is how far its output is from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.body(x), x)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("data", [X, list(X)], ids=["tensor", "rows"])
def test_a_batch_of_a_single_tensor_goes_whole_to_a_model_that_returns_its_loss(data: Any, batch_size: int) -> None:
    model, loader = Rebuilding(), DataLoader(data, batch_size=batch_size)
    task = Task.supervised(Rebuilding, loader, loader)
    batch = next(batches(task))
    assert batch.shape == (batch_size, 1)
    assert task.loss(model, batch) == model(batch)
    told = Task.supervised(Rebuilding, loader, loader, nn.functional.mse_loss, metrics={"off": nn.functional.l1_loss})
    for measure in (told.loss, told.metrics["off"]):
        with pytest.raises(TaskError, match=r"single tensors, without the target .*; let the data have"):
            measure(model, batch)


def test_a_type_error_within_the_model_is_left_as_it_is() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + None  # type: ignore[operator, no-any-return]

    task = Task.supervised(Broken, (X, Y), (X, Y), batch_size=4)
    with pytest.raises(TypeError, match="unsupported operand"):
        task.loss(Broken(), next(batches(task)))


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("make_model", nn.Linear(1, 1), r"make_model is a Linear; .*\(make_model=lambda: \.\.\.\)"),
        ("val_batches", [X], r"val_batches is a list; .*\(val_batches=lambda: \.\.\.\)"),
        ("train_batches", iter([X]), "train_batches is a list_iterator; give a function"),
    ],
)
def test_a_thing_in_place_of_the_function_that_makes_it_is_refused(part: str, value: Any, told: str) -> None:
    parts: dict[str, Any] = {"make_model": nn.Module, "train_batches": iter, "loss": len, "val_batches": list}
    with pytest.raises(TaskError, match=f"task 'mine': {told}"):
        Task("mine", **parts | {part: value})


def test_a_metric_in_the_validation_losss_place_is_refused() -> None:
    with pytest.raises(InputError, match=r"^task 'mine': a metric called 'loss' .*; give it another name$"):
        supervised((X, Y), name="mine", metrics={"accuracy": nn.functional.l1_loss, "loss": nn.functional.l1_loss})
    with pytest.raises(InputError, match=r"called 'loss'"):
        Task.rollouts(nn.Module, list, len, {"loss": len})  # type: ignore[arg-type]


@pytest.mark.parametrize(("train", "val", "told"), [((X, Y[:3]), (X, Y), "train_data"), ((X, Y), (X[:0],), "val_data")])
def test_tensors_without_rows_or_of_unequal_length_are_named(train: Any, val: Any, told: str) -> None:
    with pytest.raises(TaskError, match=f"the tensors of {told} are empty or of unequal length"):
        Task.supervised(Keyed, train, val)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ((X.numpy(), Y.numpy()), r"holds NumPy arrays; .*torch\.from_numpy"),
        ([X, Y.numpy()], r"holds NumPy arrays; .*torch\.from_numpy"),
        ({"x": X, "labels": Y}, "is a dict, which has no rows to draw; .*a Dataset whose items are dicts"),
    ],
)
def test_columns_that_would_pass_for_rows_are_refused(data: Any, told: str) -> None:
    with pytest.raises(TaskError, match=f"train_data {told}"):
        supervised(data)
    with pytest.raises(TaskError, match=f"val_data {told}"):
        supervised((X, Y), data)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_without_rows_is_refused(batch_size: int) -> None:
    with pytest.raises(TaskError, match=f"batch_size is {batch_size}; it must be at least 1"):
        supervised((X, Y), batch_size=batch_size)
    loader = DataLoader(TensorDataset(X, Y), batch_size=3)
    assert take(supervised(loader, loader, batch_size=batch_size), 1) == [[0, 1, 2]]  # it has its own


def test_a_dataset_may_hold_whole_batches_and_tensors_may_not() -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter([(X[:7], Y[:7]), (X[7:], Y[7:])])

    halves = TensorDataset(X.view(2, 6, 1), Y.view(2, 6, 1))
    for data, sizes in ((Stream(), [7, 5]), (halves, [6, 6])):
        task = supervised(data, data, batch_size=None)
        assert sorted(flat(take(task, 2))) == list(range(ROWS))
        assert [len(x) for x, _ in task.val_batches()] == sizes
    shuffled = [take(supervised(halves, halves, batch_size=None), 9, seed) for seed in (1, 1, 2)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    with pytest.raises(TaskError, match="batch_size is None, but val_data are tensors"):
        supervised(Stream(), (X, Y), batch_size=None)


@pytest.mark.parametrize("place", ["train_data", "val_data"])
@pytest.mark.parametrize("data", [((X, Y) for _ in range(3)), iter([X]), None, zip(X, Y, strict=True)])
def test_data_of_another_kind_are_told_where_and_what_they_must_be(place: str, data: Any) -> None:
    given = {"train_data": (X, Y), "val_data": (X, Y)} | {place: data}
    told = f"^{place} is a {type(data).__name__}; give a DataLoader, a Dataset with a length or tensors$"
    with pytest.raises(TaskError, match=told):
        Task.supervised(Keyed, **given)


class Walk:
    """An environment whose place is a walk of chance, pushed."""

    def __init__(self, seed: int) -> None:
        self.generator, self.place = torch.Generator().manual_seed(seed), 0.0

    def push(self, force: Tensor) -> Tensor:
        self.place += float(torch.randn((), generator=self.generator)) + float(force)
        return torch.tensor(self.place)


def walking(pushes: int = 3) -> Task:
    def loss(model: nn.Module, walk: Walk) -> Tensor:
        acted = [model(walk.push(torch.zeros(())).reshape(1, 1)) for _ in range(pushes)]
        return torch.stack(acted).pow(2).mean()

    def place(model: nn.Module, walk: Walk) -> Tensor:
        return walk.push(model(torch.ones(1, 1)))

    return Task.rollouts(lambda: nn.Linear(1, 1), Walk, loss, {"place": place})


def test_environments_are_a_trials_own_and_go_on_from_step_to_step() -> None:
    task = walking()
    first, second = itertools.islice(batches(task), 2)
    assert first is second
    model = task.make_model()
    lost = [[task.loss(model, envs).item() for envs in itertools.islice(batches(task, seed), 2)] for seed in (1, 1, 2)]
    assert lost[0] == lost[1] != lost[2]
    assert lost[0][0] != lost[0][1]


def test_every_evaluation_is_on_the_same_new_environments() -> None:
    task = walking()
    model = task.make_model()
    with torch.no_grad():
        told = [
            (
                float(measure(model, batch))
                for batch in task.val_batches()
                for measure in (task.loss, task.metrics["place"])
            )
            for _ in range(2)
        ]
        assert len(set(map(tuple, told))) == 1
