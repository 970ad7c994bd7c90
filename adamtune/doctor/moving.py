"""What of a model or a batch would stay behind when it is moved to a device; told without such a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adamtune.task import Batch, batch_to

_META = torch.device("meta")
"""A device that is everywhere, and holds nothing."""


def plain_tensors(model: nn.Module) -> list[str]:
    """Tensors that modules keep as they are, neither as parameters nor as buffers: `.to(device)` leaves them."""
    return [
        f"{name}.{path}" if name else path
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if not attribute.startswith("_")
        for path, _ in _tensors(value, attribute)
    ]


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
    if isinstance(item, Tensor):
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
