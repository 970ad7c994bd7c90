"""The Task: a model, its data, its loss and how it is judged; and finding one from a reference."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from adamtune.errors import AdamtuneError, InputError, TaskError, TaskReferenceError
from adamtune.randomness import seeded
from adamtune.supervised_calls import called, own_loss, split_batch
from adamtune.supervised_data import check_data, endless, one_pass
from adamtune.yaml_text import nearest

_STDLIB = Path(sysconfig.get_paths()["stdlib"])

Batch = Any
"""A tensor, or tuples, lists and dicts of them; other values in it are passed on as they are."""


@dataclass(frozen=True)
class Task:
    """What is trained and how it is judged. All callables must be repeatable: same seed, same outcome.

    Models and batches are made on the CPU; whoever trains moves them to the device.
    """

    name: str
    make_model: Callable[[], nn.Module]
    """Called under a seeded RNG; must return a new model at each call."""
    train_batches: Callable[[torch.Generator], Iterator[Batch]]
    """Endless; the same generator seed gives the same batches."""
    loss: Callable[[nn.Module, Batch], Tensor]
    """Scalar mean loss of a batch; calls the model."""
    val_batches: Callable[[], Iterable[Batch]]
    """Finite; a batch weighs as the length of its first tensor."""
    metrics: Mapping[str, Callable[[nn.Module, Batch], Tensor]] = field(default_factory=dict)
    """Name -> mean over the batch, e.g. accuracy; measured on the validation batches, beside the `loss`."""
    groups: Callable[[nn.Module], Mapping[str, Sequence[str]]] | None = None
    """Parameter names of the model, or patterns such as `encoder.*`, by group. Each becomes a rule of the base recipe,
    behind those it has (so that biases and norms stay without decay), for the stage `groups` to ask about and
    `lr-find --group` to find the lr of."""

    def __post_init__(self) -> None:
        """Raises `TaskError` where a function is asked for and something else is given: a model, a list of batches.

        `InputError` where a metric has the name that the validation loss goes by.
        """
        for name in ("make_model", "train_batches", "loss", "val_batches"):
            value = getattr(self, name)
            if not callable(value) or (name == "make_model" and isinstance(value, nn.Module)):
                kind = type(value).__name__
                mend = f"{name}=lambda: ..." if name in ("make_model", "val_batches") else "see adamtune.Task"
                raise TaskError(f"task '{self.name}': {name} is a {kind}; give a function that makes it ({mend})")
        if "loss" in self.metrics:
            raise InputError(
                f"task '{self.name}': a metric called 'loss' would hide the validation loss; give it another name"
            )

    @staticmethod
    def supervised(
        make_model: Callable[[], nn.Module],
        train_data: Dataset[Any] | DataLoader[Any] | Sequence[Tensor],
        val_data: Dataset[Any] | DataLoader[Any] | Sequence[Tensor],
        loss_fn: Callable[..., Tensor] | None = None,
        batch_size: int | None = 32,
        *,
        name: str = "supervised",
        metrics: Mapping[str, Callable[..., Tensor]] | None = None,
        target: str = "labels",
        groups: Callable[[nn.Module], Mapping[str, Sequence[str]]] | None = None,
    ) -> Task:
        """A task from what a training script already has.

        Data are Datasets, DataLoaders (which keep their own batch size) or tensors such as `(x, y)`; of a Dataset whose
        items are whole batches, `batch_size` is None. A batch is one of

        - a sequence whose last entry is the target: the loss is `loss_fn(model(*inputs), target)`
        - a dict, whose entry of the name `target` is the target: the loss is `loss_fn(model(**others), target)`
        - a single tensor, without a target: it is for a model that returns its own loss

        Without a `loss_fn` the model is given all of the batch and returns its own loss, as those of transformers do:
        as a scalar, as `.loss` or `["loss"]` of its output, or as the first entry of a tuple. Metrics are called as
        `metric(output, target)`.

        Training data are shuffled anew each epoch from the trial's seed; a DataLoader with a sampler of its own keeps
        it.
        """

        for place, data in (("train_data", train_data), ("val_data", val_data)):
            check_data(place, data, batch_size)

        def of_output(function: Callable[..., Tensor]) -> Callable[[nn.Module, Batch], Tensor]:
            def measure(model: nn.Module, batch: Batch) -> Tensor:
                inputs, goal = split_batch(batch, target)
                return function(called(model, batch if loss_fn is None else inputs), goal)

            return measure

        return Task(
            name=name,
            make_model=make_model,
            train_batches=lambda generator: endless(train_data, batch_size, generator),
            loss=own_loss if loss_fn is None else of_output(loss_fn),
            val_batches=lambda: one_pass(val_data, batch_size),
            metrics={key: of_output(metric) for key, metric in (metrics or {}).items()},
            groups=groups,
        )

    @staticmethod
    def rollouts(
        make_model: Callable[[], nn.Module],
        make_envs: Callable[[int], Any],
        loss: Callable[[nn.Module, Any], Tensor],
        metrics: Mapping[str, Callable[[nn.Module, Any], Tensor]],
        *,
        name: str = "rollouts",
    ) -> Task:
        """A task whose data come from acting: the batch is the environments, and `loss` rolls the model out in them.

        `make_envs(seed)` makes environments, all their chance from `seed`. Each trial has its own, from its own seed,
        and they go on from step to step: `loss(model, envs)` acts in them for as long as it likes and returns the loss
        of what it saw. What it draws from torch's global random stream is seeded for it.

        Each evaluation makes new ones, always of the same seed, for the loss and for every metric (`return`, say, with
        `objective: {name: return, direction: maximize}` in the spec); all trials are judged on the same episodes.
        """

        def train_batches(generator: torch.Generator) -> Iterator[Any]:
            envs = make_envs(int(torch.randint(2**31, (), generator=generator)))
            while True:
                yield envs

        def anew(measure: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
            return lambda model, seed: measure(model, make_envs(seed))

        return Task(
            name=name,
            make_model=make_model,
            train_batches=train_batches,
            loss=lambda model, batch: loss(model, make_envs(batch) if isinstance(batch, int) else batch),
            val_batches=lambda: [_EVALUATION_SEED],
            metrics={key: anew(metric) for key, metric in metrics.items()},
        )


_EVALUATION_SEED = 2**31
"""Of the environments that judge; no trial draws it for its own."""


def batch_to(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on `device`; named tuples, dicts and objects with `.to` keep their type."""
    if isinstance(batch, Tensor):
        return _differentiable_as(batch, batch.to(device, non_blocking=True))
    if hasattr(batch, "to"):  # a PackedSequence is a tuple too, and a BatchEncoding a mapping
        return batch.to(device)
    moved = _of_items(batch, lambda item: batch_to(item, device))
    return batch if moved is None else moved


def own_batch(batch: Batch, own_object: Callable[[Any], Any] = lambda item: item) -> Batch:
    """The same batch with tensors and containers of its own, to be changed at will; and `own_object` of the rest."""
    if isinstance(batch, Tensor):
        return _differentiable_as(batch, batch.clone())
    own = _of_items(batch, lambda item: own_batch(item, own_object))
    return own_object(batch) if own is None else own


def _differentiable_as(given: Tensor, copied: Tensor) -> Tensor:
    """The copy of a tensor, which requires a gradient where that does, also when copied under `no_grad`."""
    return copied.requires_grad_() if given.requires_grad and not copied.requires_grad else copied


def _of_items(batch: Batch, change: Callable[[Batch], Batch]) -> Batch | None:
    """A container of the same type, with `change` of each item; None where it is none, or one that refuses a copy."""
    if isinstance(batch, tuple):
        items = [change(item) for item in batch]
        with suppress(Exception):  # a type of the task's own may raise anything
            return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    elif isinstance(batch, list | dict | UserDict):
        places = enumerate(batch) if isinstance(batch, list) else batch.items()
        changed = [(place, change(item)) for place, item in places]
        with suppress(Exception):
            own = copy.copy(batch)  # keeps the type: an OrderedDict, a defaultdict, a BatchEncoding
            for place, item in changed:
                own[place] = item
            return own
    return None


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a dense tensor as they lie in memory; raises where there are none, as of nested ones."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def batch_rows(batch: Batch) -> int:
    """How many examples a batch holds: the length of its first tensor (1 where that is a scalar or there is none)."""
    if isinstance(batch, Tensor):
        return batch.size(0) if batch.ndim else 1  # a nested tensor has no len
    items: Iterable[Any] = ()
    if isinstance(batch, Mapping):
        items = batch.values()
    elif isinstance(batch, tuple | list):
        items = batch
    return next((batch_rows(item) for item in items if has_tensor(item)), 1)


def has_tensor(item: Any) -> bool:
    """Whether a batch, or a part of one, holds a tensor."""
    if isinstance(item, Mapping):
        return any(has_tensor(inner) for inner in item.values())
    return isinstance(item, Tensor) or (isinstance(item, tuple | list) and any(has_tensor(inner) for inner in item))


@dataclass(frozen=True)
class TaskReference:
    """Where a task comes from: `package.module:function` or `path/file.py:function`."""

    place: str
    function: str

    def __str__(self) -> str:
        """As a spec spells it."""
        return f"{self.place}:{self.function}"

    @classmethod
    def parse(cls, text: str, folders: Sequence[Path] = ()) -> TaskReference:
        """Read a reference; a relative file is looked for in `folders`, then in the working directory.

        Raises `TaskReferenceError` when it is no reference or the file is not there. Imports nothing.
        """
        place, colon, function = text.rpartition(":")
        if not colon or not place or not function.isidentifier():
            such = f"; the function is missing, as in {text}:task" if text.endswith(".py") else ""
            raise TaskReferenceError(
                f"'{text}' is no task reference; write package.module:function or path/to/file.py:function{such}"
            )
        if not place.endswith(".py"):
            if all(part.isidentifier() for part in place.split(".")):
                return cls(place, function)
            raise TaskReferenceError(f"'{place}' in '{text}' is neither a module name nor a path ending in .py")
        tried = [folder / place for folder in (*folders, Path.cwd())]
        for path in tried:
            try:
                found = path.is_file()
            except (OSError, ValueError):  # too long a name, or a NUL in it
                found = False
            if found:
                return cls(str(path.resolve()), function)
        raise TaskReferenceError(f"no file {' or '.join(dict.fromkeys(map(str, tried)))} for the task '{text}'")


_LOADING_SEED = 0


def load_task(reference: TaskReference | str, args: Mapping[str, Any] | None = None) -> Task:
    """Import the function a reference names, call it with `args`, and return its Task.

    Both are done under one fixed seed of torch, NumPy and Python, and leave the caller's random streams alone: what is
    made or split without a seed is the same in every process, repeat and resumed sweep.

    Raises `TaskReferenceError` when it does not import, has no such function, does not take `args` or returns something
    else, and `TaskError` when the function itself raises.
    """
    if isinstance(reference, str):
        reference = TaskReference.parse(reference)
    args = dict(args or {})
    with seeded(_LOADING_SEED):
        make = _function(reference)
    try:
        inspect.signature(make).bind(**args)
    except ValueError:
        what = f"{reference} is no function that adamtune can call: it has no signature"
        raise TaskReferenceError(f"{what}; name a Python function that returns a Task") from None
    except TypeError as problem:
        takes = ", ".join(inspect.signature(make).parameters) or "none"
        raise TaskReferenceError(f"{reference} does not take these task args: {problem}; it takes: {takes}") from None
    try:
        with seeded(_LOADING_SEED):  # anew: what importing drew depends on what had been imported
            task = make(**args)
    except AdamtuneError:
        raise
    except (Exception, SystemExit) as problem:
        raise TaskError(f"{reference} raised {describe_exception(problem)} while making the task") from problem
    if not isinstance(task, Task):
        got = "nothing (has it no `return`?)" if task is None else f"a {type(task).__name__}"
        raise TaskReferenceError(f"{reference} returned {got}; it must return an adamtune.Task")
    return task


def _function(reference: TaskReference) -> Callable[..., Any]:
    try:
        module = _import(reference.place)
    except (Exception, SystemExit) as problem:  # a script that reads its command line exits
        missing = isinstance(problem, ModuleNotFoundError) and reference.place.startswith(problem.name or "\0")
        what = f"there is no module '{problem.name}'" if missing else describe_exception(problem)  # type: ignore[union-attr]
        raise TaskReferenceError(f"the task {reference} does not import: {what}{_here(problem)}") from problem
    function = getattr(module, reference.function, None)
    if isinstance(function, Task):
        name = reference.function
        raise TaskReferenceError(
            f"{reference} is a Task; it must be a function that returns one, such as def make_{name}(): return {name}"
        )
    if not callable(function):
        public = {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}
        own = [name for name, value in public.items() if getattr(value, "__module__", "") == module.__name__]
        known = own or [name for name, value in public.items() if not isinstance(value, type)]
        hint = nearest(reference.function, known) if known else "it has no functions at all"
        raise TaskReferenceError(f"{reference.place} has no function '{reference.function}'; {hint}")
    return function  # type: ignore[no-any-return]


def _here(problem: BaseException) -> str:
    """What to do where a task file asks for a module that lies in the working directory, but not beside the file."""
    name = (problem.name or "") if isinstance(problem, ModuleNotFoundError) else ""
    if not name or "." in name or not (Path(f"{name}.py").is_file() or Path(name).is_dir()):
        return ""
    return f"; a task file finds what lies beside it: set PYTHONPATH=. to let it find the '{name}' that lies here"


def _import(place: str) -> ModuleType:
    # As `python script.py` does: a task file may import its neighbours, a module may lie in the working directory.
    folder = str(Path(place).parent) if place.endswith(".py") else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if not place.endswith(".py"):
        return importlib.import_module(place)
    name = f"adamtune_task_{Path(place).stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None  # a .py file always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up by name
    spec.loader.exec_module(module)
    return module


def describe_exception(problem: BaseException) -> str:
    """`ValueError: text (file.py, line 12)`, the place being the innermost one outside torch and adamtune."""
    place = ""
    frame = problem.__traceback__
    while frame is not None:
        path = Path(frame.tb_frame.f_code.co_filename)
        own_library = path.is_relative_to(Path(__file__).parent) and path.parent.name != "tasks"
        library = own_library or "site-packages" in path.parts or path.is_relative_to(_STDLIB)
        if not library and path.suffix == ".py" and path.is_file():
            place = f" ({path.name}, line {frame.tb_lineno})"
        frame = frame.tb_next
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}{': ' + text if text else ''}{place}"
