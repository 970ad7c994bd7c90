"""A disk that fills: it is said in one sentence, nothing that was measured is lost, and the sweep goes on later."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import resource
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from adamtune import rundir
from adamtune.cli.app import run as command
from adamtune.engines import FinishedTrials
from adamtune.errors import UnwritableError, writing
from adamtune.history import Outcome, RungReport, TrialRequest, TrialResult
from adamtune.recipe import Recipe, load_recipe
from adamtune.rundir import RunDir, append, read_lines, write_atomically
from adamtune.search.journal import BufferedJournal

SPEC = """
task: {ref: "adamtune.tasks.digits:task", args: {hidden: 8}}
horizon: 24
budget: {trials: 24}
seeds: 2
stages: [lr_range, lr]
engine: sequential
"""


@contextmanager
def largest_file(most_bytes: int) -> Iterator[None]:
    """No file may grow beyond; Python ignores the signal, so that writing fails in place of killing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def told(run: Path) -> dict[str, Any]:
    result = json.loads((run / rundir.RESULT).read_text())
    del result["wall_seconds"]
    result["recipe"]["provenance"].pop("run")
    trials = pd.read_csv(run / rundir.TRIALS).drop(columns=["seconds", "study"])
    return {"result": result, "trials": trials.to_csv(), "recipe": load_recipe(run / rundir.RECIPE).training_key()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(SPEC)
    return tmp_path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "s.yaml").write_text(SPEC)
    assert command(["sweep", str(folder / "s.yaml"), "--run-dir", str(folder / "r"), "--json"]) == 0
    return told(folder / "r")


SWEEP = ["sweep", "s.yaml", "--run-dir", "r", "--json"]


def assert_readable(run: Path) -> None:
    for name in (rundir.FINISHED, rundir.JOURNAL):
        if (run / name).exists():
            lines = (run / name).read_bytes().splitlines(keepends=True)
            assert all(line.endswith(b"\n") and isinstance(json.loads(line), dict) for line in lines)
    for name in (rundir.TRIALS, rundir.CURVES, rundir.PROBE):
        if (run / name).exists():
            pd.read_csv(run / name)


# By how large a file may be: which is the first to be too large. The journal waits half a second at times.
@pytest.mark.parametrize(
    ("most_bytes", "first"),
    [
        (100, {rundir.ENVIRONMENT}),
        (3_000, {rundir.FINISHED, rundir.JOURNAL}),
        (20_000, {rundir.FINISHED, rundir.JOURNAL, rundir.PROBE}),
        (1_000_000, {rundir.REPORT}),
    ],
)
def test_a_sweep_that_may_not_write_more_says_so_and_goes_on_later(
    most_bytes: int, first: set[str], folder: Path, unbroken: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with largest_file(most_bytes):
        assert command(SWEEP) == 1
    said = capsys.readouterr()
    assert said.out == ""
    again = "then adamtune sweep s.yaml --run-dir r goes on from there"
    sentence = rf"adamtune: r/(\S+) cannot be written: {os.strerror(errno.EFBIG)}; free some space, {again}\n"
    found = re.fullmatch(sentence, said.err)
    assert found is not None, said.err
    assert found[1] in first
    run = folder / "r"
    assert not (run / rundir.RESULT).exists()
    assert_readable(run)
    kept = len(list(read_lines(run / rundir.FINISHED))) if (run / rundir.FINISHED).exists() else 0
    assert command(SWEEP) == 0
    assert told(run) == unbroken
    assert (f"resumed: {kept} trials have ended before" in (run / rundir.LOG).read_text()) == (most_bytes > 100)
    assert (kept > 5) == (most_bytes > 3_000)  # what was measured before counts


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_and_then_a_larger_one(
    small_disk: Path, folder: Path, unbroken: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "r").symlink_to(small_disk / "r")
    (small_disk / "r").mkdir()
    assert command(SWEEP) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"adamtune: r/\S+ cannot be written: No space left on device; free some space, .*\n", said.err)
    assert_readable(small_disk / "r")
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert command(SWEEP) == 0
    assert told(small_disk / "r") == unbroken


def test_a_read_only_disk_is_told(small_disk: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert command(["sweep", "s.yaml", "--run-dir", str(small_disk / "r")]) == 2
    told = f"adamtune: the run directory {small_disk / 'r'} cannot be made: Read-only file system\n"
    assert capsys.readouterr() == ("", told)


def test_a_disk_that_becomes_read_only_is_told(small_disk: Path) -> None:
    run = RunDir(small_disk)
    run.log("before")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UnwritableError, match=r"log\.txt cannot be written: Read-only file system; make its folder"):
        run.log("after")
    with pytest.raises(UnwritableError, match=r"spec\.yaml cannot be written: Read-only file system"):
        run.write(rundir.SPEC, "x")
    assert (small_disk / rundir.LOG).read_text().endswith("Z before\n")


def test_full_output_is_told_in_one_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    for arguments in (["show"], ["show", "--json"], ["recipes", "show", "default"], ["export", "default"], ["--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "adamtune", *arguments], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE,
                text=True, check=False,
            )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr == "adamtune: the output cannot be written: No space left on device; free some space\n"


# --- files that grow line by line


def test_lines_are_added_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with largest_file(100):
        append(file, "x" * 59 + "\n")
        with pytest.raises(UnwritableError, match="File too large; free some space"):
            append(file, "y" * 79 + "\n")  # of which 40 bytes would fit
        append(file, "z" * 9 + "\n")
    assert file.read_text() == "x" * 59 + "\n" + "z" * 9 + "\n"


def test_a_line_is_not_added_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnwritableError):
        append(tmp_path / "log.txt", "x\n")
    assert not (tmp_path / "elsewhere").exists()


TAILS = [
    b'{"a": 1',
    b"{",
    b"\0\0\0\0",
    b'\0\0\0\n{"b": 2}\n',
    b"garbage\n",
    b"[1]\n",
    b"[" * 5000 + b"\n",
    b"\xff\xfe\n",
]


@pytest.mark.parametrize("tail", TAILS, ids=lambda tail: repr(tail[:12]))
def test_a_file_of_lines_is_cut_where_the_damage_begins(tail: bytes, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b'{"n": 0}\n{"n": 1}\n' + tail)
    assert list(read_lines(file)) == [{"n": 0}, {"n": 1}]
    assert file.read_bytes() == b'{"n": 0}\n{"n": 1}\n'
    journal = tmp_path / "j"
    journal.write_bytes(b'{"n": 0}\n{"n": 1}\n' + tail)
    ours = BufferedJournal(str(journal))
    ours.append_logs([{"n": 2}])
    ours.flush()
    assert [line["n"] for line in BufferedJournal(str(journal)).read_logs(0)] == [0, 1, 2]


@pytest.mark.parametrize("tail", TAILS, ids=lambda tail: repr(tail[:12]))
def test_finished_trials_before_the_damage_are_kept(tail: bytes, tmp_path: Path) -> None:
    request = TrialRequest(Recipe(), seed=3, horizon=2)
    result = TrialResult(request, Outcome.COMPLETED, 2, (RungReport(2, (0.5, 0.25), {"loss": 0.1}, {}),), 0.25, "")
    kept = FinishedTrials(tmp_path / "f")
    kept.add([(kept.place(request), result)])
    with (tmp_path / "f").open("ab") as file:
        file.write(tail)
    again = FinishedTrials(tmp_path / "f")
    assert again.pop(again.place(request), request) == result


@pytest.mark.parametrize(
    "line",
    ['{"a": 1}', '{"key": 1, "time": {}, "elapsed": 0}', '{"key": "KEY", "time": 1, "elapsed": "x"}', "WHOLE"],
)
@pytest.mark.parametrize(
    "odd", [{}, {"rungs": 3}, {"outcome": "?"}, {"rungs": [{"step": 1, "losses": "BOMB"}]}], ids=str
)
def test_a_finished_trial_that_makes_no_sense_is_not_known(line: str, odd: dict[str, Any], tmp_path: Path) -> None:
    request = TrialRequest(Recipe(), seed=3, horizon=2)
    result = TrialResult(request, Outcome.COMPLETED, 2, (RungReport(2, (0.5, 0.25), {"loss": 0.1}, {}),), 0.25, "")
    kept = FinishedTrials(tmp_path / "f")
    kept.add([(kept.place(request), result)])
    (whole,) = read_lines(tmp_path / "f")
    bomb = base64.b64encode(zlib.compress(bytes(10**8))).decode()
    text = line.replace("KEY", json.dumps(whole["key"])[1:-1]).replace("WHOLE", json.dumps(whole | odd))
    (tmp_path / "f").write_text(text.replace("BOMB", bomb) + "\n")
    again = FinishedTrials(tmp_path / "f")
    assert again.pop(again.place(request), request) == (result if line == "WHOLE" and not odd else None)


def test_a_journal_that_makes_no_sense_is_told_and_may_be_deleted(
    folder: Path, unbroken: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with largest_file(20_000):
        assert command(SWEEP) == 1
    capsys.readouterr()
    journal = folder / "r" / rundir.JOURNAL
    journal.write_text('{"op_code": 4, "worker_id": "x"}\n')
    assert command(SWEEP) == 2
    said = capsys.readouterr().err
    assert said.startswith("adamtune: r/study.journal cannot be read as Optuna's journal (KeyError: ")
    assert said.endswith("); delete it: the sweep tells its trials again\n")
    journal.unlink()
    assert command(SWEEP) == 0
    assert told(folder / "r") == unbroken


def test_the_log_goes_on_after_a_line_that_was_cut_short(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunDir(run).claimed() as held:
        held.write(rundir.SPEC, "x")
        held.log("one")
    with (run / rundir.LOG).open("a") as log:
        log.write("2025-01-01T00:00:00Z tw")
    with RunDir(run).claimed() as held:
        held.log("three")
    assert [line.split()[1] for line in (run / rundir.LOG).read_text().splitlines()] == ["one", "three"]


def test_a_journal_that_could_be_written_in_part_only_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = BufferedJournal(str(tmp_path / "j"))
    ours.append_logs([{"n": 0}])
    ours.flush()
    ours.append_logs([{"n": 1}])

    def half(path: Path) -> None:
        with (tmp_path / "j").open("ab") as file:
            file.write(b'{"n"')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", half)
        with pytest.raises(UnwritableError, match="No space left on device; free some space"):
            ours.flush()
    ours.flush()
    assert (tmp_path / "j").read_text() == '{"n":0}\n{"n":1}\n'


def test_optunas_lock_of_a_killed_process_is_not_waited_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunDir(run).claimed() as held:
        held.write(rundir.SPEC, "x")
    (run / f"{rundir.JOURNAL}.lock").symlink_to(run / rundir.JOURNAL)
    with RunDir(run).claimed():
        assert not (run / f"{rundir.JOURNAL}.lock").is_symlink()


def test_what_a_killed_process_was_about_to_write_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunDir(run).claimed() as held:
        held.write(rundir.SPEC, "x")
    for name in (".trials.csv.ab12_9zz", ".report.html.abcdefgh", ".mine", ".my.txt.abcdefgh"):
        (run / name).touch()
    with RunDir(run).claimed():
        pass
    assert {entry.name for entry in run.iterdir()} == {rundir.SPEC, ".lock", ".mine", ".my.txt.abcdefgh"}


def test_a_sweep_that_ended_before_its_spec_was_written_begins_again(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    write_atomically(tmp_path / rundir.ENVIRONMENT, "{}")
    with RunDir(tmp_path).claimed() as held:
        assert not held.resumed


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOENT, "make its folder or name another"),
        (errno.ENOTDIR, "make its folder or name another"),
        (errno.EACCES, "make its folder writable or name another"),
        (errno.ENOSPC, "free some space"),
        (errno.EIO, "name another place"),
    ],
)
def test_the_advice_fits_what_the_system_says(code: int, advice: str) -> None:
    told = rf"x\.py cannot be written: {os.strerror(code)}; {advice}$"
    with pytest.raises(UnwritableError, match=told), writing(Path("x.py")):
        raise OSError(code, os.strerror(code))
