"""The engine that chooses stacks, widths and processes: whatever it does, trials have the numbers they have alone."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stacked import CPU, X, alone, assert_same, batches, finish, loss, mlp, numbers, requests, task, width_of
from torch import Tensor, nn

from adamtune.engines import make_engine
from adamtune.engines.local import LocalBatch
from adamtune.engines.memory import free_memory
from adamtune.engines.population import PopulationEngine
from adamtune.engines.processes import SharedBatch, WorkerLost, Workers, process_count
from adamtune.engines.width import StepTimes, time_steps
from adamtune.errors import TaskError
from adamtune.history import Outcome, TrialRequest, TrialResult
from adamtune.recipe import Recipe, Schedule
from adamtune.task import Task

ASKED = [*requests(), *requests(seeds=(2,), optimizer="sgd")]
RUNGS = (7, 24)


def engine_results(
    task: Task, asked: Sequence[TrialRequest], rungs: Sequence[int] = RUNGS, name: str = "population"
) -> tuple[list[TrialResult], list[str]]:
    """What the engine of this name gives, and its notes."""
    notes: list[str] = []
    with closing(make_engine(name, task, CPU, on_note=notes.append)) as engine:
        return finish(engine.open(asked), rungs), notes


# --- what cannot be stacked is trained one by one, and the reason told


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.core, self.head = kind(1, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x.unsqueeze(2))[0][:, -1])


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(10, 5, sparse=True), nn.Linear(20, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words((x * 2).long().clamp(-5, 4) + 5).flatten(1))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        return out if out.sum() > 0 else 0.5 * out


class Averaged(nn.Module):
    """Keeps a buffer by putting another tensor in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("ema", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.training:
            self.ema = 0.9 * self.ema + 0.1 * out.detach().mean(0)
        return out - self.ema


def chancy(model: nn.Module, x: Tensor) -> Tensor:
    return loss(model, x) * (1 + random.random())


def penalised(model: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return loss(model, x) + slope.pow(2).mean()


def single() -> Task:
    """The toy in float32."""
    floats = {
        "train_batches": lambda generator: map(Tensor.float, batches(generator)),
        "val_batches": lambda: [X.float()],
    }
    return replace(task(), make_model=mlp, loss=lambda model, x: loss(model, x) / 50, **floats)


class Drawn(nn.Module):
    """Draws something by seed that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.factor = mlp(), float(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.body(x)


HALF = replace(
    single(),
    make_model=lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1).bfloat16()),
    loss=lambda model, x: (model[1](model[0](x).bfloat16()).float() - x.sum(1, keepdim=True)).pow(2).mean(),
)
SPARSE = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
REFUSED: dict[str, tuple[Task, dict[str, Any], str]] = {
    "GRU": (task(lambda: Recurrent(nn.GRU)), {}, r"module 'core' \(GRU\)"),
    "LSTM": (task(lambda: Recurrent(nn.LSTM)), {}, r"module 'core' \(LSTM\)"),
    "sparse gradients": (task(Words), SPARSE, "gradients are sparse"),
    "control flow on data": (task(Branching), {}, r"the model \(Branching\)"),
    "chance from Python": (task(loss=chancy), {}, "Python's or NumPy's random numbers"),
    "a buffer put in another's place": (task(Averaged), {}, "the buffer 'ema' is not kept"),
    "fp16": (single(), {"precision": "fp16"}, "fp16"),
    "a gradient within the loss": (task(loss=penalised), {}, "requires_grad_"),
    "a half-precision parameter": (HALF, {}, "bfloat16"),
    "numbers of a model drawn by seed": (task(Drawn), {}, "its first loss is"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_stacked_trains_one_by_one_and_one_line_says_why(kind: str) -> None:
    toy, knobs, reason = REFUSED[kind]
    asked = requests(**knobs)
    found, notes = engine_results(toy, asked)
    assert_same(found, alone(toy, asked), 0.0)
    assert len(notes) == 1
    assert notes[0].startswith("trials train one by one")
    assert "\n" not in notes[0]
    assert re.search(reason, notes[0]), notes[0]


class Fickle(nn.Module):
    """From its `since`th training step on, it looks at its numbers to decide what to do."""

    def __init__(self, since: int) -> None:
        super().__init__()
        self.body, self.steps, self.since = mlp(), 0, since

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.training:
            self.steps += 1
            if self.steps >= self.since and out.mean() > 0:
                out = 0.9 * out
        return out


def test_a_model_that_stops_being_vectorisable_has_the_numbers_it_has_alone() -> None:
    fickle = task(lambda: Fickle(12))
    found, notes = engine_results(fickle, ASKED)
    assert_same(found, alone(fickle, ASKED))
    assert notes[0].startswith("trials train in stacks")
    assert len(notes) > 1
    assert all(note.startswith("trials start again one by one: ") for note in notes[1:])


# --- stacks through the engine


@pytest.mark.parametrize("name", ["population", "auto", "sequential"])
def test_every_engine_gives_the_numbers_of_trials_alone(name: str) -> None:
    found, _ = engine_results(task(), ASKED, name=name)
    assert_same(found, alone(task(), ASKED))


def test_one_trial_by_every_engine() -> None:
    for name in ("population", "auto", "sequential"):
        assert_same(engine_results(task(), ASKED[:1], name=name)[0], alone(task(), ASKED[:1]))


def test_population_trains_in_stacks_and_says_how() -> None:
    seen: set[int] = set()

    def recorded(model: nn.Module, x: Tensor) -> Tensor:
        value = loss(model, x)
        if recording:
            seen.add(width_of(value))
        return value

    recording, notes, heard = False, [], []
    engine = PopulationEngine(
        task(loss=recorded), CPU, heard.append, notes.append, always=True, processes=1
    )  # fmt: skip
    batch = engine.open(ASKED)
    recording = True
    found = finish(batch)
    assert seen == {len(ASKED)}
    assert len(notes) == 1
    assert notes[0].startswith("trials train in stacks of up to ")
    assert_same(found, alone(task(), ASKED))
    assert sum(heard) == 24 * len(ASKED)


def test_auto_does_not_look_for_a_width_where_a_batch_is_over_in_no_time() -> None:
    found, notes = engine_results(task(), ASKED, name="auto")
    assert notes == []
    assert_same(found, alone(task(), ASKED), 0.0)


def test_step_times_are_measured_once_for_each_precision_and_accumulation() -> None:
    notes: list[str] = []
    with closing(PopulationEngine(task(), CPU, on_note=notes.append, always=True, processes=1)) as engine:
        for asked in (ASKED, ASKED[:3], requests(accumulate=2), ASKED, requests(accumulate=2)):
            assert_same(finish(engine.open(asked)), alone(task(), asked))
    assert len(notes) == 2


def test_a_task_whose_losses_draw_noise_through_the_engine() -> None:
    dropping = task(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1)))
    found, notes = engine_results(dropping, ASKED)
    assert_same(found, alone(dropping, ASKED))
    assert notes[0].startswith("trials train in stacks")


# --- the width


def test_stacks_are_no_wider_than_the_memory_allows() -> None:
    widths = {
        memory: [width for width, _ in time_steps(task(), ASKED, CPU, memory, 9.0).stacked] for memory in (0, 2e4)
    }
    assert widths[0] == [2]
    assert 2 < max(widths[2e4]) < 32


def test_why_trials_cannot_be_stacked_is_part_of_what_was_measured() -> None:
    times = time_steps(task(Branching), ASKED, CPU, 1e9, 1.0)
    assert (times.stacked, times.width) == ((), 1)
    assert times.note
    assert not times.pays([100])


TIMES = StepTimes(1.0, ((2, 1.2), (4, 1.6), (8, 2.0), (16, 8.0)), False, "")


def test_the_width_is_the_one_at_which_a_member_costs_least() -> None:
    assert TIMES.width == 8
    assert StepTimes(1.0, ((2, 1.99), (4, 3.99)), False, "").width == 1  # no gain worth a stack
    assert StepTimes(1.0, (), False, "no").width == 1


def test_seconds_of_a_step_are_interpolated_and_split_over_stacks() -> None:
    assert TIMES.seconds(8) == pytest.approx(2.0)
    assert TIMES.seconds(6) == pytest.approx(1.8)
    assert TIMES.seconds(16) == pytest.approx(4.0)  # two stacks of eight, not one of sixteen
    assert TIMES.seconds(12) == pytest.approx(3.6)
    assert TIMES.seconds(1) == float("inf")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_stacks_pay_where_they_are_quicker_than_one_by_one(counts: list[int]) -> None:
    assert TIMES.pays(counts) == (
        max(counts) > 1 and sum(min(TIMES.seconds(n), n) for n in counts) < 0.97 * sum(counts)
    )
    assert not StepTimes(1.0, ((2, 2.5),), False, "").pays(counts)


def test_free_memory_is_that_of_this_machine() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory(CPU) <= total


# --- processes


def shares(count: int, workers: int = 2) -> list[list[int]]:
    return [list(range(start, count, workers)) for start in range(workers)]


class Crew:
    """Two workers and a batch of theirs."""

    def __init__(
        self, task: Task, asked: Sequence[TrialRequest], on_steps: Callable[[int], None] | None = None
    ) -> None:
        self.heard: list[int] = []
        self.notes: list[str] = []
        self.workers = Workers(task, CPU, 2)
        self.batch: SharedBatch = self.workers.open(
            shares(len(asked)), asked, 8, False, on_steps or self.heard.append, self.notes.append
        )

    def close(self) -> None:
        self.workers.close()


def in_one_process(task: Task, asked: Sequence[TrialRequest], rungs: Sequence[int] = RUNGS) -> list[TrialResult]:
    return finish(LocalBatch(task, asked, CPU, 8, False, lambda steps: None, lambda note: None), rungs)


DOOMED = TrialRequest(Recipe(optimizer="sgd", lr=1e200, schedule=Schedule(kind="constant", warmup=0.0)), 0, 24)


def test_two_processes_give_what_one_gives_bit_for_bit() -> None:
    floats = single()
    asked = [*ASKED[:3], DOOMED, *(replace(request, probe=True) for request in ASKED[3:])]
    with closing(Crew(floats, asked)) as crew:
        found = finish(crew.batch)
        assert_same(found, in_one_process(floats, asked), 0.0)
        assert sum(crew.heard) == sum(result.steps for result in found)
        assert found[3].outcome is Outcome.DIVERGED
    assert len({tuple(numbers(result)) for result in found[:3]}) == 3


def test_batches_share_the_workers_and_their_trials_can_be_pruned() -> None:
    with closing(Crew(task(), ASKED)) as crew:
        other = crew.workers.open([[0, 1]], ASKED[:2], 8, False, lambda steps: None, lambda note: None)
        crew.batch.advance(5)
        other.advance(7)
        crew.batch.prune(3)
        reports = crew.batch.advance(24)
        assert [report is None for report in reports] == [False, False, False, True, False, False]
        assert_same(finish(other, (24,)), alone(task(), ASKED[:2]))
        outcomes = [result.outcome.value for result in crew.batch.results()]
    assert outcomes == ["completed", "completed", "completed", "pruned", "completed", "completed"]


def failing(generator: torch.Generator) -> Iterator[Tensor]:
    yield from itertools.islice(batches(generator), 18)
    raise ValueError("no more")


def test_an_error_of_the_task_in_a_worker_is_told_as_in_this_process() -> None:
    broken = replace(task(), train_batches=failing)
    with pytest.raises(TaskError, match="ValueError: no more .* at training step 19") as expected:
        alone(broken, ASKED, (10, 24))
    with closing(Crew(broken, ASKED)) as crew:
        reports = crew.batch.advance(10)
        with pytest.raises(TaskError) as found:
            crew.batch.advance(24)
        assert str(found.value) == str(expected.value)
        assert any("Traceback" in note for note in found.value.__notes__)  # of the worker, for --debug
        assert [result.rungs for result in crew.batch.results()] == [(report,) for report in reports]


def test_an_error_that_cannot_cross_to_this_process_is_told_all_the_same() -> None:
    class Peculiar(TaskError):
        def __init__(self, one: str, other: str) -> None:
            super().__init__(f"{one} and {other}")

    def peculiar(generator: torch.Generator) -> Iterator[Tensor]:
        yield from itertools.islice(batches(generator), 18)
        raise Peculiar("this", "that")

    with closing(Crew(replace(task(), train_batches=peculiar), ASKED)) as crew:
        crew.batch.advance(10)
        with pytest.raises(Exception, match="this and that"):
            crew.batch.advance(24)
        assert len(crew.batch.results()) == len(ASKED)


def test_a_killed_worker_is_told_and_the_others_results_are_kept() -> None:
    with closing(Crew(task(), ASKED)) as crew:
        crew.batch.advance(5)
        os.kill(crew.workers.processes[0].pid or 0, signal.SIGKILL)
        with pytest.raises(WorkerLost, match=r"^a worker process died, .*; what the others measured is kept\. \S.*"):
            crew.batch.advance(24)
        found = crew.batch.results()
    assert [result.request for result in found] == ASKED
    assert [result.outcome for result in found] == [Outcome.FAILED, Outcome.COMPLETED] * 3
    assert_same(found[1::2], alone(task(), ASKED[1::2], (5, 24)))


def test_a_worker_killed_while_it_trains_is_told() -> None:
    def kill(steps: int) -> None:
        os.kill(crew.workers.processes[0].pid or 0, signal.SIGKILL)

    asked = [replace(request, horizon=4000) for request in ASKED]
    with closing(Crew(task(), asked, kill)) as crew:
        with pytest.raises(WorkerLost):
            crew.batch.advance(500)
        assert [result.steps for result in crew.batch.results()] == [0, 500] * 3


def test_an_interrupt_leaves_the_results_readable_and_the_workers_in_order() -> None:
    interrupted: list[int] = []

    def interrupt(steps: int) -> None:
        interrupted.append(steps)
        if len(interrupted) == 1:
            raise KeyboardInterrupt

    asked = [replace(request, horizon=4000) for request in ASKED]
    with closing(Crew(task(), asked, interrupt)) as crew:
        with pytest.raises(KeyboardInterrupt):
            crew.batch.advance(4000)
        found = crew.batch.results()
        assert [result.request for result in found] == asked
        assert all(result.steps <= 4000 for result in found)
        assert min(result.steps for result in found) < 4000
        again = crew.workers.open(shares(6), ASKED, 8, False, lambda steps: None, lambda note: None)
        assert_same(finish(again), alone(task(), ASKED))


def test_closing_an_engine_ends_its_processes() -> None:
    before = set(multiprocessing.active_children())
    engine = PopulationEngine(task(), CPU, always=True, processes=2)
    found = finish(engine.open(ASKED))
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    engine.close()
    engine.close()
    assert set(multiprocessing.active_children()) <= before
    assert not any(process.is_alive() for process in started)
    assert_same(found, alone(task(), ASKED))
    assert_same(finish(engine.open(ASKED)), found, 0.0)  # it starts others where it is wanted again
    engine.close()


def test_workers_end_with_the_process_that_started_them() -> None:
    script = textwrap.dedent("""
        import os, torch
        from stacked import CPU, task, requests
        from adamtune.engines.processes import Workers
        workers = Workers(task(), CPU, 2)
        print(*[process.pid for process in workers.processes], flush=True)
        os._exit(1)
    """)
    folder = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_workers_train_after_this_process_has_used_several_threads() -> None:
    script = textwrap.dedent("""
        import torch
        from stacked import CPU, alone, assert_same, finish, requests, task
        from adamtune.engines.processes import Workers
        torch.set_num_threads(2)
        x = torch.randn(600, 600, requires_grad=True)
        (x @ x).sum().backward()
        expected = alone(task(), requests())
        workers = Workers(task(), CPU, 2)
        batch = workers.open([[0, 2], [1, 3]], requests(), 8, False, lambda steps: None, lambda note: None)
        assert_same(finish(batch), expected)
        workers.close()
        print("the same", torch.get_num_threads())
    """)
    folder = str(Path(__file__).parent)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stdout == "the same 2\n", done.stderr


@pytest.mark.parametrize(("threads", "one"), [(None, False), ("1", False), ("2", True), ("4,2", True)])
def test_processes_are_one_a_core_where_each_uses_one_thread(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, one: bool
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    assert process_count(CPU) == (1 if one else cores)
    assert process_count(torch.device("meta")) == 1


def test_results_do_not_depend_on_the_number_of_processes() -> None:
    found = []
    for processes in (1, 2, 3):
        with closing(PopulationEngine(single(), CPU, always=True, processes=processes)) as engine:
            found.append(finish(engine.open(ASKED)))
    assert_same(found[1], found[0], 0.0)
    assert_same(found[2], found[0], 0.0)
