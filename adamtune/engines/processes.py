"""Worker processes on one machine, each training its share of a batch on one CPU thread.

They are forked, so that they have the task whatever it is made of, and start in milliseconds. They inherit no thread:
this process trains on one thread before it forks, and so do they.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from types import FrameType
from typing import Any

import torch

from adamtune.engines.cores import core_count
from adamtune.engines.endings import ending
from adamtune.engines.forked import STOP, serve
from adamtune.engines.width import StepTimes, together
from adamtune.errors import AdamtuneError
from adamtune.history import History, RungReport, TrialRequest, TrialResult
from adamtune.task import Task


def process_count(device: torch.device) -> int:
    """How many processes may train side by side here: one a core, where each is to use one thread."""
    threads = os.environ.get("OMP_NUM_THREADS", "1").split(",")[0].strip()
    if torch.cuda.is_available():  # autograd then has threads of its own, and a fork of them cannot train
        return 1
    if device.type != "cpu" or sys.platform != "linux" or threads not in ("", "1"):
        return 1
    return core_count()


class WorkerLost(AdamtuneError):
    """Worker processes die, whatever is tried."""


LOST: Any = object()
"""The answer of a worker that has died."""


STOPPING = 10.0
"""Seconds within which a worker must hear an interrupt; one that hangs in C code never would, and is killed."""

MAX_RETRIES = 3
"""Times that trials are trained again after their worker died; then they have failed."""

_MEND = "give trials less by --memory, or train in one process by --engine sequential"

_CREWS: weakref.WeakSet[Workers] = weakref.WeakSet()
"""All that this process has started."""


class Workers:
    """The processes, started once and kept."""

    def __init__(self, task: Task, device: torch.device, count: int) -> None:
        """Fork `count` processes."""
        self._task, self._device = task, device
        self._numbers, self._tickets = itertools.count(), itertools.count()
        self.ends: list[Connection] = []
        self.processes: list[ForkProcess] = []
        self._finalizer = weakref.finalize(self, _stop, os.getpid(), self.ends, self.processes)
        _CREWS.add(self)
        for _ in range(count):
            end, process = self._fork()
            self.ends.append(end)
            self.processes.append(process)

    def _fork(self) -> tuple[Connection, ForkProcess]:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        inherited = [*(end for crew in _CREWS for end in crew.ends if not end.closed), here]
        process = context.Process(target=serve, args=(there, inherited, self._task, self._device), daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 warns of threads: the bar's drawing thread holds nothing that a worker uses.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        there.close()
        return here, process

    def replace(self, index: int) -> str:
        """Put a new process, which knows of no batch, in the place of one that has died; how that one died."""
        self.ends[index].close()
        self.processes[index].join()
        how = ending(self.processes[index].exitcode)
        self.ends[index], self.processes[index] = self._fork()
        return how

    def open(
        self,
        shares: Sequence[Sequence[int]],
        requests: Sequence[TrialRequest],
        width: int,
        noisy: bool,
        on_steps: Callable[[int], None],
        on_note: Callable[[str], None],
        timeout: float | None = None,
        fits: float = math.inf,
    ) -> SharedBatch:
        """A batch whose requests are trained by worker n where share n lists their places; see `LocalBatch`."""
        settings = width, noisy, timeout, fits
        return SharedBatch(self, next(self._numbers), shares, requests, settings, on_steps, on_note)

    def measure(self, requests: Sequence[TrialRequest], memory: float, most_seconds: float, alone: float) -> StepTimes:
        """Step times as `width.time_steps` finds them in all workers at once, as trials will train: they share the
        memory's bandwidth and the last cache, in which stacks that fit alone may not fit together.
        """
        how = ""
        for _ in range(MAX_RETRIES):
            count = len(self.processes)
            asked = dict.fromkeys(range(count), (list(requests), memory, most_seconds, alone, count))
            found = self.ask(-1, "measure", asked)
            if LOST not in found.values():
                return together(list(found.values()))
            for place in (place for place, answer in found.items() if answer is LOST):
                how = self.replace(place)
        raise WorkerLost(f"a worker process died each time that step times were measured: {how}; {_MEND}")

    def ask(
        self,
        number: int,
        what: str,
        arguments: Mapping[int, Any],
        on_steps: Callable[[int], None] = lambda steps: None,
        on_note: Callable[[str], None] = lambda note: None,
    ) -> dict[int, Any]:
        """Ask the workers of these places about batch `number`; their answers, `LOST` where one has died.

        Raises what the first of them raised.
        """
        ticket = next(self._tickets)
        asked: list[int] = []
        answers: dict[int, Any] = {}
        errors: dict[int, BaseException] = {}

        def collect(until: float = math.inf) -> None:
            while waiting := [index for index in asked if index not in answers and index not in errors]:
                left = None if math.isinf(until) else max(0.0, until - time.monotonic())
                ready = wait([self.ends[index] for index in waiting], left)
                if not ready:
                    for index in waiting:
                        self.processes[index].kill()
                    until = math.inf  # the system ends them for sure
                for index in (index for index in waiting if self.ends[index] in ready):
                    with _whole():
                        try:
                            answered, kind, value = self.ends[index].recv()
                        except (EOFError, OSError):
                            answers[index] = LOST
                            continue
                        if answered != ticket:  # to a question that a second Ctrl-C left unheard
                            continue
                        if kind in ("answer", "error"):
                            (answers if kind == "answer" else errors)[index] = value
                    if kind == "steps":
                        on_steps(value)
                    elif kind == "note":
                        on_note(value)

        try:
            for index, argument in arguments.items():
                with _whole():
                    asked.append(index)
                    try:
                        self.ends[index].send((ticket, number, what, argument))
                    except OSError:
                        answers[index] = LOST
            collect()
        except KeyboardInterrupt:
            for index in asked:
                process = self.processes[index]
                if index not in answers and index not in errors and process.pid is not None and process.is_alive():
                    os.kill(process.pid, STOP)
            collect(time.monotonic() + STOPPING)
            for index in asked:  # one that had just answered would raise it at the next question
                with _whole(), suppress(OSError):
                    self.ends[index].send((ticket, number, "forget", None))
            raise
        if errors:
            raise errors[min(errors)]
        return answers

    def close(self) -> None:
        """End the processes."""
        self._finalizer()


class SharedBatch:
    """A batch of trials spread over workers; see `engines.TrialBatch`.

    Where a worker dies, another is put in its place and trains its share again from the start, to where it was.
    """

    def __init__(
        self,
        workers: Workers,
        number: int,
        shares: Sequence[Sequence[int]],
        requests: Sequence[TrialRequest],
        settings: tuple[Any, ...],
        on_steps: Callable[[int], None],
        on_note: Callable[[str], None],
    ) -> None:
        """See `Workers.open`; `settings` are the rest of what a `LocalBatch` takes."""
        self._workers, self._number, self._requests = workers, number, requests
        self._on_steps, self._on_note = on_steps, on_note
        self._shares = [_Share(list(places), settings) for places in shares]
        self._results: list[TrialResult] | None = None
        self._interrupted = False
        self._ask("open", [self._opening(share) for share in self._shares])

    def advance(self, to_step: int, evaluate: bool = True) -> list[RungReport | None]:
        """See `TrialBatch.advance`."""
        reports: list[RungReport | None] = [None] * len(self._requests)
        if self._results is not None:  # they have ended
            return reports
        answers = self._ask("advance", [(to_step, evaluate)] * len(self._shares))
        for share, found in zip(self._shares, answers, strict=True):
            for place, report in zip(share.places, found or [None] * len(share.places), strict=True):
                reports[place] = report
        return reports

    def prune(self, index: int) -> None:
        """See `TrialBatch.prune`."""
        if self._results is None:
            self._ask("prune", [[s.places.index(index)] if index in s.places else [] for s in self._shares])

    def results(self) -> list[TrialResult]:
        """See `TrialBatch.results`. Trials of a share whose workers all died are `failed`."""
        if self._results is not None:
            return self._results
        found: dict[int, TrialResult] = {}
        for share, results in zip(self._shares, self._ask("results", [()] * len(self._shares)), strict=True):
            lost = [_lost(self._requests[place], share.died()) for place in share.places]
            found |= dict(zip(share.places, results or lost, strict=True))
        self._results = [found[place] for place in range(len(self._requests))]
        return self._results

    def _ask(self, what: str, arguments: Sequence[Any]) -> list[Any]:
        """What the share of each place answers; None from one that has failed."""
        asked: dict[int, Any] = {}
        for place, share in enumerate(self._shares):
            if not share.failed:
                share.calls.append((what, arguments[place]))
                if share.process is None or share.process is self._workers.processes[place]:
                    share.process = self._workers.processes[place]
                    asked[place] = arguments[place]
        try:
            answers = self._workers.ask(self._number, what, asked, self._on_steps, self._on_note)
        except KeyboardInterrupt:
            self._interrupted = True
            raise
        for place, share in enumerate(self._shares):
            if not share.failed and answers.get(place, LOST) is LOST:
                share.given_up = self._interrupted
                answers[place] = None if share.given_up else self._again(place, share)
        return [answers.get(place) for place in range(len(self._shares))]

    def _again(self, place: int, share: _Share) -> Any:
        """Everything that a share was asked, asked of a new worker; its last answer, or None where they all die."""
        while True:
            if share.process is self._workers.processes[place]:  # else it was replaced for another batch
                share.deaths += 1
                share.ending = self._workers.replace(place)
            if share.failed:
                self._on_note(f"{len(share.places)} trials failed: {share.died()}")
                return None
            if share.deaths > 1:  # perhaps they need more memory side by side than there is
                width, noisy, timeout, fits = share.settings
                share.settings = max(1, width // 2), noisy, timeout, min(fits, width) / 2
            self._on_note(f"a worker process died; its {len(share.places)} trials start again in another")
            share.process = self._workers.processes[place]
            share.calls[0] = ("open", self._opening(share))
            for what, argument in share.calls:
                answer = self._workers.ask(self._number, what, {place: argument}, on_note=self._on_note)[place]
                if answer is LOST:
                    break
            else:
                return answer

    def _opening(self, share: _Share) -> tuple[Any, ...]:
        return [self._requests[place] for place in share.places], *share.settings


@dataclass
class _Share:
    """The trials of a batch that one worker trains."""

    places: list[int]
    settings: tuple[Any, ...]
    calls: list[tuple[str, Any]] = field(default_factory=list)
    """All that was asked so far."""
    process: ForkProcess | None = None
    """Who was asked."""
    deaths: int = 0
    ending: str = ""
    """How the last one died."""

    given_up: bool = False
    """Whether there is to be no other after the last one."""

    def died(self) -> str:
        """Why its trials have failed."""
        if self.given_up:
            return "their worker process has not survived that the sweep was interrupted"
        return f"their worker process died {self.deaths} times, the last time {self.ending}; {_MEND}"

    @property
    def failed(self) -> bool:
        """Whether its workers died too often to try again."""
        return self.given_up or self.deaths > MAX_RETRIES


def _lost(request: TrialRequest, why: str) -> TrialResult:
    history = History(request)
    history.fail(why)
    return history.result()


def _stop(owner: int, ends: list[Connection], processes: list[ForkProcess]) -> None:
    if os.getpid() != owner:  # a process that was forked later, and has this object from its parent
        return
    for end in ends:
        end.close()
    for process in processes:
        process.join(timeout=1)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _whole() -> Iterator[None]:
    """Ctrl-C waits until the end of the block: in the middle of a message it would leave the rest in the pipe, or lose
    an answer that nobody sends again.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])
