"""Your model, data and loss as a Task for adamtune. It runs as it is, on stand-ins: put yours where it says YOURS."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from adamtune import Task


# YOURS: the model. Import it from your training code, or paste it here.
def make_model(hidden: int) -> nn.Module:
    """A stand-in: from 20 numbers to the scores of 2 classes."""
    return nn.Sequential(nn.Linear(20, hidden), nn.ReLU(), nn.Linear(hidden, 2))


# YOURS: the data. Datasets, DataLoaders or tensors such as (x, y), for training and for validation. Whatever is random
# here must be seeded, so that every trial sees the same data.
def make_loaders(batch_size: int) -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """A stand-in: 2,000 rows, whose class is whether their first two numbers have the same sign."""
    x = torch.randn(2000, 20, generator=torch.Generator().manual_seed(0))
    rows = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
    train, val = random_split(rows, [1500, 500], torch.Generator().manual_seed(1))
    return DataLoader(train, batch_size=batch_size, shuffle=True), DataLoader(val, batch_size=500)


# YOURS, if you like: what is reported beside the loss, and can be the spec's `objective`. Means over a batch.
def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of rows whose highest score is that of their class."""
    return (output.argmax(dim=1) == target).float().mean()


def task(hidden: int = 64, batch_size: int = 64) -> Task:
    """What adamtune trains. Its arguments are `args` in spec.yaml and `--task-arg` on the command line."""
    train_loader, val_loader = make_loaders(batch_size)
    return Task.supervised(
        make_model=lambda: make_model(hidden),  # a new model at each call; its random weights are seeded for you
        train_data=train_loader,  # a batch is (inputs..., target), or a dict with the target under "labels"
        val_data=val_loader,
        loss_fn=nn.functional.cross_entropy,  # YOURS: of the model's output and the target; mse_loss for numbers
        metrics={"accuracy": accuracy},
        name="pytorch",
    )
