"""From moments to what is told of them, element by element; and percentiles and shares of elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adamtune.probe.state import Update

STATISTICS = ("m_hat", "sqrt_v_hat", "r", "update_to_weight")
"""Of which percentiles are told. Those of lr_r are lr times those of r."""

SHARES = ("below_eps", "never_updated", "nonfinite")
"""Of all elements; `flips` are a share of those of which it is known."""


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
    """The machine epsilon of the type that m is kept in, or float32's where that is larger."""


@dataclass(frozen=True)
class Elements:
    """Statistics of elements (n,), float32, and never negative. What is NaN or infinite is left out of percentiles:
    elements whose moments are not finite, and the update relative to a weight that is zero.
    """

    m_hat: Tensor
    sqrt_v_hat: Tensor
    r: Tensor
    update_to_weight: Tensor
    below_eps: Tensor
    """bool, as all below."""
    never_updated: Tensor
    nonfinite: Tensor | None
    """None where all were known to be finite."""
    flips: Tensor | None
    """None where it cannot be told of any: beta1 is 0, or no gradient is there."""
    known: Tensor | None
    """Of which elements it can be told; None for all, or where `flips` is."""


@dataclass(frozen=True)
class Summary:
    """What is told of a group: scalars on its device, but for its norms."""

    percentiles: dict[str, Sequence[Tensor]]
    """By statistic, in the order they were asked for; NaN where there are no elements."""
    shares: dict[str, Tensor]


def elements(
    m: Tensor,
    v: Tensor,
    theta: Tensor,
    gradient: Tensor | None,
    update: Update,
    settings: Settings,
    all_finite: bool = False,
) -> Elements:
    """What is told of elements by their moments, weight after the update, and gradient (NaN where there is none), each
    (n,) and float32. `update` has a value an element, or one for all. `all_finite` says that m, v and gradient are.
    """
    root = (v / update.second).sqrt_()
    divisor = (update.root * root).add_(update.floor)
    step = update.first * m
    if gradient is not None:
        if settings.maximize:
            gradient = -gradient
        if settings.decay:
            gradient = gradient + settings.decay * _before(theta, step, gradient, divisor, update, settings)
        if update.gradient is not None:
            step = step + update.gradient * torch.nan_to_num(gradient, posinf=torch.inf, neginf=-torch.inf)
    m_hat = step.abs()
    r = m_hat / divisor
    flips = None if gradient is None or settings.beta1 == 0 else _flips(m, gradient, settings)
    nonfinite, known = None, None
    if not all_finite:
        finite = _finite(m) & _finite(v)
        nonfinite = ~finite
        m_hat, root, r = (each.masked_fill(nonfinite, torch.nan) for each in (m_hat, root, r))
        if flips is not None and gradient is not None:
            known = finite & _finite(gradient)
            flips &= known
    return Elements(
        m_hat=m_hat,
        sqrt_v_hat=root,
        r=r,
        update_to_weight=(settings.lr * r).div_(theta.abs()),
        below_eps=(root < settings.eps) & (root > 0),
        never_updated=(v == 0) & (m == 0),
        nonfinite=nonfinite,
        flips=flips,
        known=known,
    )


def _before(
    theta: Tensor, step: Tensor, gradient: Tensor, divisor: Tensor, update: Update, settings: Settings
) -> Tensor:
    """The weight before the update, whose decay m was fed with: theta + lr * (step + c * (gradient + decay * before)) /
    divisor, solved for it; c is 0 but for NAdam.
    """
    before = theta + settings.lr * step / divisor
    if update.gradient is None:
        return before
    part = settings.lr * update.gradient / divisor
    return (before + part * gradient) / (1 - part * settings.decay)


def _finite(values: Tensor) -> Tensor:
    return values.abs() < torch.inf  # three times as fast as isfinite


def _flips(m: Tensor, gradient: Tensor, settings: Settings) -> Tensor:
    """Where m has another sign than one step before, when it was (m - fed) / beta1 with fed = (1 - beta1) * gradient.

    So 0 < m / fed < 1. Nearer to 1 than rounding can tell, there was no momentum: at the first step there is none yet.
    """
    share = m / gradient
    noise = 4 * settings.rounding
    return (share > 0).logical_and_(share < (1 - settings.beta1) * (1 - noise) / (1 + noise))


def summary(measured: Elements, at: Sequence[float]) -> Summary:
    """Percentiles `at` and shares of the elements. Does not wait for the device."""
    shares = {name: mask.float().mean() for name in SHARES if (mask := getattr(measured, name)) is not None}
    if measured.nonfinite is None:
        shares["nonfinite"] = torch.zeros_like(shares["below_eps"])
    if measured.flips is not None:
        of = measured.flips.numel() if measured.known is None else measured.known.sum()
        shares["flips"] = measured.flips.sum() / of
    return Summary({name: percentiles(getattr(measured, name), at) for name in STATISTICS}, shares)


def percentiles(values: Tensor, at: Sequence[float]) -> Sequence[Tensor]:
    """Percentiles `at`, from 0 to 100, of the finite ones of values (n,), n > 0, none negative, interpolated as
    numpy.quantile does.

    NaN where there are none. Does not wait for the device.
    """
    # numpy sorts float32 about ten times faster than torch; both put infinity last but for NaN.
    on_cpu = values.device.type == "cpu"
    rising = torch.from_numpy(np.sort(values.numpy())) if on_cpu else values.sort().values
    count = (values < torch.inf).sum()
    position = torch.tensor([each / 100 for each in at], dtype=torch.float64).to(values.device, non_blocking=True)
    position = (position * (count - 1)).clamp(min=0)
    lower = rising[position.floor().long()]
    upper = rising[position.ceil().long()]
    found = lower + (upper - lower) * (position - position.floor()).float()
    return found.masked_fill(count == 0, torch.nan).unbind()
