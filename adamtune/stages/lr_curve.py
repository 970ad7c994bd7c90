"""Reading the loss curve of a range test: smoothing, the band where it falls, the known suggestion rules. Pure."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

FALL_BEGINS = 0.1
"""The band begins where a tenth of the whole fall has happened, which noise alone rarely reaches."""

NOISE_FACTOR = 3.0
"""A fall counts only when it is this many times the scatter that smoothing leaves."""


class RangeStatus(StrEnum):
    """What a range test says."""

    OK = "ok"
    FLAT = "flat"
    DIVERGING = "diverging"


@dataclass(frozen=True)
class RangeCurve:
    """A range test read: one point a step, up to where the first of the seeds stopped."""

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed training loss, median over seeds."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """Smallest and largest over seeds."""
    status: RangeStatus
    reason: str
    band: tuple[float, float] | None
    """Learning rates between which the loss falls all the way; None unless status is ok."""
    suggestions: Mapping[str, float]
    """By rule: `steepest` (slope against log lr), `valley` (fastai), `minimum/10`, and `lowest`, where the loss is
    lowest once the lag of the smoothing is taken off; empty unless status is ok."""


def smooth(losses: Sequence[float], window: float) -> list[float]:
    """Exponential moving average over about `window` steps, with Adam's bias correction; NaN is skipped over."""
    beta = 1.0 - 1.0 / max(1.0, window)
    mean, weight = 0.0, 0.0
    smoothed = []
    for loss in losses:
        if math.isfinite(loss):
            mean = beta * mean + (1 - beta) * loss
            weight = beta * weight + (1 - beta)
        smoothed.append(mean / weight if weight else math.nan)
    return smoothed


def read_curve(lrs: Sequence[float], curves: Sequence[Sequence[float]], window: float) -> RangeCurve:
    """Read the training losses of a ramp over `lrs`, one curve a seed; curves may end early.

    `window` is the smoothing length in steps. The average lags by about that much, so every lr read off the curve is
    that of `window` - 1 steps before: the lr that caused the loss seen.
    """
    length = min(map(len, curves))
    if length == 0 or not any(math.isfinite(loss) for curve in curves for loss in curve[:1]):
        return _no_band(lrs[:0], [], RangeStatus.DIVERGING, "the loss is not finite at the very first step")
    smoothed = [smooth(curve[:length], window) for curve in curves]
    losses = [statistics.median(column) for column in zip(*smoothed, strict=True)]
    lag = round(window - 1)
    lrs = list(lrs[:length])
    lowest = min(range(length), key=losses.__getitem__)
    top = max(losses[: lowest + 1])
    fall = top - losses[lowest]
    noise = statistics.median(_scatter(curve[: lowest + 1], window) for curve in curves)
    if length < 10 or lowest < 2:
        return _no_band(lrs, smoothed, RangeStatus.DIVERGING, "the loss rises from the very start of the ramp")
    if not fall > NOISE_FACTOR * noise / math.sqrt(len(curves)):
        reason = f"the loss never falls clearly: by {fall:.3g} at most, with a scatter of {noise:.2g}"
        return _no_band(lrs, smoothed, RangeStatus.FLAT, reason)
    begin = max(at for at in range(lowest + 1) if losses[at] >= top - FALL_BEGINS * fall)

    def caused(at: int) -> float:
        return lrs[max(0, at - lag)]

    slopes = [losses[min(at + 1, length - 1)] - losses[max(at - 1, 0)] for at in range(lowest + 1)]
    return RangeCurve(
        lrs=tuple(lrs),
        losses=tuple(losses),
        low=tuple(map(min, zip(*smoothed, strict=True))),
        high=tuple(map(max, zip(*smoothed, strict=True))),
        status=RangeStatus.OK,
        reason=f"the loss falls from {losses[begin]:.3g} to {losses[lowest]:.3g}",
        band=(caused(begin), caused(lowest)),
        suggestions={
            "steepest": caused(min(range(len(slopes)), key=slopes.__getitem__)),
            "valley": caused(_valley(losses)),
            "minimum/10": caused(lowest) / 10,
            "lowest": caused(lowest),
        },
    )


def _no_band(lrs: Sequence[float], smoothed: Sequence[Sequence[float]], status: RangeStatus, reason: str) -> RangeCurve:
    columns = list(zip(*smoothed, strict=True))
    return RangeCurve(
        lrs=tuple(lrs),
        losses=tuple(statistics.median(column) for column in columns),
        low=tuple(map(min, columns)),
        high=tuple(map(max, columns)),
        status=status,
        reason=reason,
        band=None,
        suggestions={},
    )


def _scatter(losses: Sequence[float], window: float) -> float:
    """Standard deviation of a `window`-step average, from the differences of neighbouring losses.

    The variance of an exponential average of independent noise is that of the noise over 2 * window - 1.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < 3:
        return math.inf
    steps = [after - before for before, after in itertools.pairwise(finite)]
    noise = 1.4826 * statistics.median(map(abs, steps)) / math.sqrt(2)  # from the median absolute deviation
    return noise / math.sqrt(max(1.0, 2 * window - 1))


def _valley(losses: Sequence[float]) -> int:
    """The middle of the longest (not necessarily unbroken) falling run, as fastai's lr_find suggests by default."""
    tails: list[float] = []  # of the falling runs of each length so far: the highest last loss, negated
    last: list[int] = []
    parent: list[int] = []
    for at, loss in enumerate(losses):
        place = bisect.bisect_left(tails, -loss)
        tails[place : place + 1] = [-loss]
        last[place : place + 1] = [at]
        parent.append(last[place - 1] if place else -1)
    end = start = last[-1]
    while parent[start] >= 0:
        start = parent[start]
    return (start + end) // 2
