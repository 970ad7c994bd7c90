"""Handwritten digits (scikit-learn's copy of the UCI set, 1,797 images of 8x8): an MLP or a small CNN."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adamtune.errors import TaskError
from adamtune.task import Task
from adamtune.tasks.packages import folder_of

TRAIN_ROWS = 1000
"""The remaining 797 rows validate."""


@functools.cache
def _data() -> tuple[Tensor, Tensor]:
    """Pixels (1797, 64) in [0, 1] and classes (1797,), in a fixed random order."""
    file = folder_of("sklearn", "scikit-learn") / "datasets" / "data" / "digits.csv.gz"
    # Not by sklearn.datasets, whose import takes a second, and pandas with it.
    rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.uint8))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order, :64].float() / 16, rows[order, 64].long()


def _mlp(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def _cnn(hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 16, hidden), nn.ReLU(),
        nn.Linear(hidden, 10),
    )  # fmt: skip


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of rows whose largest logit is the target's."""
    return (output.argmax(1) == target).float().mean()


def task(model: Literal["mlp", "cnn"] = "mlp", hidden: int = 128, batch_size: int = 32) -> Task:
    """Classify digits. `model` is `mlp` (64-hidden-hidden-10) or `cnn`; metrics: accuracy."""
    pixels, classes = _data()
    makers: dict[str, Callable[[int], nn.Module]] = {"mlp": _mlp, "cnn": _cnn}
    if model not in makers:
        raise TaskError(f"the digits task has the models mlp and cnn, not '{model}'")
    return Task.supervised(
        make_model=lambda: makers[model](hidden),
        train_data=(pixels[:TRAIN_ROWS], classes[:TRAIN_ROWS]),
        val_data=(pixels[TRAIN_ROWS:], classes[TRAIN_ROWS:]),
        loss_fn=functional.cross_entropy,
        batch_size=batch_size,
        name=f"digits-{model}",
        metrics={"accuracy": accuracy},
    )
