"""Commands at a terminal of a set size."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

OTHER_SCREEN, OWN_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

# Ctrl-C reaches whom the terminal controls, which a process can only ask for itself.
_START = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "adamtune", *sys.argv[1:]])
"""


def without_codes(text: str) -> str:
    """The text that control codes stand in."""
    return _CODES.sub("", text).replace("\r\n", "\n")


class Terminal:
    """What a command says at a terminal, with its codes."""

    def __init__(self, process: subprocess.Popen[bytes], end: int) -> None:
        self.process, self._end, self._bytes = process, end, b""

    @property
    def said(self) -> str:
        return self._bytes.decode(errors="ignore")

    def resize(self, columns: int, rows: int) -> None:
        """As a window manager does."""
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._end, keys.encode())

    def read_until(self, wanted: Callable[[str], bool], seconds: float = 60) -> str:
        """Read until what was said so far is as wanted, or the command has ended; all that was said."""
        until = time.monotonic() + seconds
        while not wanted(self.said):
            assert time.monotonic() < until, self.said[-3000:]
            if not select.select([self._end], [], [], 0.1)[0]:
                continue
            try:
                new = os.read(self._end, 65536)
            except OSError:  # Linux: nobody has the other end open any more
                break
            self._bytes += new
        return self.said

    def code(self) -> int:
        """The exit code, once it has ended; minus the signal where one has ended it."""
        self.read_until(lambda said: False)
        return self.process.wait(60)


@contextmanager
def terminal(
    *arguments: object, cwd: Path, columns: int = 80, rows: int = 24, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Start the command; it is killed at the end of the block where it still runs."""
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    clean |= {"TERM": "xterm-256color", "PYTHONPATH": "", **(env or {})}
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    command = [sys.executable, "-c", _START, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=cwd, env=clean, stdin=there, stdout=there, stderr=there, start_new_session=True
    )
    os.close(there)
    try:
        yield Terminal(process, here)
    finally:
        process.kill()
        process.wait()
        os.close(here)


def said_at(*arguments: object, cwd: Path, columns: int = 80, env: Mapping[str, str] | None = None) -> str:
    """All that a command says at a terminal, with its codes; it must succeed."""
    with terminal(*arguments, cwd=cwd, columns=columns, env=env) as at:
        assert at.code() == 0, at.said
        return at.said
