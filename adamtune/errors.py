"""Every error adamtune raises on purpose, each with the exit code the command line answers with.

A message is one or two plain sentences: what is wrong and how to mend it. Anything that is not an
`AdamtuneError` is a bug in adamtune.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """What the process answers to the shell."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


class AdamtuneError(Exception):
    """Root of the tree. `exit_code` is what the command line exits with."""

    exit_code: ExitCode = ExitCode.FAILED


@dataclass(frozen=True)
class Problem:
    """One thing wrong in an input: where (a path such as `$.stages[1]`, or a line) and what."""

    where: str
    what: str

    def __str__(self) -> str:
        """`where: what`, or only `what` when the whole document is meant."""
        return f"{self.where}: {self.what}" if self.where else self.what


class InputError(AdamtuneError):
    """Something the person typed or wrote cannot be used; nothing was trained and nothing written."""

    exit_code = ExitCode.USAGE


class DocumentError(InputError):
    """A YAML document is wrong. Carries every problem found, not only the first."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        """Store the `problems` found in the document called `source`."""
        self.source = source
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            text = f"{source}: {self.problems[0]}"
        else:
            lines = "\n".join(f"  {problem}" for problem in self.problems)
            text = f"{source} has {len(self.problems)} problems:\n{lines}"
        super().__init__(text)


class SpecError(DocumentError):
    """The spec cannot be used."""


class RecipeError(DocumentError):
    """The recipe cannot be used, as written or with the model at hand."""


class TaskReferenceError(InputError):
    """A task reference does not lead to a Task."""


class RunDirError(InputError):
    """The run directory cannot be used."""


class CheckpointError(InputError):
    """A saved optimizer state cannot be read, or not safely, or has nothing to measure."""


class ExportError(InputError):
    """The recipe cannot be written where or how it was asked."""


class ProbeError(InputError):
    """The optimizer cannot be probed, or not in the way it was asked."""


class TaskError(AdamtuneError):
    """The user's task failed while it was being trained or evaluated."""


class StorageError(AdamtuneError):
    """The storage of a sweep failed while it was in use."""


class UnwritableError(AdamtuneError):
    """A file cannot be written: the disk is full, or the folder is read-only."""


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says of a full disk, a spent quota, and the largest size a file may have (`ulimit -f`)."""
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}


def unwritable(what: Path | str, problem: OSError) -> UnwritableError:
    """The sentence for `what` could not be written, and how to mend it."""
    mend = "name another place"
    if problem.errno in (errno.ENOENT, errno.ENOTDIR):
        mend = "make its folder or name another"
    elif problem.errno in FULL:
        mend = "free some space"
    elif problem.errno in _FORBIDDEN:
        mend = "make its folder writable or name another"
    return UnwritableError(f"{what} cannot be written: {problem.strerror or problem}; {mend}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `UnwritableError` in place of the system's error where `path` cannot be written."""
    try:
        yield
    except OSError as problem:
        raise unwritable(path, problem) from problem


class NothingLearned(AdamtuneError):
    """Every trial diverged or no learning rate made the loss fall: there is nothing to recommend."""


class TrialFailed(AdamtuneError):
    """A trial failed that others are compared with: its incumbent's, or one of the last comparison."""
