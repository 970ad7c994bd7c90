"""runs/<name>/: the names of a run's files, atomic writes, and the lock."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adamtune.errors import AdamtuneError, RunDirError

SPEC = "spec.yaml"
ENVIRONMENT = "environment.json"
ENGINE = "engine.json"
JOURNAL = "study.journal"
WORK = "work.db"
"""The jobs of `engine: workers`, where the spec names no storage."""
WORKERS_LOG = "workers.log"
TRIALS = "trials.csv"
CURVES = "curves.csv"
PROBE = "probe.csv"
RECIPE = "recipe.yaml"
RESULT = "result.json"
REPORT = "report.html"
LOG = "log.txt"
FINISHED = "finished.jsonl"
"""Every trial that has ended, whole: what a sweep that was interrupted goes on from."""

FINAL = "final"
"""The stage that the trials of the last comparison go by in the tables."""

_LOCK = ".lock"

_RESULT_KEYS = {"task", "objective", "default", "recommended", "stages", "steps_used", "wall_seconds", "changed"}


class RunDir:
    """One run's directory. Files appear whole or not at all; only the log and Optuna's journal grow line by line."""

    def __init__(self, path: Path) -> None:
        """Name the directory `path`; nothing is touched yet."""
        self.path = path
        self.resumed = False
        """Once it is claimed: whether an earlier sitting has begun the run."""

    @contextmanager
    def claimed(self) -> Iterator[RunDir]:
        """Create the directory and hold it for the time of a sweep, or take up again one that has not finished.

        Raises `RunDirError` when another process holds it, or it holds a finished run or anything else. The lock is the
        operating system's, so a killed process leaves none behind.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunDirError(f"the run directory {self.path} is a file; name a folder with --run-dir")
        there = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        there = {name for name in there if name == _LOCK or not name.startswith(".")}  # leftovers of a killed process
        try:
            if not there:
                self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / _LOCK, timeout=0)
            if not there or _LOCK in there:
                lock.acquire()
        except Timeout:
            raise RunDirError(
                f"the run directory {self.path} is in use by another sweep; wait for it, or name another with --run-dir"
            ) from None
        except OSError as problem:
            raise RunDirError(f"the run directory {self.path} cannot be made: {problem.strerror}") from problem
        try:
            if RESULT in there or (there - {_LOCK} and SPEC not in there):
                what = "a finished run" if RESULT in there else "other files"
                raise RunDirError(
                    f"the run directory {self.path} already holds {what}; name another with --run-dir, or delete it"
                )
            self.resumed = SPEC in there
            yield self
        finally:
            lock.release()

    def file(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.path / name

    def write(self, name: str, text: str) -> None:
        """Put a whole file in place at once."""
        write_atomically(self.file(name), text)

    def write_json(self, name: str, data: Any) -> None:
        """The same for plain data; numbers that JSON cannot say (NaN, infinity) become null."""
        self.write(name, json.dumps(jsonable(data), indent=2, allow_nan=False) + "\n")

    def log(self, line: str) -> None:
        """Add a line to the log, with the time."""
        with self.file(LOG).open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")


def write_atomically(path: Path, text: str, mode: int | None = None) -> None:
    """Write a text file so that readers and crashes see the old one or the new one, never half of it.

    Line ends are written as they stand in `text`. `mode` is the file's permission bits; None for those of a new file.
    Raises `AdamtuneError` naming the file when the disk is full or the folder cannot be written.
    """
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        umask = os.umask(0)
        os.umask(umask)
        # mkstemp makes it private; a result is as readable as any other file
        os.chmod(temporary, 0o666 & ~umask if mode is None else mode)
        os.replace(temporary, path)
    except OSError as problem:
        raise AdamtuneError(
            f"{path} cannot be written: {problem.strerror}; free some space or name another folder"
        ) from problem
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def mend_tail(path: Path) -> None:
    """Drop a last line that was cut short, as a kill or a full disk leaves one in a file that grows line by line."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65_536)
            file.seek(start)
            block = file.read(end - start)
            newline = block.rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)


def jsonable(value: Any) -> Any:
    """Plain data for JSON: mappings, lists, texts and finite numbers; NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def read_result(run: Path) -> dict[str, Any]:
    """The `result.json` of a finished run.

    Raises `RunDirError` when the folder is no run, or one that has not finished.
    """
    path = run / RESULT
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or not set(data) >= _RESULT_KEYS:
            raise ValueError("it holds no sweep result")
    except FileNotFoundError:
        if (run / SPEC).exists():
            why = f"has not finished: it has no {RESULT} yet; {run / LOG} tells how far it came"
        else:
            why = f"is no run directory: it has no {RESULT}" if run.is_dir() else "does not exist"
        raise RunDirError(f"{run} {why}") from None
    except (OSError, ValueError) as problem:
        raise RunDirError(f"{path} cannot be read as a result: {problem}") from problem
    return data


def is_run(folder: Path) -> bool:
    """Whether a folder is a sweep's run directory, finished or not."""
    return any(os.path.exists(folder / name) for name in (RESULT, SPEC))


def finished_runs(folder: Path) -> list[Path]:
    """The runs in `folder` that have a result, oldest first."""
    results = sorted(folder.glob(f"*/{RESULT}"), key=lambda path: path.stat().st_mtime)
    return [path.parent for path in results]


def next_run_dir(name: str) -> Path:
    """`runs/NAME-N` below the working directory, N one above the highest there."""
    runs = Path("runs")
    there = [entry.name for entry in runs.iterdir()] if runs.is_dir() else []
    tails = [entry.removeprefix(f"{name}-") for entry in there if entry.startswith(f"{name}-")]
    numbers = [int(tail) for tail in tails if tail.isascii() and tail.isdigit()]
    return runs / f"{name}-{max(numbers, default=0) + 1}"
