"""A sweep that was interrupted, killed or cut off goes on and ends as one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from adamtune import rundir
from adamtune.cli.app import run
from adamtune.engines import FinishedTrials
from adamtune.errors import RunDirError
from adamtune.history import Outcome, RungReport, TrialRequest, TrialResult
from adamtune.plan import Progress
from adamtune.recipe import Recipe
from adamtune.spec import Spec, load_spec
from adamtune.sweeps import sweep

TASKS = Path(__file__).parent / "tasks_for_tests.py"

SPEC = """
task: {ref: "adamtune.tasks.digits:task", args: {hidden: 16}}
horizon: 40
budget: {trials: 34}
seeds: 2
stages: [lr_range, lr, portfolio]
engine: sequential
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    path = tmp_path_factory.mktemp("spec") / "spec.yaml"
    path.write_text(SPEC)
    return load_spec(path)


@pytest.fixture(scope="module")
def unbroken(spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    sweep(spec, run)
    return told(run)


def told(run: Path) -> dict[str, Any]:
    """All that a run says, but for the time it took."""
    result = json.loads((run / rundir.RESULT).read_text())
    del result["wall_seconds"]
    tables = {
        name: pd.read_csv(run / name).drop(columns="seconds", errors="ignore").to_csv()
        for name in (rundir.TRIALS, rundir.CURVES, rundir.PROBE)
    }
    storage = JournalStorage(JournalFileBackend(str(run / rundir.JOURNAL)))
    studies = {
        name: [
            (trial.state, trial.params, trial.value, trial.user_attrs, trial.intermediate_values)
            for trial in optuna.load_study(study_name=name, storage=storage).trials
        ]
        for name in sorted(optuna.get_all_study_names(storage))
    }
    return {"result": result, "tables": tables, "studies": studies}


def stops_at(count: int) -> Callable[[], bool]:
    asked = iter(range(1, 10_000))
    return lambda: next(asked) == count


@pytest.mark.parametrize("worth", [0, 100])
def test_a_sweep_interrupted_at_many_rungs_ends_as_one_that_was_not(
    worth: float, spec: Spec, unbroken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamtune.trial.WORTH", worth)  # saved at every rung, or at none
    run = tmp_path / "run"
    sittings, at = 0, 3
    while not (run / rundir.RESULT).exists():
        try:
            sweep(spec, run, stop=stops_at(at))
        except KeyboardInterrupt:
            sittings += 1
            at += 9
    assert sittings >= 4
    assert told(run) == unbroken


class StepClock(Progress):
    """A clock on which every training step takes a second and nothing else takes any; it may interrupt the sweep."""

    def __init__(self) -> None:
        self.now, self.stage, self.rungs = 0.0, "", 0

    def on_steps(self, steps: int) -> None:
        self.now += steps

    def on_stage(self, name: str, question: str) -> None:
        self.stage, self.rungs = name, 0

    def on_rung(self, requests: Sequence[TrialRequest], reports: Sequence[RungReport | None]) -> None:
        self.rungs += 1


def test_a_sweep_whose_time_was_spent_before_it_was_interrupted_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline passes while the last trials of `lr` train; `beta1` goes unasked, and does so again."""
    (tmp_path / "spec.yaml").write_text(
        f"task: {{ref: '{TASKS}:separable'}}\nhorizon: 8\nbudget: {{time: 130}}\nseeds: 1\n"
        "stages: [lr, beta1]\nengine: sequential"
    )
    timed = load_spec(tmp_path / "spec.yaml")
    clock = StepClock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    sweep(timed, tmp_path / "unbroken" / "run", clock)
    unbroken = told(tmp_path / "unbroken" / "run")
    assert [stage["verdict"] for stage in unbroken["result"]["stages"]] == ["changed", "unasked"]

    clock = StepClock()
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sweep(timed, run, clock, stop=lambda: clock.stage == "final" and clock.rungs == 1)
    assert clock.now > timed.budget.time
    sweep(timed, run, clock)
    assert told(run) == unbroken


def test_how_trials_train_is_written_down_while_the_sweep_goes_on(spec: Spec, tmp_path: Path) -> None:
    class Looking(Progress):
        def on_stage(self, name: str, question: str) -> None:
            there.append((tmp_path / "run" / rundir.ENGINE).exists())

    there: list[bool] = []
    sweep(spec, tmp_path / "run", progress=Looking())
    assert there == [False, *[True] * (len(there) - 1)]
    assert len(there) > 1


@pytest.mark.slow
def test_a_sweep_by_workers_ends_as_one_in_one_process(unbroken: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sweep(load_spec(path, {"engine": "workers", "workers": 2}), run, stop=stops_at(7))
    sweep(load_spec(path, {"engine": "workers", "workers": 3}), run)
    assert told(run) == unbroken
    assert json.loads((run / rundir.ENGINE).read_text())["engine"] == "workers"


def test_a_sweep_killed_at_random_moments_ends_as_one_that_was_not(
    spec: Spec, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    text = tmp_path / "spec.yaml"
    text.write_text(SPEC)
    chance, kills = random.Random(0), 0
    script = f"from adamtune.sweeps import sweep; print('begun', flush=True); sweep({str(text)!r}, {str(run)!r})"
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        finished = run / rundir.FINISHED
        size = finished.stat().st_size if finished.exists() else 0
        while child.poll() is None and (not finished.exists() or finished.stat().st_size == size):
            time.sleep(0.01)  # until it has got further than it was
        time.sleep(chance.uniform(0, 0.3))
        child.kill()
        child.wait()
        child.stdout.close()
        kills += child.returncode == -signal.SIGKILL
    assert kills >= 1
    if not (run / rundir.RESULT).exists():
        sweep(spec, run)
    assert told(run) == unbroken


def test_a_trial_that_was_killed_goes_on_from_its_last_rung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "spec.yaml"
    text.write_text(SPEC.replace("adamtune.tasks.digits:task", f"{TASKS}:counted").replace("hidden: 16", ""))
    monkeypatch.setattr("adamtune.trial.WORTH", 0)
    monkeypatch.setenv("STEP_SECONDS", "0")
    lines = tmp_path / "lines"
    monkeypatch.setenv("STEPS_FILE", str(lines))
    sweep(text, tmp_path / "unbroken" / "run")
    steps = len(lines.read_text().splitlines())
    lines.unlink()

    script = (
        "import sys, adamtune.trial; adamtune.trial.WORTH = 0\n"
        "from adamtune.sweeps import sweep; sweep(sys.argv[1], sys.argv[2])"
    )
    run, kills = tmp_path / "killed" / "run", 0
    for wanted in (1, 4):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(text), str(run)], env=os.environ | {"STEP_SECONDS": "0.005"}
        )
        while child.poll() is None and len(rungs_saved(run)) < wanted:
            time.sleep(0.002)
        child.kill()
        child.wait()
        kills += child.returncode == -signal.SIGKILL
    saved = rungs_saved(run)
    assert kills == 2
    assert sum(saved) >= 4 * 5, "there is something to lose"
    sweep(text, run)
    assert told(run) == told(tmp_path / "unbroken" / "run")
    assert not (run / rundir.CHECKPOINTS).exists()
    again = len(lines.read_text().splitlines()) - steps
    assert again <= 2 * 5, f"{again} steps trained twice, where a rung has five"


def rungs_saved(run: Path) -> list[int]:
    """The steps at which trials under way were saved."""
    steps = []
    for path in (run / rundir.CHECKPOINTS).glob("[!.]*"):
        with suppress(FileNotFoundError):  # it has just ended
            steps.append(torch.load(path, weights_only=True)["history"]["step"])
    return steps


@pytest.mark.parametrize("name", [rundir.FINISHED, rundir.JOURNAL])
def test_a_last_line_that_was_cut_short_is_dropped(
    name: str, spec: Spec, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sweep(spec, run, stop=stops_at(20))
    file = run / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) - 7])
    sweep(spec, run)
    assert told(run) == unbroken


def test_trials_that_ended_are_not_trained_again(spec: Spec, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sweep(spec, run, stop=stops_at(20))
    known = len(FinishedTrials(run / rundir.FINISHED))
    assert known > 3
    sweep(spec, run)
    lines = (run / rundir.FINISHED).read_text().splitlines()
    places = [(json.loads(line)["key"], json.loads(line)["time"]) for line in lines]
    assert len(places) == len(set(places)) == len(pd.read_csv(run / rundir.TRIALS))
    assert f"resumed: {known} trials have ended before" in (run / rundir.LOG).read_text()


def test_a_run_of_another_spec_is_not_gone_on_with(spec: Spec, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sweep(spec, run, stop=stops_at(2))
    other = spec.model_copy(update={"horizon": 50, "seeds": 3})
    with pytest.raises(RunDirError, match=r"an unfinished run of another spec \(it differs in horizon, seeds\)"):
        sweep(other, run)


def test_a_finished_run_is_left_alone(spec: Spec, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (rundir.SPEC, rundir.RESULT):
        (run / name).write_text("x")
    with pytest.raises(RunDirError, match="already holds a finished run"):
        sweep(spec, run)
    assert (run / rundir.RESULT).read_text() == "x"


def test_a_finished_trial_is_kept_to_the_bit(tmp_path: Path) -> None:
    request = TrialRequest(Recipe(), seed=3, horizon=4, probe=True)
    losses = (0.1, float("nan"), 1e-320, float("inf"))
    rung = RungReport(4, losses, {"loss": 0.1 + 0.2}, {"a/r/p50": float("nan")})
    result = TrialResult(request, Outcome.COMPLETED, 4, (rung,), 0.25, "")
    kept = FinishedTrials(tmp_path / "f")
    kept.add([(kept.place(request), result), (kept.place(request), result)])
    again = FinishedTrials(tmp_path / "f")
    assert len(again) == 2
    for _ in range(2):
        found = again.pop(again.place(request), request)
        assert repr(found) == repr(result)  # NaN is equal to nothing
    assert again.pop(again.place(request), request) is None


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_says_how_to_go_on(presses: int, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SPEC.replace("trials: 34", "trials: 200").replace("horizon: 40", "horizon: 400"))
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from adamtune.cli.app import run; sys.exit(run(['sweep', 's.yaml', '--run-dir', 'r']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "r" / rundir.FINISHED).exists():
        time.sleep(0.05)
        assert child.poll() is None
    for _ in range(presses):
        os.kill(child.pid, signal.SIGINT)
        time.sleep(0.2)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "adamtune sweep s.yaml --run-dir r goes on from there" in err
    assert "Traceback" not in out + err
    if presses == 1:
        assert "stopping after this rung; press Ctrl-C again to stop at once" in out + err


def test_a_sweep_that_a_failed_trial_has_ended_goes_on_by_the_command_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    busy, spec, target = (tmp_path / name for name in ("busy", "s.yaml", "r"))
    spec.write_text(
        f"task: {{ref: '{TASKS}:hanging_while_there_is', args: {{file: '{busy}'}}}}\nhorizon: 2\n"
        "budget: {trials: 200}\nseeds: 1\nstages: [eps]\nengine: sequential\ntrial_timeout: 0.5\n"
    )
    busy.touch()
    again = ["sweep", str(spec), "--run-dir", str(target)]
    assert run(again) == 1
    said = "".join(capsys.readouterr().err.split())
    assert "eps:thetrialwithseed0failedafter0of2steps(norungwithinthetrial_timeoutof0.5s)" in said
    assert "".join(["then", "adamtune", *again, "goesonfromthere"]) in said
    busy.unlink()
    assert run(again) == 0


def interrupted(spec: Spec, run: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(spec, run, stop=stops_at(3))


def test_what_is_not_as_it_was_when_the_run_was_begun_is_told(
    spec: Spec, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    interrupted(spec, run)
    begun = json.loads((run / rundir.ENVIRONMENT).read_text())
    assert len(begun["task_file"]) == 64
    begun["packages"]["torch"], begun["task_file"] = "1.0\x1b", 64 * "0"
    (run / rundir.ENVIRONMENT).write_text(json.dumps(begun))
    noted: list[str] = []

    class Notes(Progress):
        def on_note(self, note: str) -> None:
            noted.append(note)

    sweep(spec, run, Notes())
    changed = [note for note in noted if "not as when the run was begun" in note]
    assert len(changed) == 2
    assert f"torch was 1.0\\x1b, and is {version('torch')}" in changed[0]
    assert changed[1].endswith("figures may not agree: the task's file has changed")
    assert all(note in (run / rundir.LOG).read_text() for note in changed)


@pytest.mark.parametrize("left", ["", "[]", '{"packages": {}}', None])
def test_a_run_whose_environment_cannot_be_told_is_gone_on_with(
    left: str | None, spec: Spec, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    interrupted(spec, run)
    (run / rundir.ENVIRONMENT).unlink() if left is None else (run / rundir.ENVIRONMENT).write_text(left)
    sweep(spec, run)
    assert told(run) == unbroken
    assert "not as when" not in (run / rundir.LOG).read_text()


def test_a_damaged_file_of_jobs_does_not_matter(unbroken: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    by_workers = load_spec(tmp_path / "spec.yaml", {"engine": "workers", "workers": 1})
    run = tmp_path / "run"
    interrupted(by_workers, run)
    for name in ("", "-wal", "-shm"):
        (run / f"{rundir.WORK}{name}").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    with pytest.raises(KeyboardInterrupt):
        sweep(by_workers, run, stop=stops_at(8))
