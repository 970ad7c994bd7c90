"""From moments to what is told of them, element by element; and percentiles of elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adamtune.probe.state import Update


@dataclass(frozen=True)
class Settings:
    """A group's settings, as the statistics need them."""

    lr: Tensor | float
    eps: float
    beta1: float
    decay: float
    """Weight decay that is part of the gradient."""
    maximize: bool
    rounding: float
    """The machine epsilon of the type that m is kept in."""


@dataclass(frozen=True)
class Elements:
    """Statistics of elements (n,), float32. NaN where an element has none: its moments are not finite, or its weight
    is zero.
    """

    m_hat: Tensor
    sqrt_v_hat: Tensor
    r: Tensor
    update_to_weight: Tensor
    nonfinite: Tensor
    """bool, as all below."""
    never_updated: Tensor
    below_eps: Tensor
    known: Tensor | None
    """Whether it can be told if the update changed sign; None where beta1 is 0 or no gradient is there."""
    flipped: Tensor | None


def elements(
    m: Tensor, v: Tensor, theta: Tensor, gradient: Tensor | None, update: Update, settings: Settings
) -> Elements:
    """What is told of elements by their moments, weight after the update, and gradient (NaN where there is none), each
    (n,) and float32. `update` has a value an element, or one for all.
    """
    finite = torch.isfinite(m) & torch.isfinite(v)
    root = (v / update.second).sqrt()
    divisor = update.root * root + update.floor
    step = update.first * m
    if gradient is not None:
        if settings.maximize:
            gradient = -gradient
        if settings.decay:
            # m was fed with the decay of the weight before the update.
            gradient = gradient + settings.decay * (theta + settings.lr * step / divisor)
        if update.gradient is not None:
            step = step + update.gradient * torch.nan_to_num(gradient, posinf=torch.inf, neginf=-torch.inf)
    m_hat = torch.where(finite, step.abs(), torch.nan)
    r = m_hat / divisor
    known, flipped = None, None
    if gradient is not None and settings.beta1 > 0:
        known, flipped = _flips(m, gradient, finite, settings)
    return Elements(
        m_hat=m_hat,
        sqrt_v_hat=torch.where(finite, root, torch.nan),
        r=r,
        update_to_weight=settings.lr * r / torch.where(theta == 0, torch.nan, theta.abs()),
        nonfinite=~finite,
        never_updated=v == 0,
        below_eps=(root < settings.eps) & (v != 0) & finite,
        known=known,
        flipped=flipped,
    )


def _flips(m: Tensor, gradient: Tensor, finite: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Where it can be told, and where momentum has another sign than one step before, when it was
    (m - (1 - beta1) * gradient) / beta1.

    What is smaller than rounding can leave of that difference is no momentum: at the first step there is none yet.
    """
    fed = (1 - settings.beta1) * gradient
    before = m - fed
    least = 4 * settings.rounding * (m.abs() + fed.abs())
    known = finite & torch.isfinite(gradient)
    return known, known & (before.abs() > least) & (m != 0) & ((before > 0) != (m > 0))


def percentiles(values: Tensor, at: Sequence[float]) -> list[Tensor]:
    """Percentiles `at`, from 0 to 100, of the values (n,) that are not NaN, interpolated as numpy.quantile does.

    NaN where there are none. Does not wait for the device.
    """
    if values.numel() == 0:
        return [values.new_full((), torch.nan)] * len(at)
    # numpy sorts float32 about ten times faster than torch, and puts NaN last as well.
    on_cpu = values.device.type == "cpu"
    rising = torch.from_numpy(np.sort(values.numpy())) if on_cpu else values.sort().values
    count = (~torch.isnan(values)).sum()
    position = torch.tensor([each / 100 for each in at], dtype=torch.float64).to(values.device, non_blocking=True)
    position = (position * (count - 1)).clamp(min=0)
    below = position.floor()
    lower = rising[below.long()]
    upper = rising[position.ceil().long()]
    return list((lower + (upper - lower) * (position - below).float()).unbind())
