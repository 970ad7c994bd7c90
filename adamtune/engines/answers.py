"""What becomes of a job, as text between processes: done, or what its code raised, or that it took too long."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adamtune import errors
from adamtune.engines.jobs import Done, HeldTrials, Job
from adamtune.engines.time_limit import too_long
from adamtune.errors import AdamtuneError

_CROSSING = ("AdamtuneError", "InputError", "TaskError", "TaskReferenceError")
"""Errors that are only a message, and so can cross."""


@dataclass(frozen=True)
class Answer:
    """What became of a job: it is done, or its code raised, or its worker was lost."""

    trial: int
    done: Done | None = None
    error: BaseException | None = None
    lost: str = ""
    """Why, where nobody answers."""
    again: bool = True
    """Whether a lost one is worth another try."""


def answer_to(job: Mapping[str, Any], held: Callable[[], HeldTrials]) -> str:
    """Do the job that `Job.to_dict` wrote with the trials `held`; what became of it, as JSON, which knows NaN here.

    Whatever the task's code raises is an answer too: the sweep must hear of it, and the worker has other jobs.
    """
    try:
        return json.dumps(held().do(Job.from_dict(job)).to_dict())
    except Exception as problem:
        kind = type(problem).__name__ if isinstance(problem, AdamtuneError) else ""
        return json.dumps({"error": str(problem) or type(problem).__name__, "kind": kind})


def timed_out(timeout: float) -> str:
    """What is answered for a worker that has taken too long."""
    return json.dumps({"timeout": timeout})


def answer_of(text: str, job: Job) -> Answer:
    """What `answer_to` or `timed_out` wrote."""
    data = json.loads(text)
    if "timeout" in data:
        return Answer(job.trial, lost=too_long(data["timeout"]), again=False)
    if "error" in data:
        kind = getattr(errors, data["kind"]) if data["kind"] in _CROSSING else RuntimeError
        return Answer(job.trial, error=kind(data["error"]))
    return Answer(job.trial, done=Done.from_dict(data, job.request))
