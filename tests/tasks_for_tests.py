"""Toy tasks that train in milliseconds, and tasks that fail in every way a stranger's may."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamtune import Task


def _rows() -> tuple[Tensor, Tensor]:
    """Separable but for one row in ten, whose class is turned over."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator)
    y = (x @ torch.randn(8, generator=generator) > 0) ^ (torch.rand(256, generator=generator) < 0.1)
    return x, y.long()


def separable(pause: float = 0.0) -> Task:
    """Logistic regression; `pause` seconds before every batch."""
    x, y = _rows()
    task = Task.supervised(
        make_model=lambda: nn.Linear(8, 2),
        train_data=(x[:128], y[:128]),
        val_data=(x[128:], y[128:]),
        loss_fn=functional.cross_entropy,
        batch_size=16,
        name="separable",
        metrics={"accuracy": lambda output, target: (output.argmax(1) == target).float().mean()},
    )

    def slowly(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in task.train_batches(generator):
            time.sleep(pause)
            yield batch

    return replace(task, train_batches=slowly) if pause else task


def two_parts(groups: object = None) -> Task:
    """A model of a body and a head, whose groups are called `lower` and `upper`; or what `groups` says."""
    x, y = _rows()
    named = groups or {"lower": ["0.*"], "upper": ["2.weight", "2.bias"]}
    return Task.supervised(
        make_model=lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)),
        train_data=(x[:128], y[:128]),
        val_data=(x[128:], y[128:]),
        loss_fn=functional.cross_entropy,
        batch_size=16,
        name="two-parts",
        groups=lambda model: named,  # type: ignore[arg-type, return-value]
    )


def counted() -> Task:
    """Adds a line to the file $STEPS_FILE at every training step, and then rests for $STEP_SECONDS."""
    task, file, pause = separable(), os.environ["STEPS_FILE"], float(os.environ["STEP_SECONDS"])

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if model.training:
            with open(file, "a") as lines:
                lines.write("step\n")
            time.sleep(pause)
        return task.loss(model, batch)

    return replace(task, loss=loss)


def overfitting() -> Task:
    """Linear regression on 24 noisy rows of 40 features: what fits them best does worst on others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(224, 40, generator=generator)
    y = x[:, :1] + 2 * torch.randn(224, 1, generator=generator)
    return Task.supervised(
        make_model=lambda: nn.Linear(40, 1),
        train_data=(x[:24], y[:24]),
        val_data=(x[24:], y[24:]),
        loss_fn=functional.mse_loss,
        batch_size=24,
        name="overfitting",
    )


def hanging_while_there_is(file: str) -> Task:
    """Waits for ever before its first batch, as for a file server that does not answer, while there is a `file`."""
    task = separable()

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        while Path(file).exists():
            time.sleep(0.01)
        yield from task.train_batches(generator)

    return replace(task, train_batches=batches)


def unmeasured() -> Task:
    """Its loss is sound and its metric never finite."""
    return replace(separable(), metrics={"gain": lambda model, batch: torch.tensor(float("nan"))})


def unmeasured_at_times() -> Task:
    """Its metric is finite by some seeds only, as a precision is where nothing is predicted positive."""
    task = separable()

    def gain(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.tensor(1.0 if task.loss(model, batch) < 0.7 else float("nan"))

    return replace(task, metrics={"gain": gain})


def lazy() -> Task:
    """Its parameters have no shape before the first batch."""
    return replace(separable(), make_model=lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2)))


def nan() -> Task:
    """No loss is ever finite."""
    return replace(separable(), loss=lambda model, batch: model(batch[0]).sum() * float("nan"))


def exploding() -> Task:
    """Diverges at every learning rate: each batch is ten times the one before."""
    task = separable()

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for k, (x, y) in enumerate(task.train_batches(generator)):
            yield x * 10.0**k, y

    return replace(task, train_batches=batches)


def raising(after: int = 0) -> Task:
    """Its loss raises once it has been computed `after` times, over all trials together."""
    task, calls = separable(), itertools.count()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if next(calls) >= after:
            raise ValueError("the toy broke")
        return task.loss(model, batch)

    return replace(task, loss=loss)


def ending() -> Task:
    """Gives three batches and no more."""
    task = separable()
    return replace(task, train_batches=lambda generator: itertools.islice(task.train_batches(generator), 3))


def vector_loss() -> Task:
    return replace(separable(), loss=lambda model, batch: model(batch[0]).pow(2).mean(1))


def no_parameters() -> Task:
    return replace(separable(), make_model=nn.Flatten)


def no_task() -> str:
    return "no task"


def exiting(after: int = 0) -> Task:
    """Its loss ends the process, as a script may that was not meant to be imported."""
    task, calls = separable(), itertools.count()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if next(calls) >= after:
            raise SystemExit(0)
        return task.loss(model, batch)

    return replace(task, loss=loss)


def exits() -> Task:
    raise SystemExit("usage: train.py DATA")


def chatty() -> Task:
    """Prints where it is made and where it trains."""

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        print("hello from a batch")
        return own.train_batches(generator)

    print("hello from the task")
    own = separable()
    return replace(own, train_batches=batches)


def wandering(to: str) -> Task:
    """Changes the working directory, as scripts do that find their data in it."""
    os.chdir(to)
    return separable()
