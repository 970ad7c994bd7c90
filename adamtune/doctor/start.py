"""A task's model and first batch as a trial of one seed has them, to be looked at before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adamtune.groups import trainable
from adamtune.randomness import RandomState, Stream, derive_seed, seed_torch
from adamtune.task import Batch, Task, batch_to
from adamtune.task_calls import check_loss, faults_told, new_model, next_batch

_CPU = torch.device("cpu")


class Start:
    """Drawn as `adamtune.trial` draws them, and left on the CPU."""

    def __init__(self, task: Task, seed: int) -> None:
        """Raises `TaskError` where the task fails."""
        self._task, self._seed = task, seed
        self._random = RandomState(derive_seed(seed, Stream.INIT))
        with self._random.active(_CPU):
            seed_torch(derive_seed(seed, Stream.INIT), _CPU)
            with faults_told(task, "before training"):
                self.model = new_model(task)
                generator = torch.Generator().manual_seed(derive_seed(seed, Stream.DATA))
                self._batches: Iterator[Batch] = iter(task.train_batches(generator))
                seed_torch(derive_seed(seed, Stream.STEP), _CPU)
                self.batch = next_batch(task, self._batches, 0, 1)

    def draw(self, most: int, seconds: float) -> tuple[int, float]:
        """Draw batches until `most` are drawn, the first included, or `seconds` are over: how many more, in what time.

        Raises `TaskError` where they end.
        """
        began, step = time.perf_counter(), 1
        with self._random.active(_CPU):
            while step < most and time.perf_counter() - began < seconds:
                with faults_told(self._task, f"at batch {step + 1}"):
                    next_batch(self._task, self._batches, step, most)
                step += 1
        return step - 1, time.perf_counter() - began

    def step(self, device: torch.device) -> tuple[float, dict[str, Tensor | None], int]:
        """Move to `device` and go forth and back once: the loss, the gradient of every trainable parameter, and how
        many parameters that are not the model's would get one.
        """
        with self._random.active(device):
            seed_torch(derive_seed(self._seed, Stream.STEP), device)
            with faults_told(self._task, "at training step 1"):
                model = self.model.to(device).train()
                loss = self._task.loss(model, batch_to(self.batch, device))
                check_loss(self._task, loss, 0)
                used = _parameters_of(loss)
                loss.reshape(()).backward()  # type: ignore[no-untyped-call]
        strange = used - set(model.parameters())
        return float(loss.detach()), {name: param.grad for name, param in trainable(model)}, len(strange)


def _parameters_of(loss: Tensor) -> set[nn.Parameter]:
    """All that would get a gradient of the loss."""
    found: set[nn.Parameter] = set()
    seen: set[Any] = set()
    pending = [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # of the nodes in which gradients end
        if isinstance(variable, nn.Parameter):
            found.add(variable)
        pending += [before for before, _ in node.next_functions]
    return found
