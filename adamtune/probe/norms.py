"""L2 norms of many tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all elements of real tensors, dense or sparse, at least in float32, as a scalar tensor."""
    device = tensors[0].device
    dense = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
    wide = [tensor for tensor in dense if tensor.dtype == torch.float64]
    others = [tensor for tensor in dense if tensor.dtype != torch.float64]
    norms = [*(torch._foreach_norm(wide) if wide else ())]
    norms += torch._foreach_norm(others, 2, dtype=torch.float32) if others else ()
    total: Tensor = torch.linalg.vector_norm(torch.stack([each.to(device, non_blocking=True) for each in norms]))
    return total
