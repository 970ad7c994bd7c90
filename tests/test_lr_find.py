"""lr-find as a person meets it: what it names, and where it says no."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tasks_for_tests import nan, separable
from torch import Tensor, nn

from adamtune import Task, lr_find
from adamtune.errors import InputError, TaskError
from adamtune.lr_finder import LRFindStatus
from adamtune.recipe import Recipe
from adamtune.report.lr_plot import lr_html_plot
from adamtune.stages.lr_bracket import EXPONENTS, FIT_ERROR, for_horizon
from adamtune.tasks import digits


def words() -> Task:
    """Which of two classes a bag of words is: an embedding and a head."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(40, (400, 6), generator=generator)
    y = (x < 20).sum(1).gt(3).long()
    return Task.supervised(
        make_model=lambda: nn.Sequential(nn.EmbeddingBag(40, 8), nn.Linear(8, 2)),
        train_data=(x[:300], y[:300]),
        val_data=(x[300:], y[300:]),
        loss_fn=nn.functional.cross_entropy,
        batch_size=16,
        name="words",
    )


def random_labels() -> Task:
    """Fresh labels by lot for every batch: there is nothing to learn."""
    task = digits.task(hidden=32)

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in task.train_batches(generator):
            yield x, torch.randint(10, y.shape, generator=generator)

    def shuffled() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for x, y in task.val_batches():
            yield x, torch.randint(10, y.shape, generator=generator)

    return replace(task, train_batches=batches, val_batches=shuffled, name="random-labels")


def by_heart() -> Task:
    """Thirty-two examples with labels by lot: the training loss falls, for nothing."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(232, 10, generator=generator), torch.randint(2, (232,), generator=generator)
    return Task.supervised(
        make_model=lambda: nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2)),
        train_data=(x[:32], y[:32]),
        val_data=(x[32:], y[32:]),
        loss_fn=nn.functional.cross_entropy,
    )


def constant() -> Task:
    task = separable()
    return replace(task, loss=lambda model, batch: task.loss(model, batch) * 0 + 2.0)


def diverging_at_the_third_step() -> Task:
    """Every trial's third batch has no finite loss, nor any after it."""
    task = separable()

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for step, (x, y) in enumerate(task.train_batches(generator)):
            yield (x if step < 2 else x * float("inf")), y

    return replace(task, train_batches=batches)


def frozen() -> Task:
    def make_model() -> nn.Module:
        return nn.Linear(8, 2).requires_grad_(False)

    return replace(separable(), make_model=make_model)


@pytest.mark.parametrize("seed", range(3))
def test_labels_by_lot_are_told_and_nothing_is_suggested(seed: int) -> None:
    found = lr_find(random_labels(), horizon=300, seed=seed)
    assert found.status in (LRFindStatus.NOISY, LRFindStatus.FLAT)
    assert (found.suggestion, found.interval) == (None, None)
    assert "do inputs and labels belong together?" in found.reason


@pytest.mark.parametrize(
    ("task", "status"),
    [
        (constant(), LRFindStatus.FLAT),
        (nan(), LRFindStatus.DIVERGING),
        (diverging_at_the_third_step(), LRFindStatus.DIVERGING),
    ],
)
def test_a_loss_with_nothing_to_find_has_a_status_that_says_so(task: Task, status: LRFindStatus) -> None:
    found = lr_find(task, horizon=100)
    assert (found.status, found.suggestion, found.interval) == (status, None, None)
    assert found.reason


def test_what_is_only_learned_by_heart_is_flat_and_the_learning_rates_tried_are_told() -> None:
    short, longer = (lr_find(by_heart(), horizon=horizon) for horizon in (60, 300))
    assert short.status is longer.status is LRFindStatus.FLAT
    assert short.response is not None
    low, high = short.response.lrs
    assert f"at lr {low:.2g} to {high:.2g} lowers the validation loss below the untrained" in short.reason
    assert short.reason.endswith("; lower ones were not tried: raise the budget")
    assert longer.reason.endswith("though the training loss falls")


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(TaskError, match="requires_grad"):
        lr_find(frozen(), horizon=100)


def stored(times: float) -> Task:
    """The separable task with weights stored `times` as large as they act, so that its best lr is `times` as high."""

    def make_model() -> nn.Module:
        model = nn.Linear(8, 2)
        with torch.no_grad():
            model.weight *= times
            model.bias *= times
        return nn.Sequential(model, Scaled(1 / times))

    return replace(separable(), make_model=make_model)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.mark.parametrize("times", [1e-7, 1e-3, 1e2])
def test_the_lr_moves_with_the_scale_of_the_weights_when_the_ramp_does(times: float) -> None:
    plain = lr_find(separable(), horizon=300).suggestion
    moved = lr_find(stored(times), horizon=300, start=1e-6 * times, end=1e-1 * times).suggestion
    assert plain is not None
    assert moved is not None
    assert abs(math.log10(moved / times / plain)) < 0.4


def test_the_best_at_the_end_of_what_may_be_searched_is_called_a_boundary() -> None:
    found = lr_find(stored(300.0), horizon=600, start=1e-2, end=10.0)
    assert found.status is LRFindStatus.AT_BOUNDARY
    assert found.suggestion is not None
    assert "may lie beyond" in found.reason


def test_a_group_is_ramped_alone() -> None:
    found = lr_find(words(), horizon=400, group="embedding", recipe=Recipe.default().with_knob("lr", 0.1))
    assert found.status is LRFindStatus.OK
    assert found.group == "embedding"
    assert found.suggestion is not None
    assert 1e-4 < found.suggestion < 10
    assert found.to_dict()["group"] == "embedding"
    assert "</html>" in lr_html_plot(found)
    everything = lr_find(words(), horizon=400)
    assert everything.curve.losses != found.curve.losses


def test_an_unknown_group_is_answered_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no param group 'decoder'; it has: .*embedding"):
        lr_find(words(), horizon=100, group="decoder")


def test_validation_judges_the_ramp_by_another_loss() -> None:
    plain, judged = (lr_find(separable(), steps=60, seeds=1, refine=False, validation=on) for on in (False, True))
    assert (plain.seeds, judged.seeds) == (1, 1)
    assert judged.curve.losses != plain.curve.losses


def test_the_same_seed_finds_the_same_and_another_other_losses() -> None:
    first, again, other = (lr_find(separable(), horizon=120, seed=seed) for seed in (0, 0, 1))
    assert first.suggestion == again.suggestion
    assert first.curve == again.curve
    assert first.curve.losses != other.curve.losses


def test_a_warmup_in_steps_is_the_share_of_the_run_that_it_is() -> None:
    share, steps = (
        lr_find(separable(), horizon=200, seeds=1, recipe=Recipe.default().with_knob("warmup", warmup))
        for warmup in (0.2, {"steps": 40})
    )
    assert share.response
    assert share.response == steps.response
    assert share.suggestion == steps.suggestion


@pytest.mark.parametrize("horizon", [60, 300, 3000])
def test_no_more_is_spent_than_the_budget(horizon: int) -> None:
    told: list[int] = []
    found = lr_find(separable(), horizon=horizon, on_steps=told.append)
    assert found.steps_used == sum(told) <= max(60, horizon if horizon <= 2000 else 0.3 * horizon)


def test_the_interval_widens_with_the_distance_to_the_horizon() -> None:
    near, far = for_horizon(1e-2, 200, 200), for_horizon(1e-2, 200, 4000)
    assert near.lr == 1e-2
    assert far.lr < near.lr
    assert far.high / far.low == pytest.approx(20 ** (EXPONENTS[1] - EXPONENTS[0]) * 10 ** (2 * FIT_ERROR))
    assert all(estimate.low < estimate.lr < estimate.high for estimate in (near, far))


@given(st.floats(1e-8, 1e2), st.integers(1, 10**6), st.integers(1, 10**9))
def test_the_interval_holds_the_suggestion_whatever_the_horizon(lr: float, measured: int, horizon: int) -> None:
    estimate = for_horizon(lr, measured, horizon)
    assert estimate.low < estimate.lr < estimate.high


@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_a_run_shorter_than_any_trial_has_its_suggestion_within_the_interval(horizon: int) -> None:
    found = lr_find(separable(), horizon=horizon)
    assert found.interval is not None
    assert found.suggestion is not None
    assert found.interval[0] < found.suggestion < found.interval[1]


def test_every_rule_stands_beside_ours() -> None:
    curve = lr_find(separable(), steps=100, seeds=3, refine=False).curve
    assert set(curve.suggestions) == {"steepest", "valley", "minimum/10", "lowest"}
    assert curve.suggestions["minimum/10"] < curve.suggestions["lowest"]
    assert all(low <= high for low, high in zip(curve.low, curve.high, strict=True))
    assert all(earlier < later for earlier, later in itertools.pairwise(curve.lrs))
