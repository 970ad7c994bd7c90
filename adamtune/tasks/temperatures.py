"""The next day's temperatures in Seattle from the last three days': a GRU on hourly data of 2010."""

from __future__ import annotations

import functools
import math

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from adamtune.task import Task
from adamtune.tasks.packages import folder_of

PAST, AHEAD = 72, 24
"""Hours that are seen, and hours to forecast."""
BLOCK = 28 * 24
"""Hours in a block of days; the last week of each validates, the others train."""
WEEK = 7 * 24


@functools.cache
def _data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(seen (N, PAST, 3), ahead (N, AHEAD)) for training and for validation; no window is in both, not even in part.

    Temperatures have mean 0 and deviation 1 over the year; the hour of day is a sine and a cosine.
    """
    table = pd.read_csv(folder_of("vega_datasets", "vega-datasets") / "_data" / "seattle-temps.csv")
    temperature = torch.tensor(table["temp"].to_numpy(), dtype=torch.float32)
    temperature = (temperature - temperature.mean()) / temperature.std()
    hour = torch.tensor(pd.to_datetime(table["date"]).dt.hour.to_numpy(), dtype=torch.float32) * (2 * math.pi / 24)
    series = torch.stack([temperature, hour.sin(), hour.cos()], dim=1)
    windows = series.unfold(0, PAST + AHEAD, 1).transpose(1, 2)
    starts = torch.arange(len(windows))
    place, end = starts % BLOCK, starts % BLOCK + PAST + AHEAD
    parts = end <= BLOCK - WEEK, (place >= BLOCK - WEEK) & (end <= BLOCK)
    train, validation = ((windows[part, :PAST], windows[part, PAST:, 0]) for part in parts)
    return train, validation


class Forecaster(nn.Module):
    """A GRU over the past, and from its last state all hours ahead at once, as differences from the last one seen."""

    def __init__(self, hidden: int) -> None:
        """`hidden` units."""
        super().__init__()
        self.gru = nn.GRU(3, hidden, batch_first=True)
        self.head = nn.Linear(hidden, AHEAD)

    def forward(self, seen: Tensor) -> Tensor:
        """(batch, PAST, 3) -> (batch, AHEAD)."""
        states, _ = self.gru(seen)
        forecast: Tensor = seen[:, -1, :1] + self.head(states[:, -1])
        return forecast


def task(hidden: int = 32, batch_size: int = 32) -> Task:
    """Forecast `AHEAD` hours; the loss is the squared error, the year's temperatures having variance 1."""
    train, validation = _data()
    return Task.supervised(
        make_model=lambda: Forecaster(hidden),
        train_data=train,
        val_data=validation,
        loss_fn=functional.mse_loss,
        batch_size=batch_size,
        name="temperatures",
    )
