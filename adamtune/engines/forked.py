"""The life of a forked worker process: it answers what `processes.Workers` asks, and can be interrupted in training."""

from __future__ import annotations

import ctypes
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from adamtune import blas
from adamtune.engines.local import LocalBatch
from adamtune.engines.width import time_steps
from adamtune.errors import AdamtuneError
from adamtune.task import Task

STOP = signal.SIGUSR1
"""By which workers are interrupted. Ctrl-C in a terminal reaches every process, and a first one shall not stop them."""


class _Interruptible:
    """Lets an interrupt in while a trial trains, and only then: never in the middle of a message, after which it comes
    in.
    """

    def __init__(self) -> None:
        self._training = self._pending = self._raised = False
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(STOP, self._interrupt)

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


def serve(end: Connection, others: list[Connection], task: Task, device: torch.device) -> None:
    """The life of a worker: answer questions until the other end closes."""
    # A daemon may have no children, but a task's DataLoader may have workers; these end with their loader.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    for other in others:
        other.close()  # else a worker would keep its siblings' pipes open past their owner's death
    guard = _Interruptible()
    torch.set_num_threads(1)
    blas.threads(1)
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
        requests, memory, most_seconds, alone, processes = argument
        return time_steps(task, requests, device, memory, most_seconds, alone, processes)
    if what == "open":
        requests, width, noisy, timeout, fits = argument

        def steps(count: int) -> None:
            say("steps", count)

        batches[number] = LocalBatch(
            task, requests, device, width, noisy, steps, lambda note: say("note", note), timeout, fits
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
