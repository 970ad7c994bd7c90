"""Ctrl-C in a sweep: the first lets the rung under way end, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def after_the_rung(tell: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, to be asked after every rung. A second one raises `KeyboardInterrupt`, anywhere."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield asked.is_set
        return

    def pressed(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        tell("stopping after this rung; press Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield asked.is_set
    except KeyboardInterrupt:
        if asked.is_set():  # the command is about to end; one more press must not end it halfway through its last words
            before = signal.SIG_IGN
        raise
    finally:
        signal.signal(signal.SIGINT, before)
