"""Quicker ways to run a few operations for all members at once than `torch.vmap`'s own.

Nothing here changes what is computed, only the layout it is computed in; without it a stack trains the same more
slowly, or is refused. Why each is quicker (measured on CPU):

- `linear`: one batched GEMM whose weight gradient comes out in the weight's own layout; vmap's is transposed, and
  autograd copies it. See `products` for who multiplies.
- `conv2d`, `max_pool2d`: the members become channels, in channels-last layout, as one grouped convolution; channels
  first it is 2.5 times slower, and max-pooling 16 times.
- `scaled_dot_product_attention`: the members join the batch; vmap runs the fused kernel once a member.
- `layer_norm`: the members join the batch, and the kernel gets the weight and bias without which it is half as quick.
- `cross_entropy`: the members join the batch; vmap takes it apart into a dozen small operations.
- `dropout`: the noise is drawn once for all members (they share a seed), in the order in which one model draws it.
- `group_norm`: the members join the batch; vmap's own refuses channels-last layouts.

They lie below `torch.vmap`'s public surface, so where torch has moved what they rest on, they are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from adamtune.population import short_attention
from adamtune.population.products import product, shifted_product

try:
    from torch._C._functorch import (
        _add_batch_dim,
        get_unwrapped,
        is_batchedtensor,
        maybe_get_bdim,
        maybe_get_level,
        peek_interpreter_stack,
    )
    from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

    AVAILABLE = True
except ImportError:  # another torch
    AVAILABLE = False

_ASKS_FOR_GRADIENT = Tensor.requires_grad.__get__  # type: ignore[attr-defined]

Folded = tuple[Tensor, int]
"""A result for all members, and which of its dimensions counts them."""
Rule = Callable[..., Folded | None]
"""Called with the members' count, where each positional tensor has its member dimension (None: shared by all), the
positional arguments and the keywords; None where it does not apply."""

_CHANNELS_LAST = torch.channels_last
_FILTERS = 12
"""Filters from which a copy of a single channel for each member is quicker than one for all: 0.4 to 0.9 of the time."""


def of_members(tensor: Tensor) -> bool:
    """Whether it stands for one tensor a member, which holds within `torch.vmap` only."""
    return AVAILABLE and bool(is_batchedtensor(tensor))


def _underlying(tensor: Tensor) -> Tensor:
    while of_members(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


class _Linear(torch.autograd.Function):
    """x (K, rows, in), weight (K, out, in), bias (K, out) or None -> (K, rows, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        if bias is None:
            return product(x, weight.transpose(1, 2))
        return shifted_product(bias.unsqueeze(1), x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        out = gradients[0].contiguous()  # else both products below copy it
        x, weight = ctx.saved_tensors
        return (
            product(out, weight) if ctx.needs_input_grad[0] else None,
            product(out.transpose(1, 2), x) if ctx.needs_input_grad[1] else None,
            out.sum(1) if ctx.has_bias else None,
        )


class _ChannelsLastGradient(torch.autograd.Function):
    """The identity; its gradient comes back channels-last, whatever the layers above made of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _channels_last(gradients[0])


def _channels_last(x: Tensor) -> Tensor:
    """The same with its second dimension innermost in memory, also where that has one entry and torch cannot tell."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _linear(count: int, dims: Sequence[int | None], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    own_bias = bias is None or (len(dims) > 2 and dims[2] == 0 and bias.ndim == 2)
    if dims[1] != 0 or weight.ndim != 3 or not own_bias or torch.is_autocast_enabled(x.device.type):
        return None
    x = x.expand(count, *x.shape) if dims[0] is None else x.movedim(dims[0], 0)
    if x.ndim < 2 or x.shape[-1] != weight.shape[-1]:
        return None
    out = _Linear.apply(x.reshape(count, -1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[1]), 0


def _members_as_channels(x: Tensor, dim: int) -> Tensor:
    return _channels_last(x.movedim(dim, 1).flatten(1, 2))


def _conv2d(
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
    own_bias = bias is None or dims[2] == 0
    logical = x.ndim - (dims[0] is not None)
    if dims[1] != 0 or not own_bias or logical != 4 or x.device.type != "cpu" or isinstance(padding, str):
        return None
    dim = dims[0]
    if dim is None and x.shape[1] == 1 and weight.shape[1] >= _FILTERS:
        x, dim = x.expand(count, *x.shape), 0
    shared = dim is None
    if count < 2 or (shared and groups > 1):  # for one member the layout is the one that the model has alone
        return None
    source = _channels_last(x) if dim is None else _members_as_channels(x, dim)
    filters = weight.flatten(0, 1).contiguous(memory_format=_CHANNELS_LAST)
    offsets = bias.flatten() if bias is not None else None
    split = groups if shared else groups * count
    out = functional.conv2d(source, filters, offsets, stride, padding, dilation, split)
    out = _ChannelsLastGradient.apply(_channels_last(out))  # type: ignore[no-untyped-call]
    return out.unflatten(1, (count, -1)), 1


def _max_pool2d(count: int, dims: Sequence[int | None], x: Tensor, *args: Any, **options: Any) -> Folded | None:
    if dims[0] is None or count < 2 or x.ndim != 5 or x.device.type != "cpu" or options.get("return_indices"):
        return None
    out = functional.max_pool2d(_members_as_channels(x, dims[0]), *args, **options)
    out = _ChannelsLastGradient.apply(out)  # type: ignore[no-untyped-call]
    return out.unflatten(1, (count, -1)), 1


def _attention(
    count: int, dims: Sequence[int | None], query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
) -> Folded | None:
    mask = args[0] if args else options.get("attn_mask")
    dropout = args[1] if len(args) > 1 else options.get("dropout_p", 0.0)
    if dropout or (mask is not None and (mask.ndim > 2 or any(dim is not None for dim in dims[3:]))):
        return None
    if len(dims) < 3:  # a value that all share, by keyword
        return None
    every = [
        tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip((query, key, value), dims, strict=False)
    ]
    if every[0].ndim < 4 or any((one.ndim, one.shape[1]) != (every[0].ndim, every[0].shape[1]) for one in every):
        return None  # without a batch, or one that is broadcast
    q, k, v = (one.flatten(0, 1) for one in every)
    usual = mask is None and len(args) < 3 and not options.get("enable_gqa")
    if usual and short_attention.is_short(q, k, v):
        out = short_attention.attention(q, k, v, options.get("is_causal", False), options.get("scale"))
    else:
        out = functional.scaled_dot_product_attention(q, k, v, *args, **options)
    return out.view(count, -1, *out.shape[1:]), 0


def _dropout(
    count: int, dims: Sequence[int | None], x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Folded | None:
    if not training or inplace or not 0 < p < 1 or dims[0] is None or x.device.type != "cpu":
        return None
    x = x.movedim(dims[0], 0)
    # As torch's own dropout on the CPU does, which draws in the order of the memory.
    one = torch.empty(x[0].shape, dtype=x.dtype) if _laid_out_here(count, x[0]) else torch.empty_like(x[0])
    return x * one.bernoulli_(1 - p).div_(1 - p), 0


def _laid_out_here(count: int, x: Tensor) -> bool:
    """Whether one member's `x` (N, C, H, W) has the layout of the rules above; the model alone has channels first."""
    if x.ndim != 4:
        return False
    pixels = [stride for size, stride in zip(x.shape[2:], x.stride()[2:], strict=True) if size > 1]
    return count > 1 and bool(pixels) and pixels[-1] == count * x.shape[1] and (x.shape[1] == 1 or x.stride(1) == 1)


def _group_norm(
    count: int,
    dims: Sequence[int | None],
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Folded | None:
    if dims[0] is None:
        return None
    x = x.movedim(dims[0], 0).contiguous()
    out = functional.group_norm(x.flatten(0, 1), num_groups, eps=eps).view(x.shape)
    scaled = out
    if weight is not None:
        scaled = scaled * weight.view(-1, 1, x.shape[2], *[1] * (x.ndim - 3))
    if bias is not None:
        scaled = scaled + bias.view(-1, 1, x.shape[2], *[1] * (x.ndim - 3))
    return scaled.to(out.dtype), 0


def _layer_norm(
    count: int,
    dims: Sequence[int | None],
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Folded | None:
    if (
        dims[0] is None
        or weight is None
        or bias is None
        or list(dims[1:3]) != [0, 0]
        or x.dtype != weight.dtype  # the kernel gives back that of `x`
        or torch.is_autocast_enabled(x.device.type)
    ):
        return None
    x = x.movedim(dims[0], 0)
    own = [count, *[1] * (x.ndim - 1 - len(shape)), *shape]
    plain = functional.layer_norm(x, shape, weight.new_ones(shape), weight.new_zeros(shape), eps)
    return torch.addcmul(bias.view(own), plain, weight.view(own)), 0


def _cross_entropy(
    count: int,
    dims: Sequence[int | None],
    scores: Tensor,
    classes: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Folded | None:
    # Scores (N, C) and one class a row; the mean over those that count.
    usual = weight is None and size_average is None and reduce is None and reduction == "mean" and not label_smoothing
    if not usual or dims[0] is None or scores.ndim != 3 or classes.is_floating_point():
        return None
    every = classes.expand(count, *classes.shape) if dims[1] is None else classes.movedim(dims[1], 0)
    scores = scores.movedim(dims[0], 0)
    if every.shape != scores.shape[:2]:
        return None
    losses = functional.cross_entropy(
        scores.flatten(0, 1), every.flatten(), ignore_index=ignore_index, reduction="none"
    )
    return losses.view(every.shape).sum(1) / (every != ignore_index).sum(1), 0


_RULES: dict[Any, Rule] = {
    functional.linear: _linear,
    torch.conv2d: _conv2d,
    functional.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    functional.scaled_dot_product_attention: _attention,
    functional.group_norm: _group_norm,
    functional.layer_norm: _layer_norm,
    functional.cross_entropy: _cross_entropy,
}
_BY_KEYWORD = {_group_norm, _layer_norm, _cross_entropy}
"""Torch hands on to these what follows the first arguments by keyword, always all of it and in this order."""


class FastOps(TorchFunctionMode):
    """Inside, a call of one of these functions on members runs by its rule. For use within a `torch.vmap`.

    There too, a tensor's `requires_grad` is that of the members': torch's own answer is False, and a penalty on
    `p for p in model.parameters() if p.requires_grad` would be left out.
    """

    def __init__(self, count: int, noisy: bool) -> None:
        """`count` members; `noisy` where they share one seed, so that they share their noise too."""
        super().__init__()
        self._count = count
        self._rules = _RULES | ({functional.dropout: _dropout} if noisy else {}) if AVAILABLE else {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` by its rule, or as it is."""
        kwargs = kwargs or {}
        if func == _ASKS_FOR_GRADIENT:
            return _underlying(args[0]).requires_grad
        rule = self._rules.get(func)
        if rule is not None:
            out = self._fold(rule, args, kwargs)
            if out is not None:
                return out
        return func(*args, **kwargs)

    def _fold(self, rule: Rule, args: Any, kwargs: Any) -> Tensor | None:
        level: int | None = None
        dims: list[int | None] = []
        plain: list[Any] = []
        if rule in _BY_KEYWORD:
            args, kwargs = (*args, *kwargs.values()), {}
        for arg in args:
            if isinstance(arg, Tensor) and is_batchedtensor(arg):
                if level not in (None, maybe_get_level(arg)):
                    return None
                level = maybe_get_level(arg)
                dims.append(maybe_get_bdim(arg))
                arg = get_unwrapped(arg)
            elif isinstance(arg, Tensor) or arg is None:
                dims.append(None)
            plain.append(arg)
        if level is None or level > 1 or peek_interpreter_stack().level() != level:
            return None  # nothing of the members' in it, or the model has transforms of its own
        if any(isinstance(value, Tensor) and is_batchedtensor(value) for value in kwargs.values()):
            return None
        with temporarily_pop_interpreter_stack():
            out = rule(self._count, dims, *plain, **kwargs)
        return None if out is None else _add_batch_dim(*out, level)
