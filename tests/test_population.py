"""Trials that end, part or fail while they train in one stack."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from stacked import (
    CPU,
    HEAD,
    X,
    alone,
    assert_same,
    batches,
    finish,
    loss,
    mlp,
    numbers,
    probed,
    requests,
    stacked,
    task,
    width_of,
)
from torch import Tensor, nn

from adamtune.engines.local import LocalBatch
from adamtune.engines.sequential import SequentialEngine
from adamtune.errors import TaskError
from adamtune.history import Outcome, Ramp, TrialRequest
from adamtune.population import NotVectorisable, Population
from adamtune.population.check import check
from adamtune.recipe import Recipe, Schedule
from adamtune.task import Task
from adamtune.tasks import chars, digits

FLAT = Schedule(kind="constant", warmup=0.0)
HUGE = Recipe(optimizer="sgd", lr=1e3, schedule=FLAT)
SIX = [*requests(), *requests(seeds=(2,), optimizer="sgd")]
RUNGS = (7, 20, 24)


def local(
    task: Task, asked: list[TrialRequest], width: int = 8, noisy: bool = False
) -> tuple[LocalBatch, list[int], list[str]]:
    """A batch in stacks, and what it says of steps and in notes."""
    steps: list[int] = []
    notes: list[str] = []
    return LocalBatch(task, asked, CPU, width, noisy, steps.append, notes.append), steps, notes


# --- divergence


@pytest.mark.parametrize("doomed", [HUGE, HUGE.with_knob("lr", 1e200), Recipe(lr=1e30, schedule=FLAT)])
def test_one_member_diverges_as_it_does_alone_and_the_others_do_not_feel_it(doomed: Recipe) -> None:
    asked = [*SIX[:3], TrialRequest(doomed, 0, 24), *SIX[3:]]
    found = stacked(task(), asked, RUNGS)
    assert found[3].outcome is Outcome.DIVERGED
    assert found[3].message
    assert_same(found, alone(task(), asked, RUNGS))
    without = stacked(task(), SIX, RUNGS)
    assert_same([*found[:3], *found[4:]], without)


@pytest.mark.parametrize("rungs", [(3, 40), (40,), (16, 17, 33, 40), (1, 2, 3, 4, 40)])
def test_members_that_diverge_at_any_step_between_any_rungs(rungs: tuple[int, ...]) -> None:
    ramps = [TrialRequest(Recipe(lr=1e-2), 0, 40, Ramp(1e-3, end, 40)) for end in (1e1, 1e4, 1e9, 1e40)]
    asked = [*(replace(ramp, recipe=HUGE) for ramp in ramps), *requests(seeds=(0,), horizon=40)]
    expected = alone(task(), asked, rungs)
    assert len({(result.steps, result.message) for result in expected if result.message}) >= min(3, len(rungs) + 1)
    assert_same(stacked(task(), asked, rungs), expected)


def test_all_members_diverge() -> None:
    asked = [TrialRequest(HUGE, seed, 40) for seed in (0, 1, 2)]
    batch = Population(task(), asked, CPU, 8, False)
    assert batch.advance(40) == [None] * 3
    assert batch.advance(40) == [None] * 3
    assert {result.outcome for result in batch.results()} == {Outcome.DIVERGED}
    assert_same(batch.results(), alone(task(), asked, (40,)))


def test_a_loss_that_raises_once_the_weights_are_not_finite_is_a_divergence_of_that_member() -> None:
    def spread(model: nn.Module, x: Tensor) -> Tensor:
        hidden = model[0](x)
        spread = hidden.T @ hidden / len(x) + torch.eye(16, dtype=x.dtype)
        return loss(model, x) + 1e-3 * torch.linalg.cholesky(spread).diagonal().log().sum()

    asked = [*SIX, TrialRequest(HUGE.with_knob("lr", 1e200), 0, 24)]
    expected = alone(task(loss=spread), asked, RUNGS)
    assert [result.outcome.value[0] for result in expected] == list("ccccccd")
    assert_same(stacked(task(loss=spread), asked, RUNGS), expected)


def test_a_validation_loss_that_is_not_finite_is_a_divergence_of_that_member() -> None:
    def root(model: nn.Module, x: Tensor) -> Tensor:
        out = loss(model, x)
        return out if torch.is_grad_enabled() else (5.0 - out).sqrt()  # NaN for the member that trains slowly

    expected = alone(task(loss=root), SIX, RUNGS)
    assert {result.outcome for result in expected} == {Outcome.COMPLETED, Outcome.DIVERGED}
    assert_same(stacked(task(loss=root), SIX, RUNGS), expected)


# --- pruning, rungs, requests of several kinds


def test_pruned_members_leave_and_the_others_go_on_as_before() -> None:
    heard: list[int] = []
    asked = [*SIX, TrialRequest(HUGE, 1, 24)]
    batches_of = (
        Population(task(), asked, CPU, 4, False, heard.append),
        SequentialEngine(task(), CPU).open(asked),
    )
    for batch in batches_of:
        batch.advance(5)
        batch.prune(4), batch.prune(0), batch.prune(0)
        reports = batch.advance(20)
        assert [report is None for report in reports] == [True, False, False, False, True, False, True]
        batch.prune(1)
        batch.advance(24)
        batch.prune(2)  # it has completed
    found, expected = (batch.results() for batch in batches_of)
    assert [result.outcome.value[0] for result in expected] == list("ppccpcd")
    assert [result.steps for result in expected][:5] == [5, 20, 24, 24, 5]
    assert_same(found, expected)
    assert sum(heard) == sum(result.steps for result in found)


def test_reports_are_those_of_single_trials_and_only_rungs_that_are_evaluated_have_values() -> None:
    probing = [replace(request, probe=True) for request in SIX]
    population, single = Population(task(), probing, CPU, 4, False), SequentialEngine(task(), CPU).open(probing)
    for rung, evaluate in ((1, False), (1, True), (5, True), (9, False), (30, True), (40, True)):
        found, expected = population.advance(rung, evaluate), single.advance(rung, evaluate)
        assert [report and (report.step, len(report.train_losses), [*report.values]) for report in found] == [
            report and (report.step, len(report.train_losses), [*report.values]) for report in expected
        ]
        assert all(report is None or bool(report.values) == evaluate for report in found)
    assert_same(population.results(), single.results())
    assert any(probed(result) for result in population.results())


def test_the_probe_of_a_member_is_that_of_a_single_trial_in_every_statistic() -> None:
    asked = [replace(request, probe=True) for request in SIX]
    found, expected = stacked(task(), asked, (5, 24)), alone(task(), asked, (5, 24))
    for mine, others in zip(found, expected, strict=True):
        assert probed(mine) == pytest.approx(probed(others), rel=1e-4, abs=1e-9)
    assert any(rung.probe["default/flips"] > 0 for result in expected for rung in result.rungs)


def test_members_left_untrained_count_as_pruned() -> None:
    batch = Population(task(), SIX, CPU, 4, False)
    assert [(result.outcome, result.steps) for result in batch.results()] == [(Outcome.PRUNED, 0)] * 6


def test_requests_of_several_horizons_precisions_and_accumulations_in_one_batch() -> None:
    recipe = Recipe(lr=1e-2)
    kinds = [
        TrialRequest(recipe, 0, 24),
        TrialRequest(recipe, 1, 10),
        TrialRequest(recipe.with_knob("accumulate", 2), 0, 24),
        TrialRequest(recipe.with_knob("precision", "bf16"), 0, 24),
    ]
    asked = [*kinds, *(replace(request, seed=request.seed + 5) for request in reversed(kinds))]
    toy = replace(task(), make_model=mlp, train_batches=lambda g: map(Tensor.float, batches(g)))
    toy = replace(toy, loss=lambda model, x: loss(model, x).float(), val_batches=lambda: [X.float()])
    expected = alone(toy, asked)
    assert [result.steps for result in expected] == [24, 10, 24, 24, 24, 24, 10, 24]
    batch, steps, notes = local(toy, asked)
    rounding = [0.05 if request.recipe.precision == "bf16" else 1e-5 for request in asked]
    for mine, others, tolerance in zip(finish(batch), expected, rounding, strict=True):
        assert_same([mine], [others], tolerance)
    assert sum(steps) == sum(result.steps for result in expected)
    assert notes == []


@pytest.mark.parametrize("ragged_from", [0, 18])
def test_batches_whose_shapes_differ_by_seed(ragged_from: int) -> None:
    def ragged(generator: torch.Generator) -> Iterator[Tensor]:
        for step in itertools.count():
            size = int(torch.randint(2, 30, (1,), generator=generator)) if step >= ragged_from else 8
            yield X[torch.randint(64, (size,), generator=generator)]

    toy = replace(task(), train_batches=ragged)
    expected = alone(toy, SIX)
    batch, _, notes = local(toy, SIX)
    assert_same(finish(batch), expected)
    assert len(notes) == (ragged_from > 0)  # what shows up too late for stacks of one seed is trained again
    if not ragged_from:
        assert_same(stacked(toy, SIX), expected)


# --- noise


def test_whether_the_loss_draws_random_numbers_is_found() -> None:
    def drops() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def noisy_batches(generator: torch.Generator) -> Iterator[Tensor]:
        return (x + torch.randn(x.shape) for x in batches(generator))

    assert not check(task(), SIX, CPU).noisy
    assert not check(replace(task(), train_batches=noisy_batches), SIX, CPU).noisy
    assert check(task(drops), SIX, CPU).noisy


def test_batches_and_a_loss_that_draw_in_turn_within_a_step_are_refused() -> None:
    toy = replace(
        task(loss=lambda model, x: loss(model, x) * (1 + torch.rand(()))),
        train_batches=lambda generator: (x + torch.randn(x.shape) for x in batches(generator)),
    )
    assert_same(stacked(toy, requests()), alone(toy, requests()))
    asked = requests(accumulate=2)
    with pytest.raises(NotVectorisable, match="draw from one random stream in turn"):
        Population(toy, asked, CPU, 8, True)
    batch, _, notes = local(toy, asked, noisy=True)
    assert len(notes) == 1
    assert_same(finish(batch), alone(toy, asked), 0.0)


# --- what does not depend on how trials are stacked


def bits(task: Task, width: int) -> list[list[float]]:
    asked = [replace(request, probe=True) for request in requests(lrs=(1e-3, 2e-3, 3e-3, 1e-2), horizon=12)]
    asked = [replace(request, recipe=request.recipe.with_knob("clip_norm", 0.5)) for request in asked]
    found = stacked(task, asked, (5, 12), width)
    return [[*numbers(result), *probed(result)] for result in found]


SMALL_CHARS: dict[str, Any] = {"length": 16, "width": 16, "layers": 1, "batch_size": 4}
TASKS: dict[str, Callable[[], Task]] = {
    "digits mlp": lambda: digits.task(hidden=32),
    "digits mlp, large enough for NumPy": lambda: digits.task(hidden=72),
    "chars": lambda: chars.task(**SMALL_CHARS),
    "chars with dropout": lambda: chars.task(dropout=0.1, **SMALL_CHARS),
}


@pytest.mark.parametrize("name", TASKS)
def test_numbers_do_not_depend_on_the_width_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamtune.population.products.numpy_is_quicker", lambda: True)
    widest = bits(TASKS[name](), 8)
    assert len(set(map(tuple, widest))) == 8
    assert bits(TASKS[name](), 2) == widest
    assert bits(TASKS[name](), 3) == widest


def test_a_cnns_numbers_depend_on_the_width_by_rounding_only() -> None:
    # The convolution's library chooses its kernel by the number of channels, and so by how many members there are.
    cnn = digits.task("cnn", hidden=16, batch_size=8)
    x, y = next(iter(cnn.val_batches()))
    cnn = replace(cnn, val_batches=lambda: [(x[:50], y[:50])])
    two, three, eight = (bits(cnn, width) for width in (2, 3, 8))
    for other in (two, three):
        for mine, others in zip(other, eight, strict=True):
            assert mine == pytest.approx(others, rel=1e-4, abs=1e-4)


# --- nothing else is touched


def chance() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def draws(part: Callable[..., Any]) -> Callable[..., Any]:
    """`part`, drawing from every global generator first."""

    def wrapped(*args: Any) -> Any:
        random.random(), np.random.rand(), torch.rand(1)
        return part(*args)

    return wrapped


@pytest.mark.parametrize("part", ["make_model", "train_batches", "val_batches"])
def test_the_callers_random_state_and_threads_are_left_alone(part: str) -> None:
    dropping = task(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1)))
    dropping = replace(dropping, **{part: draws(getattr(dropping, part))})
    before, threads = chance(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        stacked(dropping, SIX)
        finish(local(dropping, SIX, noisy=True)[0])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert chance() == before


def test_stacks_train_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen: set[int] = set()

    def recorded(model: nn.Module, x: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return loss(model, x)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        finish(local(task(loss=recorded), SIX)[0])
    finally:
        torch.set_num_threads(threads)
    assert seen == {1}


# --- memory, and models that stop being vectorisable


@pytest.mark.parametrize("from_call", [0, 9])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_stack_too_wide_for_the_memory_is_halved_until_it_fits(most: int, from_call: int) -> None:
    calls: list[int] = []

    def full(model: nn.Module, x: Tensor) -> Tensor:
        value = loss(model, x)
        if torch.is_grad_enabled():
            calls.append(width_of(value))
            if calls[-1] > most and len(calls) > from_call:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return value

    asked = [replace(request, probe=True) for request in SIX]
    heard: list[int] = []
    found = finish(Population(task(loss=full), asked, CPU, 6, False, heard.append), RUNGS)
    assert max(calls) == 6
    assert max(calls[-5:]) == {1: 1, 2: 2, 5: 3}[most]
    assert_same(found, alone(task(), asked, RUNGS))
    assert sum(heard) == 6 * 24


def test_a_diverged_member_and_a_full_memory_in_one_window() -> None:
    calls = itertools.count()

    def full(model: nn.Module, x: Tensor) -> Tensor:
        value = loss(model, x)
        if torch.is_grad_enabled() and next(calls) >= 5 and width_of(value) > 2:
            raise torch.OutOfMemoryError("full")
        return value

    asked = [*SIX, TrialRequest(HUGE.with_knob("lr", 1e200), 0, 24)]
    assert_same(finish(Population(task(loss=full), asked, CPU, 8, False)), alone(task(), asked))


def test_a_full_memory_with_buffers_that_may_have_changed_starts_again_one_by_one() -> None:
    def full(model: nn.Module, x: Tensor) -> Tensor:
        value = loss(model, x)
        if torch.is_grad_enabled() and width_of(value) > 2:
            raise torch.OutOfMemoryError("full")
        return value

    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    batch, _, notes = local(task(normed, full), SIX)
    assert_same(finish(batch), alone(task(normed), SIX))
    assert all("one by one" in note for note in notes)


class Fickle(nn.Module):
    """From its sixth training step on, it looks at its numbers to decide what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.steps = mlp(), 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.training:
            self.steps += 1
            if self.steps > 5 and out.mean() > 0:
                out = 0.9 * out
        return out


@pytest.mark.parametrize("rungs", [(24,), (3, 24), (5, 6, 7, 24)])
def test_a_model_that_stops_being_vectorisable_is_trained_again_one_by_one(rungs: tuple[int, ...]) -> None:
    batch, _, notes = local(task(Fickle), SIX)
    expected = alone(task(Fickle), SIX, rungs)
    assert alone(task(), SIX, rungs)[0].final() != expected[0].final()  # it does branch
    assert_same(finish(batch, rungs), expected)
    assert len(notes) == 1
    assert "again one by one" in notes[0]


def test_members_pruned_or_diverged_before_it_stops_being_vectorisable_keep_their_end() -> None:
    asked = [*SIX, TrialRequest(HUGE.with_knob("lr", 1e200), 0, 24)]
    (batch, _, notes), single = local(task(Fickle), asked), SequentialEngine(task(Fickle), CPU).open(asked)
    for trained in (batch, single):
        trained.advance(4)
        trained.prune(1)
    found, expected = finish(batch, (12, 24)), finish(single, (12, 24))
    assert [result.outcome.value[0] for result in expected] == list("cpccccd")
    assert_same(found, expected)
    assert len(notes) == 1


# --- errors of the task


def failing(after: int) -> Callable[[torch.Generator], Iterator[Tensor]]:
    def drawn(generator: torch.Generator) -> Iterator[Tensor]:
        yield from itertools.islice(batches(generator), after)
        raise ValueError("no more")

    return drawn


def explode(*args: object) -> Any:
    raise ValueError("boom")


ERRORS: dict[str, dict[str, Any]] = {
    "the batches raise": {"train_batches": failing(9)},
    "the batches end": {"train_batches": lambda generator: itertools.islice(batches(generator), 9)},
    "the validation batches raise": {"val_batches": explode},
    "no validation batches": {"val_batches": list},
    "a metric raises": {"metrics": {"bad": explode}},
    "a metric is no number": {"metrics": {"bad": lambda model, x: model(x)}},
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_the_task_does_wrong_is_told_as_by_a_trial_alone(name: str) -> None:
    broken = replace(task(), **ERRORS[name])
    with pytest.raises(TaskError) as expected:
        alone(broken, SIX, (16, 24))
    with pytest.raises(TaskError) as found:
        finish(local(broken, SIX)[0], (16, 24))
    assert str(found.value) == str(expected.value)


def test_an_error_keeps_the_rungs_before_it() -> None:
    batch = Population(replace(task(), train_batches=failing(18)), SIX, CPU, 4, False)
    reports = batch.advance(10)
    with pytest.raises(TaskError):
        batch.advance(24)
    assert [result.rungs for result in batch.results()] == [(report,) for report in reports]


def test_a_group_rule_is_refused_as_by_a_trial_alone() -> None:
    lost = HEAD.model_copy(update={"match": HEAD.match.model_copy(update={"kind": None, "params": ("nothing.*",)})})
    asked = [*SIX, TrialRequest(Recipe(groups=(lost,)), 0, 24)]
    told = []
    for train in (alone, lambda *args: finish(Population(*args, CPU, 8, False))):
        with pytest.raises(Exception, match="nothing") as caught:
            train(task(), asked)
        told.append((type(caught.value), str(caught.value)))
    assert told[0] == told[1]
