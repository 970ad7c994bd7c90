"""runs/<name>/: the names of a run's files, atomic writes, and the lock."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from adamtune.errors import FULL, RunDirError, unwritable, writing
from adamtune.passwords import without_passwords
from adamtune.plain_text import plain

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
CHECKPOINTS = "checkpoints"
"""The folder of the states of trials under way; gone when the sweep ends."""

FINAL = "final"
"""The stage that the trials of the last comparison go by in the tables."""

_LOCK = ".lock"
_HOLDER = ".holder"
"""Who holds the lock, in words: for the message alone, the lock itself is the operating system's."""

_WRITTEN_WHOLE = (SPEC, ENVIRONMENT, ENGINE, TRIALS, CURVES, PROBE, RECIPE, RESULT, REPORT)

_BEGUN = {_LOCK, ENVIRONMENT, LOG, JOURNAL, FINISHED, TRIALS, CHECKPOINTS}
"""One of them stands beside the spec of every run: a folder with a `spec.yaml` alone is its writer's, as of `init`."""

_FILES = (*_WRITTEN_WHOLE, JOURNAL, WORK, WORKERS_LOG, LOG, FINISHED)

_NOT_BEGUN = {_LOCK, ENVIRONMENT}
"""What a sweep may leave that ended before it had written its spec."""

_LARGEST_JSON = 100_000_000


class RunDir:
    """One run's directory. Files appear whole or not at all; only the log and Optuna's journal grow line by line."""

    def __init__(self, path: Path) -> None:
        """Name the directory `path`; nothing is touched yet."""
        self.typed = path
        """As the person named it, for what is told."""
        self.path = path.resolve()
        """The same in whatever working directory the task's code leaves us."""
        self.name = self.path.name
        """The run's, by which its studies go."""
        self.resumed = False
        """Once it is claimed: whether an earlier sitting has begun the run."""

    @contextmanager
    def claimed(self) -> Iterator[RunDir]:
        """Create the directory and hold it for the time of a sweep, or take up again one that has not finished.

        Raises `RunDirError` when another process holds it, it holds a finished run or anything else, or a link in it
        might lead what is written outside. The lock is the operating system's, so a killed process leaves none behind,
        on this machine or another; the processes it has forked do not hold it either.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunDirError(f"the run directory {self.typed} is a file; name a folder with --run-dir")
        there = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        there = {name for name in there if name == _LOCK or not name.startswith(".")}  # leftovers of a killed process
        begun = SPEC in there and not _BEGUN.isdisjoint(there)
        try:
            if not there:
                self.path.mkdir(parents=True, exist_ok=True)
            if self.file(_LOCK).is_symlink():
                raise self._link(_LOCK)
            lock = FileLock(self.path / _LOCK, timeout=0)
            if not there or _LOCK in there or (begun and RESULT not in there):
                lock.acquire()
        except Timeout:
            raise RunDirError(
                f"the run directory {self.typed} is in use by another sweep{self._holder()}; wait for it, or name "
                "another with --run-dir"
            ) from None
        except OSError as problem:
            if problem.errno in FULL:
                raise unwritable(self.typed, problem) from problem
            done = "written" if self.path.exists() else "made"
            raise RunDirError(f"the run directory {self.typed} cannot be {done}: {problem.strerror}") from problem
        try:
            if not lock.is_locked or RESULT in there or (there - _NOT_BEGUN and not begun):
                what = "a finished run; name another with --run-dir, or delete it"
                if RESULT not in there:  # perhaps somebody's work: nobody is told to delete that
                    what = f"other files; name a folder of the run's own with --run-dir, such as {self.typed / 'run'}"
                raise RunDirError(f"the run directory {self.typed} already holds {what}")
            self.resumed = begun
            self._tidy()
            with suppress(OSError):  # a full disk is told where it matters
                self.file(_HOLDER).write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield self
        finally:
            if lock.is_locked:
                self.file(_HOLDER).unlink(missing_ok=True)
            lock.release()

    def _holder(self) -> str:
        try:
            with self.file(_HOLDER).open(encoding="utf-8", errors="replace") as file:
                return f", {plain(file.read(200))}"
        except OSError:  # it has just begun, or is of an older version
            return ""

    def _link(self, name: str) -> RunDirError:
        return RunDirError(
            f"the run directory {self.typed} holds a link, {plain(name)}, which could lead outside; put a copy in its "
            "place, or name another with --run-dir"
        )

    def _tidy(self) -> None:
        """Refuse links, through which a write would land elsewhere; drop what a killed process was about to write."""
        half_written = re.compile(rf"\.({'|'.join(map(re.escape, _WRITTEN_WHOLE))})\.\w{{8}}")  # as mkstemp names them
        for entry in list(self.path.iterdir()):
            if entry.name in (f"{JOURNAL}.lock", _HOLDER) or half_written.fullmatch(entry.name):
                entry.unlink()  # Optuna's lock is a link: only we write to this journal, and we have only begun
            elif entry.is_symlink() and not entry.name.startswith("."):
                raise self._link(entry.name)
            elif (entry.name == CHECKPOINTS and not entry.is_dir()) or (entry.name in _FILES and not entry.is_file()):
                kind = "folder" if entry.name == CHECKPOINTS else "plain file"
                raise RunDirError(
                    f"{entry} is no {kind}, so the run cannot be gone on with; delete it, or name another run "
                    "directory with --run-dir"
                )
        for entry in self.file(CHECKPOINTS).glob(".*"):
            if not entry.is_dir():  # which none of ours is
                entry.unlink()
        log = self.file(LOG)
        if log.exists():
            mend_tail(log)

    def file(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.path / name

    def write(self, name: str, text: str) -> None:
        """Put a whole file in place at once."""
        write_atomically(self.file(name), text)

    def write_lines(self, name: str, parts: Iterable[str]) -> None:
        """The same for a text that comes in parts, of which one is in memory at a time."""
        path = self.file(name)
        with writing(path), replacing(path) as out:
            for part in parts:
                out.write(part.encode("utf-8"))

    def write_json(self, name: str, data: Any) -> None:
        """The same for plain data; numbers that JSON cannot say (NaN, infinity) become null."""
        self.write(name, json.dumps(jsonable(data), indent=2, allow_nan=False) + "\n")

    def log(self, line: str) -> None:
        """Add a line to the log, with the time: without passwords, and with what does not print spelled out."""
        append(self.file(LOG), f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {plain(without_passwords(line))}\n", sync=False)


def write_atomically(path: Path, text: str, mode: int | None = None) -> None:
    """Write a text file so that readers and crashes see the old one or the new one, never half of it.

    Line ends are written as they stand in `text`. `mode` is the file's permission bits; None for those of a new file.
    Raises `UnwritableError` naming the file when the disk is full or the folder cannot be written.
    """
    with writing(path), replacing(path, mode) as out:
        out.write(text.encode("utf-8"))


@contextmanager
def replacing(path: Path, mode: int | None = None) -> Iterator[IO[bytes]]:
    """A file to write in, that takes the place of `path` when the block ends, and on the disk at once; where it raises,
    nothing is left. `mode` as in `write_atomically`.
    """
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        umask = os.umask(0)
        os.umask(umask)
        # mkstemp makes it private; a result is as readable as any other file
        os.chmod(temporary, 0o666 & ~umask if mode is None else mode)
        os.replace(temporary, path)
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def append(path: Path, text: str, sync: bool = True) -> None:
    """Add whole lines to a file that grows line by line: all of them or none, whatever ends it.

    With `sync` they are on the disk when it returns. Raises `UnwritableError` when the disk is full.
    """
    with writing(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            with undone(handle):
                left = memoryview(text.encode("utf-8"))
                while left:  # a disk that is about to be full takes a part
                    left = left[os.write(handle, left) :]
                if sync:
                    os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def undone(file: Path | int) -> Iterator[None]:
    """Cut a file, or one that is open, back to its length before where the block raises.

    A line that was written in part would else stand before the next one.
    """
    before = os.stat(file).st_size
    try:
        yield
    except BaseException:
        with suppress(OSError):
            os.truncate(file, before)
        raise


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON objects that grows line by line, up to the first that is none: there it is cut off.

    A kill or a full disk may leave such a line, and a machine that lost its power a block of zeros. What comes after it
    cannot be told from rubbish either. Raises `UnwritableError` where the file is not there or cannot be cut.
    """
    with writing(path), path.open("rb+") as file:
        whole = 0
        for line in file:
            try:
                data = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                data = None
            if not isinstance(data, dict):
                break
            whole += len(line)
            yield data
        if whole < os.fstat(file.fileno()).st_size:
            file.truncate(whole)


def mend_tail(path: Path) -> None:
    """Drop a last line that was cut short, as a kill or a full disk leaves one in a file that grows line by line.

    Raises `UnwritableError` where the file cannot be opened to write.
    """
    with writing(path), path.open("rb+") as file:
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


def run_file(run: Path, name: str) -> Path:
    """The path of a file in a run directory that somebody else may have written, to read it; it need not be there.

    Raises `RunDirError` where it is a link that leads out of the directory, or a pipe or the like.
    """
    path = run / name
    if path.is_symlink() and not path.resolve().is_relative_to(run.resolve()):
        raise RunDirError(f"{path} is a link that leads out of its run directory, so it is not read")
    if path.exists() and not path.is_file():
        raise RunDirError(f"{path} is no plain file, so it is not read")
    return path


def read_json(run: Path, name: str) -> Any:
    """The data of one of a run's JSON files.

    Raises `RunDirError` as `run_file`; `OSError`, or `ValueError` where it is too large or no JSON.
    """
    path = run_file(run, name)
    with path.open("rb") as file:
        text = file.read(_LARGEST_JSON + 1)
    if len(text) > _LARGEST_JSON:
        raise ValueError(f"it is larger than {_LARGEST_JSON // 1_000_000} MB, so it is none of ours")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_result(run: Path) -> dict[str, Any]:
    """The `result.json` of a finished run; see `result_shape` for what it holds at least.

    Raises `RunDirError` when the folder is no run, or one that has not finished.
    """
    from adamtune.result_shape import checked  # loads pydantic, which a sweep's workers and `--help` do not need

    path = run / RESULT
    try:
        return checked(read_json(run, RESULT))
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirError(f"{run} {_why_without_result(run)}") from None
    except (OSError, ValueError) as problem:
        raise RunDirError(f"{path} cannot be read as a result: {problem}") from problem


def _why_without_result(run: Path) -> str:
    if is_run(run):
        goes_on = shlex.join(["adamtune", "sweep", str(run / SPEC), "--run-dir", str(run)])
        report = shlex.join(["adamtune", "report", str(run)])
        return f"has not finished: it has no {RESULT} yet; {report} shows how far it came, {goes_on} goes on with it"
    if not run.is_dir():
        return "is a file; name the run directory of a sweep" if run.exists() else "does not exist"
    within = runs_in(run)
    named = f"; did you mean {within[-1]}?" if within else ""
    return f"is no run directory: it has no {RESULT}{named}"


def is_run(folder: Path) -> bool:
    """Whether a folder is a sweep's run directory, finished or not."""
    there = {name for name in (RESULT, SPEC, *_BEGUN) if os.path.exists(folder / name)}
    return RESULT in there or (SPEC in there and not _BEGUN.isdisjoint(there))


def runs_in(folder: Path) -> list[Path]:
    """The run directories in `folder`, finished or not: those without a result first, then by when they ended."""
    try:
        runs = [entry for entry in sorted(folder.iterdir()) if is_run(entry)]
    except OSError:
        return []

    def ended(run: Path) -> float:
        path = run / RESULT
        return path.stat().st_mtime if path.exists() else 0.0

    return sorted(runs, key=ended)


def next_run_dir(name: str) -> Path:
    """`runs/NAME-N` below the working directory, N one above the highest there."""
    runs = Path("runs")
    there = [entry.name for entry in runs.iterdir()] if runs.is_dir() else []
    tails = [entry.removeprefix(f"{name}-") for entry in there if entry.startswith(f"{name}-")]
    numbers = [int(tail) for tail in tails if tail.isascii() and tail.isdigit()]
    return runs / f"{name}-{max(numbers, default=0) + 1}"
