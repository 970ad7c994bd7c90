"""How wide a stack should be, from the times of a few steps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import closing
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stacked import CPU, loss, mlp, requests, task, width_of
from torch import Tensor, nn

from adamtune.engines import population
from adamtune.engines import width as width_module
from adamtune.engines.memory import free_memory
from adamtune.engines.population import PopulationEngine
from adamtune.engines.processes import Workers
from adamtune.engines.width import WIDTHS, StepTimes, time_steps, together
from adamtune.population.check import check

ASKED = requests()
TIMES = StepTimes(1.0, ((2, 1.2), (4, 1.6), (8, 2.0), (16, 8.0)), False, "")


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out if out.sum() > 0 else 0.5 * out


def test_the_width_is_the_one_at_which_a_member_costs_least() -> None:
    assert TIMES.width == 8
    assert StepTimes(1.0, ((2, 1.99), (4, 3.99)), False, "").width == 1  # no gain worth a stack
    assert StepTimes(1.0, (), False, "no").width == 1


def test_seconds_of_a_step_are_interpolated_and_split_over_stacks() -> None:
    assert TIMES.seconds(8) == pytest.approx(2.0)
    assert TIMES.seconds(6) == pytest.approx(1.8)
    assert TIMES.seconds(16) == pytest.approx(4.0)  # two stacks of eight, not one of sixteen
    assert TIMES.seconds(12) == pytest.approx(3.6)
    assert TIMES.seconds(1) == math.inf


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_stacks_pay_where_they_are_quicker_than_one_by_one(counts: list[int]) -> None:
    assert TIMES.pays(counts) == (
        max(counts) > 1 and sum(min(TIMES.seconds(n), n) for n in counts) < 0.97 * sum(counts)
    )
    assert not StepTimes(1.0, ((2, 2.5),), False, "").pays(counts)


def test_what_processes_measure_side_by_side_is_taken_in_the_mean_over_widths_that_all_tried() -> None:
    other = StepTimes(1.5, ((2, 1.3), (4, 1.4), (8, 5.0)), False, "", fits=7.0)
    assert together([TIMES, other]) == StepTimes(1.25, ((2, 1.25), (4, 1.5), (8, 3.5)), False, "", fits=7.0)
    assert together([TIMES, other]).width == 4  # by the first alone it was 8
    refused = StepTimes(1.0, (), False, "no")
    assert together([TIMES, refused]) == refused


def test_stacks_are_no_wider_than_the_memory_allows() -> None:
    facts = check(task(), ASKED, CPU)
    assert facts.state == 4 * 97 * 8  # parameters, gradients and both moments of a double each
    assert 8 * 16 * 8 <= facts.activations <= 10 * 8 * 16 * 8
    for memory, most in ((0.0, 2), (10.0 * (facts.state + facts.activations), 4)):
        times = time_steps(task(), ASKED, CPU, memory, 9.0, 1.0)
        assert max(width for width, _ in times.stacked) <= most
        assert times.fits == memory / (1.5 * (facts.state + facts.activations))


@pytest.mark.parametrize(("most_seconds", "steps"), [(0.0, 3), (60.0, 11)])
def test_a_model_that_is_slow_for_the_time_there_is_is_timed_over_fewer_steps(most_seconds: float, steps: int) -> None:
    widths: list[int] = []

    def seen(model: nn.Module, x: Tensor) -> Tensor:
        value = loss(model, x)
        widths.append(width_of(value))
        return value

    time_steps(task(loss=seen), ASKED, CPU, 0.0, most_seconds, 1.0)
    assert widths.count(2) == steps + 1  # one to look at whether they can be stacked


def widths_tried(count: int, processes: int) -> list[int]:
    times = time_steps(task(), requests(range(count), lrs=(1e-3,)), CPU, 1e9, 60.0, 1.0, processes)
    return [width for width, _ in times.stacked]


def test_no_stack_is_tried_that_the_trials_cannot_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width_module, "_RISING", math.inf)
    assert widths_tried(24, 1) == [2, 4, 8, 16, 24]
    assert widths_tried(34, 2) == [2, 4, 8, 17]  # 17 split evenly over stacks of up to 16 are 9 and 8
    assert widths_tried(1, 1) == [2]
    assert widths_tried(300, 1) == [*WIDTHS]


def test_widths_are_measured_again_when_groups_come_that_are_twice_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def falling(task: Any, alike: list[Any], *_: Any) -> StepTimes:
        asked.append(len(alike))
        return StepTimes(1.0, ((2, 1.0), (4, 1.0)), False, "")

    monkeypatch.setattr(population, "time_steps", falling)
    engine = PopulationEngine(task(), CPU, always=True, processes=1)
    for count in (4, 7, 8, 15, 20, WIDTHS[-1], 3 * WIDTHS[-1]):  # beyond the widest there is nothing to gain
        engine.open(requests(range(count), lrs=(1e-3,)))
    engine.close()
    assert asked == [4, 8, 20, WIDTHS[-1]]
    monkeypatch.setattr(StepTimes, "still_falling", False)
    engine = PopulationEngine(task(), CPU, always=True, processes=1)
    for count in (4, 60):
        engine.open(requests(range(count), lrs=(1e-3,)))
    engine.close()
    assert asked[4:] == [4]


@pytest.mark.parametrize("processes", [1, 2])
def test_where_kinds_are_mixed_widths_are_measured_once(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    asked: list[int] = []

    def falling(*given: Any) -> StepTimes:
        asked.append(len(given[1]))
        return StepTimes(1.0, ((2, 1.0), (4, 1.0)), False, "")

    monkeypatch.setattr(population, "time_steps", falling)
    monkeypatch.setattr(Workers, "measure", falling)
    mixed = [
        request for seed in range(3) for request in requests((seed,), (1e-3,)) + requests((seed,), precision="bf16")
    ]
    with closing(PopulationEngine(task(), CPU, always=True, processes=processes)) as engine:
        for _ in range(3):
            engine.open(mixed)
    assert asked == [len(mixed)]


def test_no_stack_is_tried_that_trials_of_its_kind_cannot_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width_module, "_RISING", math.inf)
    mixed = requests(range(5), (1e-3,)) + requests(range(20), (1e-3,), precision="bf16")
    times = time_steps(task(), mixed, CPU, 1e9, 60.0, 1.0)
    assert [width for width, _ in times.stacked] == [2, 5]


def test_why_trials_cannot_be_stacked_is_part_of_what_was_measured() -> None:
    times = time_steps(task(Branching), ASKED, CPU, 1e9, 1.0, 1.0)
    assert (times.stacked, times.width) == ((), 1)
    assert "the model (Branching)" in times.note
    assert not times.pays([100])


def test_a_trial_alone_is_timed_anew_only_where_stacks_are_not_clearly_quicker() -> None:
    assert time_steps(task(), ASKED, CPU, 0.0, 0.0, 1.0).alone == 1.0
    assert time_steps(task(), ASKED, CPU, 0.0, 0.0, 1e-9).alone > 1e-6


POSITIVE = st.floats(1e-9, 1e9)


@given(POSITIVE, st.lists(POSITIVE, max_size=len(WIDTHS)), st.booleans(), st.text(max_size=9))
def test_what_was_measured_is_read_back(alone: float, seconds: list[float], noisy: bool, note: str) -> None:
    times = StepTimes(alone, tuple(zip(WIDTHS, seconds, strict=False)), noisy, note)
    assert StepTimes.of(json.loads(json.dumps(times.to_dict()))) == times


def trained(known: Any, make_model: Callable[[], nn.Module] = mlp) -> tuple[bool, str]:
    """Whether an engine that knows this measures, and its note on how trials train."""
    notes: list[str] = []
    with mock.patch.object(population, "time_steps", wraps=time_steps) as timing:
        engine = PopulationEngine(task(make_model), CPU, on_note=notes.append, always=True, processes=1, known=known)
        engine.open(ASKED)
        engine.close()
    return timing.called, *notes


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an engine tells of stacks of two, on a machine whose steps alone always take as long."""
    monkeypatch.setattr(population, "time_alone", lambda *_: 1e-3)
    engine = PopulationEngine(task(), CPU, processes=1, always=True)
    engine.open(ASKED)
    told: dict[str, Any] = json.loads(json.dumps(engine.facts()))
    told["measured"][0] |= {"seconds_alone": 1e-3, "seconds_by_width": {"2": 1e-9, "4": 4e-9}, "width": 2}
    return told


def test_step_times_of_an_earlier_sitting_are_not_measured_again(facts: dict[str, Any]) -> None:
    timed, note = trained(facts)
    assert not timed
    assert "in stacks of up to 2" in note
    assert trained(None)[0]


def test_for_larger_groups_than_in_an_earlier_sitting_widths_are_measured_again(facts: dict[str, Any]) -> None:
    facts["measured"][0]["seconds_by_width"] = {"2": 1e-9}
    assert trained(facts)[0]


@pytest.mark.parametrize("damage", [
    {"measured": 3}, {"measured": [{}]}, {"measured": []}, {"torch": "1.0"}, {"processes": 9}, {"products_by": "hand"},
    {"accumulate": math.inf}, {"seconds_alone": 10**400}, {"seconds_alone": 2e-3}, {"seconds_alone": 0.5e-3},
    {"seconds_by_width": {"64": 1e-9}}, {"seconds_by_width": {"2": math.nan}}, {"seconds_by_width": [1]},
    {"seconds_by_width": {}},
])  # fmt: skip
def test_step_times_of_another_machine_or_damaged_ones_are_measured_again(
    damage: dict[str, Any], facts: dict[str, Any]
) -> None:
    outer = facts if set(damage) <= set(facts) else facts["measured"][0]
    outer |= damage
    assert trained(facts)[0]
    assert trained([])[0]


def test_a_task_that_has_changed_since_is_not_stacked_for_what_was_measured_before(facts: dict[str, Any]) -> None:
    assert "the model (Branching)" in trained(facts, Branching)[1]


def test_a_sitting_that_trains_nothing_hands_on_what_was_measured_before(facts: dict[str, Any]) -> None:
    assert PopulationEngine(task(), CPU, processes=1, known=facts).facts()["measured"] == facts["measured"]


def test_free_memory_is_that_of_this_machine() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory(CPU) <= total
