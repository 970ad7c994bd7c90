"""Trials one by one in this process: the engine that can train anything, and the measure of every other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from adamtune import blas
from adamtune.engines.time_limit import TimeIsUp, time_limit, too_long
from adamtune.task import Task
from adamtune.trial import RungReport, Trial, TrialRequest, TrialResult


@contextmanager
def cpu_threads() -> Iterator[None]:
    """Train on one CPU thread, or on OMP_NUM_THREADS where that is set; then give the caller's threads back.

    One is fastest for models whose steps take milliseconds, keeps results the same on any number of cores, and does
    not collapse on a busy machine: with another process on the same two cores, two threads took 200 times as long as
    one, waiting for each other.
    """
    before = torch.get_num_threads()
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # OpenMP takes a list, one a nesting level
    count = int(wanted) if wanted.isdigit() and int(wanted) else 1
    torch.set_num_threads(count)
    try:
        with blas.threads(count):
            yield
    finally:
        torch.set_num_threads(before)


class SequentialBatch:
    """Trials taken to each rung in turn."""

    def __init__(self, trials: Sequence[Trial], on_steps: Callable[[int], None], timeout: float | None = None) -> None:
        """Hold `trials`, none of which has started. `timeout`: seconds that one may take to its next rung."""
        self._trials: list[Trial | None] = list(trials)
        self._results: list[TrialResult | None] = [None] * len(trials)
        self._on_steps, self._timeout = on_steps, timeout
        self._told = 0
        """Steps of the trial that trains, of which `on_steps` has heard."""

    def advance(self, to_step: int, evaluate: bool = True) -> list[RungReport | None]:
        """See `TrialBatch.advance`."""
        reports: list[RungReport | None] = []
        for index, trial in enumerate(self._trials):
            if trial is None:
                reports.append(None)
                continue
            self._told = trial.step
            try:
                with cpu_threads(), time_limit(self._timeout):
                    reports.append(trial.advance(to_step, evaluate, self._tell))
            except TimeIsUp:
                trial.fail(too_long(self._timeout))
                reports.append(None)
            finally:  # of those that an error, or an interrupt, has ended before they were told
                self._tell(trial.step - self._told)
            trial.keep()
            if trial.outcome is not None:
                self._close(index, trial)
        return reports

    def runs(self, index: int) -> bool:
        """Whether trial `index` has not ended."""
        return self._trials[index] is not None

    def prune(self, index: int) -> None:
        """See `TrialBatch.prune`."""
        trial = self._trials[index]
        if trial is not None:
            trial.prune()
            self._close(index, trial)

    def results(self) -> list[TrialResult]:
        """See `TrialBatch.results`."""
        for index, trial in enumerate(self._trials):
            if trial is not None:
                self._close(index, trial)
        return [result for result in self._results if result is not None]

    def _tell(self, steps: int) -> None:
        if steps:
            self._told += steps
            self._on_steps(steps)

    def _close(self, index: int, trial: Trial) -> None:
        """Keep the numbers and let go of the model and its optimizer state."""
        self._results[index] = trial.result()
        self._trials[index] = None


class SequentialEngine:
    """Trains one trial after another."""

    name = "sequential"

    def __init__(
        self,
        task: Task,
        device: torch.device,
        on_steps: Callable[[int], None] = lambda steps: None,
        timeout: float | None = None,
    ) -> None:
        """Train `task` on `device`; `on_steps(n)` is told of every n steps trained. `timeout`: seconds that a trial may
        take to its next rung.
        """
        self._task, self._device, self._on_steps, self._timeout = task, device, on_steps, timeout

    def open(self, requests: Sequence[TrialRequest]) -> SequentialBatch:
        """See `Engine.open`."""
        trials = [Trial.begin(self._task, request, self._device) for request in requests]
        return SequentialBatch(trials, self._on_steps, self._timeout)

    def facts(self) -> dict[str, Any]:
        """See `Engine.facts`."""
        return {"engine": self.name}

    def close(self) -> None:
        """See `Engine.close`; there is nothing."""
