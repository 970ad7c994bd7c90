"""Convolutions, pooling and norms of images for all members at once; see `fast_ops`.

The members become channels, in channels-last layout: one grouped convolution, one norm of so many more channels. What
comes out of a rule here is (K, N, C, H, W) in that memory, so what follows it takes it as it lies, and its gradient
comes in the same layout, whatever the layers above made of it: an activation whose input and gradient lie differently
is several times slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Folded = tuple[Tensor, int]
"""A result for all members, and which of its dimensions counts them."""
Rule = Callable[..., Folded | None]
"""Called with the members' count, where each tensor has its member dimension (None: shared by all, as those by keyword
are), the positional arguments and the keywords; None where it does not apply."""

_FILTERS = 12
"""Filters from which a copy of a single channel for each member is quicker than one for all: 0.4 to 0.9 of the time."""


def lies_as_channels(count: int, x: Tensor) -> bool:
    """Whether one member's `x` (N, C, H, W) has the layout of the rules here; the model alone has channels first."""
    if x.ndim != 4:
        return False
    pixels = [stride for size, stride in zip(x.shape[2:], x.stride()[2:], strict=True) if size > 1]
    return count > 1 and bool(pixels) and pixels[-1] == count * x.shape[1] and (x.shape[1] == 1 or x.stride(1) == 1)


def keep_layout(count: int, x: Tensor, dim: int) -> None:
    """Have the gradient of `x`, whose dimension `dim` counts the members, laid out as `x` is, if that is as here."""
    if not x.requires_grad or x.grad_fn is None or not lies_as_channels(count, x.select(dim, 0)):
        return
    strides = x.stride()

    def laid_out(gradient: Tensor) -> Tensor:
        if gradient.stride() == strides:
            return gradient
        return torch.unflatten(_members_as_channels(gradient, dim), 1, (count, -1)).movedim(1, dim)

    x.register_hook(laid_out)  # type: ignore[no-untyped-call]


class _ChannelsAsMembers(torch.autograd.Function):
    """Back from `_members_as_channels`: x (N, K * C, H, W) -> (K, N, C, H, W), in the same memory.

    No view for autograd, which would copy all of it where the model changes it in place, forward and back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> Tensor:
        return torch.unflatten(x, 1, (count, -1)).movedim(1, 0).detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _members_as_channels(gradients[0], 0), None


def _channels_last(x: Tensor) -> Tensor:
    """The same with its second dimension innermost in memory, also where that has one entry and torch cannot tell."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _members_as_channels(x: Tensor, dim: int | None) -> Tensor:
    """x (K, N, C, H, W), its members in any dimension `dim` -> (N, K * C, H, W). No copy where it lies so already."""
    return _channels_last(x if dim is None else x.movedim(dim, 1).flatten(1, 2))


def _as_members(x: Tensor, count: int) -> Folded:
    if not x.permute(0, 2, 3, 1).is_contiguous():
        x = _channels_last(x)
    return _ChannelsAsMembers.apply(x, count), 0  # type: ignore[no-untyped-call]


def _images(count: int, dim: int | None, x: Tensor) -> bool:
    """Whether they are images of each member. For one the layout is the one that the model has alone."""
    return dim is not None and count > 1 and x.ndim == 5 and x.device.type == "cpu"


def conv2d(
    count: int,
    dims: Sequence[int | None],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Folded | None:
    """A `Rule` for `torch.conv2d`, also where all members have the same images."""
    own_bias = bias is None or dims[2] == 0
    logical = x.ndim - (dims[0] is not None)
    if dims[1] != 0 or not own_bias or logical != 4 or x.device.type != "cpu" or isinstance(padding, str):
        return None
    dim = dims[0]
    if dim is None and x.shape[1] == 1 and weight.shape[1] >= _FILTERS:
        x, dim = x.expand(count, *x.shape), 0
    shared = dim is None
    if count < 2 or (shared and groups > 1):
        return None
    source = _members_as_channels(x, dim)
    filters = weight.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    offsets = bias.flatten() if bias is not None else None
    split = groups if shared else groups * count
    return _as_members(functional.conv2d(source, filters, offsets, stride, padding, dilation, split), count)


def pooling(pool: Callable[..., Tensor]) -> Rule:
    """A `Rule` for one of torch's functions that pool in each channel."""

    def rule(count: int, dims: Sequence[int | None], x: Tensor, *args: Any, **options: Any) -> Folded | None:
        if not _images(count, dims[0], x) or options.get("return_indices"):
            return None
        return _as_members(pool(_members_as_channels(x, dims[0]), *args, **options), count)

    return rule


def batch_norm(
    count: int,
    dims: Sequence[int | None],
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *options: Any,
) -> Folded | None:
    """A `Rule` for `functional.batch_norm`, which writes to the members' `mean` and `variance`."""
    own = _by_channel(count, dims[1:], mean, variance, weight, bias)
    if own is None or not _images(count, dims[0], x):
        return None
    if any(each is not None and dim is None for each, dim in zip((mean, variance), dims[1:3], strict=True)):
        return None  # what is written to a copy for each member would be lost
    return _as_members(functional.batch_norm(_members_as_channels(x, dims[0]), *own, *options), count)


def group_norm(
    count: int,
    dims: Sequence[int | None],
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Folded | None:
    """A `Rule` for `functional.group_norm`. Where members do not lie as channels they join the batch."""
    if dims[0] is None:
        return None
    own = _by_channel(count, dims[1:], weight, bias)
    if own is not None and _images(count, dims[0], x) and lies_as_channels(count, x.select(dims[0], 0)):
        source = _members_as_channels(x, dims[0])
        return _as_members(functional.group_norm(source, count * num_groups, own[0], own[1], eps), count)
    x = x.movedim(dims[0], 0).contiguous()
    out = functional.group_norm(x.flatten(0, 1), num_groups, eps=eps).view(x.shape)
    scaled = out
    if weight is not None:
        scaled = scaled * weight.view(-1, 1, x.shape[2], *[1] * (x.ndim - 3))
    if bias is not None:
        scaled = scaled + bias.view(-1, 1, x.shape[2], *[1] * (x.ndim - 3))
    return scaled.to(out.dtype), 0


def _by_channel(count: int, dims: Sequence[int | None], *every: Tensor | None) -> list[Any] | None:
    """Each (K, C) as (K * C,), in the same memory, and each (C,) that all share as often; None where one is neither."""
    flat: list[Tensor | None] = []
    for each, dim in zip(every, dims, strict=True):
        if each is None:
            flat.append(None)
        elif dim is None and each.ndim == 1:
            flat.append(each.expand(count, -1).flatten())
        elif dim == 0 and each.ndim == 2 and each.is_contiguous():
            flat.append(each.flatten())
        else:
            return None
    return flat
