"""A task that takes any arguments, so that only the rest of a spec can be wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from adamtune import Task


def task(**ignored: Any) -> Task:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    return Task.supervised(
        make_model=lambda: nn.Sequential(nn.Embedding(4, 4), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 2)),
        train_data=(x.abs().long() % 4, y),
        val_data=(x.abs().long() % 4, y),
        loss_fn=functional.cross_entropy,
        batch_size=8,
        name="any",
        metrics={"accuracy": lambda output, target: (output.argmax(1) == target).float().mean()},
    )
