from __future__ import annotations

import copy
import errno
import gc
import itertools
import math
import os
import random
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Twin, schedule_multiplier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adamtune.engines import Engine, make_engine
from adamtune.engines.sequential import SequentialEngine
from adamtune.errors import TaskError
from adamtune.recipe import GroupRule, Match, Recipe, Schedule, Switch, WarmupSteps
from adamtune.task import Task
from adamtune.trial import Outcome, Ramp, RungReport, Trial, TrialRequest, TrialResult

CPU = torch.device("cpu")
FLAT = Schedule(kind="constant", warmup=0.0)
X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x.sum(1, keepdim=True)).pow(2).mean()


def batches(generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield X[torch.randint(64, (8,), generator=generator)]


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))


def gentle_loss(model: nn.Module, x: Tensor) -> Tensor:
    """Small enough for fp16 to train on from the first step: GradScaler begins by scaling it with 65,536."""
    return loss(model, x) / 50


TASK = Task("small", small, batches, loss, lambda: [X])
GENTLE = replace(TASK, loss=gentle_loss)


def start(task: Task = TASK, recipe: Recipe | None = None, horizon: int = 40, **options: Any) -> Trial:
    recipe = recipe or Recipe(lr=1e-2)
    return Trial(task, TrialRequest(recipe, **{"seed": 0, "horizon": horizon} | options), CPU)


def train(task: Task = TASK, recipe: Recipe | None = None, horizon: int = 40, **options: Any) -> TrialResult:
    """To the horizon in one go."""
    trial = start(task, recipe, horizon, **options)
    trial.advance(horizon)
    return trial.result()


def spied(task: Task) -> tuple[Task, list[nn.Module]]:
    """The task, and the models it will have made."""
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(task.make_model())
        return made[-1]

    return replace(task, make_model=make), made


def gap(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of any parameter."""
    return max(
        float((a - b).abs().max().detach()) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )  # fmt: skip


# --- chance: the same request gives the same numbers, and nobody else's random state is touched


def noisy_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
    with torch.no_grad():
        model[0].weight.mul_(1 + random.random()).add_(float(np.random.rand()))
    return model


def noisy_batches(generator: torch.Generator) -> Iterator[Tensor]:
    for x in batches(generator):
        yield x * (1 + 0.1 * random.random()) + 0.1 * float(np.random.randn()) + 0.1 * torch.randn(x.shape)


def noisy_validation() -> list[Tensor]:
    torch.rand(7)
    return [X[:10], X[10:]]


NOISY = Task("noisy", noisy_model, noisy_batches, loss, noisy_validation, {"half": lambda model, x: loss(model, x) / 2})
HORIZON = 24


def numbers(rungs: Sequence[int] = (HORIZON,), seed: int = 0) -> tuple[object, ...]:
    """All that training gave: losses, values at the horizon, weights and buffers."""
    task, made = spied(NOISY)
    trial = start(task, horizon=HORIZON, seed=seed)
    for rung in rungs:
        trial.advance(rung)
    return _numbers(trial, made[0])


def _numbers(trial: Trial, model: nn.Module) -> tuple[object, ...]:
    result = trial.result()
    state = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    return result.train_losses, result.rungs[-1].values, state, result.outcome, result.steps


def test_the_same_request_twice_is_identical_bit_for_bit() -> None:
    assert numbers() == numbers()


def test_another_seed_has_other_weights_batches_and_noise() -> None:
    mine, others = numbers(seed=0), numbers(seed=1)
    assert not set(mine[0]) & set(others[0])


def test_trials_of_one_seed_see_the_same_chance_whatever_their_recipe() -> None:
    seen: list[list[float]] = []

    def recorded(model: nn.Module, x: Tensor) -> Tensor:
        dropped = nn.functional.dropout(torch.ones(8))
        if torch.is_grad_enabled():
            seen[-1] += [*x.flatten().tolist(), *dropped.tolist()]
        return loss(model, x)

    for recipe in (Recipe(lr=1e-2), Recipe(lr=3e-3, optimizer="sgd", clip_norm=0.1)):
        seen.append([])
        train(replace(NOISY, loss=recorded), recipe, horizon=5)
    assert seen[0] == seen[1]


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(1, HORIZON), max_size=8))
def test_evaluating_at_more_rungs_does_not_change_training(rungs: set[int]) -> None:
    assert numbers([*sorted(rungs), HORIZON]) == numbers()


def test_trials_that_take_turns_train_as_they_would_alone() -> None:
    task, made = spied(NOISY)
    trials = [start(task, horizon=HORIZON, seed=seed) for seed in (0, 1, 0)]
    for rung in (1, 2, 7, 20, HORIZON):
        random.random(), torch.rand(1), np.random.rand()  # and so does whoever compares them
        for trial in trials:
            trial.advance(rung, evaluate=trial is not trials[1] or rung == HORIZON)
    first, second, third = (_numbers(trial, model) for trial, model in zip(trials, made, strict=True))
    assert first == third == numbers(seed=0)
    assert second == numbers(seed=1)


def global_chance() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def draw(*error: BaseException) -> None:
    random.random(), np.random.rand(), torch.rand(1)
    if error:
        raise error[0]


def drawing(at: str, *error: BaseException) -> Task:
    """NOISY, drawing from every global generator in the part `at`, and raising there."""

    def wrapped(part: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (draw(*error), part(*args))[1]

    return replace(NOISY, **{at: wrapped(getattr(NOISY, at))})


PARTS = ["make_model", "train_batches", "loss", "val_batches"]


@pytest.mark.parametrize("part", PARTS)
def test_the_callers_random_state_is_left_alone(part: str) -> None:
    before = global_chance()
    train(drawing(part), horizon=3)
    assert global_chance() == before


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("part", PARTS)
def test_the_callers_random_state_is_left_alone_after_an_exception(part: str, error: BaseException) -> None:
    before = global_chance()
    with pytest.raises(TaskError if isinstance(error, Exception) else KeyboardInterrupt):
        train(drawing(part, error), horizon=3)
    assert global_chance() == before


# --- the arithmetic: accumulation, clipping, schedule, ramp, against float64 by hand

KINDS = {
    "0.weight": "rest", "0.bias": "bias", "2.weight": "norm", "2.bias": "norm", "3.weight": "head", "3.bias": "bias",
}  # fmt: skip


def exact_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 1)).double()


def exact_batches(size: int = 8) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(6)
    while True:
        yield torch.cat([torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(size // 4)])


EXACT = Task("exact", exact_model, lambda generator: exact_batches(), loss, lambda: [X.double()])
NO_DECAY = GroupRule(name="no_decay", match=Match(kind=("bias", "norm")), weight_decay=0.0)
HEAD = GroupRule(name="head", match=Match(params=("3.*",)), lr_mult=3.0)
RECIPES = {
    "plain": Recipe(lr=1e-2, weight_decay=0.1, groups=(NO_DECAY,)),
    "accumulated": Recipe(lr=1e-2, accumulate=3),
    "clipped": Recipe(lr=1e-2, clip_norm=0.2, betas=(0.5, 0.9)),
    "both": Recipe(optimizer="sgd", lr=0.1, accumulate=2, clip_norm=0.5, groups=(HEAD,)),
    "step decay": Recipe(optimizer="adam", lr=1e-2, schedule=Schedule(kind="step", warmup=WarmupSteps(steps=9))),
    "switch": Recipe(lr=1e-2, accumulate=2, clip_norm=0.5, groups=(HEAD,), switch=Switch(at=0.3, lr=0.05)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_trial_trains_like_its_twin_for_200_steps(name: str) -> None:
    recipe, steps = RECIPES[name], 200
    task, made = spied(EXACT)
    result = train(task, recipe, steps)
    model, data, losses = exact_model(), exact_batches(), []
    twin = Twin(recipe, model, KINDS, steps)
    for _ in range(steps):
        micro = [loss(model, next(data)) for _ in range(recipe.accumulate)]
        losses.append(float(sum(micro).detach()) / len(micro))
        twin.step(micro)
    assert gap(made[0], model) < 1e-10
    assert gap(made[0], exact_model()) > 0.1  # it did train
    assert result.train_losses == pytest.approx(losses, abs=1e-10)
    assert result.final() == pytest.approx(float(loss(model, X.double()).detach()), abs=1e-10)


def test_accumulating_two_batches_is_training_on_one_twice_as_large() -> None:
    (split, halves), (whole, wholes) = spied(EXACT), spied(replace(EXACT, train_batches=lambda _: exact_batches(16)))
    recipe = Recipe(lr=1e-2, clip_norm=0.5)
    in_two, in_one = train(split, recipe.with_knob("accumulate", 2), 50), train(whole, recipe, 50)
    assert gap(halves[0], wholes[0]) < 1e-10
    assert in_two.train_losses == pytest.approx(in_one.train_losses, abs=1e-10)
    assert in_two.steps == in_one.steps == 50


class Slope(nn.Module):
    """Gradients of one: under plain SGD each update is the learning rate itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))

    def height(self) -> tuple[float, float]:
        return self.body.item(), self.head.item()


def applied_lrs(recipe: Recipe, horizon: int, **options: Any) -> list[tuple[float, float]]:
    """The learning rates of body and head, update by update."""
    heights: list[tuple[float, float]] = []

    def recorded(model: Slope, x: Tensor) -> Tensor:
        heights.append(model.height())
        return model.body.sum() + model.head.sum()

    recipe = recipe.model_copy(update={"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0})
    train(Task("slope", Slope, batches, recorded, lambda: [X]), recipe, horizon, **options)
    return [(a - b, c - d) for (a, c), (b, d) in itertools.pairwise(heights)]


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(),
        Schedule(kind="linear", warmup=WarmupSteps(steps=7), floor=0.2),
        Schedule(kind="step", warmup=0.2, gamma=0.3),
        FLAT,
    ],
    ids=lambda schedule: schedule.kind,
)
def test_every_update_runs_at_the_recipes_multiplier_of_lr(schedule: Schedule) -> None:
    head = GroupRule(name="head", match=Match(params=("head",)), lr_mult=0.25)
    applied = applied_lrs(Recipe(lr=0.5, schedule=schedule, groups=(head,)), 40)
    expected = [0.5 * schedule_multiplier(schedule, step, 40) for step in range(40)]
    assert [body for body, _ in applied] == pytest.approx(expected, abs=1e-12)
    assert [head for _, head in applied] == pytest.approx([lr / 4 for lr in expected], abs=1e-12)


def test_a_ramp_is_exponential_from_start_to_end() -> None:
    ramp = Ramp(start=1e-5, end=1e-1, steps=5)
    assert [ramp.lr_at(step) for step in range(5)] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert Ramp(1e-4, 1e-1, 1).lr_at(0) == pytest.approx(1e-4)


def test_a_ramp_replaces_lr_and_schedule_and_every_group_keeps_its_ratio() -> None:
    head = GroupRule(name="head", match=Match(params=("head",)), lr_mult=3.0)
    ramp = Ramp(start=1e-6, end=1.0, steps=30)
    applied = applied_lrs(Recipe(lr=7e-3, groups=(head,)), 30, ramp=ramp)
    assert [body for body, _ in applied] == pytest.approx([ramp.lr_at(step) for step in range(30)], rel=1e-9)
    assert [head / body for body, head in applied] == pytest.approx([3.0] * 30, rel=1e-9)


def test_a_ramp_replaces_the_switch_too() -> None:
    recipe, ramp = RECIPES["switch"], Ramp(start=1e-4, end=1e-2, steps=30)
    never = recipe.with_knob("switch", None)
    assert train(EXACT, recipe, 30, ramp=ramp).train_losses == train(EXACT, never, 30, ramp=ramp).train_losses
    assert train(EXACT, recipe, 30).train_losses[:10] == train(EXACT, never, 30).train_losses[:10]
    assert train(EXACT, recipe, 30).train_losses[10:] != train(EXACT, never, 30).train_losses[10:]


# --- precision


def spied_dtypes(precision: str) -> tuple[set[torch.dtype], TrialResult, nn.Module]:
    """Of the model's outputs in training and evaluation; the result; the trained model."""
    seen = set()

    def recorded(model: nn.Module, x: Tensor) -> Tensor:
        output = model(x)
        seen.add(output.dtype)
        return (output.float() - x.sum(1, keepdim=True)).pow(2).mean() / 50

    task, made = spied(replace(TASK, loss=recorded))
    return seen, train(task, Recipe(lr=1e-2, precision=precision, schedule=FLAT), 150), made[0]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_every_precision_trains_with_its_outputs_rounded_and_its_weights_in_fp32(
    precision: str, dtype: torch.dtype
) -> None:
    seen, result, model = spied_dtypes(precision)
    assert seen == {dtype}
    assert {param.dtype for param in model.parameters()} == {torch.float32}
    assert result.outcome is Outcome.COMPLETED
    assert result.final() < 0.1 * result.train_losses[0]


@pytest.mark.parametrize("clip", [None, 0.03])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_fp16_trains_as_fp32_does_also_when_its_gradients_are_clipped(clip: float | None, accumulate: int) -> None:
    # With SGD, whose steps are as long as the gradients: to clip scaled gradients would leave next to nothing of them.
    recipe = Recipe(optimizer="sgd", lr=0.6, schedule=FLAT, clip_norm=clip, accumulate=accumulate)
    task, made = spied(GENTLE)
    exact, rounded = (train(task, recipe.with_knob("precision", precision), 50) for precision in ("fp32", "fp16"))
    assert exact.final() < 0.5 * exact.train_losses[0]
    assert rounded.train_losses == pytest.approx(exact.train_losses, rel=0.1)
    assert rounded.final() == pytest.approx(exact.final(), rel=0.02)
    assert gap(*made) < 0.03


def overflowing(every: int) -> tuple[Task, list[list[float]]]:
    """A task whose loss is infinite in every so many training steps; and the weights each step begins with."""
    weights: list[list[float]] = []

    def recorded(model: nn.Module, x: Tensor) -> Tensor:
        weights.extend([model[0].bias.tolist()] * torch.is_grad_enabled())
        overflows = torch.is_grad_enabled() and len(weights) % every == 0
        return gentle_loss(model, x) * (math.inf if overflows else 1.0)

    return replace(TASK, loss=recorded), weights


def test_a_step_fp16_skips_is_nan_in_the_losses_leaves_the_weights_and_is_no_divergence() -> None:
    task, weights = overflowing(5)
    result = train(task, Recipe(lr=1e-2, precision="fp16", schedule=FLAT), 43)
    assert (result.outcome, result.steps) == (Outcome.COMPLETED, 43)
    skipped = [at for at, value in enumerate(result.train_losses) if math.isnan(value)]
    assert skipped == list(range(4, 43, 5))
    unmoved = [at for at, (before, after) in enumerate(itertools.pairwise(weights)) if before == after]
    assert unmoved == [at for at in skipped if at < 42]


@pytest.mark.parametrize("skips", [False, True])
def test_a_switch_comes_after_so_many_updates_whatever_fp16_skips(skips: bool) -> None:
    task, weights = overflowing(5 if skips else 10**9)
    switched = Recipe(lr=1e-2, precision="fp16", schedule=FLAT, switch=Switch(at=0.25, lr=1e-30))
    assert train(task, switched, 40).outcome is Outcome.COMPLETED
    moved = [at for at, (before, after) in enumerate(itertools.pairwise(weights)) if before != after]
    assert len(moved) == 10  # Adam's; SGD moves nothing here
    assert moved[-1] == (11 if skips else 9)


def test_the_same_infinite_loss_in_fp32_is_a_divergence() -> None:
    result = train(overflowing(5)[0], horizon=43)
    assert (result.outcome, len(result.train_losses)) == (Outcome.DIVERGED, 5)


# --- how trials end


def test_a_trial_that_reaches_its_horizon_has_completed() -> None:
    trial = start(horizon=10)
    half = trial.advance(5)
    assert (half.step, len(half.train_losses), trial.outcome) == (5, 5, None)
    assert math.isnan(trial.result().final())
    whole = trial.advance(10)
    result = trial.result()
    assert (result.outcome, result.steps, result.message) == (Outcome.COMPLETED, 10, "")
    assert result.rungs == (half, whole)
    assert result.train_losses == [*half.train_losses, *whole.train_losses]
    assert result.final() == whole.values["loss"]
    assert math.isnan(result.final("no such metric"))
    assert result.seconds > 0
    assert trial.advance(20) is None


def test_a_rung_need_not_be_evaluated() -> None:
    def refuse() -> list[Tensor]:
        raise AssertionError("evaluated")

    trial = start(replace(TASK, val_batches=refuse), horizon=6)
    report = trial.advance(6, evaluate=False)
    assert report == RungReport(6, tuple(trial.result().train_losses), {})
    assert math.isnan(trial.result().final())


def test_a_pruned_trial_keeps_what_it_measured_and_trains_no_further() -> None:
    trial = start()
    report = trial.advance(7)
    trial.prune()
    assert trial.advance(14) is None
    result = trial.result()
    assert (result.outcome, result.steps, result.rungs) == (Outcome.PRUNED, 7, (report,))
    assert math.isnan(result.final())


def test_pruning_a_trial_that_has_ended_changes_nothing() -> None:
    trial = start(horizon=3)
    trial.advance(3)
    trial.prune()
    assert trial.result().outcome is Outcome.COMPLETED


def bad_after(steps: int, value: float) -> Callable[[nn.Module, Tensor], Tensor]:
    """The loss, times `value` from training step `steps` + 1 on."""
    calls = itertools.count()
    return lambda model, x: loss(model, x) * (value if torch.is_grad_enabled() and next(calls) >= steps else 1.0)


SGD = Recipe(optimizer="sgd", lr=1e-3, schedule=FLAT)
DIVERGING: dict[str, Callable[[], tuple[Task, Recipe]]] = {
    "sgd at lr 1e6": lambda: (TASK, SGD.with_knob("lr", 1e6)),
    "adamw at lr 1e6": lambda: (TASK, Recipe(lr=1e6)),
    "adamw at lr 1e6 in bf16": lambda: (TASK, Recipe(lr=1e6, precision="bf16")),
    "adam at lr 10, finite but high": lambda: (TASK, Recipe(optimizer="adam", lr=10.0, weight_decay=0.0)),
    "a loss of NaN": lambda: (replace(TASK, loss=bad_after(27, math.nan)), SGD),
    "a loss of minus infinity": lambda: (replace(TASK, loss=bad_after(27, -math.inf)), SGD),
    "a loss that stays high": lambda: (replace(TASK, loss=bad_after(27, 100.0)), SGD.with_knob("lr", 1e-9)),
    "infinite from the first": lambda: (replace(TASK, loss=bad_after(0, math.inf)), SGD),
}


@pytest.mark.parametrize("name", DIVERGING)
def test_a_divergence_is_an_outcome_with_its_step_and_every_trained_step_counted(name: str) -> None:
    calls = 0
    task, recipe = DIVERGING[name]()

    def counted(model: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return task.loss(model, x)

    trial = start(replace(task, loss=counted), recipe, horizon=200)
    reports = [trial.advance(rung, evaluate=rung > 100) for rung in (8, 100, 200)]
    result = trial.result()
    assert result.outcome is Outcome.DIVERGED
    at = len(result.train_losses)  # the losses end with the one that told
    assert result.message == f"diverged at step {at}"
    assert not math.isfinite(result.train_losses[-1]) or result.train_losses[-1] > 4 * result.train_losses[0]
    assert at <= result.steps == calls < at + 16
    assert reports[-1] is None
    assert math.isnan(result.final())


def test_a_short_spike_of_the_loss_is_no_divergence() -> None:
    calls = itertools.count()

    def spiked(model: nn.Module, x: Tensor) -> Tensor:
        return loss(model, x) * (1e4 if next(calls) in range(20, 29) else 1.0)

    result = train(replace(TASK, loss=spiked), Recipe(lr=1e-3, clip_norm=1.0), horizon=60)
    assert result.outcome is Outcome.COMPLETED


def test_what_was_measured_before_a_divergence_is_kept() -> None:
    trial = start(replace(TASK, loss=bad_after(15, math.nan)), horizon=40)
    before = trial.advance(10)
    assert trial.advance(20) is None
    result = trial.result()
    assert result.rungs[0] == before
    assert len(result.train_losses) == 16
    assert all(map(math.isfinite, result.train_losses[:-1]))


def test_a_validation_loss_that_is_not_finite_is_a_divergence() -> None:
    trial = start(replace(TASK, val_batches=lambda: [X, X * math.nan]), horizon=10)
    assert trial.advance(5) is None
    assert (trial.result().outcome, trial.result().steps) == (Outcome.DIVERGED, 5)


class RefusesNaN(nn.Module):
    """As torch.distributions do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.inner.weight.isnan().any():
            raise ValueError("weights are NaN")
        return self.inner(x)


def nan_gradient_at(step: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """The loss, of which the gradient, but not the value, is NaN in one training step."""
    calls = itertools.count(1)

    def measured(model: RefusesNaN, x: Tensor) -> Tensor:
        bad = torch.is_grad_enabled() and next(calls) == step
        return loss(model, x) + ((0 * model.inner.weight).sum().sqrt() if bad else 0.0)

    return measured


@pytest.mark.parametrize("rungs", [[40], [5, 40], [9, 40]])
def test_a_model_that_raises_on_nan_weights_has_diverged_and_is_no_error(rungs: list[int]) -> None:
    trial = start(replace(TASK, make_model=RefusesNaN, loss=nan_gradient_at(9)), horizon=40)
    reports = [trial.advance(rung) for rung in rungs]
    result = trial.result()
    assert (result.outcome, result.steps) == (Outcome.DIVERGED, 9)
    assert reports[-1] is None
    assert [report is None for report in reports[:-1]] == [rung >= 9 for rung in rungs[:-1]]
    assert all(report in result.rungs for report in reports if report)


def test_a_model_that_raises_on_healthy_weights_is_an_error() -> None:
    with pytest.raises(TaskError, match="boom"):
        train(replace(TASK, make_model=RefusesNaN, loss=explode))


# --- evaluation


def test_every_row_of_the_validation_data_weighs_the_same_however_unequal_its_batches() -> None:
    task, made = spied(replace(TASK, val_batches=lambda: [X[:1], X[1:4], X[4:]]))
    result = train(replace(task, metrics={"mean": lambda model, x: x.mean(), "rows": lambda model, x: len(x)}))
    with torch.no_grad():
        assert result.final() == pytest.approx(float(loss(made[0], X)), rel=1e-5)
    assert result.final("mean") == pytest.approx(float(X.mean()), rel=1e-5)
    assert result.final("rows") == pytest.approx((1 * 1 + 3 * 3 + 60 * 60) / 64)
    assert list(result.rungs[-1].values) == ["loss", "mean", "rows"]


class Shifted(nn.Module):
    """Normalises its input, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.body, self.in_place = nn.Linear(4, 1), in_place

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(5.0).div_(3.0) if self.in_place else (x - 5.0) / 3.0
        out: Tensor = self.body(x)
        return out


@pytest.mark.parametrize("engine", ["sequential", "population"])
@pytest.mark.parametrize("given", ["tensors", "a loader", "batches"])
def test_what_a_measure_does_to_its_batch_reaches_no_other_and_not_the_tasks_own_data(given: str, engine: str) -> None:
    def values(in_place: bool) -> list[dict[str, float]]:
        x = 3 * X + 5
        data = x.clone(), x.sum(1, keepdim=True)
        val = DataLoader(TensorDataset(*data), batch_size=64) if given == "a loader" else data
        metrics = {"off": nn.functional.l1_loss, "off again": nn.functional.l1_loss}
        task = Task.supervised(lambda: Shifted(in_place), data, val, nn.functional.mse_loss, 16, metrics=metrics)
        if given == "batches":
            task = replace(task, val_batches=lambda: [data])
        with closing(make_engine(engine, task, CPU, processes=1)) as made:
            batch = made.open([TrialRequest(Recipe(lr=1e-2), seed, 4) for seed in (0, 1)])
            told = [report.values for rung in (2, 4) for report in batch.advance(rung) if report]
        assert torch.equal(data[0], x)
        return told

    assert values(in_place=True) == [pytest.approx(told) for told in values(in_place=False)]


@pytest.mark.parametrize("kind", [dict, UserDict])  # a BatchEncoding is one
def test_a_loss_may_take_entries_out_of_its_batch(kind: type) -> None:
    def popping(model: nn.Module, batch: Any) -> Tensor:
        labels = batch.pop("labels")
        return (model(batch["x"]) - labels).pow(2).mean()

    def whole() -> Any:
        return kind(x=X, labels=X.sum(1, keepdim=True))

    task = Task("popping", small, lambda generator: (whole() for _ in itertools.count()), popping, lambda: [whole()])
    told = train(replace(task, metrics={"again": popping}))
    assert told.final() == told.final("again")


class Bag(list[Any]):
    """A list that cannot be made of its items alone."""

    def __init__(self, items: Sequence[Any], label: str) -> None:
        super().__init__(items)
        self.label = label


class Sealed(dict[str, Any]):
    """Takes its entries when it is made, and none later."""

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("sealed")

    update = None  # type: ignore[assignment]


def differentiated(model: nn.Module, batch: Any) -> Tensor:
    """A loss in the slope of the model's output, as those of physics are."""
    (x,) = batch.values() if isinstance(batch, dict) else batch
    assert getattr(batch, "label", "mine") == "mine"
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return (slope - 1).pow(2).mean()


@pytest.mark.parametrize("engine", ["sequential", "population"])
@pytest.mark.parametrize("kind", [lambda x: (x,), lambda x: Bag([x], "mine"), lambda x: Sealed(x=x)])
def test_validation_batches_keep_their_gradients_and_their_type(kind: Callable[[Tensor], Any], engine: str) -> None:
    def drawn(generator: torch.Generator) -> Iterator[Any]:
        while True:
            yield kind(torch.rand(8, 4, generator=generator).requires_grad_())

    task = Task("slopes", small, drawn, differentiated, lambda: [kind(X.clone().requires_grad_())])
    with closing(make_engine(engine, task, CPU, processes=1)) as made:
        (report,) = made.open([TrialRequest(Recipe(lr=1e-2), 0, 2)]).advance(2)
    assert report is not None
    assert math.isfinite(report.values["loss"])


def test_evaluation_runs_without_dropout_and_gradients_and_training_goes_on_in_train_mode() -> None:
    modes = []

    def recorded(model: nn.Module, x: Tensor) -> Tensor:
        modes.append((model.training, model[3].training, torch.is_grad_enabled()))
        return loss(model, x)

    task, made = spied(replace(NOISY, make_model=lambda: noisy_model().eval(), loss=recorded))
    trial = start(task, horizon=6)
    values = [trial.advance(3).values, trial.advance(6).values]
    training, evaluation = (True, True, True), (False, False, False)
    assert [mode for mode, _ in itertools.groupby(modes)] == [training, evaluation, training, evaluation]
    assert made[0].training
    model = copy.deepcopy(made[0]).eval()
    with torch.no_grad():
        by_hand = sum(len(x) * float(loss(model, x)) for x in noisy_validation()) / 64
    assert values[-1]["loss"] == by_hand
    assert values[-1]["half"] == pytest.approx(by_hand / 2)


def test_what_evaluation_draws_depends_on_the_seed_and_not_on_the_rung_or_recipe() -> None:
    def drawn(seed: int, lr: float) -> set[float]:
        trial = start(replace(TASK, metrics={"noise": lambda model, x: torch.rand(())}), Recipe(lr=lr), seed=seed)
        return {trial.advance(rung).values["noise"] for rung in (1, 2, 10)}

    assert len(drawn(0, 1e-2)) == 1
    assert drawn(0, 1e-2) == drawn(0, 1e-3) != drawn(1, 1e-2)


# --- what the task does wrong is a TaskError that says where


def explode(*args: object) -> Any:
    raise ValueError("boom\n  with a second line")


WHERE = rf"ValueError: boom with a second line \(test_trial\.py, line {explode.__code__.co_firstlineno + 1}\)"


def late(part: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """`part` for so many calls, then `explode`."""
    counter = itertools.count()
    return lambda *args: explode() if next(counter) >= calls else part(*args)


def ending(generator: torch.Generator) -> Iterator[Tensor]:
    return itertools.islice(batches(generator), 7)


def failing_batches(generator: torch.Generator) -> Iterator[Tensor]:
    yield from ending(generator)
    explode()


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)


ONE_MODEL = small()
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "the loss raises": ({"loss": late(loss, 4)}, rf"{WHERE} at training step 5"),
    "the batches end": ({"train_batches": ending}, "train_batches ended at training step 8 of 40; it must be endless"),
    "the batches raise": ({"train_batches": failing_batches}, rf"{WHERE} at training step 8"),
    "no batches": ({"train_batches": explode}, rf"{WHERE} before training"),
    "batches of the wrong type": ({"train_batches": lambda _: 3}, "TypeError: 'int' object is not iterable"),
    "a vector for a loss": (
        {"loss": lambda model, x: (model(x) ** 2)[:, 0]},
        r"the loss at training step 1 is a tensor of shape \(8,\), not a scalar; return the mean over the batch",
    ),
    "a float for a loss": (
        {"loss": lambda model, x: loss(model, x).item()},
        r"the loss at training step 1 is a float, not a tensor; return the tensor itself, without item\(\)",
    ),
    "a loss without gradient": (
        {"loss": lambda model, x: loss(model, x).detach()},
        "the loss at training step 1 has no gradient; .* without detach",
    ),
    "the model raises": ({"make_model": explode}, f"make_model raised {WHERE}"),
    "no model": ({"make_model": lambda: loss}, r"make_model returned a function; it must return a torch\.nn\.Module"),
    "a model without parameters": ({"make_model": nn.ReLU}, "fails at step 0: its model has no trainable parameters"),
    "a frozen model": ({"make_model": Frozen}, "fails at step 0: .* whose requires_grad is True"),
    "no validation data": ({"val_batches": list}, "val_batches gave no batch, so a recipe cannot be judged"),
    "the validation data raise": ({"val_batches": explode}, WHERE),
    "a metric raises": ({"metrics": {"bad": explode}}, WHERE),
    "a metric is no number": (
        {"metrics": {"bad": lambda model, x: model(x)}},
        "its metric 'bad' of .* is a tensor of shape .* return the mean",
    ),
    "a metric is no tensor": ({"metrics": {"bad": lambda model, x: "good"}}, "raised .*convert"),
    "out of memory": (
        {"loss": lambda model, x: (_ for _ in ()).throw(torch.OutOfMemoryError("full"))},
        "OutOfMemoryError: full .*; use a smaller batch with `accumulate`",
    ),
    "too many open files": (
        {"loss": lambda model, x: (_ for _ in ()).throw(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))},
        "Too many open files .*; set num_workers=0 in the task's loaders, or allow more by `ulimit -n`",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_the_task_does_wrong_is_told_with_its_name_and_place(name: str) -> None:
    parts, message = ERRORS[name]
    with pytest.raises(TaskError, match=message) as caught:
        train(replace(TASK, name="my-task", **parts))
    assert "task 'my-task'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_error_keeps_its_cause_and_the_rungs_before_it() -> None:
    trial = start(replace(TASK, loss=late(loss, 12)))
    report = trial.advance(10)
    with pytest.raises(TaskError) as caught:
        trial.advance(20)
    assert isinstance(caught.value.__cause__, ValueError)
    assert trial.result().rungs == (report,)


def test_an_error_adamtune_raised_in_the_task_is_passed_on() -> None:
    def refuse(*args: object) -> Any:
        raise TaskError("mend this")

    for part in PARTS:
        with pytest.raises(TaskError, match=r"^mend this$"):
            train(replace(TASK, **{part: refuse}))


def test_a_loss_of_one_element_is_a_scalar() -> None:
    result = train(replace(TASK, loss=lambda model, x: loss(model, x).reshape(1)))
    assert result.train_losses == train().train_losses


def test_make_model_must_return_a_new_model_each_time() -> None:
    shared = small()
    task = replace(TASK, name="shared", make_model=lambda: shared)
    start(task)
    with pytest.raises(TaskError, match=r"task 'shared': make_model returned the parameter '0\.weight' a second time"):
        start(task)


class Counted(nn.Module):
    """Writes down how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.body(x)
        return out


class Evaluating(nn.BatchNorm1d):
    """Stays as it is in training, too."""

    def train(self, mode: bool = True) -> Evaluating:
        return super().train(False)


def on_frozen(backbone: nn.Module, copied: bool = False) -> Task:
    """All its models begin with the same backbone, made once, or with copies of it."""
    backbone.requires_grad_(False)
    own = copy.deepcopy if copied else (lambda module: module)
    return replace(TASK, name="shared", make_model=lambda: nn.Sequential(own(backbone), nn.Linear(4, 1)))


def test_a_shared_norm_is_refused_once_a_trial_has_added_to_its_statistics() -> None:
    for norm in (nn.BatchNorm1d(4), nn.BatchNorm1d(4).eval()):  # training puts it into train mode
        task = on_frozen(nn.Sequential(nn.Linear(4, 4), norm))
        train(task)
        told = r"buffer '0\.1\.running_mean' a second time, and its values have changed since.*; copy its BatchNorm1d"
        with pytest.raises(TaskError, match=told):
            start(task)
        train(on_frozen(norm, copied=True), seed=1)


class Extracting(nn.Module):
    """Trains a head on a backbone that it puts into eval mode when called."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone.eval()(x))
        return out


def test_a_shared_backbone_whose_buffers_keep_their_values_may_be_shared() -> None:
    backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    state = copy.deepcopy(backbone.state_dict())

    def reloaded() -> nn.Module:
        backbone.load_state_dict(state)
        return nn.Sequential(backbone, nn.Linear(4, 1))

    for make_model in (lambda: Extracting(backbone), reloaded):
        task = replace(TASK, make_model=make_model)
        assert train(task).train_losses == train(task).train_losses


def test_a_buffer_made_in_inference_mode_is_one_as_any_other() -> None:
    norm = nn.LayerNorm(4)
    with torch.inference_mode():
        norm.register_buffer("positions", torch.arange(4.0))
    task = on_frozen(norm)
    assert train(task).train_losses == train(task).train_losses
    with torch.inference_mode():
        norm.positions += 1
    with pytest.raises(TaskError, match=r"the buffer '0\.positions' a second time"):
        start(task)


def test_any_shared_buffer_that_a_trial_has_changed_is_refused() -> None:
    task = on_frozen(Counted())
    train(task)
    with pytest.raises(TaskError, match=r"'shared': make_model returned the buffer '0\.calls' a second time"):
        start(task)
    with pytest.raises(TaskError):
        start(task)


@pytest.mark.parametrize("norm", [Evaluating(4), nn.BatchNorm1d(4, track_running_stats=False), nn.LayerNorm(4)])
def test_a_shared_frozen_module_that_stays_as_it_is_may_be_shared(norm: nn.Module) -> None:
    norm.register_buffer("positions", torch.arange(4))
    task = on_frozen(nn.Sequential(nn.Linear(4, 4), norm))
    assert train(task).train_losses == train(task).train_losses


def test_copies_of_a_pretrained_model_are_new_models_also_when_it_was_trained() -> None:
    pretrained = small()
    start(replace(TASK, make_model=lambda: pretrained)).advance(5)
    task, made = spied(replace(TASK, make_model=lambda: copy.deepcopy(pretrained)))
    before = copy.deepcopy(pretrained)
    train(task)
    train(task)
    assert gap(*made) == 0.0
    assert gap(pretrained, before) == 0.0


# --- the sequential engine

REQUESTS = [TrialRequest(Recipe(lr=lr), seed, 20) for seed in (0, 1) for lr in (1e-3, 1e-2, 1e6)]


def same(one: TrialResult, other: TrialResult) -> bool:
    """Alike but for the time they took."""
    return repr(replace(one, seconds=0.0)) == repr(replace(other, seconds=0.0))


def test_results_come_in_the_order_asked_for_and_are_those_of_single_trials() -> None:
    batch = SequentialEngine(TASK, CPU).open(REQUESTS)
    reports = [batch.advance(rung) for rung in (10, 20)]
    results = batch.results()
    assert [result.request for result in results] == REQUESTS
    assert [result.outcome for result in results] == [Outcome.COMPLETED, Outcome.COMPLETED, Outcome.DIVERGED] * 2
    for at, (request, result) in enumerate(zip(REQUESTS, results, strict=True)):
        alone = Trial(TASK, request, CPU)
        assert repr([alone.advance(10), alone.advance(20)]) == repr([rung[at] for rung in reports])
        assert same(alone.result(), result)


def test_pruned_trials_train_no_further_and_the_others_go_on() -> None:
    heard: list[int] = []
    batch = SequentialEngine(TASK, CPU, heard.append).open(REQUESTS)
    batch.advance(5)
    batch.prune(4)
    batch.prune(0)
    batch.prune(0)
    reports = batch.advance(20)
    assert [report is None for report in reports] == [True, False, True, False, True, True]
    batch.prune(1)  # it has completed
    results = batch.results()
    assert [result.outcome.value[0] for result in results] == list("pcdcpd")
    assert [result.steps for result in results][0:5:4] == [5, 5]
    assert sum(heard) == sum(result.steps for result in results)
    assert list(map(same, results, batch.results())) == [True] * 6


def test_trials_left_untrained_count_as_pruned() -> None:
    batch = SequentialEngine(TASK, CPU).open(REQUESTS[:2])
    assert [(result.outcome, result.steps) for result in batch.results()] == [(Outcome.PRUNED, 0)] * 2
    assert batch.advance(5) == [None, None]


def test_the_model_of_a_trial_that_has_ended_is_freed() -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def make() -> nn.Module:
        model = small()
        alive.append(weakref.ref(model))
        return model

    def living() -> list[bool]:
        gc.collect()
        return [model() is not None for model in alive]

    batch = SequentialEngine(replace(TASK, make_model=make), CPU).open(REQUESTS[:3])
    batch.advance(5)
    batch.prune(0)
    assert living()[:2] == [False, True]
    batch.advance(20)
    assert living() == [False, False, False]
    assert len(batch.results()) == 3


@pytest.mark.parametrize(("wanted", "threads"), [(None, 1), ("", 1), ("3", 3)])
@pytest.mark.parametrize("fails", [False, True])
def test_trials_train_on_one_thread_and_the_callers_threads_come_back(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, threads: int, fails: bool
) -> None:
    seen = set()

    def recorded(model: nn.Module, x: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return explode() if fails else loss(model, x)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    torch.set_num_threads(2)
    try:
        batch = SequentialEngine(replace(TASK, loss=recorded), CPU).open(REQUESTS[:1])
        if fails:
            with pytest.raises(TaskError):
                batch.advance(2)
        else:
            batch.advance(2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == {threads}


def test_the_engine_made_by_name_trains_the_same() -> None:
    engine: Engine = make_engine("sequential", TASK, CPU)
    batch = engine.open(REQUESTS[:1])
    batch.advance(20)
    assert batch.results()[0].train_losses == train(TASK, Recipe(lr=1e-3), 20).train_losses


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_cuda_a_trial_repeats_itself_and_leaves_the_devices_random_state_alone(precision: str) -> None:
    device = torch.device("cuda")
    before, losses = torch.cuda.get_rng_state().tolist(), []
    for rungs in ([HORIZON], [HORIZON], [3, 9, HORIZON]):
        trial = Trial(NOISY, TrialRequest(Recipe(lr=1e-2, precision=precision), 0, HORIZON), device)
        for rung in rungs:
            trial.advance(rung)
        losses.append(repr(trial.result().train_losses))
    assert losses[0] == losses[1] == losses[2]
    assert torch.cuda.get_rng_state().tolist() == before
