"""What `torch.autocast` does to a call, done by hand: within `torch.vmap` it misses some operations.

A stack would compute them in fp32 where a trial alone does in 16 bits; and noise drawn in the type of an activation
would be other noise. Which they are was found by running torch's modules both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_IN_16_BITS = {
    functional.linear, torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d,
    torch.conv_transpose3d, torch.addmm, torch.baddbmm,
}  # fmt: skip
"""Autocast hands these their tensors in 16 bits."""
_IN_THE_TYPE_OF_IMAGES = {functional.batch_norm, functional.layer_norm, functional.group_norm}
"""These take their first argument in 16 bits beside weights in fp32, compute in fp32, and give back the former's type;
on CUDA the last two are autocast to fp32, which vmap does not miss."""


def called(call: Callable[..., Any], func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`call(func, args, kwargs)`, with tensors of the types that autocast would have them in, where it is on."""
    if func not in _IN_16_BITS and func not in _IN_THE_TYPE_OF_IMAGES:
        return call(func, args, kwargs)
    first = args[0] if args else kwargs.get("input")
    if not isinstance(first, Tensor) or not torch.is_autocast_enabled(first.device.type):
        return call(func, args, kwargs)
    low = torch.get_autocast_dtype(first.device.type)
    if func in _IN_16_BITS:
        out = call(func, [_cast(arg, low) for arg in args], {name: _cast(arg, low) for name, arg in kwargs.items()})
        return _cast(out, low)
    on_cpu_or_batch_norm = first.device.type == "cpu" or func is functional.batch_norm
    if first.dtype is not low or not args or not on_cpu_or_batch_norm:
        return call(func, args, kwargs)
    return call(func, [first.float(), *args[1:]], kwargs).to(low)


def _cast(value: Any, low: torch.dtype) -> Any:
    return value.to(low) if isinstance(value, Tensor) and value.dtype is torch.float32 else value
