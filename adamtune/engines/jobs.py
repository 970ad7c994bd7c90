"""A trial as jobs for other processes: what one is asked, and who does it there.

A job says all there is to know: the request, and the rungs to train through. A process that holds the trial goes on
with it; one that does not goes on from its saved state, where it can see one, or trains it from the start. So a job may
be done anywhere, again, after any death, and its answer is the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adamtune.engines.plain import request_data, request_of, result_data, result_of
from adamtune.engines.sequential import cpu_threads
from adamtune.history import TrialRequest, TrialResult
from adamtune.task import Task
from adamtune.trial import Trial

_STATE = re.compile(r"[0-9a-f]{32}\.pt")


@dataclass(frozen=True)
class Job:
    """Take a trial through rungs."""

    trial: int
    """The trial's number in the sitting."""
    request: TrialRequest
    rungs: tuple[tuple[int, bool], ...]
    """Steps, and whether to evaluate there; from the first rung on."""
    timeout: float | None = None
    """Seconds it may take; None for any time."""
    state: str = ""
    """The name of the file that keeps its state, in a folder that a worker may know."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "trial": self.trial,
            "request": request_data(self.request),
            "rungs": [list(rung) for rung in self.rungs],
            "timeout": self.timeout,
            "state": self.state,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        """What `to_dict` wrote. Raises `RecipeError`, `KeyError` or `TypeError` where it is something else."""
        rungs = tuple((int(step), bool(evaluate)) for step, evaluate in data["rungs"])
        return cls(int(data["trial"]), request_of(data["request"]), rungs, data["timeout"], str(data["state"]))


@dataclass(frozen=True)
class Done:
    """How a trial stands after a job."""

    result: TrialResult
    """So far: a trial that has not ended counts as pruned."""
    runs: bool
    """Whether it has not ended."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, without the request."""
        return {"result": result_data(self.result), "runs": self.runs}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], request: TrialRequest) -> Done:
        """What `to_dict` wrote."""
        return cls(result_of(data["result"], request), data["runs"])


class HeldTrials:
    """The trials that a worker has in its memory."""

    def __init__(self, task: Task, device: torch.device, states: Path | None = None) -> None:
        """None yet. Their states are kept in the folder `states`."""
        self._task, self._device, self._states = task, device, states
        self._trials: dict[int, tuple[Trial, int]] = {}

    def __contains__(self, trial: int) -> bool:
        """Whether the trial of that number is held."""
        return trial in self._trials

    def do(self, job: Job) -> Done:
        """Train. Raises `TaskError` where the task does."""
        with cpu_threads():
            trial, done = self._trials.pop(job.trial, (None, 0))
            if trial is None or trial.request != job.request or done > len(job.rungs):
                trial, done = self._begin(job), 0
            for to_step, evaluate in job.rungs[done:]:
                trial.advance(to_step, evaluate)
                trial.keep()
        if trial.outcome is None:
            self._trials[job.trial] = trial, len(job.rungs)
        return Done(trial.result(), trial.outcome is None)

    def _begin(self, job: Job) -> Trial:
        request = job.request
        if self._states is not None and _STATE.fullmatch(job.state):  # whoever wrote the job names no other file
            request = replace(request, checkpoint=self._states / job.state)
        trial = Trial.begin(self._task, request, self._device)
        if trial.reached == [min(to_step, request.horizon) for to_step, _ in job.rungs[: len(trial.reached)]]:
            return trial
        return Trial(self._task, request, self._device)  # it was saved at other rungs

    def keep(self, trials: Collection[int]) -> None:
        """Let go of all others."""
        for trial in set(self._trials) - set(trials):
            del self._trials[trial]
