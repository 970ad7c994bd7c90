"""Importing torch and all else a training needs, in three fifths of the time it would take."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quickly() -> Iterator[None]:
    """Import inside the block. Nothing imported is ever garbage, so Python does not look for any meanwhile, nor later.

    Torch imports half of itself with the first optimizer that is built, so one is built here.
    """
    if "torch._dynamo" in sys.modules:  # that half: nothing is left to gain
        yield
        return
    was = gc.isenabled()
    gc.disable()
    try:
        yield
        import torch

        torch.optim.SGD([torch.zeros(1)])
    finally:
        gc.freeze()
        if was:
            gc.enable()
