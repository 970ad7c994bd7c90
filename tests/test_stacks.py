"""What stacks and the engine do when trials end early, fail, or cannot be stacked."""

from __future__ import annotations

import math
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from stacked import CPU, X, alone, assert_same, batches, finish, loss, mlp, requests, stacked, task
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adamtune.engines.population import PopulationEngine
from adamtune.engines.processes import Workers
from adamtune.engines.sequential import SequentialEngine
from adamtune.errors import TaskError
from adamtune.history import Outcome, TrialRequest
from adamtune.population import NotVectorisable, Population
from adamtune.population.stack import Stack
from adamtune.recipe import Recipe
from adamtune.task import Task

ASKED = requests(seeds=(0, 1), lrs=(1e-3, 3e-3, 1e-2))


def engine(of: Task, notes: list[str] | None = None, processes: int = 1) -> PopulationEngine:
    return PopulationEngine(
        of, CPU, on_note=(notes if notes is not None else []).append, always=True, processes=processes
    )


# --- ends


def test_a_diverged_member_ends_as_it_does_alone_and_disturbs_nobody() -> None:
    wild = [
        replace(request, recipe=Recipe(lr=lr, optimizer="sgd"))
        for request, lr in zip(ASKED, (1e-3, 1e9) * 3, strict=True)
    ]
    expected = alone(task(), wild)
    assert [result.outcome for result in expected] == [Outcome.COMPLETED, Outcome.DIVERGED] * 3
    assert_same(stacked(task(), wild), expected)


def test_a_model_that_raises_on_what_diverged_weights_make_ends_only_that_member() -> None:
    def checked(model: nn.Module, x: Tensor) -> Tensor:
        out = model(x)
        torch.linalg.eigvalsh(out.T @ out)  # raises where it is not finite
        return loss(model, x)

    wild = [replace(ASKED[0], recipe=Recipe(lr=1e200, optimizer="sgd")), *ASKED[1:]]
    expected = alone(task(loss=checked), wild)
    assert expected[0].outcome is Outcome.DIVERGED
    found = finish(engine(task(loss=checked)).open(wild))
    assert [result.outcome for result in found] == [result.outcome for result in expected]
    assert_same(found[1:], expected[1:])


@pytest.mark.parametrize("width", [2, 6])
def test_pruned_members_leave_and_the_others_go_on(width: int) -> None:
    batches = [
        SequentialEngine(task(), CPU).open(ASKED),
        Population(task(), ASKED, CPU, width, noisy=False),
    ]
    for batch in batches:
        batch.advance(7)
        for index in (0, 3, 4):
            batch.prune(index)
        reports = batch.advance(24)
        assert [report is None for report in reports] == [True, False, False, True, True, False]
    expected, found = (batch.results() for batch in batches)
    assert_same(found, expected)
    assert [result.steps for result in found] == [7, 24, 24, 7, 7, 24]


def test_trials_of_several_horizons_precisions_and_accumulations_in_one_batch() -> None:
    mixed = [
        *ASKED,
        *(replace(request, horizon=10) for request in ASKED[:2]),
        *(replace(request, recipe=request.recipe.with_knob("accumulate", 2)) for request in ASKED[2:]),
    ]
    assert_same(finish(engine(task()).open(mixed)), alone(task(), mixed))


def test_batches_of_another_shape_for_each_seed() -> None:
    def ragged(generator: torch.Generator) -> Iterator[Tensor]:
        rows = int(torch.randint(3, 9, (), generator=generator))
        for x in batches(generator):
            yield x[:rows]

    uneven = replace(task(), train_batches=ragged)
    assert_same(stacked(uneven, ASKED), alone(uneven, ASKED))


# --- what cannot be stacked


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.gru(x.unsqueeze(2))[0][:, -1])
        return out


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(10, 1, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows((x[:, 0] > 0).long())


class Branching(nn.Module):
    """Looks at its data from step `after` on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.body, self.after, self.step = mlp(), after, 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        self.step += self.training
        return out * 2 if self.step > self.after and out.sum() > 0 else out


class Reassigning(nn.Module):
    """Keeps a running mean by assignment, which `functional_call` does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * out.detach().mean()
        return out - self.mean


def drawn_by_python(model: nn.Module, x: Tensor) -> Tensor:
    return loss(model, x) * (1 + random.random())


UNSTACKABLE = {
    "recurrent": (task(Recurrent), "'gru' (GRU)"),
    "branching": (task(lambda: Branching(0)), "Branching"),
    "reassigning": (task(Reassigning), "'mean'"),
    "python's chance": (task(loss=drawn_by_python), "Python's"),
}


@pytest.mark.parametrize("name", UNSTACKABLE)
def test_what_cannot_be_stacked_trains_one_by_one_and_one_line_says_why(name: str) -> None:
    of, reason = UNSTACKABLE[name]
    notes: list[str] = []
    assert_same(finish(engine(of, notes).open(ASKED)), alone(of, ASKED), 0.0)
    assert len(notes) == 1
    assert "one by one" in notes[0]
    assert reason in notes[0]


def test_sparse_gradients_train_one_by_one() -> None:
    by_sgd = [replace(request, recipe=Recipe(optimizer="sgd", lr=1e-2, weight_decay=0.0)) for request in ASKED]
    notes: list[str] = []
    assert_same(finish(engine(task(Sparse), notes).open(by_sgd)), alone(task(Sparse), by_sgd), 0.0)
    assert "sparse" in notes[0]


def test_what_turns_out_midway_not_to_be_stackable_starts_again_one_by_one() -> None:
    notes: list[str] = []
    batch = engine(task(lambda: Branching(15)), notes).open(ASKED)
    batch.advance(7)
    batch.prune(1)
    batch.advance(24)
    reference = SequentialEngine(task(lambda: Branching(15)), CPU).open(ASKED)
    reference.advance(7)
    reference.prune(1)
    reference.advance(24)
    assert_same(batch.results(), reference.results())
    assert "start again" in notes[-1]


def test_a_task_that_raises_raises_the_same_in_a_stack() -> None:
    def raising(model: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("the toy broke")

    messages = []
    for kind in (SequentialEngine(task(loss=raising), CPU), engine(task(loss=raising))):
        with pytest.raises(TaskError) as told:
            kind.open(ASKED).advance(24)
        messages.append(str(told.value))
    assert messages[0] == messages[1]


def test_memory_that_ends_halves_the_stack_and_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    step, widths = Stack.step, []

    def small(self: Stack, *args: Any) -> Tensor:
        if self.width > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        widths.append(self.width)
        return step(self, *args)

    monkeypatch.setattr(Stack, "step", small)
    assert_same(stacked(task(), ASKED, width=6), alone(task(), ASKED))
    assert set(widths) <= {1, 2}


def test_fp16_is_refused_by_name() -> None:
    with pytest.raises(NotVectorisable, match="fp16"):
        stacked(task(), requests(precision="fp16"))


# --- what only shows after the first step


def refilled(generator: torch.Generator) -> Iterator[Tensor]:
    """Yields the same tensor over and over, filled anew."""
    kept = torch.empty(8, 4, dtype=torch.float64)
    for x in batches(generator):
        yield kept.copy_(x)


def hooked() -> nn.Module:
    model = mlp()
    for param in model.parameters():
        param.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    return model


class Drifting(Reassigning):
    """Its assigned buffer is at first what it was."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        if self.training:
            self.mean = self.mean + 1e-6 * out.detach().mean()
        return out - 1e3 * self.mean


def late_chance() -> Task:
    def make() -> nn.Module:
        model = mlp()
        model.step = 0
        return model

    def late(model: nn.Module, x: Tensor) -> Tensor:
        model.step += model.training
        return loss(model, x) * (1 + (random.random() if model.step > 9 else 0.0))

    return task(make, late)


def decayed(model: nn.Module, x: Tensor) -> Tensor:
    return loss(model, x) + 1e-3 * sum(param.pow(2).sum() for param in model.parameters() if param.requires_grad)


class Gain(nn.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Counting(nn.Module):
    """Counts its calls, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = mlp(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.body(x) * (1 + 1 / self.calls)
        return out


def scaling_its_batch(model: nn.Module, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        x.mul_(1.001)
    return loss(model, x)


LATE = {
    "weights that say they do not train": task(loss=decayed),
    "calls counted": task(Counting),
    "a batch changed in place": task(loss=scaling_its_batch),
    "a scalar, clipped": task(lambda: nn.Sequential(mlp(), Gain())),
    "a batch refilled": replace(task(), train_batches=refilled),
    "gradient hooks": task(hooked),
    "a buffer drifting": task(Drifting),
    "python's chance": late_chance(),
}


@pytest.mark.parametrize("name", LATE)
def test_what_the_first_step_does_not_show_gives_no_wrong_number(name: str) -> None:
    clipped = [replace(request, recipe=request.recipe.with_knob("clip_norm", 0.25)) for request in ASKED]
    for asked in (ASKED, clipped):
        assert_same(finish(engine(LATE[name]).open(asked)), alone(LATE[name], asked))


def test_fp16_is_not_stacked_behind_another_precision() -> None:
    halves = [replace(request, recipe=request.recipe.with_knob("precision", "fp16")) for request in ASKED[:2]]
    gentle = Task(
        "gentle", mlp, lambda g: (x.float() for x in batches(g)), lambda m, x: loss(m, x) / 50, lambda: [X.float()]
    )
    mixed = [*ASKED[:2], *halves]
    assert_same(finish(engine(gentle).open(mixed))[2:], alone(gentle, mixed)[2:], 0.0)


def test_a_member_that_diverged_before_the_hand_back_keeps_its_losses() -> None:
    wild = [replace(ASKED[0], recipe=Recipe(lr=1e9, optimizer="sgd")), *ASKED[1:]]
    of = task(lambda: Branching(20))
    assert_same(finish(engine(of).open(wild), (24,)), alone(of, wild, (24,)))


# --- processes


def test_a_data_loader_may_have_workers_of_its_own() -> None:
    data = TensorDataset(X, X.sum(1, keepdim=True))
    loader = DataLoader(data, batch_size=16, num_workers=1)
    loaded = Task.supervised(lambda: mlp().double(), loader, [X, X.sum(1, keepdim=True)], nn.functional.mse_loss)
    short = [replace(request, horizon=3) for request in ASKED[:2]]
    workers = Workers(loaded, CPU, 2)
    batch = workers.open([[0], [1]], short, 1, False, lambda steps: None, lambda note: None)
    assert_same(finish(batch, (3,)), alone(loaded, short, (3,)), 0.0)
    assert batch.results() == batch.results()
    workers.close()


def test_two_processes_give_the_numbers_of_one() -> None:
    two = engine(task(), processes=2)
    try:
        assert_same(finish(two.open(ASKED)), finish(engine(task()).open(ASKED)), 1e-12)
    finally:
        two.close()
    assert not multiprocessing.active_children()


def test_a_task_that_raises_in_a_worker_is_told_as_it_is_here() -> None:
    def late(model: nn.Module, x: Tensor) -> Tensor:
        if int(model.step) > 4:
            raise ValueError("the toy broke")
        model.step += 1
        return loss(model, x)

    def make() -> nn.Module:
        model = mlp()
        model.step = 0
        return model

    workers = Workers(task(make, late), CPU, 2)
    batch = workers.open([[0, 2, 4], [1, 3, 5]], ASKED, 1, False, lambda steps: None, lambda note: None)
    with pytest.raises(TaskError, match=r"ValueError: the toy broke .*at training step 6"):
        batch.advance(24)
    workers.close()


def test_an_interrupt_leaves_results_to_read() -> None:
    told: list[int] = []

    def stop(steps: int) -> None:
        told.append(steps)
        if len(told) == 1:
            raise KeyboardInterrupt

    workers = Workers(task(), CPU, 2)
    long = [replace(request, horizon=100_000) for request in ASKED]
    batch = workers.open([[0, 2, 4], [1, 3, 5]], long, 8, False, stop, lambda note: None)
    with pytest.raises(KeyboardInterrupt):
        batch.advance(100_000)
    results = batch.results()
    steps = [result.steps for result in results]
    assert max(steps) < 100_000
    assert sum(steps) > 0  # the other worker may not have come to its first step yet
    assert {result.outcome for result in results} == {Outcome.PRUNED}
    workers.close()


# --- the caller's world


def test_the_callers_chance_and_threads_are_left_alone() -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_num_threads()
    noisy = task(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)))
    finish(engine(noisy).open(ASKED))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_num_threads()) == before[1:]


def test_the_width_of_the_stacks_changes_numbers_by_rounding_only() -> None:
    single = Task("toy", mlp, lambda generator: (x.float() for x in batches(generator)), loss, lambda: [X.float()])
    results = [finish(Population(single, ASKED, CPU, width, noisy=False)) for width in (1, 2, 4, 6)]
    assert all(math.isfinite(result.final()) for result in results[0])
    for other in results[1:]:
        assert_same(other, results[0], 1e-5)


def test_a_single_trial_needs_no_stack() -> None:
    one = [TrialRequest(Recipe(), 0, 10)]
    assert_same(finish(PopulationEngine(task(), CPU).open(one)), alone(task(), one), 0.0)
