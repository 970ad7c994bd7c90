"""What a task prints while a screen is drawn: kept, and let out when the screen is gone."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

_KEPT = 10_000
"""Pieces of text, the last ones; a task that prints at every step shall not fill the memory."""


class Aside:
    """A stream that keeps what is written to it; all else is the stream's own. A forked process writes at once."""

    def __init__(self, stream: TextIO) -> None:
        """Stand in for `stream`, a terminal's."""
        self._stream, self._owner = stream, os.getpid()
        self._kept: deque[str] = deque(maxlen=_KEPT)

    def write(self, text: str) -> int:
        """Keep the text."""
        if os.getpid() != self._owner:
            return self._stream.write(text)
        self._kept.append(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Keep them all."""
        for line in lines:
            self.write(line)

    def let_out(self) -> None:
        """Write what was kept."""
        self._stream.write("".join(self._kept))
        self._stream.flush()
        self._kept.clear()

    def __getattr__(self, name: str) -> Any:
        """What is neither writing nor ours."""
        return getattr(self._stream, name)


@contextmanager
def kept_aside() -> Iterator[None]:
    """Inside the block Python's own output to a terminal is kept; it is let out at the end."""
    with ExitStack() as after:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                aside = Aside(stream)
                setattr(sys, name, aside)
                after.callback(aside.let_out)
                after.callback(setattr, sys, name, stream)
        yield
