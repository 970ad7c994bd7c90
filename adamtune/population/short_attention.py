"""Attention over short sequences, by batched matrix products: quicker there than torch's fused kernel for the CPU.

That kernel never holds the scores, which is what makes long sequences fit; but it works head by head, and its backward
pass computes the scores again. Where they are few, to keep them costs less: forward and backward over 48 positions in
heads of 12 take from a tenth to a quarter less time. Over 64 in heads of 16 they take up to a quarter more, wider heads
gain nothing, and neither does the forward pass alone (measured, one thread, for 8 to 32 members of 8 rows).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adamtune.population.products import product, shifted_product

LONGEST = 48
"""Positions, of queries and of keys."""
WIDEST = 16
"""Entries of a head."""


def is_short(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attention` is the quicker way, and can do it.

    Not in halved precision, in which torch's kernel keeps the scores exact.
    """
    cpu = query.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if not cpu or query.dtype not in (torch.float32, torch.float64) or query.ndim != 4:
        return False
    if not torch.is_grad_enabled() or not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        return False
    return max(query.shape[2], key.shape[2]) <= LONGEST and max(query.shape[3], value.shape[3]) <= WIDEST


def attention(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None) -> Tensor:
    """(batch, heads, L, d), (batch, heads, S, d) and (batch, heads, S, e) -> (batch, heads, L, e).

    As `torch.nn.functional.scaled_dot_product_attention` without mask and dropout; `scale` is 1/sqrt(d) where None.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    q, k, v = (tensor.flatten(0, 1) for tensor in (query, key, value))
    hidden = q.new_zeros(q.shape[1], k.shape[1])
    if causal:
        hidden.masked_fill_(torch.ones_like(hidden, dtype=torch.bool).triu_(1), -math.inf)
    weights = shifted_product(hidden, q * scale, k.transpose(1, 2)).softmax(-1)
    mixed = product(weights, v).view(*query.shape[:3], value.shape[-1])
    if value.shape[-1] != query.shape[-1] or query.stride(1) >= query.stride(2):
        return mixed
    # In the layout of the query, as the kernel's: what follows may view it, or drop from it in the order of the memory.
    return mixed.transpose(1, 2).contiguous().transpose(1, 2)
