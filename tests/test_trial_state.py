"""A trial's state in a file: it goes on to the bit, or begins again."""

from __future__ import annotations

import copy
import dataclasses
import errno
import functools
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adamtune import Task, rundir
from adamtune.engines import FinishedTrials, ResumableEngine
from adamtune.engines.local import LocalBatch
from adamtune.engines.sequential import SequentialEngine
from adamtune.history import Outcome, TrialRequest, TrialResult
from adamtune.recipe import Recipe, Switch
from adamtune.rundir import RunDir
from adamtune.trial import Trial
from adamtune.trial_state import read_state, saved_result
from tests.tasks_for_tests import separable

CPU = torch.device("cpu")
RUNGS = (10, 20, 30, 40)


@pytest.fixture(autouse=True)
def _kept_at_every_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamtune.trial.WORTH", 0)
    monkeypatch.setattr("adamtune.population.WORTH", 0)


class Remembering(nn.Module):
    """State of every kind: buffers, a recurrent layer's second list of weights, a counter, a tensor, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(4, 8, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 2))
        self.calls = 0
        self.penalty: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.norm(self.recurrent(x)[0][:, -1])
        last = 0.0 if self.penalty is None else self.penalty.detach()
        self.penalty = hidden.pow(2).mean() * (1 + 0.01 * self.calls) + 0.1 * last
        out: Tensor = self.head(hidden)
        return out


def remembering(make_model: Callable[[], nn.Module] = Remembering) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 5, 4, generator=generator)
    y = (x.sum((1, 2)) > 0).long()

    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        noise = 0.01 * (np.random.rand() + random.random())
        return functional.cross_entropy(model(batch[0] + noise), batch[1]) + 0.01 * model.penalty

    task = Task.supervised(make_model, (x[:64], y[:64]), (x[64:], y[64:]), functional.cross_entropy, 16)
    return dataclasses.replace(task, loss=loss)


def asked(path: Path, **recipe: Any) -> TrialRequest:
    return TrialRequest(Recipe(**recipe), seed=3, horizon=40, probe=True, checkpoint=path / "trial.pt")


def trained(trial: Trial, rungs: int = len(RUNGS)) -> list[str]:
    """What the trial reports, to be compared where NaN is among it."""
    reports = []
    for step in RUNGS[:rungs]:
        reports.append(repr(trial.advance(step)))
        trial.keep()
    return reports


def without_time(result: TrialResult) -> TrialResult:
    return dataclasses.replace(result, seconds=0.0)


@pytest.mark.parametrize("rungs", [1, 3, 4])
@pytest.mark.parametrize(
    "recipe",
    [
        {"lr": 0.01},
        {"lr": 0.01, "accumulate": 2, "clip_norm": 1.0, "precision": "bf16"},
        {"lr": 0.01, "switch": {"to": "sgd", "at": 0.5, "lr": 0.05, "momentum": 0.9}},
        {"lr": 1e30},
    ],
)
def test_a_trial_goes_on_to_the_bit(rungs: int, recipe: dict[str, Any], tmp_path: Path) -> None:
    request = asked(tmp_path, **recipe)
    unbroken = Trial(remembering(), dataclasses.replace(request, checkpoint=None), CPU)
    told = trained(unbroken)
    before = Trial.begin(remembering(), request, CPU)
    trained(before, rungs)
    after = Trial.begin(remembering(), request, CPU)
    assert after.step == before.step > 0
    assert trained(after) == told
    assert repr(without_time(after.result())) == repr(without_time(unbroken.result()))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def of_another_version(file: Path) -> None:
    torch.save(torch.load(file, weights_only=True) | {"version": 0}, file)


def of_another_recipe(file: Path) -> None:
    saved = torch.load(file, weights_only=True)
    torch.save(saved | {"request": saved["request"].replace("0.01", "0.02")}, file)


def lacking(file: Path) -> None:
    saved = torch.load(file, weights_only=True)
    del saved["optimizer"]
    torch.save(saved, file)


def code(file: Path) -> None:
    torch.save(torch.load(file, weights_only=True) | {"history": Path("x")}, file)


def of_no_rungs(file: Path) -> None:
    saved = torch.load(file, weights_only=True)
    torch.save(saved | {"history": saved["history"] | {"rungs": [()], "step": {}}}, file)


def a_bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/99", bytes(50_000_000))


def a_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


@pytest.mark.parametrize(
    "spoil", [cut, flip, of_another_version, of_another_recipe, lacking, code, of_no_rungs, a_link]
)
def test_what_does_not_fit_is_ignored(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    request = asked(tmp_path, lr=0.01)
    told = trained(Trial.begin(remembering(), request, CPU), 3)
    assert request.checkpoint is not None
    spoil(request.checkpoint)
    again = Trial.begin(remembering(), request, CPU)
    assert again.step == 0
    assert trained(again, 3) == told


def test_a_state_that_would_grow_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asked(tmp_path, lr=0.01)
    trained(Trial.begin(remembering(), request, CPU), 3)
    assert request.checkpoint is not None
    a_bomb(request.checkpoint)
    unpacked: list[bool] = []
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: unpacked.append(True))
    assert read_state(request) is None
    assert not unpacked


@pytest.mark.parametrize("history", [{}, {"rungs": [()]}, {"outcome": "odd"}, {"watch": 3}, {"losses": 2**70}])
def test_a_record_that_is_none_of_ours_is_no_result(
    history: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(dict[str, Any]):
        def __missing__(self, key: str) -> Any:
            raise IndexError(key)

    monkeypatch.setattr("adamtune.trial_state.read_state", lambda request: {"history": Odd(history)})
    assert saved_result(asked(tmp_path, lr=0.01)) is None


def test_a_trial_of_other_data_or_another_model_begins_again(tmp_path: Path) -> None:
    request, task = asked(tmp_path, lr=0.01), separable()

    def other_batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x + 1, y) for x, y in task.train_batches(generator))

    trained(Trial.begin(task, request, CPU), 2)
    assert Trial.begin(task, request, CPU).step == 20
    assert Trial.begin(dataclasses.replace(task, train_batches=other_batches), request, CPU).step == 0
    larger = dataclasses.replace(task, make_model=lambda: nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 2)))
    assert Trial.begin(larger, request, CPU).step == 0


def normed() -> Task:
    """With buffers of each member, a counter of all, and a number that the model keeps."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            out: Tensor = self.layers(x) * (1 + 0.01 * self.calls)
            return out

    return dataclasses.replace(separable(), make_model=Model)


class Drawing(Remembering):
    """Has a random generator of its own, whose state is not among what torch saves."""

    def __init__(self) -> None:
        super().__init__()
        self.chance = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.01 * self.chance.random())


class Annealed(Remembering):
    """Keeps a counter in an object that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Annealing()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale()


class Annealing:
    def __init__(self) -> None:
        self.called = 0

    def __call__(self) -> float:
        self.called += 1
        return 1 + 0.01 * self.called


class Metered(Annealed):
    """Calls it by a method that it is bound to."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Annealing().__call__  # type: ignore[assignment]


class MeanTeacher(Remembering):
    """Hides a module in a plain list, from the optimizer, and moves it by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = [copy.deepcopy(self.head).requires_grad_(False)]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for moved, param in zip(self.teacher[0].parameters(), self.head.parameters(), strict=True):
                moved.lerp_(param, 0.05)
        return super().forward(x) + self.teacher[0](self.recurrent(x)[0][:, -1])


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Settled(Remembering):
    """Holds what is called or hidden, of which training changes nothing but what is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.activation: Any = (functional.gelu, torch.tanh, lambda x: x, functools.partial(nn.LayerNorm, eps=1e-6))
        self.operator = torch.ops.aten.relu
        self.pure = torch.jit.script(swish), functools.lru_cache(lambda size: size), random.random
        self.frozen = [nn.Linear(2, 2).requires_grad_(False)]
        self.again = [self.head, self.head[1].weight, self.norm.running_mean, self.recurrent.forward]


class Environment:
    def __init__(self) -> None:
        self.acted = 0


def acting() -> Task:
    def loss(model: nn.Module, env: Any) -> Tensor:
        env.acted += 1
        out: Tensor = model(torch.full((1, 8), 0.01 * env.acted)).pow(2).mean()
        return out

    return Task.rollouts(lambda: nn.Linear(8, 2), lambda seed: Environment(), loss, {})


def ragged() -> Task:
    """Its batches are nested tensors."""
    task = separable()

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        return ((torch.nested.nested_tensor(list(x)), y) for x, y in task.train_batches(generator))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = batch[0].to_padded_tensor(0.0) if batch[0].is_nested else batch[0]
        return functional.cross_entropy(model(x), batch[1])

    return dataclasses.replace(task, train_batches=batches, loss=loss)


HIDING = (Drawing, Annealed, Metered, MeanTeacher)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("task", [*map(remembering, HIDING), acting(), ragged()])
def test_what_cannot_be_saved_whole_is_not_saved(task: Task, tmp_path: Path) -> None:
    request = asked(tmp_path, lr=0.01)
    told = trained(Trial.begin(task, request, CPU), 2)
    assert not os.listdir(tmp_path)
    assert trained(Trial.begin(task, request, CPU), 2) == told


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
def test_what_training_leaves_alone_does_not_keep_a_trial_from_being_saved(tmp_path: Path) -> None:
    request, task = asked(tmp_path, lr=0.01), remembering(Settled)
    told = trained(Trial.begin(task, request, CPU))
    (tmp_path / "trial.pt").unlink()
    trained(Trial.begin(task, request, CPU), 2)
    after = Trial.begin(task, request, CPU)
    assert after.step == 20
    assert trained(after) == told


def test_a_short_trial_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamtune.trial.WORTH", 100)
    trained(Trial.begin(separable(), asked(tmp_path), CPU))
    assert not os.listdir(tmp_path)


def test_a_full_disk_does_not_end_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    trial = Trial.begin(separable(), asked(tmp_path), CPU)
    trained(trial)
    assert trial.result().outcome is Outcome.COMPLETED
    assert not os.listdir(tmp_path)


def test_what_a_killed_process_was_about_to_save_is_dropped(tmp_path: Path) -> None:
    folder = tmp_path / rundir.CHECKPOINTS
    folder.mkdir()
    (folder / ".trial.pt.abcdefgh").write_bytes(b"half")
    (tmp_path / rundir.SPEC).write_text("x")
    with RunDir(tmp_path).claimed():
        assert not os.listdir(folder)


class Counting:
    """Counts the steps that are trained."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, steps: int) -> None:
        self.steps += steps

    def engine(self, path: Path) -> ResumableEngine:
        return ResumableEngine(SequentialEngine(separable(), CPU, self), FinishedTrials(path / rundir.FINISHED))


def requests() -> list[TrialRequest]:
    return [TrialRequest(Recipe(), seed, horizon=40) for seed in (0, 1)]


def test_trials_that_wait_at_a_rung_go_on_from_it(tmp_path: Path) -> None:
    batch = Counting().engine(tmp_path).open(requests())
    batch.advance(10)
    told = batch.advance(20)  # and there the process ends
    counting = Counting()
    again = counting.engine(tmp_path).open(requests())
    assert again.advance(10) is not None
    assert again.advance(20) == told
    assert counting.steps == 0
    again.prune(1)
    again.advance(40)
    assert counting.steps == 20
    one, other = again.results()
    assert (one.outcome, one.steps, other.outcome, other.steps) == (Outcome.COMPLETED, 40, Outcome.PRUNED, 20)
    assert not os.listdir(tmp_path / rundir.CHECKPOINTS)
    assert len(FinishedTrials(tmp_path / rundir.FINISHED)) == 2


def test_a_trial_that_is_pruned_before_it_was_saved_last_ends_there(tmp_path: Path) -> None:
    batch = Counting().engine(tmp_path).open(requests())
    for step in (10, 20, 30):
        batch.advance(step)
    again = Counting().engine(tmp_path).open(requests())
    again.advance(10)
    again.prune(0)
    again.advance(20)
    pruned, left = again.results()
    assert (pruned.outcome, pruned.steps, len(pruned.rungs)) == (Outcome.PRUNED, 10, 1)
    assert (left.outcome, left.steps, len(left.rungs)) == (Outcome.PRUNED, 20, 2)


def test_a_trial_that_was_saved_at_other_rungs_begins_again(tmp_path: Path) -> None:
    batch = Counting().engine(tmp_path).open(requests())
    batch.advance(10)
    batch.advance(20)
    counting = Counting()
    again = counting.engine(tmp_path).open(requests())
    again.advance(10)
    again.advance(15)
    assert counting.steps == 2 * 15
    assert [result.steps for result in again.results()] == [15, 15]


def stack(task: Task, requests: list[TrialRequest], steps: Counting) -> LocalBatch:
    return LocalBatch(task, requests, CPU, 8, False, steps, lambda note: pytest.fail(note))


def members(path: Path) -> list[TrialRequest]:
    recipes = [Recipe(lr=0.01), Recipe(optimizer="sgd", lr=0.1), Recipe(lr=0.03, switch=SWITCH), Recipe(lr=0.01)]
    return [
        TrialRequest(recipe, seed, horizon=40, probe=True, checkpoint=path / f"{seed}-{place}.pt")
        for place, recipe in enumerate(recipes)
        for seed in (0, 1)
    ]


SWITCH = Switch(to="sgd", at=0.5, lr=0.05, momentum=0.9)


@pytest.mark.parametrize("rungs", [1, 3])
@pytest.mark.parametrize("task", [separable(), normed()])
def test_a_stack_goes_on_to_the_bit(task: Task, rungs: int, tmp_path: Path) -> None:
    requests = members(tmp_path)
    unbroken = stack(task, [dataclasses.replace(request, checkpoint=None) for request in requests], Counting())
    told = [repr(unbroken.advance(step)) for step in RUNGS]
    before = stack(task, requests, Counting())
    for step in RUNGS[:rungs]:
        before.advance(step)
    steps = Counting()
    after = stack(task, requests, steps)
    assert [repr(after.advance(step)) for step in RUNGS] == told
    assert steps.steps == len(requests) * (40 - RUNGS[rungs - 1])
    assert [repr(without_time(result)) for result in after.results()] == [
        repr(without_time(result)) for result in unbroken.results()
    ]


def test_a_stack_that_was_saved_at_several_rungs_begins_again(tmp_path: Path) -> None:
    requests = members(tmp_path)
    stack(separable(), requests, Counting()).advance(10)
    ahead = stack(separable(), requests[:2], Counting())
    ahead.advance(10)
    ahead.advance(20)
    steps = Counting()
    stack(separable(), requests, steps).advance(10)
    assert steps.steps == len(requests) * 10


def test_a_trial_alone_does_not_go_on_from_a_stack(tmp_path: Path) -> None:
    requests = members(tmp_path)
    stack(separable(), requests, Counting()).advance(10)
    assert all(request.checkpoint is not None and request.checkpoint.exists() for request in requests)
    assert Trial.begin(separable(), requests[0], CPU).step == 0
