"""A limit on the seconds that a piece of training may take in this process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TimeIsUp(BaseException):
    """The limit has passed. No Exception, so that a task's own `except Exception` does not swallow it."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `TimeIsUp` in the block once it has taken `seconds`, wherever Python code runs or waits in it.

    What hangs inside a C function is not reached, nor is any thread but the main one, nor Windows: there is no limit
    then. None sets none.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # and again each second: Python drops what a finaliser raises
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def too_long(seconds: float | None) -> str:
    """What is said of a trial that was ended by its limit."""
    return f"no rung within the trial_timeout of {seconds:g} s"
