"""The models and batches of one seed, drawn as a trial of that seed alone draws them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adamtune.errors import AdamtuneError
from adamtune.randomness import RandomState, Stream, TorchState, derive_seed, seed_torch
from adamtune.task import Batch, Task, batch_to, own_batch
from adamtune.task_calls import faults_told, new_model, next_batch, raised


@dataclass(frozen=True)
class Drawn:
    """What one step trains on, and where torch's random stream stood after drawing it."""

    batches: tuple[Batch, ...]
    chance: TorchState | None = None
    """None where nobody wants to know."""
    consumed: bool = False
    """Whether drawing them took anything from torch's global stream."""

    def versions(self) -> list[int]:
        """How often each tensor of the batches has been written to in place."""
        return [version for batch in self.batches for version in _versions(batch)]


class Feed:
    """All members of one seed share its model at the start, its batches and its noise."""

    def __init__(self, task: Task, seed: int, device: torch.device) -> None:
        """Draw the model. Raises `TaskError` where the task fails."""
        self.seed = seed
        self.failure: AdamtuneError | None = None
        """Why no more batches can be drawn; to be raised when the step that wants them is trained."""
        self.task_raised = False
        """Whether that is what the task's own code raised, and not that its batches ended."""
        self._task, self._device = task, device
        self._random = RandomState(derive_seed(seed, Stream.INIT))
        with self._random.active(device):
            seed_torch(derive_seed(seed, Stream.INIT), device)
            with faults_told(task, "before training"):
                self.model: nn.Module = new_model(task).to(device)
                generator = torch.Generator().manual_seed(derive_seed(seed, Stream.DATA))
                self._batches: Iterator[Batch] = iter(task.train_batches(generator))

    def forget_model(self) -> None:
        """Let go of the model at the start; only its copies are trained."""
        self.model = nn.Module()

    def draw(self, first: int, count: int, accumulate: int, horizon: int, noisy: bool) -> list[Drawn]:
        """The batches of `count` steps from step `first` on, `accumulate` a step; fewer where there is a `failure`.

        `noisy`: the loss goes on with torch's random stream where drawing left it, so that is taken down.
        """
        drawn: list[Drawn] = []
        if self.failure is not None:
            return drawn
        with self._random.active(self._device):
            for step in range(first, first + count):
                seed_torch(derive_seed(self.seed, Stream.STEP, step), self._device)
                before = TorchState.now(self._device) if noisy else None
                try:
                    batches = tuple(
                        own_batch(self._next(step, horizon), copy.deepcopy)  # some generators yield the same ones again
                        for _ in range(accumulate)
                    )
                except AdamtuneError as problem:
                    self.failure = problem
                    return drawn
                except Exception as problem:
                    self.failure, self.task_raised = raised(self._task, f"at training step {step + 1}", problem), True
                    self.failure.__cause__ = problem
                    return drawn
                if before is None:
                    drawn.append(Drawn(batches))
                else:
                    after = TorchState.now(self._device)
                    drawn.append(Drawn(batches, after, consumed=after != before))
        return drawn

    def _next(self, step: int, horizon: int) -> Batch:
        return batch_to(next_batch(self._task, self._batches, step, horizon), self._device)


def _versions(batch: Batch) -> Iterator[int]:
    if isinstance(batch, Tensor):
        yield batch._version
    elif isinstance(batch, tuple | list):
        for item in batch:
            yield from _versions(item)
    elif isinstance(batch, dict):
        yield from _versions(list(batch.values()))


def same_numpy(one: Any, other: Any) -> bool:
    """Whether two states of NumPy's global generator are the same."""
    return bool(np.array_equal(one[1], other[1]) and one[2:] == other[2:])
