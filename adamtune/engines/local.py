"""A batch of trials in this process: in stacks where that is quicker, one by one where it is not or cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from adamtune.engines.sequential import SequentialBatch, cpu_threads
from adamtune.engines.time_limit import TimeIsUp, time_limit, too_long
from adamtune.history import RungReport, TrialRequest, TrialResult
from adamtune.population import NotVectorisable, Population
from adamtune.population.every_member import leave
from adamtune.task import Task
from adamtune.trial import Trial


class LocalBatch:
    """Trials that all train in stacks, or all one by one; see `engines.TrialBatch`.

    What turns out midway not to be vectorisable is trained again one by one, from the start, and told to `on_note`.
    """

    def __init__(
        self,
        task: Task,
        requests: Sequence[TrialRequest],
        device: torch.device,
        width: int,
        noisy: bool,
        on_steps: Callable[[int], None],
        on_note: Callable[[str], None],
        timeout: float | None = None,
        fits: float = math.inf,
    ) -> None:
        """Stacks of at most `width` members; one by one where that is 1. `noisy`: the loss draws random numbers.
        `timeout`: seconds that a trial may take to its next rung. `fits`: see `Population`.
        """
        self._timeout = timeout
        self._task, self._device, self._on_steps, self._on_note = task, device, on_steps, on_note
        self._requests = list(requests)
        self._rungs: list[tuple[int, bool]] = []
        self._active: list[Part] = []
        self._home: dict[int, tuple[Part, int]] = {}
        if width < 2:
            self._adopt(self._one_by_one(range(len(requests))), range(len(requests)))
            return
        for places in _alike(requests):
            first, own = requests[0].recipe, requests[places[0]].recipe
            if (own.precision, own.accumulate) != (first.precision, first.accumulate):  # whose kind alone was checked
                self._adopt(self._one_by_one(places), places)
                continue
            try:
                with cpu_threads():
                    mine = [requests[place] for place in places]
                    self._adopt(Population(task, mine, device, width, noisy, on_steps, fits), places)
            except NotVectorisable as reason:
                on_note(f"trials train one by one: {reason}")
                self._adopt(self._one_by_one(places), places)

    def advance(self, to_step: int, evaluate: bool = True) -> list[RungReport | None]:
        """See `TrialBatch.advance`."""
        reports: list[RungReport | None] = [None] * len(self._requests)
        for part in list(self._active):
            running = [place for place, (home, index) in self._home.items() if home is part and part.runs(index)]
            why = ""
            try:
                with cpu_threads(), self._stack_limit(part, len(running)):
                    found = part.advance(to_step, evaluate)
            except NotVectorisable as reason:
                why = str(reason)
            except TimeIsUp:
                leave()
                why = too_long(self._timeout)
            if why:
                self._on_note(f"trials start again one by one: {why}")
                part = self._again(part, running)
                with cpu_threads():
                    found = part.advance(to_step, evaluate)
            elif isinstance(part, Population):
                part.keep()
            for place, (home, index) in self._home.items():
                if home is part:
                    reports[place] = found[index]
        self._rungs.append((to_step, evaluate))
        return reports

    def prune(self, index: int) -> None:
        """See `TrialBatch.prune`."""
        part, place = self._home[index]
        part.prune(place)

    def results(self) -> list[TrialResult]:
        """See `TrialBatch.results`."""
        found = {id(part): part.results() for part, _ in self._home.values()}
        return [found[id(part)][place] for part, place in (self._home[index] for index in range(len(self._requests)))]

    def _stack_limit(self, part: Part, members: int) -> AbstractContextManager[None]:
        """A stack may take what its members may take one by one; these have a limit of their own."""
        if self._timeout is None or not isinstance(part, Population):
            return nullcontext()
        return time_limit(self._timeout * members)

    def _one_by_one(self, places: Iterable[int]) -> SequentialBatch:
        trials = [Trial.begin(self._task, self._requests[place], self._device) for place in places]
        return SequentialBatch(trials, self._on_steps, self._timeout)

    def _adopt(self, part: Part, places: Iterable[int]) -> None:
        self._active.append(part)
        self._home |= {place: (part, index) for index, place in enumerate(places)}

    def _again(self, part: Part, running: list[int]) -> SequentialBatch:
        """The trials of `part` that were `running`, one by one to where they were; the others keep their end."""
        self._active.remove(part)
        if isinstance(part, Population):
            part.close()  # it stays for the records of its other trials only
        again = self._one_by_one(running)
        self._adopt(again, running)
        for rung, evaluate in self._rungs:
            again.advance(rung, evaluate)
        return again


Part = Population | SequentialBatch


def _alike(requests: Sequence[TrialRequest]) -> list[list[int]]:
    """Places of requests that can share a stack: of one horizon, precision and accumulation."""
    found: dict[tuple[object, ...], list[int]] = {}
    for place, request in enumerate(requests):
        key = (request.horizon, request.recipe.precision, request.recipe.accumulate)
        found.setdefault(key, []).append(place)
    return list(found.values())
