"""Validation loss and metrics of every member of a stack, as a trial alone measures them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adamtune.population.stacked_model import Measure, StackedModel
from adamtune.population.state import Member, NotVectorisable
from adamtune.randomness import RandomState, Stream, TorchState, derive_seed, seed_torch
from adamtune.task import Batch, Task, batch_rows, batch_to
from adamtune.task_calls import no_validation
from adamtune.trial import autocast


def evaluate(
    task: Task, members: Sequence[Member], model: StackedModel, device: torch.device
) -> list[dict[str, float]]:
    """By member, `loss` and the task's metrics: means over the validation batches, weighed by their rows.

    Raises `NotVectorisable`, and what the task raises.
    """
    values: list[dict[str, float]] = [{} for _ in members]
    seeds = list(dict.fromkeys(member.request.seed for member in members))
    if len(seeds) > 1:
        own = _Evaluation(task, seeds[0], members[0], model, device)
        with suppress(Exception):  # by seed it will be told, or succeed
            values = own.together(list(range(len(members))))
            if not own.drew:
                return values
    for seed in seeds:  # each has noise of its own
        rows = [row for row, member in enumerate(members) if member.request.seed == seed]
        own = _Evaluation(task, seed, members[0], model, device)
        try:
            found = own.together(rows)
        except NotVectorisable:
            raise
        except Exception:  # a metric that calls item(), memory that ends: whatever it is, one by one will tell
            found = [own.alone(row) for row in rows]
        for row, value in zip(rows, found, strict=True):
            values[row] = value
    return values


class _Evaluation:
    """Of members with the noise of one seed."""

    def __init__(self, task: Task, seed: int, member: Member, model: StackedModel, device: torch.device) -> None:
        self._task, self._model, self._device = task, model, device
        self._seed = derive_seed(seed, Stream.EVALUATION)
        self._precision = member.request.recipe.precision
        self.drew = False
        """Whether random numbers have been drawn."""

    def together(self, rows: list[int]) -> list[dict[str, float]]:
        def measure(function: Measure, batch: Batch) -> list[float]:
            def number(model: nn.Module, own: Batch) -> Tensor:
                value = function(model, own)
                if not isinstance(value, Tensor):
                    value = torch.tensor(float(value), dtype=torch.float64, device=self._device)
                return value.reshape(())

            return self._model.call_all(number, batch, None, "same", rows).double().tolist()

        return self._means(len(rows), measure)

    def alone(self, row: int) -> dict[str, float]:
        return self._means(1, lambda function, batch: [float(self._model.call_one(row, function, batch))])[0]

    def _means(self, count: int, measure: Callable[[Measure, Batch], list[float]]) -> list[dict[str, float]]:
        """`measure` gives one batch's values, one a member."""
        measures: dict[str, Measure] = {"loss": self._task.loss, **self._task.metrics}
        sums = {name: [0.0] * count for name in measures}
        total = 0
        before = self._model.numbers()
        with (
            self._model.evaluating(),
            RandomState(self._seed).active(self._device),
            torch.no_grad(),
            autocast(self._precision, self._device),
        ):
            seed_torch(self._seed, self._device)
            before_it = self._chance()
            for host_batch in self._task.val_batches():
                batch = batch_to(host_batch, self._device)
                size = batch_rows(batch)
                total += size
                for name, function in measures.items():
                    for place, value in enumerate(measure(function, batch)):
                        sums[name][place] += size * value
            self.drew = before_it != self._chance()
        if self._model.numbers() != before:  # a trial alone keeps it once, and here each seed measures in turn
            raise NotVectorisable("its model keeps something of what it is evaluated on")
        if not total:
            raise no_validation(self._task)
        return [{name: sums[name][place] / total for name in measures} for place in range(count)]

    def _chance(self) -> tuple[object, ...]:
        """Where the random streams stand."""
        words: Any
        name, words, *rest = np.random.get_state()
        return TorchState.now(self._device), random.getstate(), name, words.tobytes(), *rest
