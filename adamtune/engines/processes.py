"""Worker processes on one machine, each training its share of a batch on one CPU thread.

They are forked, so that they have the task whatever it is made of, and start in milliseconds. They inherit no thread:
this process trains on one thread before it forks, and so do they.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from types import FrameType
from typing import Any

import torch

from adamtune.engines.local import LocalBatch
from adamtune.engines.width import StepTimes, time_steps
from adamtune.errors import AdamtuneError
from adamtune.history import History, Outcome, RungReport, TrialRequest, TrialResult
from adamtune.task import Task


def process_count(device: torch.device) -> int:
    """How many processes may train side by side here: one a core, where each is to use one thread."""
    threads = os.environ.get("OMP_NUM_THREADS", "1").split(",")[0].strip()
    if torch.cuda.is_available():  # autograd then has threads of its own, and a fork of them cannot train
        return 1
    if device.type != "cpu" or sys.platform != "linux" or threads not in ("", "1"):
        return 1
    return len(os.sched_getaffinity(0))


class WorkerLost(AdamtuneError):
    """A worker process died."""


_CREWS: weakref.WeakSet[Workers] = weakref.WeakSet()
"""All that this process has started."""


class Workers:
    """The processes, started once and kept."""

    def __init__(self, task: Task, device: torch.device, count: int) -> None:
        """Fork `count` processes."""
        context = multiprocessing.get_context("fork")
        self._numbers, self._tickets = itertools.count(), itertools.count()
        self.ends: list[Connection] = []
        self.processes: list[ForkProcess] = []
        others = [end for crew in _CREWS for end in crew.ends if not end.closed]
        for _ in range(count):
            here, there = context.Pipe()
            inherited = [*others, *self.ends, here]
            process = context.Process(target=_serve, args=(there, inherited, task, device), daemon=True)
            with warnings.catch_warnings():
                # Python 3.12 warns of threads: the bar's drawing thread holds nothing that a worker uses.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            there.close()
            self.ends.append(here)
            self.processes.append(process)
        self._finalizer = weakref.finalize(self, _stop, os.getpid(), self.ends, self.processes)
        _CREWS.add(self)

    def open(
        self,
        shares: Sequence[Sequence[int]],
        requests: Sequence[TrialRequest],
        width: int,
        noisy: bool,
        on_steps: Callable[[int], None],
        on_note: Callable[[str], None],
    ) -> SharedBatch:
        """A batch whose requests are trained by worker n where share n lists their places."""
        return SharedBatch(self, next(self._numbers), shares, requests, width, noisy, on_steps, on_note)

    def measure(self, requests: Sequence[TrialRequest], memory: float, most_seconds: float) -> StepTimes:
        """Step times as `width.time_steps` finds them, in a worker, where the trials will train."""
        times: StepTimes = self.ask(-1, "measure", [(list(requests), memory, most_seconds)])[0]
        return times

    def ask(
        self,
        number: int,
        what: str,
        arguments: Sequence[Any],
        on_steps: Callable[[int], None] = lambda steps: None,
        on_note: Callable[[str], None] = lambda note: None,
        lost: Any = WorkerLost,
    ) -> list[Any]:
        """Ask as many workers as there are `arguments` about batch `number`; their answers.

        Raises what the first of them raised. Where a worker has died the answer is `lost`, or that is raised.
        """
        ends, ticket = self.ends[: len(arguments)], next(self._tickets)
        asked: list[int] = []
        answers: dict[int, Any] = {}
        errors: dict[int, BaseException] = {}

        def gone(index: int) -> None:
            if lost is WorkerLost:
                errors[index] = WorkerLost(
                    "a worker process died, perhaps for want of memory; what the others measured is kept. "
                    "Narrow the stacks with --memory, or train in this process with --engine sequential"
                )
            else:
                answers[index] = lost

        def collect() -> None:
            while waiting := [index for index in asked if index not in answers and index not in errors]:
                for ready in wait([ends[index] for index in waiting]):
                    index = ends.index(ready)  # type: ignore[arg-type]
                    with _whole():
                        try:
                            answered, kind, value = ends[index].recv()
                        except (EOFError, OSError):
                            gone(index)
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
            for index, (end, argument) in enumerate(zip(ends, arguments, strict=True)):
                with _whole():
                    asked.append(index)
                    try:
                        end.send((ticket, number, what, argument))
                    except OSError:
                        gone(index)
            collect()
        except KeyboardInterrupt:
            for index in asked:
                process = self.processes[index]
                if index not in answers and index not in errors and process.pid is not None and process.is_alive():
                    os.kill(process.pid, _STOP)
            collect()
            for index in asked:  # one that had just answered would raise it at the next question
                with _whole(), suppress(OSError):
                    ends[index].send((ticket, number, "forget", None))
            raise
        if errors:
            raise errors[min(errors)]
        return [answers[index] for index in range(len(ends))]

    def complete(self) -> bool:
        """Whether all its processes live."""
        return self._finalizer.alive and all(process.is_alive() for process in self.processes)

    def close(self) -> None:
        """End the processes."""
        self._finalizer()


class SharedBatch:
    """A batch of trials spread over workers; see `engines.TrialBatch`."""

    def __init__(
        self,
        workers: Workers,
        number: int,
        shares: Sequence[Sequence[int]],
        requests: Sequence[TrialRequest],
        width: int,
        noisy: bool,
        on_steps: Callable[[int], None],
        on_note: Callable[[str], None],
    ) -> None:
        """See `Workers.open`."""
        self._workers, self._number, self._shares = workers, number, [list(share) for share in shares]
        self._requests, self._on_steps, self._on_note = requests, on_steps, on_note
        self._results: list[TrialResult] | None = None
        self._ask("open", [([requests[place] for place in share], width, noisy) for share in self._shares])

    def advance(self, to_step: int, evaluate: bool = True) -> list[RungReport | None]:
        """See `TrialBatch.advance`."""
        reports: list[RungReport | None] = [None] * len(self._requests)
        if self._results is not None:  # they have ended
            return reports
        answers = self._ask("advance", [(to_step, evaluate)] * len(self._shares))
        for share, found in zip(self._shares, answers, strict=True):
            for place, report in zip(share, found, strict=True):
                reports[place] = report
        return reports

    def prune(self, index: int) -> None:
        """See `TrialBatch.prune`."""
        if self._results is None:
            places = [[share.index(index)] if index in share else [] for share in self._shares]
            self._ask("prune", places)

    def results(self) -> list[TrialResult]:
        """See `TrialBatch.results`. Trials of a worker that died are `failed`."""
        if self._results is not None:
            return self._results
        found: dict[int, TrialResult] = {}
        for share, results in zip(self._shares, self._ask("results", [()] * len(self._shares), lost=None), strict=True):
            if results is None:
                lost = [_lost(self._requests[place]) for place in share]
                results = lost
            found |= dict(zip(share, results, strict=True))
        self._results = [found[place] for place in range(len(self._requests))]
        return self._results

    def _ask(self, what: str, arguments: Sequence[Any], lost: Any = WorkerLost) -> list[Any]:
        return self._workers.ask(self._number, what, arguments, self._on_steps, self._on_note, lost)


def _lost(request: TrialRequest) -> TrialResult:
    history = History(request)
    history.outcome = Outcome.FAILED
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


_STOP = signal.SIGUSR1
"""By which workers are interrupted. Ctrl-C in a terminal reaches every process, and a first one shall not stop them."""


class _Interruptible:
    """Lets an interrupt in while a trial trains, and only then: never in the middle of a message, after which it comes
    in.
    """

    def __init__(self) -> None:
        self._training = self._pending = self._raised = False
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(_STOP, self._interrupt)

    def start(self) -> None:
        """Training begins or goes on; raises `KeyboardInterrupt` where one has come and has not ended it.

        One that was raised may be unheard: Python drops what is raised in a finaliser or a weak reference's callback.
        """
        self._training, self._raised = True, self._pending
        if self._pending:
            raise KeyboardInterrupt

    def stop(self) -> bool:
        """Training rests; whether it was under way."""
        was, self._training = self._training, False
        return was

    def forget(self) -> None:
        """Whoever was to be interrupted has ended."""
        self._pending = self._raised = False

    def _interrupt(self, *_: object) -> None:
        self._pending = True
        if self._training and not self._raised:
            self._raised = True
            raise KeyboardInterrupt


def _keep_freed_memory() -> None:
    """Tell glibc's malloc not to give freed memory back to the system.

    A stack frees and asks for the same few megabytes at every step, and the faults of touching fresh pages took a tenth
    of the time of a small CNN. A worker is ours alone, so nobody else minds.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(mmap_threshold, 32 << 20)  # the most it takes
    mallopt(trim_threshold, 1 << 30)


def _serve(end: Connection, others: list[Connection], task: Task, device: torch.device) -> None:
    """The life of a worker: answer questions until the other end closes."""
    # A daemon may have no children, but a task's DataLoader may have workers; these end with their loader.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    for other in others:
        other.close()  # else a worker would keep its siblings' pipes open past their owner's death
    guard = _Interruptible()
    torch.set_num_threads(1)
    _keep_freed_memory()
    batches: dict[int, LocalBatch] = {}
    ticket = 0

    def say(kind: str, value: Any) -> None:
        training = guard.stop()
        end.send((ticket, kind, value))
        if training:
            guard.start()

    while True:
        try:
            ticket, number, what, argument = end.recv()
        except (EOFError, OSError):
            return
        try:
            if what in ("measure", "open", "advance"):
                guard.start()
            else:
                guard.forget()
            if what == "forget":
                continue
            answer = _answer(batches, number, what, argument, task, device, say)
            guard.stop()
            say("answer", answer)
        except (BrokenPipeError, ConnectionResetError):
            return
        except BaseException as problem:
            guard.stop()
            if isinstance(problem, KeyboardInterrupt):
                guard.forget()
            say("error", _portable(problem))


def _answer(
    batches: dict[int, LocalBatch],
    number: int,
    what: str,
    argument: Any,
    task: Task,
    device: torch.device,
    say: Callable[[str, Any], None],
) -> Any:
    if what == "measure":
        requests, memory, most_seconds = argument
        return time_steps(task, requests, device, memory, most_seconds)
    if what == "open":
        requests, width, noisy = argument
        batches[number] = LocalBatch(
            task, requests, device, width, noisy, lambda steps: say("steps", steps), lambda note: say("note", note)
        )
        return None
    if number not in batches:  # it was not opened: making its trials raised
        return []
    if what == "advance":
        return batches[number].advance(*argument)
    if what == "prune":
        for index in argument:
            batches[number].prune(index)
        return None
    return batches.pop(number).results()


def _portable(problem: BaseException) -> BaseException:
    """The exception as it can cross to another process, with its traceback as a note for --debug."""
    told = "".join(traceback.format_exception(problem))
    try:
        pickle.loads(pickle.dumps(problem))
    except Exception:
        problem = AdamtuneError(str(problem)) if isinstance(problem, AdamtuneError) else RuntimeError(told)
    problem.add_note(told)
    return problem
