"""Attention over short sequences, by NumPy's matrix products where these are quick: see `products`.

torch's fused kernel for the CPU never holds the weights, which is what makes long sequences fit; but it works head by
head, and its backward pass computes them again. Where they are few, to keep them costs less: forward and backward over
48 positions in heads of 12 take 0.6 of its time, over 128 in heads of 32 it is 0.85. By torch's own products it would
be more than the kernel's, and the forward pass alone gains little (measured for 2 to 32 members of 8 rows).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from adamtune.population.products import multiplied_by_numpy, multiply

_LONGEST, _WIDEST = 128, 64
"""Positions of queries and of keys, and entries of a head, up to which that was measured."""
_MOST = 24_000_000
"""Bytes of all members' weights, from which they leave the processor's last cache before the backward pass reads them.
"""

_VIEWS = frozenset(
    f"{name}Backward0"
    for name in (
        *("Alias", "Permute", "ReshapeAlias", "Select", "Slice", "Split", "SplitWithSizes", "Transpose", "Unbind"),
        *("Unsqueeze", "View"),
    )
)
"""What autograd calls steps that only look at the same entries in another way."""


def is_short(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attention` is the quicker way, and can do it.

    Not in halved precision, in which torch's kernel keeps the scores exact.
    """
    if query.ndim != 4 or not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        return False
    if torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled() or not multiplied_by_numpy(query, key, value):
        return False
    if max(query.shape[2], key.shape[2]) > _LONGEST or max(query.shape[3], value.shape[3]) > _WIDEST:
        return False
    return query.shape[:3].numel() * key.shape[2] * query.element_size() <= _MOST


def attention(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None) -> Tensor:
    """(batch, heads, L, d), (batch, heads, S, d) and (batch, heads, S, e) -> (batch, heads, L, e).

    As `torch.nn.functional.scaled_dot_product_attention` without mask and dropout; `scale` is 1/sqrt(d) where None. The
    result lies in memory as the kernel's does.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    whole = _whole((query, key, value))
    if whole is not None:
        query, key, value = query.detach(), key.detach(), value.detach()
    return _Attention.apply(whole, query, key, value, causal, scale)  # type: ignore[no-any-return, no-untyped-call]


class _Attention(torch.autograd.Function):
    """Where `whole` is given, the three are views of it, and it gets their gradient in one piece: autograd's way there
    from the three takes two copies.
    """

    @staticmethod
    def forward(
        ctx: Any, whole: Tensor | None, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
    ) -> Tensor:
        given = whole, query, key, value
        query, key, value = query.detach(), key.detach(), value.detach()
        batch, heads, length, width = *query.shape[:3], value.shape[3]
        if width == query.shape[3] and query.stride(1) < query.stride(2):
            out = query.new_empty(batch, length, heads, width).transpose(1, 2)
        else:
            out = query.new_empty(batch, heads, length, width)
        weights = query.new_empty(batch, heads, length, key.shape[2])
        multiply(query, key.transpose(2, 3), weights)
        hidden = _hidden(length, key.shape[2], weights.dtype) if causal else torch.zeros((), dtype=weights.dtype)
        weights = torch.add(hidden, weights, alpha=scale, out=weights).softmax(-1)
        multiply(weights, value, out)
        ctx.save_for_backward(*given, weights)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # of a gradient of this gradient autograd would know a part only
            raise RuntimeError("attention in a stack has no second derivative")
        whole, query, key, value, weights = ctx.saved_tensors
        parts = (query, key, value)
        if whole is None:
            found, of_parts = None, [torch.empty_like(part) for part in parts]
        else:
            found = torch.empty_like(whole)
            of_parts = [found.as_strided(part.shape, part.stride(), part.storage_offset()) for part in parts]
        of_query, of_key, of_value = of_parts
        multiply(weights.transpose(2, 3), gradients[0], of_value)
        scores = torch.empty_like(weights)
        multiply(gradients[0], value.transpose(2, 3), scores)
        scores = torch._softmax_backward_data(scores, weights, -1, weights.dtype)
        multiply(scores, key, of_query)
        multiply(scores.transpose(2, 3), query, of_key)
        torch._foreach_mul_([of_query, of_key], ctx.scale)
        return found, *(of_parts if found is None else [None] * 3), None, None


@cache
def _hidden(queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    """To be added to scores: -inf where a key comes after the query."""
    return torch.full((queries, keys), -math.inf, dtype=dtype).triu_(1)


def _whole(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor of which these are the whole, each a view of another part; None where there is none."""
    whole = parts[0]._base
    if whole is None or whole.storage_offset() or not whole.is_contiguous():
        return None
    if not all(part._base is whole and _is_view(part, whole) for part in parts):
        return None
    lie = tuple((tuple(part.shape), part.stride(), part.storage_offset()) for part in parts)
    return whole if _tile(whole.numel(), lie) else None


def _is_view(part: Tensor, whole: Tensor) -> bool:
    """Whether autograd, too, sees but a view: `detach`, or a function of someone's own, may lie between."""
    node, last = part.grad_fn, whole.grad_fn
    while node is not None and node is not last and type(node).__name__ in _VIEWS:
        node = node.next_functions[0][0]
    return node is not None and node is last


@cache
def _tile(count: int, parts: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...]) -> bool:
    """Whether parts of these shapes, strides and offsets hold each of `count` entries once."""
    held = torch.zeros(count, dtype=torch.bool)
    for shape, stride, offset in parts:
        held.as_strided(shape, stride, offset).fill_(True)
    return sum(math.prod(shape) for shape, _, _ in parts) == count and bool(held.all())
