"""The tasks of `benchmarks.planted`: the example tasks, whole and with a fault in their data or their numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adamtune.recipe import GroupRule, Match, Recipe
from adamtune.task import Batch, Task
from adamtune.tasks import chars, digits
from benchmarks.planted import Training


def small_chars() -> Task:
    """The character GPT, smaller."""
    return chars.task(length=32, width=32, layers=1)


@dataclass(frozen=True)
class Weighted:
    """A batch whose loss counts `weight` times."""

    weight: float
    batch: Batch

    def to(self, device: torch.device) -> Weighted:
        return self


def heavy_batch(task: Task, at: int, weight: float) -> Task:
    """Batch `at` counts `weight` times: a sample weight gone wrong."""

    def batches(generator: torch.Generator) -> Iterator[Weighted]:
        for place, batch in enumerate(task.train_batches(generator)):
            yield Weighted(weight if place == at else 1.0, batch)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return task.loss(model, batch.batch) * batch.weight if isinstance(batch, Weighted) else task.loss(model, batch)

    return dataclasses.replace(task, train_batches=batches, loss=loss)


def unscaled_batch(task: Task, at: int, scale: float) -> Task:
    """The inputs of batch `at` are `scale` times too large."""

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for place, (x, y) in enumerate(task.train_batches(generator)):
            yield (x * scale if place == at else x), y

    return dataclasses.replace(task, train_batches=batches)


def in_half(task: Task) -> Task:
    """Weights, gradients and Adam's state in fp16, as after `model.half()`."""

    def cast(batch: Any) -> Any:
        if not isinstance(batch, tuple):
            return batch
        return tuple(part.half() if part.is_floating_point() else part for part in batch)

    def on_cast(function: Callable[[nn.Module, Batch], Tensor]) -> Callable[[nn.Module, Batch], Tensor]:
        return lambda model, batch: function(model, cast(batch)).float()

    return dataclasses.replace(
        task,
        make_model=lambda: task.make_model().half(),
        loss=on_cast(task.loss),
        metrics={name: on_cast(metric) for name, metric in task.metrics.items()},
    )


TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits.task,
    "digits-cnn": lambda: digits.task("cnn"),
    "chars": small_chars,
    "chars as built in": chars.task,
    "digits, inputs of batch 20 x1000": lambda: unscaled_batch(digits.task(), 20, 1000.0),
    "chars, batch 20 weighs x1000": lambda: heavy_batch(small_chars(), 20, 1000.0),
    "digits, batch 20 weighs x1e22": lambda: heavy_batch(digits.task(), 20, 1e22),
    "chars, batch 20 weighs x1e22": lambda: heavy_batch(small_chars(), 20, 1e22),
    "digits in fp16": lambda: in_half(digits.task()),
    "chars in fp16": lambda: in_half(small_chars()),
}


def tuned(lr: float) -> Recipe:
    """The default recipe at a tuned lr."""
    return Recipe.default().with_knob("lr", lr)


def by_kind(lr: float, embedding: float = 1.0, head: float = 1.0) -> Recipe:
    """The default recipe at a tuned lr, with groups of their own for embeddings and heads, at these multiples of lr."""
    own = (
        GroupRule(name="embedding", match=Match(kind=("embedding",)), lr_mult=embedding),
        GroupRule(name="head", match=Match(kind=("head",)), lr_mult=head),
    )
    recipe = tuned(lr)
    return recipe.model_copy(update={"groups": (*recipe.groups, *own)})


HEALTHY = (
    Training("digits", by_kind(1e-2), 300),
    Training("digits-cnn", by_kind(2e-2), 200),
    Training("chars as built in", by_kind(3e-3), 200),
)
"""The built-in tasks over the horizons of `configs/`. The lr of each is the best of 1e-3, 3e-3, 6e-3, 1e-2, 2e-2 and
3e-2 on two seeds. Groups by kind train the same, and show the rules more."""
