"""Which elements of a group are read, and how far off their percentiles can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE = 65_536
"""Elements looked at in a group; see `rank_error`."""

LAYER_SAMPLE = 8_192
"""The same in a layer, of which a model has a hundred."""


def rank_error(elements: int, certainty: float = 0.99) -> float:
    """How far a percentile of so many random elements is from its rank among all, in percentage points.

    Every percentile at once is within it with `certainty`, by the Dvoretzky-Kiefer-Wolfowitz inequality with Massart's
    constant (1990): sqrt(ln(2 / (1 - certainty)) / (2 n)). 0.64 for `SAMPLE` elements at 99%, 1.8 for `LAYER_SAMPLE`.
    """
    return 100 * math.sqrt(math.log(2 / (1 - certainty)) / (2 * elements))


@dataclass(frozen=True)
class Picks:
    """Elements of a list of tensors: `owner` (n,) is the place of the tensor that each comes from."""

    places: tuple[int, ...]
    """Tensors of which any element is read."""
    counts: tuple[int, ...]
    """By place in `places`: how many."""
    rows: tuple[Tensor | None, ...]
    """Which of the flattened tensor's elements, rising; None for all."""
    owner: Tensor

    def take(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Their values (n,), float32; NaN where a tensor is None. Does not wait for the device, but for sparse ones."""
        device = self.owner.device
        parts = []
        for place, count, rows in zip(self.places, self.counts, self.rows, strict=True):
            tensor = tensors[place]
            if tensor is None:
                parts.append(torch.full((count,), math.nan, device=device))
            else:  # a group may lie on several devices
                parts.append(_picked(tensor, rows).to(device, non_blocking=True))
        return torch.cat(parts) if len(parts) != 1 else parts[0]


def _picked(tensor: Tensor, rows: Tensor | None) -> Tensor:
    if rows is None:
        return values_of(tensor, 0, tensor.numel())
    rows = rows.to(tensor.device, non_blocking=True)
    if tensor.is_sparse:
        return _of_sparse(tensor, rows)
    return tensor.reshape(-1).index_select(0, rows).float()


def values_of(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Elements from `start` to `stop` of the flattened tensor, float32; NaN for those that a sparse one leaves out."""
    if tensor.is_sparse:
        return _of_sparse(tensor, torch.arange(start, stop, device=tensor.device))
    return tensor.reshape(-1)[start:stop].float()


def pick(sizes: Sequence[int], limit: int, device: torch.device) -> Picks:
    """All elements of tensors of these sizes, or `limit` random ones, the same ones for the same sizes."""
    total = sum(sizes)
    counts = torch.tensor(sizes, dtype=torch.int64)
    if total <= limit:
        places = tuple(place for place, size in enumerate(sizes) if size)
        all_of = tuple(sizes[place] for place in places)
        return Picks(places, all_of, (None,) * len(places), torch.repeat_interleave(counts).to(device))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(total, (limit,), generator=generator).sort().values
    ends = counts.cumsum(0)
    owner = torch.searchsorted(ends, drawn, right=True)
    rows = drawn - (ends - counts)[owner]
    taken = torch.bincount(owner, minlength=len(sizes)).tolist()
    kept = [(place, own) for place, own in enumerate(torch.split(rows, taken)) if len(own)]
    places = tuple(place for place, _ in kept)
    return Picks(
        places, tuple(taken[place] for place in places), tuple(own.to(device) for _, own in kept), owner.to(device)
    )


def _of_sparse(tensor: Tensor, rows: Tensor) -> Tensor:
    """Elements of a sparse tensor; NaN for those that it leaves out."""
    tensor = tensor.coalesce()
    values = tensor.values()
    width = math.prod(values.shape[1:])
    if values.numel() == 0:
        return torch.full((len(rows),), math.nan, device=values.device)
    stored = torch.zeros_like(tensor.indices()[0])
    for dim, index in enumerate(tensor.indices()):
        stored = stored * tensor.shape[dim] + index
    wanted = torch.div(rows, width, rounding_mode="floor")
    at = torch.searchsorted(stored, wanted).clamp(max=len(stored) - 1)
    found = values.reshape(len(stored), width)[at, rows % width].float()
    return torch.where(stored[at] == wanted, found, math.nan)
