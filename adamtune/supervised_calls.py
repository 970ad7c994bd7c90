"""How `Task.supervised` calls model and loss with a batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from adamtune.errors import TaskError
from adamtune.yaml_text import nearest


def split_batch(batch: Any, target: str) -> tuple[Any, Any]:
    """What a model is called with, and the target: of a dict its entry `target`, of a sequence its last."""
    if isinstance(batch, Tensor):
        raise TaskError(
            "the batches are single tensors, without the target that loss_fn and metrics are given; let the data have "
            "(input, target) for each row, or leave both out where the model returns its own loss"
        )
    if not isinstance(batch, Mapping):
        *inputs, goal = batch
        return inputs, goal
    if target not in batch:
        there = nearest(target, list(map(str, batch)))
        raise TaskError(f"the batches have no '{target}' ({there}); name the entry that is the target by target='...'")
    return {key: item for key, item in batch.items() if key != target}, batch[target]


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model returns by itself, called with all of the batch; see `Task.supervised`."""
    try:
        output = called(model, batch)
    except TypeError as problem:
        if _takes(model, batch):
            raise
        raise TaskError(
            f"the model cannot be called with all of a batch ({problem}), as it is without a loss_fn; give a loss_fn, "
            "or let the model take the target and return its loss"
        ) from problem
    loss = getattr(output, "loss", None)
    if loss is None and isinstance(output, Mapping):
        loss = output.get("loss")
    elif loss is None:
        loss = output[0] if isinstance(output, tuple) else output
    if not isinstance(loss, Tensor):
        got = type(output).__name__
        raise TypeError(f"the model returned a {got} without a loss; give a loss_fn, or the model its labels")
    return loss


def called(model: nn.Module, inputs: Any) -> Any:
    """What the model returns, given a dict by name, a sequence by position, a tensor as it is."""
    positional, named = _arguments(inputs)
    return model(*positional, **named)


def _arguments(inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), inputs
    return (inputs,) if isinstance(inputs, Tensor) else inputs, {}


def _takes(model: nn.Module, batch: Any) -> bool:
    """Whether the signature of the model's `forward` has room for all of a batch."""
    positional, named = _arguments(batch)
    try:
        inspect.signature(model.forward).bind(*positional, **named)
    except TypeError:
        return False
    return True
