"""Standard output for the result alone: what a task prints goes to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress


@contextmanager
def result_alone() -> Iterator[None]:
    """Inside the block standard output leads to standard error, for Python, C libraries and forked processes alike.

    So that `--json` is JSON whatever the task's code prints as it is imported and trained.
    """
    with ExitStack() as after:
        after.enter_context(redirect_stdout(sys.stderr))
        with suppress(OSError):  # the shell has closed one of them (>&-): there is nothing to keep apart
            kept = os.dup(1)
            after.callback(os.close, kept)
            os.dup2(2, 1)
            after.callback(os.dup2, kept, 1)
        yield
