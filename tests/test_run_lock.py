"""One sweep at a time in a run directory; what a dead one has left is no obstacle, and no clock is trusted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adamtune import rundir
from adamtune.errors import RunDirError
from adamtune.rundir import RunDir
from adamtune.spec import Budget, Spec, TaskSpec
from adamtune.sweeps import sweep


@pytest.mark.parametrize(
    "holder",
    ["process 1 on {here}", f"process {os.getpid()} on {{here}}", "process 7 on other", ""],
    ids=["another", "this one", "elsewhere", "unknown"],
)
def test_a_lock_that_nobody_holds_is_stale_whoever_left_it(holder: str, tmp_path: Path) -> None:
    """The number may be another process's by now, and the other machine may be gone: the system knows better."""
    for name in (".lock", ".holder"):
        (tmp_path / name).write_text(holder.format(here=os.uname().nodename))
    (tmp_path / rundir.SPEC).write_text("x")
    with RunDir(tmp_path).claimed() as run:
        assert run.resumed
        assert (tmp_path / ".holder").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    assert not (tmp_path / ".holder").exists()


def test_the_children_of_a_killed_sweep_do_not_hold_its_directory(tmp_path: Path) -> None:
    script = (
        "import multiprocessing, os, signal, sys, time; from pathlib import Path; from adamtune.rundir import RunDir\n"
        "with RunDir(Path(sys.argv[1])).claimed() as run:\n"
        "    run.write('spec.yaml', 'x')\n"
        "    fork = multiprocessing.get_context('fork'); runs = fork.Event()\n"
        "    child = fork.Process(target=lambda: (runs.set(), time.sleep(60)))\n"
        "    child.start(); print(child.pid, flush=True)\n"
        "    runs.wait()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    child = int(killed.stdout.readline())
    try:
        assert killed.wait() == -signal.SIGKILL
        os.kill(child, 0)  # it lives
        with RunDir(tmp_path / "run").claimed() as run:
            assert run.resumed
    finally:
        os.kill(child, signal.SIGKILL)
        killed.stdout.close()


def test_an_unfinished_run_that_was_copied_without_its_lock_is_held_too(tmp_path: Path) -> None:
    for name in (rundir.SPEC, rundir.ENVIRONMENT):
        (tmp_path / name).write_text("x")
    with (
        RunDir(tmp_path).claimed(),
        pytest.raises(RunDirError, match=rf"in use by another sweep, process {os.getpid()} on "),
        RunDir(tmp_path).claimed(),
    ):
        pass


def test_what_tells_of_the_holder_cannot_steer_the_terminal(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run").claimed():
        (tmp_path / "run" / ".holder").write_bytes(b"\x1b]0;gotcha\x07" + b"\xff" + b"x" * 1000)
        with pytest.raises(RunDirError) as caught, RunDir(tmp_path / "run").claimed():
            pass
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", [rundir.LOG, rundir.FINISHED, rundir.JOURNAL, "checkpoints", ".lock"])
def test_a_link_in_a_run_directory_is_not_written_through(name: str, tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.write_text("no newline at the end")
    run.mkdir()
    (run / rundir.SPEC).write_text("x")
    (run / name).symlink_to(outside)
    with (
        pytest.raises(RunDirError, match=rf"holds a link, {re.escape(name)}, which could lead outside"),
        RunDir(run).claimed(),
    ):
        pass
    assert outside.read_text() == "no newline at the end"


def test_what_stands_in_the_place_of_a_file_is_told_and_a_stray_folder_of_states_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / rundir.SPEC).write_text("x")
    (run / "checkpoints" / ".x").mkdir(parents=True)
    with RunDir(run).claimed():
        pass
    os.mkfifo(run / rundir.FINISHED)
    with (
        pytest.raises(RunDirError, match=r"finished\.jsonl is no plain file, so the run cannot"),
        RunDir(run).claimed(),
    ):
        pass
    (run / rundir.FINISHED).unlink()
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").touch()
    with pytest.raises(RunDirError, match="checkpoints is no folder, so the run cannot"), RunDir(run).claimed():
        pass


def backwards(start: float, by: float) -> Iterator[float]:
    while True:
        yield start
        start -= by


def test_a_clock_that_runs_backwards_changes_no_duration_and_no_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Path(__file__).parent / "tasks_for_tests.py"
    spec = Spec(
        task=TaskSpec(ref=f"{tasks}:separable"),
        horizon=20,
        budget=Budget(time=600.0, trials=40),
        seeds=2,
        stages=("lr_range", "lr"),
        engine="sequential",
    )
    moments = backwards(time.time(), 3600.0)
    monkeypatch.setattr(time, "time", lambda: next(moments))
    began = time.monotonic()
    result = sweep(spec, tmp_path / "run")
    assert 0 < result.wall_seconds <= time.monotonic() - began
    assert {str(answer.verdict) for answer in result.answers.values()} & {"kept", "changed", "measured"}
    assert result.steps_used > 200
    seconds = [float(line["elapsed"]) for line in rundir.read_lines(tmp_path / "run" / rundir.FINISHED)]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
