"""One parameter's moments, from the state of any of torch's Adams; and what each of them makes of the moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer, RAdam, SparseAdam

from adamtune.errors import ProbeError


@dataclass(frozen=True)
class Moments:
    """What is read of one parameter: tensors of the same number of elements, real, of any floating type."""

    param: Tensor
    first: Tensor
    """m: `exp_avg`."""
    second: Tensor
    """v: `exp_avg_sq`; with amsgrad the largest so far, `max_exp_avg_sq`, which is what divides."""
    gradient: Tensor | None
    """Dense, or sparse with the parameter's shape; None where it is not there."""
    step: Tensor | float
    mu_product: Tensor | float
    """NAdam's product of momenta; 1 for the others."""

    @property
    def numel(self) -> int:
        """How many elements; a complex one counts as two."""
        return self.first.numel()


def moments_of(param: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Moments | None:
    """The moments of `param` by an optimizer's state of it; None where there are none as large, or none yet.

    Of a DTensor it is the part that this process holds. Raises `ProbeError` for moments kept in 8 bits.
    """
    _check_precision(state)
    first, second = state.get("exp_avg"), state.get("exp_avg_sq")
    if group.get("amsgrad"):
        second = state.get("max_exp_avg_sq", second)
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or not _has_settings(group):
        return None
    weight, first, second = real(param), real(first), real(second)
    if not weight.numel() == first.numel() == second.numel():
        return None  # as where moments are of projected gradients
    gradient = None if param.grad is None else real(param.grad)
    found = Moments(
        weight, first, second, gradient, state.get("step", group.get("step", 1.0)), state.get("mu_product", 1.0)
    )
    return found if first.is_contiguous() else _in_order_of_memory(found)


def _has_settings(group: Mapping[str, Any]) -> bool:
    return "eps" in group and "lr" in group and len(group.get("betas", ())) == 2


def _in_order_of_memory(moments: Moments) -> Moments:
    """The same elements, together as before, so that what is channels_last is not copied to be flattened."""
    first, gradient = moments.first, moments.gradient
    tensors = [moments.param, first, moments.second, *([] if gradient is None else [gradient])]
    if any(each.is_sparse or each.shape != first.shape for each in tensors):
        return moments
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    param, first, second = (each.permute(order) for each in tensors[:3])
    return replace(
        moments,
        param=param,
        first=first,
        second=second,
        gradient=None if gradient is None else gradient.permute(order),
    )


def real(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`, with complex numbers as pairs, as torch's optimizers see them."""
    tensor = tensor.detach()
    if is_shard(tensor):
        tensor = tensor.to_local()  # type: ignore[attr-defined]
    if not tensor.is_complex():
        return tensor
    if tensor.is_sparse:
        tensor = tensor.coalesce()
        size = (*tensor.shape, 2)
        return torch.sparse_coo_tensor(
            tensor.indices(), torch.view_as_real(tensor.values()), size, is_coalesced=True, check_invariants=False
        )
    return torch.view_as_real(tensor)


def is_shard(tensor: Tensor) -> bool:
    """Whether it is a DTensor (FSDP2, tensor parallel); told without importing torch.distributed."""
    return hasattr(tensor, "to_local")


_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "state1", "state2")
"""Where moments are kept: torch's names, then bitsandbytes'."""


def _check_precision(state: Mapping[str, Any]) -> None:
    for name in _MOMENTS:
        moment = state.get(name)
        # torchao's 8-bit state is a tensor of its own kind, with codes and scales within.
        if isinstance(moment, Tensor) and (moment.dtype in (torch.uint8, torch.int8) or hasattr(moment, "codes")):
            raise ProbeError(
                f"The optimizer keeps its moments in 8 bits ('{name}'), as codes that only its own library can read; "
                "probe a run with 32-bit states, such as torch.optim.AdamW's."
            )


@dataclass(frozen=True)
class Update:
    """What an optimizer makes of the moments, by parameter, each a tensor (P,), float32:

    m_hat = first * m + gradient * g, v_hat = v / second, and the step before lr m_hat / (root * sqrt(v_hat) + floor).
    """

    first: Tensor
    gradient: Tensor | None
    """Of NAdam only."""
    second: Tensor
    root: Tensor
    floor: Tensor

    def each(self, owner: Tensor) -> Update:
        """The same by element, of the parameters at `owner` (n,)."""
        gradient = None if self.gradient is None else self.gradient[owner]
        return Update(self.first[owner], gradient, self.second[owner], self.root[owner], self.floor[owner])


def update_of(
    optimizer: Optimizer | None, group: Mapping[str, Any], moments: Sequence[Moments], device: torch.device
) -> Update:
    """Coefficients of the update that `optimizer` made last, by parameter.

    Adam and AdamW: Kingma & Ba 2014, algorithm 1. NAdam: Dozat 2016, with torch's schedule of mu. RAdam: Liu et al.
    2020, algorithm 2, which does not divide until the variance of v is tractable. RAdam and SparseAdam add eps to
    sqrt(v) and not to sqrt(v_hat). Without an optimizer, as of a saved state, only NAdam is told from Adam.
    """
    beta1, beta2 = map(float, group["betas"])
    eps = float(group["eps"])
    steps = _column([each.step for each in moments], device).clamp(min=1)
    correction1, correction2 = _one_minus_power(beta1, steps), _one_minus_power(beta2, steps)
    first, gradient = 1 / correction1, None
    root, floor = torch.ones_like(steps), torch.full_like(steps, eps)
    if "momentum_decay" in group:
        decay = float(group["momentum_decay"])
        product = _column([each.mu_product for each in moments], device)
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (at * decay)) for at in (steps, steps + 1))
        first, gradient = mu_next / (1 - product * mu_next), (1 - mu) / (1 - product)
    if isinstance(optimizer, RAdam | SparseAdam) or group.get("sparse"):  # of `adamtune.sparse`
        floor = eps / correction2.sqrt()
    if isinstance(optimizer, RAdam):
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * steps * (1 - correction2) / correction2
        variance = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        settled = length > 5
        rectifier = torch.where(settled, variance, 1.0).sqrt()
        root = torch.where(settled, 1 / rectifier, 0.0)
        floor = torch.where(settled, floor / rectifier, 1.0)
    return Update(first, gradient, correction2, root, floor)


def coupled_decay(optimizer: Optimizer | None, group: Mapping[str, Any]) -> float:
    """The weight decay that is part of the gradient m and v are made of; 0 where it is decoupled from it."""
    kind = getattr(optimizer, "_kind", None)  # of our two that step by one of torch's, and of those in exported modules
    if issubclass(kind if isinstance(kind, type) else type(optimizer), AdamW) or group.get(
        "decoupled_weight_decay"
    ):  # the latter says so from torch 2.7 on
        return 0.0
    return float(group.get("weight_decay", 0.0))


def _column(values: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """Scalars as one float32 tensor (P,) on `device`, without waiting for the device."""
    if all(isinstance(value, Tensor) and value.device == device for value in values):
        return torch.stack([value.reshape(()).float() for value in values if isinstance(value, Tensor)])
    if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in values):
        return torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device).reshape(()) for value in values])
    return torch.tensor([float(value) for value in values]).to(device, non_blocking=True)


def _one_minus_power(beta: float, steps: Tensor) -> Tensor:
    """1 - beta^t without the loss of digits that float32 has where beta is near one."""
    return -torch.expm1(steps * (math.log(beta) if beta > 0 else -math.inf))


def steps_made(optimizer: Optimizer) -> int:
    """What Adam's own state counts, or AdamThenSGD; 0 before the first step, and of those that count none."""
    counts = [state.get("step") for state in optimizer.state.values()]
    counts += [group.get("updates") for group in optimizer.param_groups]
    known = (count for count in counts if isinstance(count, int | float | Tensor))
    return max((int(count) for count in known if count < math.inf), default=0)
