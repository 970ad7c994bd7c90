"""Validation loss and metrics of every member of a stack, as a trial alone measures them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adamtune.population.stacked_model import Measure, StackedModel
from adamtune.population.state import Member, NotVectorisable
from adamtune.randomness import RandomState, Stream, TorchState, derive_seed, seed_torch
from adamtune.task import Batch, Task, batch_rows, batch_to, own_batch
from adamtune.task_calls import no_validation
from adamtune.trial import autocast

_KEEPS = "its model keeps something of what it is evaluated on"


def evaluate(
    task: Task, members: Sequence[Member], model: StackedModel, device: torch.device, most: float
) -> list[dict[str, float]]:
    """By member, `loss` and the task's metrics: means over the validation batches, weighed by their rows.

    A pass is over at most `most` rows of all its members, or one member. Raises `NotVectorisable`, and what the task
    raises.
    """
    values: list[dict[str, float]] = [{} for _ in members]
    seeds = list(dict.fromkeys(member.request.seed for member in members))
    if len(seeds) > 1:
        try:
            return _Evaluation(task, seeds[0], members[0], model, device, most).together(
                range(len(members)), noisy=False
            )
        except NotVectorisable:
            raise
        except Exception:  # random numbers, of which each seed has its own; or by seed it will be told
            pass
    for seed in seeds:
        rows = [row for row, member in enumerate(members) if member.request.seed == seed]
        own = _Evaluation(task, seed, members[0], model, device, most)
        try:
            found = own.together(rows)
        except NotVectorisable:
            raise
        except Exception:  # a metric that calls item(), memory that ends: whatever it is, one by one will tell
            found = [own.alone(row) for row in rows]
        for row, value in zip(rows, found, strict=True):
            values[row] = value
    return values


class _Drawn(Exception):
    """Random numbers were drawn."""


class _Chance:
    """Where all random streams stand."""

    def __init__(self, device: torch.device) -> None:
        self._python, self._numpy, self._torch = random.getstate(), np.random.get_state(), TorchState.now(device)

    def restore(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        self._torch.restore()


class _Evaluation:
    """Of members with the noise of one seed."""

    def __init__(
        self, task: Task, seed: int, member: Member, model: StackedModel, device: torch.device, most: float
    ) -> None:
        self._task, self._model, self._device, self._most = task, model, device, most
        self._seed = derive_seed(seed, Stream.EVALUATION)
        self._precision = member.request.recipe.precision

    def together(self, rows: Sequence[int], noisy: bool = True) -> list[dict[str, float]]:
        """Of these members at once. Not `noisy`: raises where random numbers are drawn."""

        def measure(function: Measure, batch: Batch) -> list[float]:
            def number(model: nn.Module, own: Batch) -> Tensor:
                value = function(model, own)
                if not isinstance(value, Tensor):
                    value = torch.tensor(float(value), dtype=torch.float64, device=self._device)
                return value.reshape(())

            def of(some: Sequence[int]) -> Tensor:
                return self._model.call_all(number, batch, None, "same" if noisy else "error", some).double()

            size = int(min(len(rows), max(1.0, self._most / max(1, batch_rows(batch)))))
            if size == len(rows):
                return of(rows).tolist()
            portions = [rows[start : start + size] for start in range(0, len(rows), size)]
            chance, found = _Chance(self._device), []
            for some in [*portions, portions[0]]:  # the first once more: what counts its calls may be kept anywhere
                chance.restore()  # the noise of a seed is that of all its members
                found.append(of(some))
            if not torch.allclose(found[0], found.pop(), rtol=1e-5, equal_nan=True):
                raise NotVectorisable(_KEEPS)
            return torch.cat(found).tolist()

        return self._means(len(rows), measure, noisy)

    def alone(self, row: int) -> dict[str, float]:
        """Of one member."""
        return self._means(1, lambda function, batch: [float(self._model.call_one(row, function, batch))])[0]

    def _means(
        self, count: int, measure: Callable[[Measure, Batch], list[float]], noisy: bool = True
    ) -> list[dict[str, float]]:
        """`measure` gives one batch's values, one a member."""
        measures: dict[str, Measure] = {"loss": self._task.loss, **self._task.metrics}
        sums = {name: [0.0] * count for name in measures}
        total = 0
        with (
            self._keeping_nothing(),
            self._model.evaluating(),
            RandomState(self._seed).active(self._device),
            torch.no_grad(),
            autocast(self._precision, self._device),
        ):
            for host_batch in self._batches() if noisy else self._settled_batches():
                batch = batch_to(host_batch, self._device)
                size = batch_rows(batch)
                total += size
                for name, function in measures.items():
                    for place, value in enumerate(measure(function, own_batch(batch))):
                        sums[name][place] += size * value
        if not total:
            raise no_validation(self._task)
        return [{name: sums[name][place] / total for name in measures} for place in range(count)]

    @contextmanager
    def _keeping_nothing(self) -> Iterator[None]:
        """Raise where the model keeps something: a trial alone does so once, and here it may be measured in turns."""
        before = self._model.numbers()
        try:
            yield
        except Exception as problem:
            if self._model.numbers() != before:
                raise NotVectorisable(_KEEPS) from problem
            raise
        if self._model.numbers() != before:
            raise NotVectorisable(_KEEPS)

    def _batches(self) -> Iterable[Batch]:
        seed_torch(self._seed, self._device)
        return self._task.val_batches()

    def _settled_batches(self) -> Iterator[Batch]:
        """The batches; raises as soon as making or using them has drawn random numbers."""
        seed_torch(self._seed, self._device)
        torch.empty((), dtype=torch.int64).random_()
        seeded = self._chance()
        seed_torch(self._seed, self._device)
        start = self._chance()
        source = self._task.val_batches()
        batches = iter(source)
        if isinstance(source, DataLoader) and not source.num_workers and self._chance() == seeded:
            start = seeded  # all that it has drawn is a seed for workers that it has not
        for batch in batches:
            if self._chance() != start:
                break
            yield batch
        if self._chance() != start:
            raise _Drawn

    def _chance(self) -> tuple[object, ...]:
        """Where the random streams stand."""
        words: Any
        name, words, *rest = np.random.get_state()
        return TorchState.now(self._device), random.getstate(), name, words.tobytes(), *rest
