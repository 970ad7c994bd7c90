"""A function called once for all members.

It is `torch.vmap` without its front: that takes all arguments apart and puts them together again four times a call,
in Python, which is a fourteenth of the step of two small models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from adamtune.task import Batch

try:
    from torch._C._functorch import (
        TransformType,
        _add_batch_dim,
        _remove_batch_dim,
        _vmap_decrement_nesting,
        _vmap_increment_nesting,
        peek_interpreter_stack,
    )
    from torch._functorch.vmap import lazy_load_decompositions  # type: ignore[attr-defined]

    AVAILABLE = True
except ImportError:  # another torch
    AVAILABLE = False


def for_every_member(
    function: Callable[[dict[str, Tensor], Batch], Tensor],
    tensors: dict[str, Tensor],
    batch: Batch,
    batch_dims: Any,
    count: int,
    randomness: str,
) -> Tensor:
    """What `function` gives, one a member: (count, ...).

    `tensors` have a leading dimension of members; `batch_dims` and `randomness` as `torch.vmap` has them.
    """
    if not AVAILABLE:
        passed, dims = (0, None) if batch_dims is None else (batch, batch_dims)  # vmap cannot pass on any object
        one = function if batch_dims is not None else lambda own, _: function(own, batch)
        return torch.vmap(one, in_dims=(0, dims), randomness=randomness)(tensors, passed)
    lazy_load_decompositions()
    try:
        level = _vmap_increment_nesting(count, randomness)

        def of_member(part: Any, dim: int | None) -> Any:
            return part if dim is None else _add_batch_dim(part, dim, level)

        own = {name: _add_batch_dim(tensor, 0, level) for name, tensor in tensors.items()}
        own_batch = batch if batch_dims is None else tree_map(of_member, batch, batch_dims)
        return _remove_batch_dim(function(own, own_batch), level, count, 0)
    finally:
        leave()


def leave() -> None:
    """Be in no vmap: what interrupts a step (a time limit, Ctrl-C) may come just when one is entered or left."""
    while AVAILABLE and (entered := peek_interpreter_stack()) is not None and entered.key() == TransformType.Vmap:
        _vmap_decrement_nesting()
