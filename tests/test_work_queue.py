"""Jobs in an Optuna storage: whoever trains them, and whoever dies, the numbers are those of one process."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import worker_tasks
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from stacked import CPU, alone, assert_same, finish, requests, task
from torch import Tensor, nn

from adamtune.cli.app import run
from adamtune.engines.answers import answer_of, answer_to
from adamtune.engines.jobs import Done, HeldTrials, Job
from adamtune.engines.local_workers import LocalWorkers
from adamtune.engines.plain import request_data, request_of, result_data, result_of
from adamtune.engines.sequential import SequentialEngine
from adamtune.engines.spread import SpreadEngine
from adamtune.engines.work_queue import Beats, WorkQueue
from adamtune.engines.worker import Worker, _Sitting, task_loader
from adamtune.errors import AdamtuneError, InputError, TaskError
from adamtune.history import Outcome, Ramp, TrialRequest
from adamtune.recipe import Recipe, Schedule
from adamtune.search import open_storage
from adamtune.task import Task

ASKED = [*requests(), *requests(seeds=(2,), optimizer="sgd")]
DOOMED = TrialRequest(Recipe(optimizer="sgd", lr=1e200, schedule=Schedule(kind="constant", warmup=0.0)), 0, 24)
TASKS = Path(worker_tasks.__file__)


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'jobs.db'}"


@contextmanager
def workplace(
    folder: Path, function: str = "plain", args: dict[str, Any] | None = None, count: int = 2, **options: Any
) -> Iterator[tuple[SpreadEngine, LocalWorkers, list[str]]]:
    """An engine whose trials train in processes of their own."""
    ref, noted = f"{TASKS}:{function}", []
    storage = open_storage(url(folder), folder)
    local = LocalWorkers(count, url(folder), "run", ref, CPU, folder / "workers.log")
    queue = WorkQueue(storage, "run", {"ref": ref, "args": args or {}, "name": "toy"}, local)
    with closing(SpreadEngine("workers", queue, on_note=noted.append, **options)) as engine:
        yield engine, local, noted


@contextmanager
def in_thread(
    folder: Path, lease: float = 30.0, make: Callable[[], Task] = task
) -> Iterator[tuple[WorkQueue, SpreadEngine]]:
    """An engine with a worker in a thread of this process."""
    queue = WorkQueue(open_storage(url(folder), folder), "run", {"ref": "-", "args": {}, "name": "toy"}, lease=lease)
    mine = Worker(lambda: open_storage(url(folder), folder), "run", lambda told: make(), CPU, 30.0, lambda note: None)
    thread = threading.Thread(target=mine.serve)
    thread.start()
    with closing(SpreadEngine("workers", queue)) as engine:
        yield queue, engine
    thread.join(timeout=60)
    assert not thread.is_alive()  # it has noticed the end


# --- numbers


def test_workers_give_the_numbers_of_one_process_to_the_bit(tmp_path: Path) -> None:
    asked = [*ASKED[:3], DOOMED]
    with workplace(tmp_path) as (engine, _, noted):
        batch = engine.open(asked)
        batch.advance(7)
        batch.prune(2)
        reports = batch.advance(24)
        found = batch.results()
        assert sorted(engine.facts()["workers"])[0].startswith("local-")
    expected = alone(task(), asked)
    assert [report is None for report in reports] == [False, False, True, True]
    assert_same([*found[:2], found[3]], [*expected[:2], expected[3]], 0.0)
    assert (found[2].outcome, found[2].steps, found[3].outcome) == (Outcome.PRUNED, 7, Outcome.DIVERGED)
    assert not noted


def test_batches_may_be_open_side_by_side(tmp_path: Path) -> None:
    with in_thread(tmp_path) as (_, engine):
        first, second = engine.open(ASKED[:2]), engine.open(ASKED[2:])
        second.advance(7)
        assert_same(finish(first), alone(task(), ASKED[:2]), 0.0)
        assert_same(finish(second, (24,)), alone(task(), ASKED[2:]), 0.0)


def test_a_trial_is_let_go_once_it_is_not_wanted_any_more(tmp_path: Path) -> None:
    held = HeldTrials(task(), CPU)
    for number in (1, 2):
        assert held.do(Job(number, ASKED[number], ((7, True),))).runs
    held.keep([2])
    assert (1 in held, 2 in held) == (False, True)
    assert not held.do(Job(2, ASKED[2], ((7, True), (24, True)))).runs
    assert 2 not in held  # it has ended


def counting(steps: list[bool]) -> Task:
    """The regression, which notes every training step."""
    own = task()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if model.training:
            steps.append(True)
        return own.loss(model, batch)

    return replace(own, loss=loss)


def test_a_worker_holds_its_trials_from_rung_to_rung(tmp_path: Path) -> None:
    steps: list[bool] = []
    with in_thread(tmp_path, make=lambda: counting(steps)) as (_, engine):
        for asked in (ASKED[:2], ASKED[2:3]):
            batch = engine.open(asked)
            for step in (7, 12, 24):
                batch.advance(step)
            batch.results()
    assert len(steps) == 3 * 24


def test_a_job_done_again_from_the_start_has_the_same_answer() -> None:
    rungs = ((7, True), (12, False), (24, True))
    held, elsewhere = HeldTrials(task(), CPU), HeldTrials(task(), CPU)
    for count in (1, 2, 3):
        going_on = held.do(Job(0, ASKED[0], rungs[:count])).result
    assert_same([elsewhere.do(Job(0, ASKED[0], rungs)).result], [going_on], 0.0)


@pytest.mark.parametrize(
    "request_", [*ASKED, DOOMED, TrialRequest(ASKED[0].recipe, 3, 40, Ramp(1e-6, 0.1, 40, "head"), probe=True)]
)
def test_what_crosses_is_the_same_to_the_bit(request_: TrialRequest) -> None:
    assert request_of(json.loads(json.dumps(request_data(request_)))) == request_
    result = SequentialEngine(task(), CPU).open([request_])
    result.advance(11)
    told = result.results()[0]
    again = result_of(json.loads(json.dumps(result_data(told))), request_)
    assert repr(again) == repr(told)  # equal, NaN included


# --- workers that die, hang, or fall silent


def test_a_worker_killed_in_training_is_replaced_and_its_trial_starts_again(tmp_path: Path) -> None:
    args = {"folder": str(tmp_path), "seed": ASKED[1].seed, "times": 2}
    with workplace(tmp_path, "deadly", args) as (engine, _, noted):
        assert_same(finish(engine.open(ASKED[:3])), alone(task(), ASKED[:3]), 0.0)
    assert len(noted) == 2
    assert all("starts again elsewhere: the worker local-" in note for note in noted)


@pytest.mark.slow
def test_a_trial_whose_workers_always_die_has_failed_and_the_others_go_on(tmp_path: Path) -> None:
    args = {"folder": str(tmp_path), "seed": ASKED[1].seed, "times": 99}
    with workplace(tmp_path, "deadly", args, max_retries=1) as (engine, _, noted):
        batch = engine.open(ASKED[:3])
        reports = batch.advance(24)
        found = batch.results()
    failed = [result.request.seed == ASKED[1].seed for result in found]
    assert [report is None for report in reports] == failed
    assert [result.outcome is Outcome.FAILED for result in found] == failed
    assert re.fullmatch(
        r"the worker local-\S+ died: killed by SIGKILL, perhaps for want of memory; workers.log ends: "
        r"(about to die[ |]*)+\(the last of 2 times\)",
        found[1].message,
    )
    assert any(found[1].message in note for note in noted)


@pytest.mark.slow
def test_a_trial_that_hangs_has_failed_after_its_timeout(tmp_path: Path) -> None:
    with workplace(tmp_path, "hanging", {"seed": ASKED[1].seed}, count=1, timeout=3.0) as (engine, local, noted):
        batch = engine.open(ASKED[:3])
        batch.advance(24)
        found = batch.results()
        assert local._deaths == 0  # the same process has begun again
    hung = [result.request.seed == ASKED[1].seed for result in found]
    assert [result.outcome for result in found] == [Outcome.FAILED if each else Outcome.COMPLETED for each in hung]
    assert found[1].message == "no rung within the trial_timeout of 3 s"
    assert "trial 1 failed: no rung within the trial_timeout of 3 s" in noted
    assert not all(hung)


def test_workers_that_cannot_start_end_the_sweep_with_a_sentence(tmp_path: Path) -> None:
    with (
        workplace(tmp_path, "no_such_function", count=1) as (engine, _, _),
        pytest.raises(AdamtuneError, match=r"a worker cannot start: adamtune: .*has no function 'no_such_function'"),
    ):
        engine.open(ASKED[:1]).advance(7)


def test_what_the_task_raises_is_told_as_it_is_in_one_process(tmp_path: Path) -> None:
    with workplace(tmp_path, "raising", count=1) as (engine, _, _):
        batch = engine.open(ASKED[:2])
        with pytest.raises(TaskError, match=r"task 'toy' raised ValueError: no such column .* at training step 1"):
            batch.advance(7)


def test_a_worker_is_given_up_when_its_beat_stands_still_and_what_it_says_later_is_not_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamtune.engines.work_queue.BEAT", 0.0)
    storage, now = open_storage(url(tmp_path), tmp_path), [0.0]
    queue = WorkQueue(storage, "run", {"ref": "-", "args": {}, "name": "toy"}, lease=30.0, clock=lambda: now[0])
    queue.submit(Job(0, ASKED[0], ((7, True),)))
    other = open_storage(url(tmp_path), tmp_path)
    study = optuna.load_study(study_name="run/work", storage=other)
    job = study.trials[0]._trial_id
    assert other.set_trial_state_values(job, TrialState.RUNNING)
    other.set_trial_user_attr(job, "worker", "slow/1")
    for beat in range(6):  # alive as long as it beats, however long the job takes
        other.set_study_user_attr(study._study_id, "worker/slow/1", beat)
        assert not list(queue.answers())
        now[0] += 20.0
    assert not list(queue.answers())
    now[0] += 20.0
    [answer] = queue.answers()
    assert answer.lost == "the worker slow/1 died, or was cut off"
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        other.set_trial_user_attr(job, "answer", "late")
    queue.close()


def test_what_a_holder_answers_as_it_goes_is_heard_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes its job and answers between our reading of the queue and our missing it."""
    monkeypatch.setattr("adamtune.engines.work_queue.BEAT", 0.0)
    storage, held = optuna.storages.InMemoryStorage(), HeldTrials(task(), CPU)
    queue = WorkQueue(storage, "run", {"ref": "-", "args": {}, "name": "toy"})
    (study,) = storage.get_all_studies()

    def answer() -> None:
        (trial,) = storage.get_all_trials(study._study_id, states=(TrialState.WAITING,))
        storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        storage.set_trial_user_attr(trial._trial_id, "worker", "other")
        told = storage.get_study_user_attrs(study._study_id)["task"]["sitting"]
        text = answer_to(trial.user_attrs["job"], lambda: held)
        storage.set_trial_user_attr(trial._trial_id, "answer", [told, text])
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE)

    queue.submit(Job(0, ASKED[0], ((7, True),)))
    answer()
    assert [heard.lost for heard in queue.answers()] == [""]
    queue.submit(Job(0, ASKED[0], ((7, True), (24, True))))
    storage.set_study_user_attr(study._study_id, "worker/other", None)
    before = storage.get_all_trials(study._study_id)
    answer()
    with monkeypatch.context() as late:
        late.setattr(storage, "get_all_trials", lambda *args, **kwargs: before)
        assert not list(queue.answers())
    (heard,) = queue.answers()
    assert heard.done is not None
    assert_same([heard.done.result], alone(task(), ASKED[:1]), 0.0)


def test_a_worker_of_this_machine_is_alive_as_long_as_its_process_is(tmp_path: Path) -> None:
    with workplace(tmp_path, count=1) as (engine, local, noted):
        queue: Any = engine._workplace
        queue._lease = 0.0
        [process] = local.processes()
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(4.0, os.kill, (process.pid, signal.SIGCONT)).start()
        assert_same(finish(engine.open(ASKED[:1])), alone(task(), ASKED[:1]), 0.0)
    assert not noted


@pytest.mark.slow
def test_a_hang_that_lets_no_thread_run_is_ended_from_outside(tmp_path: Path) -> None:
    with workplace(tmp_path, "locking", {"seed": ASKED[1].seed}, 1, timeout=2.0, max_retries=0) as (engine, _, noted):
        queue: Any = engine._workplace
        queue._lease = 1.0
        batch = engine.open(ASKED[:3])
        batch.advance(24)
        found = batch.results()
    hung = [result.request.seed == ASKED[1].seed for result in found]
    assert [result.outcome for result in found] == [Outcome.FAILED if each else Outcome.COMPLETED for each in hung]
    assert "killed by SIGKILL" in found[1].message
    assert noted


def test_what_a_worker_of_an_earlier_sitting_answers_is_not_taken_for_another_jobs(tmp_path: Path) -> None:
    storage, other = open_storage(url(tmp_path), tmp_path), open_storage(url(tmp_path), tmp_path)
    told = {"ref": "-", "args": {}, "name": "toy"}
    first = WorkQueue(storage, "run", told)
    first.submit(Job(0, ASKED[0], ((7, True),)))
    study = optuna.load_study(study_name="run/work", storage=other)
    before = storage.get_study_user_attrs(study._study_id)["task"]
    job = study.trials[0]._trial_id
    late = _Sitting(other, study._study_id, before, "late", HeldTrials(task(), CPU), random.Random(0))
    queue = WorkQueue(open_storage(url(tmp_path), tmp_path), "run", told)
    queue.submit(Job(5, ASKED[1], ((7, True),)))
    late._answer(job, answer_to(Job(0, ASKED[0], ((7, True),)).to_dict(), lambda: HeldTrials(task(), CPU)))
    [answer] = queue.answers()
    assert (answer.trial, answer.done) == (5, None)  # SQLite has given the new job the id of the old one
    assert "earlier sitting" in answer.lost
    with pytest.raises(KeyError):
        late.work(5.0)
    queue.close()


def test_a_worker_serves_the_next_sitting_too(tmp_path: Path) -> None:
    loaded: list[bool] = []

    def make() -> Task:
        loaded.append(True)
        return task()

    with in_thread(tmp_path, make=make) as (_, engine):
        finish(engine.open(ASKED[:3]))
        storage = open_storage(url(tmp_path), tmp_path)
        again = WorkQueue(storage, "run", {"ref": "-", "args": {}, "name": "toy"})
        with closing(SpreadEngine("workers", again)) as resumed:
            assert_same(finish(resumed.open(ASKED[3:])), alone(task(), ASKED[3:]), 0.0)
    assert len(loaded) == 2  # the task's code may have changed


def test_a_worker_of_another_version_is_refused(tmp_path: Path) -> None:
    queue = WorkQueue(open_storage(url(tmp_path), tmp_path), "run", {"ref": "-", "args": {}, "name": "toy"})
    told = queue._storage.get_study_user_attrs(queue._study)["task"]

    def serve(changed: dict[str, Any]) -> list[str]:
        noted: list[str] = []
        queue._storage.set_study_user_attr(queue._study, "task", told | changed)
        reach = lambda: open_storage(url(tmp_path), tmp_path)  # noqa: E731
        Worker(reach, "run", lambda asked: task(), CPU, 0.0, noted.append).serve()
        return noted

    with pytest.raises(InputError, match=r"the sweep runs adamtune 0.0.1, and this worker \S+; install the same"):
        serve({"adamtune": "0.0.1"})
    assert "the sweep has torch 1.0" in serve({"torch": "1.0"})[0]
    queue.close()


def test_a_worker_ends_when_the_sweep_that_has_started_it_was_killed(tmp_path: Path) -> None:
    script = f"""
        import os, sys, time
        from pathlib import Path
        from test_work_queue import workplace
        with workplace(Path({str(tmp_path)!r}), count=1) as (engine, local, noted):
            while "trains for" not in (Path({str(tmp_path)!r}) / "workers.log").read_text():
                engine._workplace._look_after_workers()
                time.sleep(0.1)
            print(local.processes()[0].pid, flush=True)
            os._exit(1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=TASKS.parent, capture_output=True, text=True, timeout=60
    )
    assert done.stdout, done.stderr
    until = time.monotonic() + 60
    while Path(f"/proc/{int(done.stdout)}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def test_a_worker_says_in_a_sentence_that_its_storage_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> None:
        raise StorageInternalError("the disk is on fire")

    monkeypatch.setattr("adamtune.search.patient.PatientStorage.get_all_studies", failing)
    code = run(["worker", "--storage", url(tmp_path), "--study", "run", "--device", "cpu"])
    assert code == 1
    what = f"the storage {url(tmp_path)} failed: the disk is on fire"
    assert capsys.readouterr().err == f"adamtune: {what}; mend that, then start the worker again\n"


def test_a_queue_whose_storage_has_failed_closes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise StorageInternalError("the disk is on fire")

    with workplace(tmp_path, count=1) as (_, local, _):
        [process] = local.processes()
        monkeypatch.setattr("adamtune.search.patient.PatientStorage.delete_study", failing)
    assert process.returncode is not None


def test_beats_are_timed_by_the_readers_clock_alone() -> None:
    now = [100.0]
    beats = Beats(lambda: now[0])
    beats.see({"a": 1})
    now[0] += 20
    assert beats.still("a") == 20
    beats.see({"a": 1, "b": -7})
    assert (beats.still("a"), beats.still("b")) == (20, 0)
    beats.see({"a": 0})
    assert beats.still("a") == 0
    assert beats.still("never heard of") == 0


# --- who may ask what


def test_a_worker_imports_what_its_owner_has_named_and_nothing_else(tmp_path: Path) -> None:
    asked = {"ref": "os:system", "args": {"command": f"touch {tmp_path / 'hit'}"}, "name": "toy"}
    with pytest.raises(
        InputError, match="the sweep trains os:system; if you trust it to run here, say --task os:system"
    ):
        task_loader(None)(asked)
    with pytest.raises(InputError, match="makes the task 'toy', but the sweep trains 'another'"):
        task_loader(f"{TASKS}:plain")({"ref": "os:system", "args": {}, "name": "another"})
    assert task_loader(f"{TASKS}:plain")({"ref": "os:system", "args": {}, "name": "toy"}).name == "toy"
    assert not (tmp_path / "hit").exists()


def test_a_worker_goes_on_from_the_state_that_a_dead_one_has_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamtune.trial.WORTH", 0)
    steps: list[bool] = []
    rungs, state = ((7, True), (12, False), (24, True)), 32 * "a" + ".pt"
    whole = HeldTrials(task(), CPU).do(Job(0, ASKED[0], rungs)).result
    HeldTrials(task(), CPU, tmp_path).do(Job(0, ASKED[0], rungs[:2], state=state))
    assert [path.name for path in tmp_path.iterdir()] == [state]
    assert_same(
        [HeldTrials(counting(steps), CPU, tmp_path).do(Job(0, ASKED[0], rungs, state=state)).result], [whole], 0.0
    )
    assert len(steps) == 24 - 12
    others = ((7, True), (13, False), (24, True))
    HeldTrials(task(), CPU, tmp_path).do(Job(0, ASKED[0], rungs[:2], state=state))
    steps.clear()
    HeldTrials(counting(steps), CPU, tmp_path).do(Job(0, ASKED[0], others, state=state))
    assert len(steps) == 24, "it was saved at other rungs"


@pytest.mark.parametrize("name", ["../out.pt", "out.pt", "", "/" + 31 * "a" + ".pt"])
def test_a_job_names_no_file_but_a_state(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamtune.trial.WORTH", 0)
    folder = tmp_path / "states"
    folder.mkdir()
    HeldTrials(task(), CPU, folder).do(Job(0, ASKED[0], ((7, True),), state=name))
    assert [path.name for path in tmp_path.rglob("*")] == ["states"]


def test_an_answer_that_names_any_class_becomes_an_error_of_ours_only() -> None:
    job = Job(0, ASKED[0], ())
    raising = HeldTrials(worker_tasks.raising(), CPU)
    told = answer_to(replace(job, rungs=((7, True),)).to_dict(), lambda: raising)
    assert isinstance(answer_of(told, job).error, TaskError)
    told = answer_to({"not": "a job"}, lambda: raising)
    assert type(answer_of(told, job).error) is RuntimeError
    for kind in ("SystemExit", "Sequence", "", "__loader__"):
        error = answer_of(json.dumps({"error": "x", "kind": kind}), job).error
        assert type(error) is RuntimeError


def test_no_sweep_to_work_for_is_one_sentence(tmp_path: Path) -> None:
    storage = open_storage(url(tmp_path), tmp_path)
    with pytest.raises(InputError, match="no sweep called 'run' gives out work in this storage"):
        Worker(lambda: storage, "run", lambda told: task(), CPU, 0.0, lambda note: None).serve()


def test_done_crosses_with_its_request_left_behind() -> None:
    held = HeldTrials(task(), CPU)
    done = held.do(Job(0, ASKED[0], ((7, True),)))
    assert repr(Done.from_dict(json.loads(json.dumps(done.to_dict())), ASKED[0])) == repr(done)
