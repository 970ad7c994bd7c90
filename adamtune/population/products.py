"""Products of matrices, a pair a member, by NumPy's library where that is quicker than torch's; see `adamtune.blas`.

Steps of stacks gain by it what their products are of them: 37% in the two-layer GPT, whose attention then runs by them
too, 23% in the MLP, 9% in the CNN.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamtune.blas import numpy_is_quicker

_SMALL = 10**6
"""Multiplications, up to which OpenBLAS has kernels that do not copy both matrices first."""
_FEW = 1152
"""Entries of the result, up to which it has them where both matrices lie along what is summed over."""
_LONG = 128
"""Summands from which it is quicker to cut such a product so small than to lay one matrix out anew, for up to twice as
many rows.
"""
_PARTS = 16
"""Parts, above which each reads the second matrix too often."""
WORTH = 40_000
"""Multiplications of one member, below which calling NumPy costs more than it saves in stacks of up to 8. Not of all of
them, for who else is in the stack must not change a member's numbers: the libraries round differently.
"""


def product(one: Tensor, other: Tensor) -> Tensor:
    """(K, n, m) and (K, m, p) -> (K, n, p), as `torch.bmm`."""
    if not _worth(one, other):
        return torch.bmm(one, other)
    if torch.is_grad_enabled() and (one.requires_grad or other.requires_grad):
        return _Product.apply(one, other)  # type: ignore[no-any-return, no-untyped-call]
    return _multiplied(one, other)


def shifted_product(offset: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`product` plus `offset`, which is broadcast, as `torch.baddbmm`."""
    if not _worth(one, other):
        return torch.baddbmm(offset, one, other)
    return product(one, other).add_(offset)


def multiplied_by_numpy(*tensors: Tensor) -> bool:
    """Whether NumPy is the quicker one for matrices of these kinds, if they are large enough.

    On several threads it gains nothing; and where a size is 1, it has but loops.
    """
    kind = tensors[0].dtype
    if kind not in (torch.float32, torch.float64) or not numpy_is_quicker() or torch.get_num_threads() > 1:
        return False
    return all(tensor.is_cpu and tensor.dtype == kind and min(tensor.shape[-2:]) > 1 for tensor in tensors)


def _worth(one: Tensor, other: Tensor) -> bool:
    return one.shape[1:].numel() * other.shape[-1] >= WORTH and multiplied_by_numpy(one, other)


def _multiplied(one: Tensor, other: Tensor) -> Tensor:
    out = one.new_empty(one.shape[0], one.shape[1], other.shape[2])
    multiply(one.detach(), other.detach(), out)
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor) -> Tensor:
        ctx.save_for_backward(one, other)
        return _multiplied(one, other)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        out = gradients[0].contiguous()  # else both products below copy it
        one, other = ctx.saved_tensors
        return (
            product(out, other.transpose(1, 2)) if ctx.needs_input_grad[0] else None,
            product(one.transpose(1, 2), out) if ctx.needs_input_grad[1] else None,
        )


def multiply(one: Tensor, other: Tensor, out: Tensor) -> None:
    """Write (..., n, m) times (..., m, p) to `out`, by NumPy and outside of autograd.

    By OpenBLAS's kernels for small matrices, for which a larger product is cut by rows where that pays: 384 rows of 48
    entries by 192 columns take a tenth less, 32 rows of 512 by 128 less than half.
    """
    one, other = _laid_out(one), _laid_out(other)
    rows, inner, columns = one.shape[-2], *other.shape[-2:]
    if one.stride(-1) != 1:
        parts = _parts(rows, inner, columns, "columns")
    elif other.stride(-1) == 1:
        parts = _parts(rows, inner, columns, "rows")
    else:
        parts = _parts(rows, inner, columns, "along") if inner >= _LONG and rows <= 2 * inner else 0
        if not parts and columns <= rows:
            parts = _parts(rows, inner, columns, "rows")
            other = other.contiguous() if parts else other
        elif not parts and rows * inner * columns <= _SMALL:
            one = one.transpose(-2, -1).contiguous().transpose(-2, -1)
    if parts > 1:
        one, out = (torch.unflatten(tensor, -2, (parts, -1)) for tensor in (one, out))
        other = other.unsqueeze(-3)
    np.matmul(one.numpy(), other.numpy(), out=out.numpy())


@cache
def _parts(rows: int, inner: int, columns: int, lies: str) -> int:
    """Into how many parts of equal rows to cut a product; 0 where none are worth a call each.

    `lies`: how the first matrix does, by "rows" or by "columns"; "along" what is summed over, as the second.
    """
    most = min(_SMALL // (inner * columns), _FEW // columns if lies == "along" else rows)
    least = max(12, columns // 32) if lies == "columns" else 4
    if lies != "along":
        least = max(least, rows // _PARTS)
    return next((parts for parts in range(1, rows // least + 1) if rows % parts == 0 and rows // parts <= most), 0)


def _laid_out(matrices: Tensor) -> Tensor:
    """In one of the two layouts that BLAS reads: for others NumPy has loops of its own."""
    rows, columns = matrices.stride()[-2:]
    by_rows = columns == 1 and rows >= matrices.shape[-1]
    by_columns = rows == 1 and columns >= matrices.shape[-2]
    return matrices if by_rows or by_columns else matrices.contiguous()
