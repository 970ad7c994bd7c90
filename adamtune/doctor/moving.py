"""What of a model or a batch would stay behind when it is moved to a device; told without such a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from adamtune.task import Batch, batch_to

_META = torch.device("meta")
"""A device that is everywhere, and holds nothing."""


def plain_tensors(model: nn.Module) -> list[str]:
    """Tensors that modules keep as they are, neither as parameters nor as buffers: `.to(device)` leaves them.

    Those computed from parameters are left out: hooks such as that of `nn.utils.weight_norm` do so at each call.
    """
    return [
        f"{name}.{path}" if name else path
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if not attribute.startswith("_") and not _set_by_hook(module, attribute)
        for path, tensor in _tensors(value, attribute)
        if tensor.grad_fn is None
    ]


def _set_by_hook(module: nn.Module, attribute: str) -> bool:
    """Whether a hook such as that of `nn.utils.spectral_norm` computes it anew at each call."""
    return any(getattr(hook, "name", None) == attribute for hook in module._forward_pre_hooks.values())


def left_behind(batch: Batch) -> tuple[list[str], int]:
    """Where in the batch tensors lie that do not move with it, and how many do."""
    try:
        there = batch_to(batch, _META)
    except NotImplementedError:  # nested tensors move to a real device only
        return [], len(list(_tensors(batch, "batch")))
    found = list(_tensors(there, "batch", into_objects=True))
    left = [path for path, tensor in found if tensor.device.type != "meta"]
    return left, len(found) - len(left)


def _tensors(item: Any, path: str, into_objects: bool = False) -> Iterator[tuple[str, Tensor]]:
    if isinstance(item, PackedSequence):
        yield path, item.data  # its batch_sizes belong on the CPU
    elif isinstance(item, Tensor):
        yield path, item
    elif isinstance(item, Mapping):
        for key, inner in item.items():
            yield from _tensors(inner, f"{path}[{key!r}]", into_objects)
    elif isinstance(item, tuple | list):
        for index, inner in enumerate(item):
            yield from _tensors(inner, f"{path}[{index}]", into_objects)
    elif into_objects and not isinstance(item, type | nn.Module) and hasattr(item, "__dict__"):
        for name, inner in vars(item).items():
            yield from _tensors(inner, f"{path}.{name}")
