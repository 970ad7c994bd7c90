"""Worker processes: the numbers of one process, and what happens when they or this process are interrupted or die."""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
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
from stacked import CPU, alone, assert_same, batches, finish, loss, numbers, requests, task
from torch import Tensor, nn

from adamtune.engines.local import LocalBatch
from adamtune.engines.population import PopulationEngine
from adamtune.engines.processes import WorkerLost, Workers, process_count
from adamtune.errors import TaskError
from adamtune.history import Outcome, TrialRequest, TrialResult
from adamtune.randomness import Stream, derive_seed
from adamtune.recipe import Recipe, Schedule
from adamtune.task import Task

ASKED = [*requests(), *requests(seeds=(2,), optimizer="sgd")]
SHARES = [[0, 2, 4], [1, 3, 5]]
DOOMED = TrialRequest(Recipe(optimizer="sgd", lr=1e200, schedule=Schedule(kind="constant", warmup=0.0)), 0, 24)
LONG = [replace(request, horizon=100_000) for request in ASKED]


class Crew:
    """Two workers and a batch of theirs."""

    def __init__(
        self, of: Task, asked: Sequence[TrialRequest] = ASKED, on_steps: Callable[[int], None] | None = None
    ) -> None:
        self.heard: list[int] = []
        self.noted: list[str] = []
        self.workers = Workers(of, CPU, 2)
        self.batch = self.workers.open(SHARES, asked, 8, False, on_steps or self.heard.append, self.noted.append)

    def close(self) -> None:
        self.workers.close()


def kill(workers: Workers, place: int) -> None:
    os.kill(workers.processes[place].pid or 0, signal.SIGKILL)


# --- numbers


def test_two_processes_give_what_one_gives_bit_for_bit() -> None:
    asked = [*ASKED[:3], DOOMED, *(replace(request, probe=True) for request in ASKED[3:5])]
    here = LocalBatch(task(), asked, CPU, 8, False, lambda steps: None, lambda note: None)
    with closing(Crew(task(), asked)) as crew:
        found = finish(crew.batch)
        assert_same(found, finish(here), 0.0)
        assert sum(crew.heard) == sum(result.steps for result in found)
    assert found[3].outcome is Outcome.DIVERGED
    assert len({tuple(numbers(result)) for result in found[:3]}) == 3


def test_results_do_not_depend_on_the_number_of_processes() -> None:
    found: list[list[TrialResult]] = []
    for processes in (1, 2, 3):
        with closing(PopulationEngine(task(), CPU, always=True, processes=processes)) as engine:
            found.append(finish(engine.open(ASKED)))
    assert_same(found[1], found[0], 1e-12)
    assert_same(found[2], found[0], 1e-12)


def test_batches_share_the_workers_and_their_trials_can_be_pruned() -> None:
    with closing(Crew(task())) as crew:
        other = crew.workers.open([[0, 1]], ASKED[:2], 8, False, lambda steps: None, lambda note: None)
        crew.batch.advance(5)
        other.advance(7)
        crew.batch.prune(3)
        reports = crew.batch.advance(24)
        assert [report is None for report in reports] == [False, False, False, True, False, False]
        assert_same(finish(other, (24,)), alone(task(), ASKED[:2]))
        outcomes = [result.outcome.value for result in crew.batch.results()]
    assert outcomes == ["completed", "completed", "completed", "pruned", "completed", "completed"]


@pytest.mark.parametrize("processes", [1, 2])
def test_after_the_results_nothing_trains_any_more(processes: int) -> None:
    with closing(PopulationEngine(task(), CPU, always=True, processes=processes)) as engine:
        batch = engine.open(ASKED)
        batch.advance(5)
        results = batch.results()
        assert batch.advance(10) == [None] * len(ASKED)
        batch.prune(1)
        assert batch.results() == results
    assert {(result.outcome, result.steps) for result in results} == {(Outcome.PRUNED, 5)}


# --- errors


def failing(generator: torch.Generator) -> Iterator[Tensor]:
    yield from itertools.islice(batches(generator), 18)
    raise ValueError("no more")


def test_an_error_of_the_task_in_a_worker_is_told_as_in_this_process() -> None:
    broken = replace(task(), train_batches=failing)
    with pytest.raises(TaskError, match=r"ValueError: no more .* at training step 19") as expected:
        alone(broken, ASKED, (10, 24))
    with closing(Crew(broken)) as crew:
        reports = crew.batch.advance(10)
        with pytest.raises(TaskError) as found:
            crew.batch.advance(24)
        assert str(found.value) == str(expected.value)
        assert any("Traceback" in note for note in found.value.__notes__)  # of the worker, for --debug
        assert [result.rungs for result in crew.batch.results()] == [(report,) for report in reports]


class Peculiar(TaskError):
    """Cannot be unpickled: it is made of two arguments and keeps one."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


def test_an_error_that_cannot_cross_to_this_process_is_told_all_the_same() -> None:
    def peculiar(generator: torch.Generator) -> Iterator[Tensor]:
        yield from itertools.islice(batches(generator), 18)
        raise Peculiar("this", "that")

    with closing(Crew(replace(task(), train_batches=peculiar))) as crew:
        crew.batch.advance(10)
        with pytest.raises(Exception, match="this and that"):
            crew.batch.advance(24)
        assert len(crew.batch.results()) == len(ASKED)


@pytest.mark.parametrize("raising", ["fp32", "bf16"])
def test_a_task_whose_first_step_raises_is_told_when_it_trains_and_facts_stay_json(raising: str) -> None:
    def narrow(model: nn.Module, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu") == (raising == "bf16"):
            raise ValueError("not in this precision")
        return loss(model, x)

    with closing(PopulationEngine(task(loss=narrow), CPU, always=True, processes=2)) as engine:
        for precision in ("fp32", "bf16"):
            asked = requests(precision=precision)
            batch = engine.open(asked)
            if precision == raising:
                with pytest.raises(TaskError, match=r"not in this precision .* at training step 1"):
                    batch.advance(3)
        json.dumps(engine.facts(), allow_nan=False)


# --- workers that die


def test_a_worker_killed_while_it_trains_is_replaced_and_nothing_changes() -> None:
    killed: list[int] = []

    def kill_once(steps: int) -> None:
        if not killed:
            killed.append(crew.workers.processes[0].pid or 0)
            kill(crew.workers, 0)

    crew = Crew(task(), ASKED, kill_once)
    with closing(crew):
        crew.batch.advance(7)
        crew.batch.prune(2)
        assert_same(finish(crew.batch, (24,))[:2], alone(task(), ASKED)[:2])
        assert crew.workers.processes[0].pid != killed[0]
        assert crew.batch.results()[2].steps == 7
    assert crew.noted == ["a worker process died; its 3 trials start again in another"]


def test_a_worker_killed_between_batches_is_replaced_for_all_of_them() -> None:
    with closing(Crew(task())) as crew:
        other = crew.workers.open(SHARES, ASKED, 8, False, lambda steps: None, lambda note: None)
        crew.batch.advance(7)
        other.advance(7)
        other.prune(1)
        kill(crew.workers, 1)
        crew.workers.processes[1].join()
        assert_same(finish(crew.batch, (24,)), alone(task(), ASKED))
        found = finish(other, (24,))
        assert_same([found[0], *found[2:]], [result for place, result in enumerate(alone(task(), ASKED)) if place != 1])
        assert (found[1].outcome, found[1].steps) == (Outcome.PRUNED, 7)


def test_trials_whose_workers_always_die_have_failed_and_the_others_go_on() -> None:
    def deadly(model: nn.Module, x: Tensor) -> Tensor:
        if torch.initial_seed() in deaths and os.getpid() != owner:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(model, x)

    owner, deaths = os.getpid(), {derive_seed(ASKED[1].seed, Stream.STEP, 9)}
    asked = [request for request in ASKED if request.seed != ASKED[1].seed]
    asked = [asked[0], ASKED[1], asked[1]]
    with closing(Workers(task(loss=deadly), CPU, 2)) as workers:
        noted: list[str] = []
        batch = workers.open([[0, 2], [1]], asked, 1, False, lambda steps: None, noted.append)
        reports = batch.advance(24)
        assert [report is None for report in reports] == [False, True, False]
        found = batch.results()
    assert [result.outcome for result in found] == [Outcome.COMPLETED, Outcome.FAILED, Outcome.COMPLETED]
    assert "their worker process died 4 times, the last time killed by SIGKILL, perhaps for want" in found[1].message
    assert noted[-1].startswith("1 trials failed: their worker process died 4 times")
    assert_same([found[0], found[2]], alone(task(), [asked[0], asked[2]], (24,)))


class Mortal(Workers):
    """The first of its processes is killed at so many questions."""

    deaths = 0

    def ask(self, *args: Any, **options: Any) -> dict[int, Any]:
        if self.deaths:
            self.deaths -= 1
            kill(self, 0)
        return super().ask(*args, **options)


def test_a_worker_killed_while_widths_are_measured_is_replaced_and_the_end_of_one_that_always_is_told() -> None:
    with closing(Mortal(task(), CPU, 2)) as workers:
        workers.deaths, pids = 2, [process.pid for process in workers.processes]
        assert workers.measure(ASKED, 1e9, 0.1, 1.0).stacked
        assert [process.pid == pid for process, pid in zip(workers.processes, pids, strict=True)] == [False, True]
        workers.deaths = 9
        with pytest.raises(WorkerLost, match="died each time that step times were measured: killed by SIGKILL"):
            workers.measure(ASKED, 1e9, 0.1, 1.0)


def test_closing_an_engine_ends_its_processes() -> None:
    before = set(multiprocessing.active_children())
    engine = PopulationEngine(task(), CPU, always=True, processes=2)
    found = finish(engine.open(ASKED))
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    engine.close()
    engine.close()
    assert set(multiprocessing.active_children()) <= before
    assert_same(finish(engine.open(ASKED)), found, 0.0)  # it starts others where it is wanted again
    engine.close()


def test_an_engine_started_beside_another_lets_it_go_in_peace() -> None:
    first = Workers(task(), CPU, 2)
    kept = [first]

    def dropping(generator: torch.Generator) -> Iterator[Tensor]:
        kept.clear()  # in the second's workers: their copy of the first is no more
        gc.collect()
        return batches(generator)

    second = Workers(replace(task(), train_batches=dropping), CPU, 2)
    del first
    with closing(second):
        batch = second.open(SHARES, ASKED, 8, False, lambda steps: None, lambda note: None)
        assert_same(finish(batch), alone(task(), ASKED))
        assert all(process.is_alive() for process in kept[0].processes)
        again = kept[0].open(SHARES, ASKED, 8, False, lambda steps: None, lambda note: None)
        assert_same(finish(again), alone(task(), ASKED))
        processes = kept[0].processes
        kept[0].close()
        assert {process.exitcode for process in processes} == {0}  # they have heard it, and were not killed


SCRIPT = """
    import os, sys, torch
    from stacked import CPU, alone, assert_same, finish, requests, task
    from adamtune.engines.processes import Workers
"""


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | environment
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT) + textwrap.dedent(script)], cwd=Path(__file__).parent,
        capture_output=True, text=True, timeout=60, env=kept,
    )  # fmt: skip


def test_workers_end_with_the_process_that_started_them() -> None:
    done = run("""
        workers = Workers(task(), CPU, 2)
        print(*[process.pid for process in workers.processes], flush=True)
        os._exit(1)
    """)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    deadline = time.monotonic() + 60
    while any(runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(runs(pid) for pid in pids)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_workers_train_after_this_process_has_used_several_threads() -> None:
    done = run("""
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
    assert done.stdout == "the same 2\n", done.stderr


# --- Ctrl-C


def test_after_an_interrupt_the_workers_are_in_order() -> None:
    told: list[int] = []

    def stop(steps: int) -> None:
        told.append(steps)
        if len(told) == 1:
            raise KeyboardInterrupt

    with closing(Crew(task(), LONG, stop)) as crew:
        with pytest.raises(KeyboardInterrupt):
            crew.batch.advance(100_000)
        found = crew.batch.results()
        assert [result.request for result in found] == LONG
        assert min(result.steps for result in found) < 100_000
        again = crew.workers.open(SHARES, ASKED, 8, False, lambda steps: None, lambda note: None)
        assert_same(finish(again), alone(task(), ASKED))


def test_a_worker_that_does_not_hear_the_interrupt_is_ended_and_its_trials_do_not_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(model: nn.Module, x: Tensor) -> Tensor:
        if os.getpid() != owner and torch.initial_seed() == derive_seed(7, Stream.STEP, 30):
            (tmp_path / "hangs").touch()
            sum(itertools.repeat(0))  # in C, where no signal is heard
        return loss(model, x)

    def stop(steps: int) -> None:
        if not pressed and (tmp_path / "hangs").exists():
            pressed.append(steps)
            raise KeyboardInterrupt

    owner, pressed = os.getpid(), list[int]()
    monkeypatch.setattr("adamtune.engines.processes.STOPPING", 2.0)
    with closing(Workers(task(loss=locked), CPU, 2)) as workers:
        asked = [LONG[0], replace(LONG[0], seed=7)]
        batch = workers.open([[0], [1]], asked, 1, False, stop, lambda note: None)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            batch.advance(100_000)
        found = batch.results()
        assert time.monotonic() - began < 20
        again = workers.open([[0], [1]], [ASKED[0], ASKED[0]], 1, False, lambda steps: None, lambda note: None)
        assert_same(finish(again)[:1], alone(task(), ASKED[:1]))
    assert [result.outcome for result in found] == [Outcome.PRUNED, Outcome.FAILED]
    assert "has not survived that the sweep was interrupted" in found[1].message


class Deaf:
    """Its finaliser is interrupted; Python drops what is raised there."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)


def test_an_interrupt_that_strikes_where_python_drops_exceptions_is_not_lost() -> None:
    def deaf(model: nn.Module, x: Tensor) -> Tensor:
        if next(calls) == 40:
            sys.unraisablehook = lambda told: None  # pytest's own would call it a failure
            Deaf()
        return loss(model, x)

    calls = itertools.count()  # each worker has its own
    with closing(Crew(task(loss=deaf), LONG)) as crew:
        with pytest.raises(KeyboardInterrupt):
            crew.batch.advance(100_000)
        assert max(result.steps for result in crew.batch.results()) < 100_000


class Interrupting(str):
    """A name of a metric. The first time that this process reads it from a worker, somebody presses Ctrl-C."""

    pressed = False

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return read, (str(self),)


def read(name: str) -> str:
    if not Interrupting.pressed:
        Interrupting.pressed = True
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # a KeyboardInterrupt comes here, and the answer is lost
    return name


def test_one_interrupt_is_enough_also_in_the_middle_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def waited(*_: object) -> None:
        raise TimeoutError("it waits for a second one")

    monkeypatch.setattr(Interrupting, "pressed", False)
    handler = signal.default_int_handler
    born = signal.signal(signal.SIGINT, handler)  # a test run in a shell's background is deaf to it
    before = signal.signal(signal.SIGALRM, waited)
    named = replace(task(), metrics={Interrupting("mean"): lambda model, x: model(x).mean()})
    with closing(Crew(named)) as crew:
        signal.alarm(20)
        try:
            with pytest.raises(KeyboardInterrupt):
                crew.batch.advance(24)
            again = crew.workers.open(SHARES, ASKED, 8, False, lambda steps: None, lambda note: None)
            assert_same(finish(again), alone(named, ASKED))
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            left = signal.signal(signal.SIGINT, born)
    assert left is handler


# --- how many


@pytest.mark.parametrize(("threads", "one"), [(None, False), ("1", False), ("2", True), ("4,2", True)])
def test_processes_are_one_a_core_where_each_uses_one_thread(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, one: bool
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" and not torch.cuda.is_available() else 1
    assert process_count(CPU) == (1 if one else cores)
    assert process_count(torch.device("meta")) == 1
