"""A transformers model and its data as a Task for adamtune. It runs as it is: put yours where it says YOURS."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification

from adamtune import Task


# YOURS: the model. Of pretrained weights, load them once outside and return copy.deepcopy(model) at each call.
def make_model(hidden: int) -> nn.Module:
    """A stand-in: a small BERT with random weights, for 2 classes."""
    config = BertConfig(
        vocab_size=64,
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=16,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


# YOURS: the data. A dataset of dicts, as the Trainer takes it; tokenise it beforehand.
class Rows(Dataset[dict[str, Tensor]]):
    """A stand-in: texts of 8 tokens; the class is whether the first is below the second."""

    def __init__(self, count: int, seed: int) -> None:
        """`count` texts, the same ones for the same seed."""
        self.tokens = torch.randint(64, (count, 8), generator=torch.Generator().manual_seed(seed))
        self.labels = (self.tokens[:, 0] < self.tokens[:, 1]).long()

    def __len__(self) -> int:
        """How many texts."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """What the model is called with; with `labels` among it, it returns its own loss."""
        tokens = self.tokens[index]
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": self.labels[index]}


def task(hidden: int = 32, batch_size: int = 16) -> Task:
    """What adamtune trains. Its arguments are `args` in spec.yaml and `--task-arg` on the command line."""
    return Task.supervised(
        make_model=lambda: make_model(hidden),  # a new model at each call; its random weights are seeded for you
        train_data=Rows(1000, seed=0),  # YOURS; a DataLoader, if you have a collate_fn of your own
        val_data=Rows(200, seed=1),  # YOURS
        batch_size=batch_size,  # no loss_fn: the model returns its loss
        name="transformers",
    )
