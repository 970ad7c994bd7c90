"""Tasks with one fault each, and healthy ones, for `adamtune doctor`."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from adamtune import Task

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Net(nn.Module):
    """Embedding, norm and head, so that there is something to group."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.dropout(torch.relu(self.norm(self.first(x)))))
        return scores


def healthy(batch_size: int = 16) -> Task:
    return Task.supervised(
        Net,
        (X, Y),
        (X, Y),
        nn.functional.cross_entropy,
        batch_size,
        name="healthy",
        metrics={"accuracy": lambda output, y: (output.argmax(1) == y).float().mean()},
    )


def noisy() -> Task:
    return replace(healthy(), make_model=lambda: Net(dropout=0.5))


def frozen_part() -> Task:
    def make_model() -> nn.Module:
        model = Net()
        model.first.requires_grad_(False)
        return model

    return replace(healthy(), make_model=make_model)


def _with(change: Callable[[Net], object]) -> Task:
    def make_model() -> nn.Module:
        model = Net()
        change(model)
        return model

    return replace(healthy(), make_model=make_model)


def unused_part() -> Task:
    return _with(lambda model: model.add_module("spare", nn.Linear(3, 3)))


def plain_tensor() -> Task:
    return _with(lambda model: setattr(model.first, "scale", torch.ones(8)))


def buffer_instead() -> Task:
    return _with(lambda model: model.first.register_buffer("scale", torch.ones(8)))


class Padded(Net):
    """Takes rows of several lengths."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to_padded_tensor(0.0, (x.size(0), 6)))


def nested() -> Task:
    def own_rows(batches: Iterator[Any]) -> Iterator[Any]:
        for x, y in batches:
            yield torch.nested.nested_tensor([row[: 3 + at % 4] for at, row in enumerate(x)]), y

    return _with_inputs(own_rows, Padded)


def _with_inputs(change: Callable[[Iterator[Any]], Iterator[Any]], make_model: Callable[[], nn.Module]) -> Task:
    task = healthy()
    return replace(
        task,
        make_model=make_model,
        train_batches=lambda generator: change(task.train_batches(generator)),
        val_batches=lambda: change(iter(task.val_batches())),
    )


def normed_by_hooks() -> Task:
    def make_model() -> nn.Module:
        model = Net()
        nn.utils.weight_norm(model.first)
        nn.utils.spectral_norm(model.head)
        return model

    return replace(healthy(), make_model=make_model)


class Packed(Net):
    """Takes sequences of several lengths, packed."""

    def forward(self, x: PackedSequence) -> Tensor:  # type: ignore[override]
        return super().forward(pad_packed_sequence(x, batch_first=True, total_length=6)[0])


def packed() -> Task:
    def own_rows(batches: Iterator[Any]) -> Iterator[Any]:
        for x, y in batches:
            yield pack_padded_sequence(x, 6 - torch.arange(len(x)) * 6 // len(x), batch_first=True), y

    return _with_inputs(own_rows, Packed)


def own_model() -> Task:
    """The loss calls a model of its own."""
    own = Net()
    return replace(healthy(), loss=lambda model, batch: nn.functional.cross_entropy(own(batch[0]), batch[1]))


class Scaled(nn.Module):
    """A loss with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, scores: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores * self.scale, y)


def trainable_loss() -> Task:
    return Task.supervised(Net, (X, Y), (X, Y), Scaled(), 16)


def frozen_loss() -> Task:
    """And its input's gradient is asked for, as a penalty does."""
    task = Task.supervised(Net, (X, Y), (X, Y), Scaled().requires_grad_(False), 16)
    return replace(task, loss=lambda model, batch: task.loss(model, (batch[0].requires_grad_(), batch[1])))


def nan_loss() -> Task:
    return replace(healthy(), loss=lambda model, batch: model(batch[0]).mean() * float("nan"))


def nan_gradient() -> Task:
    """A square root at zero."""
    return replace(healthy(), loss=lambda model, batch: (model(batch[0]) * 0).sum().sqrt())


def constant_loss() -> Task:
    return replace(healthy(), loss=lambda model, batch: (model(batch[0]) * 0).sum())


def detached() -> Task:
    return replace(healthy(), loss=lambda model, batch: model(batch[0]).detach().mean())


def own_weights() -> Task:
    """Weights from a generator that no seed reaches."""
    generator = torch.Generator().manual_seed(0)

    def make_model() -> nn.Module:
        model = Net()
        with torch.no_grad():
            model.first.weight.normal_(generator=generator)
        return model

    return replace(healthy(), make_model=make_model)


def ongoing_batches() -> Task:
    """One iterator for all trials."""
    batches = healthy().train_batches(torch.Generator().manual_seed(0))
    return replace(healthy(), train_batches=lambda generator: batches)


def own_noise() -> Task:
    """Noise in the loss from a generator that no seed reaches."""
    generator, task = torch.Generator().manual_seed(0), healthy()
    return replace(task, loss=lambda model, batch: task.loss(model, batch) * (1 + torch.rand((), generator=generator)))


def other_validation() -> Task:
    """Other validation rows at each call."""
    calls = itertools.count(1)
    return replace(healthy(), val_batches=lambda: [(X[: 8 * next(calls)], Y)])


def growing_validation() -> Task:
    """Other validation rows at each call, of equal number with their targets."""
    calls = itertools.count()

    def val_batches() -> list[tuple[Tensor, Tensor]]:
        rows = torch.arange(16) + next(calls)
        return [(X[rows], Y[rows])]

    return replace(healthy(), val_batches=val_batches)


def no_validation() -> Task:
    return replace(healthy(), val_batches=lambda: [])


def failing_validation() -> Task:
    """A metric that raises."""

    def metric(model: nn.Module, batch: Any) -> Tensor:
        raise RuntimeError("no such column")

    return replace(healthy(), metrics={"f1": metric})


def failing_validation_and_own_weights() -> Task:
    """Two faults."""
    return replace(own_weights(), metrics=failing_validation().metrics)


def one_model() -> Task:
    model = Net()
    return replace(healthy(), make_model=lambda: model)


def half_weights() -> Task:
    """In float16, where Adam's eps of 1e-8 is zero, and a weight without gradient is divided by it."""
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)).half()
    x[:, 5] = 0
    data = x, (x[:, 0] > 0).long()
    return Task.supervised(lambda: nn.Linear(6, 2).half(), data, data, nn.functional.cross_entropy)


def nan_metric() -> Task:
    return replace(healthy(), metrics={"f1": lambda model, batch: torch.tensor(float("nan"))})


def pinned_weights() -> Task:
    """Weights are always the same, batches are not."""

    def make_model() -> nn.Module:
        torch.manual_seed(0)
        return Net()

    return replace(healthy(), make_model=make_model)


def deaf_to_seeds() -> Task:
    """Weights and batches are always the same."""
    weights = Net().state_dict()

    def make_model() -> nn.Module:
        model = Net()
        model.load_state_dict(weights)
        return model

    def train_batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.repeat((X[:16], Y[:16]))

    return replace(healthy(), make_model=make_model, train_batches=train_batches)


@dataclass
class Sheet:
    """Rows in an object that does not know how to move."""

    x: Tensor
    y: Tensor


class MovingSheet(Sheet):
    def to(self, device: torch.device) -> MovingSheet:
        return MovingSheet(self.x.to(device), self.y.to(device))


def _in_sheets(kind: type[Sheet]) -> Task:
    task = healthy()

    def train_batches(generator: torch.Generator) -> Iterator[Any]:
        return (kind(x, y) for x, y in task.train_batches(generator))

    return replace(
        task,
        train_batches=train_batches,
        val_batches=lambda: [kind(X, Y)],
        loss=lambda model, sheet: nn.functional.cross_entropy(model(sheet.x), sheet.y),
        metrics={},
    )


def sheets() -> Task:
    return _in_sheets(Sheet)


def moving_sheets() -> Task:
    return _in_sheets(MovingSheet)


def rollouts() -> Task:
    """Data come from acting."""

    def loss(model: nn.Module, seed: int) -> Tensor:
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))
        return nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())

    return Task.rollouts(Net, lambda seed: seed, loss, {})


def recurrent() -> Task:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.LSTM(6, 4, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.inner(x[:, None])[0][:, 0])
            return scores

    return replace(healthy(), make_model=Recurrent)


def other_split() -> Task:
    """Rows are split by a generator that no seed reaches, so each process judges by others."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(time.time_ns()))
    train, val = order.split(48)
    return Task.supervised(Net, (X[train], Y[train]), (X[val], Y[val]), nn.functional.cross_entropy, 16)


def wandering() -> Task:
    """Changes directory, for good."""
    os.chdir("/")
    return healthy()


def made_once() -> Task:
    """As what starts processes or registers operators, which a process can do once."""
    if "ADAMTUNE_MADE_ONCE" in os.environ:
        raise RuntimeError("context has already been set")
    os.environ["ADAMTUNE_MADE_ONCE"] = "1"
    return healthy()
