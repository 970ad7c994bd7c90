"""Quicker ways to run a few operations for all members at once than `torch.vmap`'s own.

Nothing here changes what is computed, only the layout it is computed in; without it a stack trains the same more
slowly, or is refused. Why each is quicker (measured on CPU):

- `linear`: one batched GEMM whose weight gradient comes out in the weight's own layout; vmap's is transposed, and
  autograd copies it. See `products` for who multiplies.
- `image_ops`: the members become channels, in channels-last layout, as one grouped convolution; channels first it is
  2.5 times slower, and max-pooling 16 times.
- `scaled_dot_product_attention`: the members join the batch; vmap runs the fused kernel once a member.
- `layer_norm`: the members join the batch, and the kernel gets the weight and bias without which it is half as quick.
- `cross_entropy`: the members join the batch; vmap takes it apart into a dozen small operations.
- `dropout`: the noise is drawn once for all members (they share a seed), in the order in which one model draws it.
- `multi_head_attention_forward`: what torch calls within it is seen here too; else vmap runs attention once a member.

They lie below `torch.vmap`'s public surface, so where torch has moved what they rest on, they are left out.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from adamtune.population import autocast_ops, image_ops, short_attention
from adamtune.population.image_ops import Folded, Rule, keep_layout, lies_as_channels
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


def _linear(count: int, dims: Sequence[int | None], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    own_bias = bias is None or (dims[2] == 0 and bias.ndim == 2)
    if dims[1] != 0 or weight.ndim != 3 or not own_bias or torch.is_autocast_enabled(x.device.type):
        return None
    x = x.expand(count, *x.shape) if dims[0] is None else x.movedim(dims[0], 0)
    if x.ndim < 2 or x.shape[-1] != weight.shape[-1]:
        return None
    out = _Linear.apply(x.reshape(count, -1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return torch.ops.aten._unsafe_view(out, [*x.shape[:-1], weight.shape[1]]), 0


def _attention(
    count: int, dims: Sequence[int | None], query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
) -> Folded | None:
    mask = args[0] if args else options.get("attn_mask")
    dropout = args[1] if len(args) > 1 else options.get("dropout_p", 0.0)
    if dropout or (mask is not None and (mask.ndim > 2 or any(dim is not None for dim in dims[3:]))):
        return None
    every = [
        tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip((query, key, value), dims, strict=False)
    ]
    if every[0].ndim < 4 or any((one.ndim, one.shape[1]) != (every[0].ndim, every[0].shape[1]) for one in every):
        return None  # without a batch, or one that is broadcast
    q, k, v = (one.flatten(0, 1) for one in every)
    causal = args[2] if len(args) > 2 else options.get("is_causal", False)
    if mask is None and not options.get("enable_gqa") and short_attention.is_short(q, k, v):
        out = short_attention.attention(q, k, v, causal, options.get("scale"))
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
    one = torch.empty(x[0].shape, dtype=x.dtype) if lies_as_channels(count, x[0]) else torch.empty_like(x[0])
    return x * one.bernoulli_(1 - p).div_(1 - p), 0


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
    torch.conv2d: image_ops.conv2d,
    functional.max_pool2d: image_ops.pooling(functional.max_pool2d),
    torch.max_pool2d: image_ops.pooling(torch.max_pool2d),
    functional.avg_pool2d: image_ops.pooling(functional.avg_pool2d),
    functional.adaptive_avg_pool2d: image_ops.pooling(functional.adaptive_avg_pool2d),
    functional.scaled_dot_product_attention: _attention,
    functional.batch_norm: image_ops.batch_norm,
    functional.group_norm: image_ops.group_norm,
    functional.layer_norm: _layer_norm,
    functional.cross_entropy: _cross_entropy,
}
_BY_KEYWORD = {image_ops.batch_norm, image_ops.group_norm, _layer_norm, _cross_entropy}
"""Torch hands on to these what follows the first arguments by keyword, always all of it and in this order."""


def _seen_within(function: Any) -> dict[Any, Any]:
    """One of torch's functions in Python, and the same with what it calls told to a mode as well.

    Torch turns a mode off within a function that it has been told of. The copy does not tell, so the mode may stay on.
    """
    look = "has_torch_function"
    if look not in getattr(getattr(function, "__code__", None), "co_names", ()):
        return {}
    plain = {**function.__globals__, look: lambda _: False}
    copied = types.FunctionType(function.__code__, plain, function.__name__, function.__defaults__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return {function: copied}


_WITHIN = _seen_within(functional.multi_head_attention_forward)


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
        if func == _ASKS_FOR_GRADIENT:
            return _underlying(args[0]).requires_grad
        return autocast_ops.called(self._call, func, args, kwargs or {})

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        rule = self._rules.get(func)
        if rule is not None:
            out = self._fold(rule, args, kwargs)
            if out is not None:
                return out
        if func in _WITHIN:
            with self:
                return _WITHIN[func](*args, **kwargs)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.ndim == 4 and of_members(out):
            self._keep_layout(out)
        return out

    def _keep_layout(self, images: Tensor) -> None:
        if maybe_get_level(images) == peek_interpreter_stack().level() == 1:
            with temporarily_pop_interpreter_stack():
                keep_layout(self._count, get_unwrapped(images), maybe_get_bdim(images))

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
        dims += [None for value in kwargs.values() if isinstance(value, Tensor)]
        with temporarily_pop_interpreter_stack():
            out = rule(self._count, dims, *plain, **kwargs)
        return None if out is None else _add_batch_dim(*out, level)
