"""Batches of several members as one, where they have the same shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adamtune.task import Batch


class Uneven(Exception):
    """Batches that cannot be stacked: of other shapes, or of a kind unknown here."""


def joined(batches: Sequence[Batch]) -> tuple[Batch, Any]:
    """One batch whose tensors have a leading dimension of members, and its `in_dims` for `torch.vmap`.

    Raises `Uneven`.
    """
    first = batches[0]
    if isinstance(first, Tensor):
        if any(not isinstance(b, Tensor) or b.shape != first.shape or b.dtype != first.dtype for b in batches):
            raise Uneven
        return torch.stack(list(batches)), 0
    if any(type(batch) is not type(first) for batch in batches):
        raise Uneven
    if type(first) in (tuple, list) or (isinstance(first, tuple) and hasattr(first, "_fields")):
        if any(len(batch) != len(first) for batch in batches):
            raise Uneven
        parts = [joined(items) for items in zip(*batches, strict=True)]
        make = type(first)._make if hasattr(first, "_fields") else type(first)
        return make(part for part, _ in parts), make(dims for _, dims in parts)
    if type(first) is dict:
        if any(batch.keys() != first.keys() for batch in batches):
            raise Uneven
        entries = {key: joined([batch[key] for batch in batches]) for key in first}
        return {key: part for key, (part, _) in entries.items()}, {key: dims for key, (_, dims) in entries.items()}
    if isinstance(first, bool | int | float | str | None) and all(batch == first for batch in batches):
        return first, None
    raise Uneven
