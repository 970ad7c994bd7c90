from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adamtune.divergence import FACTOR, DivergenceWatch, patience_for

PATIENCE = 5


def diverged_at(losses: Sequence[float], patience: int = PATIENCE) -> int | None:
    """The index of the loss with which the run has diverged."""
    watch = DivergenceWatch(patience)
    return next((at for at, loss in enumerate(losses) if watch.diverged(loss)), None)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("before", [[], [1.0], [3.0, 2.0, 1.0], [-1.0], [0.0]])
def test_a_loss_that_is_not_finite_diverges_at_once(bad: float, before: list[float]) -> None:
    assert diverged_at([*before, bad, 1.0]) == len(before)


def test_a_loss_that_stays_above_four_times_the_first_diverges_when_patience_ends() -> None:
    assert diverged_at([2.0, 1.0] + [8.01] * 20) == 2 + PATIENCE - 1
    assert diverged_at([2.0, 1.0] + [8.0] * 20) is None  # four times is not above four times
    assert FACTOR == 4.0


def test_a_spike_shorter_than_patience_is_forgiven_however_often() -> None:
    spike = [1e6] * (PATIENCE - 1) + [1.0]
    assert diverged_at([1.0, *spike * 10]) is None
    assert diverged_at([1.0, *spike * 10, *[1e6] * PATIENCE]) == 10 * len(spike) + PATIENCE


def test_patience_of_one_forgives_nothing() -> None:
    assert diverged_at([1.0, 4.1], patience=1) == 1


def test_a_negative_loss_that_keeps_falling_is_no_divergence() -> None:
    assert diverged_at([-float(2**step) for step in range(50)]) is None
    assert diverged_at([1.0, *[-float(2**step) for step in range(50)]]) is None


def test_a_negative_loss_that_rises_diverges() -> None:
    assert diverged_at([-1.0, *[2.01] * 20]) == PATIENCE  # the bar is -1 + 3 * |-1|
    assert diverged_at([-1.0, *[2.0] * 20]) is None


def test_how_far_a_loss_has_fallen_counts_as_its_scale_where_it_began_near_zero() -> None:
    assert diverged_at([0.0, -10.0, *[29.0] * 20]) is None  # the bar is 0 + 3 * 10
    assert diverged_at([0.0, -10.0, *[31.0] * 20]) == 2 + PATIENCE - 1
    assert diverged_at([1e-6, -10.0, *[29.0] * 20]) is None
    assert diverged_at([-1e-6, -10.0, *[31.0] * 20]) == 2 + PATIENCE - 1


def test_a_loss_that_begins_at_zero_and_never_falls_has_no_scale() -> None:
    assert diverged_at([0.0, 1.0, *[1e9] * 50]) is None
    assert diverged_at([0.0, 1.0, 1e9, math.nan]) == 3


# Between these, four times and differences are exact or safely far apart, and so is scaling by a power of two.
finite = st.floats(-1e30, 1e30, allow_subnormal=False).filter(lambda value: value == 0 or abs(value) > 1e-30)
curves = st.lists(finite | st.sampled_from([math.nan, math.inf]), min_size=1, max_size=30)


@given(curves, st.integers(-60, 60), st.integers(1, 6))
@example([1.0] + [4.0] * 9, 7, 3)
@example([-1.0] + [2.0000001] * 9, -7, 3)
def test_the_verdict_does_not_depend_on_the_losss_unit(losses: list[float], power: int, patience: int) -> None:
    scaled = [loss * 2.0**power for loss in losses]
    assert diverged_at(scaled, patience) == diverged_at(losses, patience)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30), st.integers(1, 10**6), st.integers(1, 6))
def test_the_verdict_is_the_same_under_any_whole_factor(losses: list[int], factor: int, patience: int) -> None:
    assert diverged_at([loss * factor for loss in losses], patience) == diverged_at(losses, patience)


@given(st.lists(finite, min_size=1, max_size=50), st.integers(1, 6))
def test_a_falling_curve_never_diverges(losses: list[float], patience: int) -> None:
    assert diverged_at(sorted(losses, reverse=True), patience) is None


@given(curves, st.integers(1, 6))
def test_more_patience_never_tells_sooner(losses: list[float], patience: int) -> None:
    never = len(losses)
    soon, late = diverged_at(losses, patience), diverged_at(losses, patience + 1)
    assert (never if soon is None else soon) <= (never if late is None else late)


@pytest.mark.parametrize(("horizon", "patience"), [(1, 10), (200, 10), (239, 11), (600, 30), (10_000, 500)])
def test_patience_is_a_twentieth_of_the_horizon_and_at_least_ten(horizon: int, patience: int) -> None:
    assert patience_for(horizon) == patience
