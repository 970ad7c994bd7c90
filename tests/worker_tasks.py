"""Tasks that worker processes import by name, and what their trials are asked."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import torch
from stacked import batches, loss, mlp, task
from torch import Tensor, nn

from adamtune.randomness import Stream, derive_seed
from adamtune.task import Task

__all__ = ["batches", "deadly", "hanging", "locking", "mlp", "plain", "raising"]


def plain() -> Task:
    """The regression of the other tests."""
    return task()


def at_step(seed: int, step: int) -> int:
    """What torch is seeded with at a step of a trial: by it a loss knows where it is."""
    return derive_seed(seed, Stream.STEP, step)


def deadly(folder: str, seed: int, times: int) -> Task:
    """Kills its process at step 9 of the trial of one seed, so many times."""

    def dying(model: nn.Module, x: Tensor) -> Tensor:
        if torch.initial_seed() == at_step(seed, 9):
            deaths = Path(folder) / "deaths"
            so_far = len(deaths.read_text()) if deaths.exists() else 0
            if so_far < times:
                deaths.write_text("x" * (so_far + 1))
                print("about to die", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        return loss(model, x)

    return task(loss=dying)


def hanging(seed: int) -> Task:
    """Hangs at step 9 of the trials of one seed."""

    def hang(model: nn.Module, x: Tensor) -> Tensor:
        if model.training and torch.initial_seed() == at_step(seed, 9):
            time.sleep(600)
        return loss(model, x)

    return task(loss=hang)


def raising() -> Task:
    """Its loss cannot be computed."""

    def broken(model: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("no such column")

    return task(loss=broken)


def locking(seed: int) -> Task:
    """Hangs at step 9 of the trials of one seed, in C code that holds Python's lock: no thread of its process runs."""

    def hang(model: nn.Module, x: Tensor) -> Tensor:
        if torch.initial_seed() == at_step(seed, 9):
            sum(itertools.repeat(0))
        return loss(model, x)

    return task(loss=hang)
