from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamtune.recipe import Schedule, WarmupSteps
from adamtune.schedule import multiplier, rescaled, warmup_steps
from recipes import schedules


def transformers_cosine(step: int, warmup: int, total: int) -> float:
    """transformers.optimization._get_cosine_schedule_with_warmup_lr_lambda with num_cycles=0.5."""
    if step < warmup:
        return float(step) / float(max(1, warmup))
    progress = float(step - warmup) / float(max(1, total - warmup))
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))


def transformers_linear(step: int, warmup: int, total: int) -> float:
    """transformers.optimization._get_linear_schedule_with_warmup_lr_lambda."""
    if step < warmup:
        return float(step) / float(max(1, warmup))
    return max(0.0, float(total - step) / float(max(1, total - warmup)))


def transformers_constant(step: int, warmup: int, total: int) -> float:
    """transformers.optimization._get_constant_schedule_with_warmup_lr_lambda."""
    return float(step) / float(max(1.0, warmup)) if step < warmup else 1.0


PEERS = {"cosine": transformers_cosine, "linear": transformers_linear, "constant": transformers_constant}


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, int]:
    """A run's total steps, fewer warmup steps and one of its updates, the one after the last included."""
    total = draw(st.integers(1, 3_000))
    return total, draw(st.integers(0, total - 1)), draw(st.integers(0, total))


@pytest.mark.parametrize("kind", PEERS)
@settings(deadline=None)
@given(run=runs())
def test_it_is_the_curve_of_transformers_with_the_same_warmup(kind: str, run: tuple[int, int, int]) -> None:
    total, warmup, step = run
    schedule = Schedule.model_validate({"kind": kind, "warmup": {"steps": warmup}})
    assert multiplier(schedule, step, total) == pytest.approx(PEERS[kind](step, warmup, total), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@settings(deadline=None)
@given(run=runs(), floor=st.floats(0.0, 1.0))
def test_a_floor_squeezes_the_decay_between_itself_and_one(kind: str, run: tuple[int, int, int], floor: float) -> None:
    total, warmup, step = run
    schedule = Schedule.model_validate({"kind": kind, "warmup": {"steps": warmup}, "floor": floor})
    peer = PEERS[kind](step, warmup, total)
    wanted = peer if step < warmup else floor + (1.0 - floor) * peer
    assert multiplier(schedule, step, total) == pytest.approx(wanted, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_decay_reaches_its_floor_just_after_the_last_update(kind: str) -> None:
    schedule = Schedule.model_validate({"kind": kind, "warmup": 0.1, "floor": 0.2})
    assert multiplier(schedule, 99, 100) > 0.2
    assert multiplier(schedule, 100, 100) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("step", "value"), [(0, 0.0), (5, 0.5), (10, 1.0), (49, 1.0), (50, 0.1), (74, 0.1), (75, 0.01), (99, 0.01)]
)
def test_a_step_decay_multiplies_by_gamma_at_each_milestone(step: int, value: float) -> None:
    schedule = Schedule(kind="step", warmup=WarmupSteps(steps=10), milestones=(0.5, 0.75), gamma=0.1)
    assert multiplier(schedule, step, 100) == pytest.approx(value)


def test_a_step_decay_stops_at_its_floor() -> None:
    schedule = Schedule(kind="step", warmup=0.0, milestones=(0.25, 0.5, 0.75), gamma=0.1, floor=0.05)
    assert [multiplier(schedule, step, 4) for step in range(4)] == pytest.approx([1.0, 0.1, 0.05, 0.05])


@pytest.mark.parametrize(("milestone", "drop"), [(0.55, 55), (0.07, 7), (0.14, 14)])
def test_a_milestone_that_falls_on_a_step_drops_at_that_step(milestone: float, drop: int) -> None:
    schedule = Schedule(kind="step", warmup=0.0, milestones=(milestone,), gamma=0.1)
    assert [multiplier(schedule, step, 100) for step in (drop - 1, drop)] == pytest.approx([1.0, 0.1])


@settings(deadline=None)
@given(st.integers(1, 10_000), st.floats(0.0, 1.0, exclude_max=True))
def test_a_warmup_fraction_is_that_share_of_the_steps_to_the_nearest_step(total: int, fraction: float) -> None:
    steps = warmup_steps(Schedule(warmup=fraction), total)
    assert 0 <= steps <= total
    assert abs(steps - fraction * total) <= 0.5


@settings(deadline=None)
@given(st.integers(1, 1_000), st.integers(0, 2_000))
def test_warmup_in_steps_is_the_same_whatever_the_horizon_but_never_more_than_the_run(total: int, steps: int) -> None:
    assert warmup_steps(Schedule(warmup=WarmupSteps(steps=steps)), total) == min(steps, total)


@settings(deadline=None)
@given(st.integers(1, 1_000), st.integers(0, 2_000), st.integers(1, 1_000))
def test_a_warmup_in_steps_keeps_its_share_of_a_run_of_another_length(total: int, steps: int, other: int) -> None:
    schedule = Schedule(warmup=WarmupSteps(steps=steps))
    squeezed = warmup_steps(rescaled(schedule, total, other), other)
    assert abs(squeezed / other - min(steps, total) / total) <= 0.5 / other + 1e-12
    assert rescaled(schedule, total, total) == schedule


@settings(deadline=None)
@given(schedules(), st.integers(1, 300))
def test_any_curve_rises_to_one_then_only_falls_and_stays_above_its_floor(schedule: Schedule, total: int) -> None:
    curve = [multiplier(schedule, step, total) for step in range(total + 1)]
    peak = warmup_steps(schedule, total)
    assert curve[:peak] == sorted(curve[:peak])
    assert curve[peak:] == sorted(curve[peak:], reverse=True)
    assert all(0.0 <= value <= 1.0 for value in curve)
    assert all(value >= schedule.floor - 1e-12 for value in curve[peak:])
    assert curve[0] == 0.0 if peak else curve[0] == 1.0 or schedule.kind == "step"


@settings(deadline=None)
@given(schedules(), st.integers(1, 300), st.integers(1, 300))
def test_past_the_end_the_last_value_holds(schedule: Schedule, total: int, beyond: int) -> None:
    if warmup_steps(schedule, total) < total:
        assert multiplier(schedule, total + beyond, total) == multiplier(schedule, total, total)


def test_past_the_end_of_a_run_that_is_all_warmup_the_last_value_holds() -> None:
    schedule = Schedule(warmup=WarmupSteps(steps=10))
    assert multiplier(schedule, 11, 10) == multiplier(schedule, 10, 10)


def test_the_whole_curve_scales_with_the_horizon() -> None:
    schedule = Schedule(kind="cosine", warmup=0.1)
    for step in range(101):
        assert multiplier(schedule, step, 100) == pytest.approx(multiplier(schedule, step * 10, 1_000))
