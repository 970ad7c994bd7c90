"""Writing a report where it was asked for: `adamtune report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamtune import rundir
from adamtune.errors import AdamtuneError, InputError, RunDirError
from adamtune.report.html import report_html

REPORT_VERSION = 1


@dataclass(frozen=True)
class Written:
    """A report that was written."""

    path: Path
    size: int
    """In bytes."""
    runs: Sequence[Path]
    finished: bool
    """Whether all of the runs have a result."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, versioned."""
        return {
            "version": REPORT_VERSION,
            "report": str(self.path),
            "bytes": self.size,
            "runs": list(map(str, self.runs)),
            "finished": self.finished,
        }


def written_report(runs: Sequence[Path], to: Path | None) -> Written:
    """Write the page of one run, or of several, to `to`: by default into the directory of the first.

    Nothing but files is read: no task is imported. Raises `RunDirError` for a folder that is no run, or holds what no
    sweep has written; `UnwritableError` where the file cannot be written.
    """
    try:
        text = report_html(runs[0]) if len(runs) == 1 else _several(runs)
    except AdamtuneError:
        raise
    # The tables and details of a stranger's run may hold anything at all.
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as problem:
        which = " and ".join(map(str, runs))
        told = f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:200]
        raise RunDirError(f"the files of {which} are not as a sweep writes them ({told}); restore them") from problem
    path = to or runs[0] / rundir.REPORT
    rundir.write_atomically(path, text)
    finished = all((run / rundir.RESULT).exists() for run in runs)
    return Written(path, len(text.encode()), runs, finished)


def _several(runs: Sequence[Path]) -> str:
    from adamtune.report.several import several_html  # loads torch, which reads recipes; one run needs none

    twice = [str(run) for place, run in enumerate(runs) if run.resolve() in [each.resolve() for each in runs[:place]]]
    if twice:
        raise InputError(f"{twice[0]} is named twice; name each run once")
    return several_html(runs)
