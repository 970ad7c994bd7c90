"""An engine whose trials train in other processes, one by one: as jobs, given out by whatever reaches those processes.

Trials are numbered as they are asked for, and train alone, so that results are to the bit those of `engine:
sequential`, whoever trains them and how often a worker dies.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from adamtune.engines.answers import Answer
from adamtune.engines.jobs import Job
from adamtune.engines.processes import MAX_RETRIES
from adamtune.history import Outcome, RungReport, TrialRequest, TrialResult


class Workplace(Protocol):
    """Where jobs are done."""

    def submit(self, job: Job) -> None:
        """Give a job out; a worker that holds its trial gets it, where there is one."""
        ...

    def answers(self) -> Iterable[Answer]:
        """Those there are; waits a little where there is none."""
        ...

    def keep(self, trials: Collection[int]) -> None:
        """The trials that may be asked for again; workers let go of the others, and jobs of theirs are withdrawn."""
        ...

    def facts(self) -> dict[str, Any]:
        """How it works, as plain data."""
        ...

    def close(self) -> None:
        """No more jobs will come."""
        ...


class SpreadEngine:
    """Trains trials at a workplace."""

    def __init__(
        self,
        name: str,
        workplace: Workplace,
        on_steps: Callable[[int], None] = lambda steps: None,
        on_note: Callable[[str], None] = lambda note: None,
        timeout: float | None = None,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        """`on_steps(n)` is told of every n steps trained, `on_note` of what goes wrong on the way. `timeout`: seconds
        that a trial may take to its next rung.
        """
        self.name, self._workplace, self._on_steps, self._on_note = name, workplace, on_steps, on_note
        self._timeout, self._max_retries = timeout, max_retries
        self._numbers = itertools.count()
        self._open: set[int] = set()

    def open(self, requests: Sequence[TrialRequest]) -> SpreadBatch:
        """See `Engine.open`."""
        trials = [_Trial(next(self._numbers), request) for request in requests]
        self._open |= {trial.number for trial in trials}
        self._workplace.keep(self._open)
        return SpreadBatch(self, trials)

    def facts(self) -> dict[str, Any]:
        """See `Engine.facts`."""
        return {"engine": self.name} | self._workplace.facts()

    def close(self) -> None:
        """See `Engine.close`."""
        self._workplace.close()

    def train(self, trials: Sequence[_Trial], rungs: tuple[tuple[int, bool], ...]) -> None:
        """Take trials through rungs. Raises what the first of them raised, once none is under way."""
        for each in trials:
            self._workplace.submit(self._job(each, rungs))
        under_way = {trial.number: trial for trial in trials}
        errors: dict[int, BaseException] = {}
        try:
            while under_way:
                for answer in self._workplace.answers():
                    if (trial := under_way.get(answer.trial)) is None:  # asked for before an interruption
                        continue
                    if answer.lost and trial.lose(answer.lost, self._max_retries if answer.again else 0):
                        self._on_note(f"trial {trial.number} starts again elsewhere: {answer.lost}")
                        self._workplace.submit(self._job(trial, rungs))
                        continue
                    del under_way[answer.trial]
                    if answer.error is not None:
                        errors[answer.trial] = answer.error
                    elif answer.done is not None:
                        self._on_steps(answer.done.result.steps - trial.result.steps)
                        trial.result, trial.runs = answer.done.result, answer.done.runs
                    else:
                        self._on_note(f"trial {trial.number} failed: {trial.result.message}")
        finally:
            self.release(each.number for each in trials if not each.runs or each.number in under_way)
        if errors:
            raise errors[min(errors)]

    def _job(self, trial: _Trial, rungs: tuple[tuple[int, bool], ...]) -> Job:
        state = trial.request.checkpoint.name if trial.request.checkpoint else ""
        return Job(trial.number, trial.request, rungs, self._timeout, state)

    def release(self, trials: Iterable[int]) -> None:
        """They are not asked for any more."""
        before = len(self._open)
        self._open -= set(trials)
        if len(self._open) < before:
            self._workplace.keep(self._open)


class _Trial:
    """A trial of a batch as it is known here."""

    def __init__(self, number: int, request: TrialRequest) -> None:
        self.number, self.request = number, request
        self.runs = True
        self.result = TrialResult(request, Outcome.PRUNED, 0, (), 0.0)
        self.lost = 0

    def lose(self, why: str, max_retries: int) -> bool:
        """Its worker is gone: whether to try again. Else it has failed."""
        self.lost += 1
        if self.lost <= max_retries:
            return True
        self.runs = False
        times = f" (the last of {self.lost} times)" if self.lost > 1 else ""
        self.result = replace(self.result, outcome=Outcome.FAILED, message=f"{why}{times}")
        return False


class SpreadBatch:
    """Trials of a batch; see `engines.TrialBatch`."""

    def __init__(self, engine: SpreadEngine, trials: Sequence[_Trial]) -> None:
        """See `SpreadEngine.open`."""
        self._engine, self._trials = engine, trials
        self._rungs: tuple[tuple[int, bool], ...] = ()

    def advance(self, to_step: int, evaluate: bool = True) -> list[RungReport | None]:
        """See `TrialBatch.advance`."""
        running = [trial for trial in self._trials if trial.runs]
        self._rungs = (*self._rungs, (to_step, evaluate))
        self._engine.train(running, self._rungs)
        reports: list[RungReport | None] = [None] * len(self._trials)
        for place, trial in enumerate(self._trials):
            if trial in running and (trial.runs or trial.result.outcome is Outcome.COMPLETED):
                reports[place] = trial.result.rungs[-1]
        return reports

    def prune(self, index: int) -> None:
        """See `TrialBatch.prune`."""
        self._end([self._trials[index]])

    def results(self) -> list[TrialResult]:
        """See `TrialBatch.results`."""
        self._end(self._trials)
        return [trial.result for trial in self._trials]

    def _end(self, trials: Sequence[_Trial]) -> None:
        for trial in trials:
            trial.runs = False
        self._engine.release(trial.number for trial in trials)
