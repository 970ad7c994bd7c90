"""A LightningModule and its data as a Task for adamtune. It runs as it is: put yours where it says YOURS."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from adamtune import Task

Batch = tuple[Tensor, Tensor]


# YOURS: the module. Its loss in a method that needs no Trainer, which training_step calls.
class Classifier(LightningModule):
    """A stand-in: from 20 numbers to the scores of 2 classes."""

    def __init__(self, hidden: int) -> None:
        """`hidden` units between."""
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        return self.net(x)

    def loss(self, batch: Batch) -> Tensor:
        """Mean over a batch."""
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def accuracy(self, batch: Batch) -> Tensor:
        """Mean over a batch."""
        x, y = batch
        return (self(x).argmax(dim=1) == y).float().mean()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """As the Trainer calls it; adamtune calls `loss`."""
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Not called by adamtune; `adamtune export RUN --format lightning` says what belongs here."""
        return torch.optim.AdamW(self.parameters())


# YOURS: the data, such as your datamodule's datasets. Whatever is random here must be seeded, so that every trial sees
# the same data.
def make_data() -> tuple[Dataset[Batch], Dataset[Batch]]:
    """A stand-in: 2,000 rows, whose class is whether their first two numbers have the same sign."""
    x = torch.randn(2000, 20, generator=torch.Generator().manual_seed(0))
    rows = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
    train, val = random_split(rows, [1500, 500], torch.Generator().manual_seed(1))
    return train, val


def task(hidden: int = 64, batch_size: int = 64) -> Task:
    """What adamtune trains. Its arguments are `args` in spec.yaml and `--task-arg` on the command line."""
    train, val = make_data()

    def train_batches(generator: torch.Generator) -> Iterator[Batch]:
        """Endless, and shuffled anew each epoch, by the trial's own seed."""
        loader = DataLoader(train, batch_size, shuffle=True, drop_last=True, generator=generator)
        while True:
            yield from loader

    return Task(
        name="lightning",
        make_model=lambda: Classifier(hidden),  # a new one at each call; its random weights are seeded for you
        train_batches=train_batches,
        loss=Classifier.loss,
        val_batches=lambda: DataLoader(val, batch_size=500),
        metrics={"accuracy": Classifier.accuracy},  # beside the loss; may be the spec's `objective`
    )
