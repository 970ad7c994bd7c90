"""Whether one seed gives the same numbers twice, and another seed others; and if not, where they part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adamtune.doctor.lines import Line, Status
from adamtune.doctor.start import Start
from adamtune.groups import trainable
from adamtune.history import TrialRequest, TrialResult
from adamtune.randomness import seeded
from adamtune.task import Batch, Task
from adamtune.task_calls import faults_told, next_batch
from adamtune.trial import Trial

_SEED = 0
_STEPS = 3
"""Trained of each trial that is compared."""
_ROUNDING = 1e-3
"""Share of a loss by which runs may part on a GPU, where sums are taken in any order."""


def repeats(task: Task, request: TrialRequest, device: torch.device) -> Line:
    """Train a few steps twice by one seed and once by another, and compare."""
    request = replace(request, horizon=_STEPS)
    one, two = Start(task, request.seed), Start(task, request.seed)
    for (name, weight), (_, again) in zip(trainable(one.model), trainable(two.model), strict=False):
        if not _same(weight.detach(), again.detach()):
            return _parted(
                f"by the same seed, make_model gave '{name}' other values the second time",
                "let make_model draw from torch's, NumPy's or Python's global random numbers, which are seeded for it",
            )
    if not _same(one.batch, two.batch):
        return _parted(
            "by the same seed, the first training batch was another the second time",
            "let train_batches begin anew at each call, all its chance (order, augmentation) from the generator given",
        )
    first, second = (_trained(task, request, device) for _ in range(2))
    mine, theirs = first.train_losses, second.train_losses
    if not _same(mine, theirs):
        step, apart = next((i, _apart(a, b)) for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
        found = f"by the same seed, the loss of step {step + 1} was {mine[step]:.6g}, then {theirs[step]:.6g}"
        if device.type != "cpu" and apart < _ROUNDING:
            remedy = "nothing need be done; torch.use_deterministic_algorithms(True) in the task's file makes it exact"
            return Line("seeds", Status.WARNING, found, remedy)
        remedy = "let loss and model keep nothing from call to call, and draw from torch's global random numbers only"
        return _parted(found, remedy)
    for name, value in first.rungs[-1].values.items() if first.rungs else ():
        other_value = second.rungs[-1].values[name]
        if not _same(value, other_value) and (device.type == "cpu" or _apart(value, other_value) >= _ROUNDING):
            return _parted(
                f"by the same seed, {name} on the validation data was {value:.6g}, then {other_value:.6g}",
                "let val_batches give the same batches at each call, and let metrics keep nothing from call to call",
            )
    other = _trained(task, replace(request, seed=request.seed + 1), device)
    if other.train_losses == mine:
        remedy = "let make_model draw new random weights at each call, or train_batches shuffle by the generator given"
        return Line("seeds", Status.WARNING, "another seed trains just the same, so seeds cannot tell noise", remedy)
    found = f"the same numbers twice over {_STEPS} steps, others by another seed"
    weights = [dict(trainable(Start(task, seed).model)) for seed in (request.seed, request.seed + 1)]
    if _same(*({name: weight.detach() for name, weight in of_seed.items()} for of_seed in weights)):
        remedy = "right for pretrained weights; else take manual_seed out of make_model, or figures miss chance in them"
        return Line("seeds", Status.NOTE, f"{found}, but all seeds begin with the same weights", remedy)
    return Line("seeds", Status.OK, found)


def remade(task: Task, other: Task) -> Line:
    """Whether the task, made a second time as by each worker and resumed sweep, has the same first batches."""
    for kind, batch, again in zip(("validation", "training"), _first(task), _first(other), strict=True):
        if not _same(batch, again):
            return Line(
                "data",
                Status.PROBLEM,
                f"the task was made twice, and its first {kind} batch was another the second time, so workers and "
                "resumed sweeps would be judged on different data",
                "seed what makes or splits the data: a generator of its own, seeded by time or by nothing, is out of "
                "reach of the seed that all tasks are made by",
            )
    return Line("data", Status.OK, "the same batches when the task is made a second time")


def _first(task: Task) -> tuple[Batch, Batch]:
    """The first validation batch and a training batch."""
    with seeded(_SEED), faults_told(task, "while its batches were compared"):
        validation = next(iter(task.val_batches()), None)
    with seeded(_SEED), faults_told(task, "while its batches were compared"):
        return validation, next_batch(task, iter(task.train_batches(torch.Generator().manual_seed(_SEED))), 0, 1)


def _trained(task: Task, request: TrialRequest, device: torch.device) -> TrialResult:
    trial = Trial(task, request, device)
    trial.advance(request.horizon)
    return trial.result()


def _parted(found: str, remedy: str) -> Line:
    return Line("seeds", Status.PROBLEM, found, remedy)


def _apart(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), abs(other), 1e-12)


def _same(one: Any, other: Any) -> bool:
    """Whether both hold the same numbers, NaN where the other has it; what is no number counts as the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.is_nested and other.is_nested:
            return _same(one.unbind(), other.unbind())
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, int | float | str) and isinstance(other, int | float | str):
        return one == other or (one != one and other != other)
    return True
