"""What a task's own code prints, where stdout is to be JSON and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def beside(json: bool) -> Iterator[None]:
    """With `json`, whatever Python code prints in the block goes to stderr, as in processes forked there."""
    if not json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
