"""How processes have ended, in words."""

from __future__ import annotations

import signal


def ending(code: int | None) -> str:
    """How a process has ended, by its exit code: that of the signal, negative, where one has killed it."""
    if code is None or code >= 0:
        return f"it exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # one that has no name of its own
        name = f"signal {-code}"
    return f"killed by {name}{', perhaps for want of memory' if name == 'SIGKILL' else ''}"
