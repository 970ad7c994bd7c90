"""Training the same trials one by one and in stacks, and saying where the numbers part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor, maybe_get_bdim

from adamtune.engines import TrialBatch
from adamtune.engines.sequential import SequentialEngine
from adamtune.history import TrialRequest, TrialResult
from adamtune.population import Population
from adamtune.population.check import check
from adamtune.recipe import GroupRule, Match, Recipe
from adamtune.task import Task

CPU = torch.device("cpu")
X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NO_DECAY = GroupRule(name="no_decay", match=Match(kind=("bias", "norm")), weight_decay=0.0, betas=(0.8, 0.95), eps=1e-4)
HEAD = GroupRule(name="head", match=Match(kind=("head",)), lr_mult=3.0)


def batches(generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield X[torch.randint(64, (8,), generator=generator)]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x.sum(1, keepdim=True)).pow(2).mean()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))


def task(make_model: Callable[[], nn.Module] = mlp, loss: Callable[[nn.Module, Any], Tensor] = loss) -> Task:
    """A regression in float64."""
    return Task("toy", lambda: make_model().double(), batches, loss, lambda: [X[:20], X[20:]])


def doubled(task: Task) -> Task:
    """The same task in float64."""

    def double(batch: Any) -> Any:
        if isinstance(batch, Tensor):
            return batch.double() if batch.is_floating_point() else batch
        return tuple(double(item) for item in batch)

    return replace(
        task,
        make_model=lambda: task.make_model().double(),
        train_batches=lambda generator: map(double, task.train_batches(generator)),
        val_batches=lambda: map(double, task.val_batches()),
    )


def requests(
    seeds: Sequence[int] = (0, 1), lrs: Sequence[float] = (1e-3, 1e-2), horizon: int = 24, **knobs: Any
) -> list[TrialRequest]:
    return [TrialRequest(Recipe(lr=lr, **knobs), seed, horizon) for seed in seeds for lr in lrs]


def width_of(value: Tensor) -> int:
    """How many members are trained at once where this is computed; 1 outside of a stack."""
    if not is_batchedtensor(value):
        return 1
    return get_unwrapped(value).shape[maybe_get_bdim(value)]


def finish(batch: TrialBatch, rungs: Sequence[int] = (7, 24)) -> list[TrialResult]:
    for rung in rungs:
        batch.advance(rung)
    return batch.results()


def alone(task: Task, asked: Sequence[TrialRequest], rungs: Sequence[int] = (7, 24)) -> list[TrialResult]:
    """What every engine must give."""
    return finish(SequentialEngine(task, CPU).open(asked), rungs)


def stacked(
    task: Task, asked: Sequence[TrialRequest], rungs: Sequence[int] = (7, 24), width: int = 3
) -> list[TrialResult]:
    """In stacks; raises `NotVectorisable` where they are refused."""
    return finish(Population(task, asked, CPU, width, check(task, asked, CPU).noisy), rungs)


def shape(result: TrialResult) -> tuple[object, ...]:
    """All of a result but its measured numbers."""
    rungs = [(rung.step, len(rung.train_losses), [*rung.values], [*rung.probe]) for rung in result.rungs]
    return result.request, result.outcome, result.steps, result.message, rungs


def numbers(result: TrialResult) -> list[float]:
    """Losses and what the rungs measured."""
    return [value for rung in result.rungs for value in (*rung.train_losses, *rung.values.values())]


FICKLE = ("flips", "update_to_weight")
"""What a weight whose gradient is zero but for rounding (a key's bias in attention) turns into a matter of chance: the
sign of its update, and the update beside a weight that is the sum of such updates."""


def probed(result: TrialResult, fickle: bool | None = None) -> list[float]:
    """What the probe told, in order; or only what is fickle, or the rest."""
    return [
        value
        for rung in result.rungs
        for key, value in rung.probe.items()
        if fickle in (None, key.split("/")[1] in FICKLE)
    ]


def far(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference, as a share of the number where that is above one."""
    assert len(one) == len(other)
    most = 0.0
    for mine, others in zip(one, other, strict=True):
        if not (mine == others or (math.isnan(mine) and math.isnan(others))):
            gap = abs(mine - others) / max(1.0, abs(others))
            most = max(most, math.inf if math.isnan(gap) else gap)
    return most


def assert_same(found: Sequence[TrialResult], expected: Sequence[TrialResult], tolerance: float = 1e-9) -> None:
    """Every trial of `found` is the one of `expected`, its numbers within `tolerance`."""
    assert len(found) == len(expected)
    for at, (mine, others) in enumerate(zip(found, expected, strict=True)):
        assert shape(mine) == shape(others), f"trial {at}: {shape(mine)} is not {shape(others)}"
        gap = far(numbers(mine), numbers(others))
        assert gap <= tolerance, f"trial {at}: {gap:.2g} apart, {numbers(mine)} and {numbers(others)}"
        for fickle, most in ((False, max(tolerance, 1e-5)), (True, 0.1)):  # float32, whatever the model's type
            gap = far(probed(mine, fickle), probed(others, fickle))
            assert gap <= most, f"trial {at}: what the probe told is {gap:.2g} apart"
