"""An engine whose trials a later sitting need not train again: what ended is kept, and told again when it is asked for.

A sweep asks for the same trials in the same order whenever it is begun, as long as they answer the same. So a sweep is
resumed by beginning it again: the trials that ended before answer from the file, at once. So do those that were under
way, up to the rung where their state was saved last; from there on they are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from adamtune.engines.batch import Engine, TrialBatch
from adamtune.engines.finished import FinishedTrials
from adamtune.history import Outcome, RungReport, TrialRequest, TrialResult
from adamtune.trial_state import saved_result


class TrialWatch:
    """Hears of trials as they train, batch by batch: `requests` is the same sequence each time. A subclass may listen.

    It is told when trials meet, so what it does costs nothing per step.
    """

    def on_begin(self, requests: Sequence[TrialRequest]) -> None:
        """These trials begin, side by side."""

    def on_rung(self, requests: Sequence[TrialRequest], reports: Sequence[RungReport | None]) -> None:
        """They have come to a rung; None from each that has ended."""

    def on_end(self, requests: Sequence[TrialRequest]) -> None:
        """None of them trains any more."""


class Interruption:
    """Whether a sweep was interrupted, and is to be."""

    def __init__(self, wanted: Callable[[], bool]) -> None:
        """`wanted` is asked before training goes on."""
        self._wanted = wanted
        self.came = False

    def check(self) -> None:
        """Raise `KeyboardInterrupt` where the sweep is to stop."""
        if self._wanted():
            self.came = True
            raise KeyboardInterrupt


class ResumableBatch:
    """Trials of which some are known; see `engines.TrialBatch`."""

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[TrialRequest],
        finished: FinishedTrials,
        interruption: Interruption,
        watch: TrialWatch,
    ) -> None:
        """Train with `engine` what is not in `finished`."""
        self._engine, self._asked, self._finished, self._interruption = engine, requests, finished, interruption
        self._watch = watch
        watch.on_begin(requests)
        self._places = [finished.place(request) for request in requests]
        self._requests = [
            replace(request, checkpoint=finished.checkpoint(place))
            for place, request in zip(self._places, requests, strict=True)
        ]
        told = [finished.pop(place, request) for place, request in zip(self._places, requests, strict=True)]
        self._known = {index: result for index, result in enumerate(told) if result is not None}
        begun = {index: saved_result(self._requests[index]) for index, result in enumerate(told) if result is None}
        self._begun = {index: result for index, result in begun.items() if result is not None and result.rungs}
        """Trials that were under way, as they were saved last."""
        self._known |= self._begun
        self._telling = set(self._known)
        self._rungs: list[tuple[int, bool]] = []
        self._trained: list[tuple[TrialBatch, list[int]]] = []
        self._pruned: set[int] = set()
        self._results: list[TrialResult] | None = None
        new = [index for index in range(len(requests)) if index not in self._known]
        if new:
            self._trained.append((engine.open([self._requests[index] for index in new]), new))

    def advance(self, to_step: int, evaluate: bool = True) -> list[RungReport | None]:
        """See `TrialBatch.advance`. Raises `KeyboardInterrupt` in its place once the sweep is to stop."""
        self._interruption.check()
        reports: list[RungReport | None] = [None] * len(self._requests)
        further = {index for index in self._telling if self._told_further(index, to_step)}
        for index in further:
            reports[index] = self._tell(index)
        try:
            self._train_on(sorted(self._telling - further))
            self._rungs.append((to_step, evaluate))
            for batch, places in self._trained:
                for index, report in zip(places, batch.advance(to_step, evaluate), strict=True):
                    reports[index] = report
        except BaseException:
            self._interruption.came = True
            raise
        self._watch.on_rung(self._asked, reports)
        return reports

    def prune(self, index: int) -> None:
        """See `TrialBatch.prune`."""
        self._pruned.add(index)
        if index in self._begun.keys() & self._telling:
            self._known[index] = _cut(self._known[index], len(self._rungs))
        self._telling.discard(index)
        for batch, places in self._trained:
            if index in places:
                batch.prune(places.index(index))

    def results(self) -> list[TrialResult]:
        """See `TrialBatch.results`. What has ended by now is kept for a later sitting."""
        if self._results is None:
            found = dict(self._known)
            for index in self._telling & self._begun.keys():
                found[index] = _cut(found[index], len(self._rungs))
            new = {index: found[index] for index in self._begun}
            for batch, places in self._trained:
                new |= dict(zip(places, batch.results(), strict=True))
            found |= new
            self._finished.add(
                [(self._places[index], result) for index, result in new.items() if self._ended(index, result)]
            )
            self._results = [replace(found[index], request=request) for index, request in enumerate(self._asked)]
            self._watch.on_end(self._asked)
        return self._results

    @property
    def interrupted(self) -> bool:
        """Whether the sweep ended while these trials trained: a later sitting goes through them again."""
        return self._interruption.came

    def _ended(self, index: int, result: TrialResult) -> bool:
        if result.outcome is Outcome.FAILED:  # its worker died; the trial may do better
            return False
        return not self.interrupted or result.outcome is not Outcome.PRUNED or index in self._pruned

    def _told_further(self, index: int, to_step: int) -> bool:
        """Whether what is known of a trial goes as far as `to_step`, by the same rungs."""
        result, rung = self._known[index], len(self._rungs)
        if rung >= len(result.rungs):
            return False
        ended_there = rung == len(result.rungs) - 1 and result.outcome is Outcome.DIVERGED
        return ended_there or result.rungs[rung].step == min(to_step, result.request.horizon)

    def _tell(self, index: int) -> RungReport | None:
        result, rung = self._known[index], len(self._rungs)
        last = rung == len(result.rungs) - 1
        if last and result.outcome in (Outcome.COMPLETED, Outcome.DIVERGED):
            self._telling.discard(index)
        return None if last and result.outcome is Outcome.DIVERGED else result.rungs[rung]

    def _train_on(self, indices: Sequence[int]) -> None:
        """Train trials of which no more is known: from where they were saved, those that were under way. Others were
        pruned before and go on now, since rounding has made another choice.
        """
        for index in indices:
            if index not in self._begun or len(self._known[index].rungs) > len(self._rungs):
                self._finished.forget(self._places[index])  # saved at other rungs than are asked for now
        if indices:
            batch = self._engine.open([self._requests[index] for index in indices])
            self._trained.append((batch, list(indices)))
            self._telling -= set(indices)
            for index in indices:
                del self._known[index]
                self._begun.pop(index, None)
            for to_step, evaluate in self._rungs:
                batch.advance(to_step, evaluate)


def _cut(result: TrialResult, rungs: int) -> TrialResult:
    """A trial that was pruned at its rung of that number, from 1."""
    steps = result.rungs[rungs - 1].step if rungs else 0
    return replace(result, outcome=Outcome.PRUNED, steps=steps, rungs=result.rungs[:rungs])


class ResumableEngine:
    """Trains with another engine what no earlier sitting has trained."""

    def __init__(
        self,
        engine: Engine,
        finished: FinishedTrials | None = None,
        stop: Callable[[], bool] = lambda: False,
        watch: TrialWatch | None = None,
    ) -> None:
        """`finished` keeps what ends; `stop` is asked before every rung whether to interrupt the sweep there."""
        self.name = engine.name
        self._watch = watch or TrialWatch()
        self._engine, self._interruption = engine, Interruption(stop)
        self._finished = finished if finished is not None else FinishedTrials()

    def open(self, requests: Sequence[TrialRequest]) -> ResumableBatch:
        """See `Engine.open`."""
        return ResumableBatch(self._engine, requests, self._finished, self._interruption, self._watch)

    def begun(self, request: TrialRequest) -> bool:
        """Whether an earlier sitting has trained the trial that is opened next with this request, at least in part."""
        return self._finished.begun(request)

    def facts(self) -> dict[str, Any]:
        """See `Engine.facts`."""
        return self._engine.facts()

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.close()
