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

FALLS_BEYOND = 4.5
"""Standard errors by which some stretch of the ramp must lie below its beginning before that counts as a fall. Some
hundred stretches are looked at, so noise alone reaches 3 or so; of 200 ramps of pure noise, 20 to 300 steps long, one
or two pass 4.5."""

_FEWEST = 10
"""Steps of a ramp that can be read at all."""

CLEAR_FALL = 0.05
"""A fall of this share of the first loss would be one worth seeing: hidden by noise it is `noisy`, absent `flat`."""


class RangeStatus(StrEnum):
    """What a range test says."""

    OK = "ok"
    FLAT = "flat"
    NOISY = "noisy"
    """The loss scatters too much, or the seeds differ too much, to tell where it falls."""
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
    """Learning rates between which the loss of every seed falls; None unless status is ok."""
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
    if length < _FEWEST:
        return _no_band(
            lrs,
            smoothed,
            RangeStatus.DIVERGING,
            f"the loss breaks away after {length} steps: is there NaN in the data?",
        )
    means = [math.fsum(column) / len(column) for column in zip(*(curve[:length] for curve in curves), strict=True)]
    # Up to the lowest loss, but from half the ramp at least: how it breaks away at its end is no noise.
    noise = _noise(means[: max(lowest + 1, length // 2)])
    if not _falls(means, noise):
        if _falls([-loss for loss in means[: length // 2]], noise):
            return _no_band(lrs, smoothed, RangeStatus.DIVERGING, "the loss only rises along the ramp")
        return _no_band(lrs, smoothed, *_why_no_fall(losses, lowest, noise, window))

    def caused(at: int) -> float:
        return lrs[max(0, at - lag)]

    ends = [_fall(curve) for curve in smoothed]
    begin, end = max(first for first, _ in ends), min(last for _, last in ends)
    if begin >= end:
        reason = (
            f"the seeds differ: one falls only until lr {caused(end):.2g}, another only from {caused(begin):.2g} on"
        )
        return _no_band(lrs, smoothed, RangeStatus.NOISY, f"{reason}; take more steps")
    slopes = [losses[min(at + 1, length - 1)] - losses[max(at - 1, 0)] for at in range(lowest + 1)]
    return RangeCurve(
        lrs=tuple(lrs),
        losses=tuple(losses),
        low=tuple(map(min, zip(*smoothed, strict=True))),
        high=tuple(map(max, zip(*smoothed, strict=True))),
        status=RangeStatus.OK,
        reason=f"the loss falls from {max(losses[: lowest + 1]):.3g} to {losses[lowest]:.3g}",
        band=(caused(begin), caused(end)),
        suggestions={
            "steepest": caused(min(range(len(slopes)), key=slopes.__getitem__)),
            "valley": _valley(lrs, means),
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


def _fall(smoothed: Sequence[float]) -> tuple[int, int]:
    """Where one seed's fall begins, a tenth of it done, and where it is lowest."""
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    top = max(smoothed[: lowest + 1])
    bar = top - FALL_BEGINS * (top - smoothed[lowest])
    return max(at for at in range(lowest + 1) if smoothed[at] >= bar), lowest


def _noise(losses: Sequence[float]) -> float:
    """Standard deviation of one loss, from the differences of neighbours, so that a slow fall counts for nothing.

    By the median absolute deviation, so that a spike counts for little.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    steps = [abs(after - before) for before, after in itertools.pairwise(finite)]
    return 1.4826 * statistics.median(steps) / math.sqrt(2) if steps else math.inf


def _falls(losses: Sequence[float], noise: float) -> bool:
    """Whether some stretch of the losses lies clearly below those before it: a scan over stretches of every length.

    A stretch is compared with the first half of what comes before it, where the ramp's lr is still too small to matter.
    """
    sums = list(itertools.accumulate(losses, initial=0.0))
    length = 2
    while length <= len(losses) // 3:
        for start in range(4, len(losses) - length + 1, max(1, length // 4)):
            before = start // 2
            drop = sums[before] / before - (sums[start + length] - sums[start]) / length
            if drop > FALLS_BEYOND * noise * math.sqrt(1 / before + 1 / length) and drop > 1e-9 * abs(losses[0]):
                return True
        length *= 2
    return False


def _why_no_fall(losses: Sequence[float], lowest: int, noise: float, window: float) -> tuple[RangeStatus, str]:
    fall = max(losses[: lowest + 1]) - losses[lowest]
    told = f"the loss never falls clearly: by {fall:.3g} at most, where one step's loss scatters by {noise:.2g}"
    if FALLS_BEYOND * noise / math.sqrt(2 * window) < CLEAR_FALL * abs(losses[0]):
        return (
            RangeStatus.FLAT,
            f"{told}; nothing is learned at any of these learning rates: do inputs and labels belong together?",
        )
    return RangeStatus.NOISY, f"{told}; take more steps, more seeds or larger batches"


def _valley(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """The middle of the longest (not necessarily unbroken) falling run, as fastai's lr_find suggests by default.

    With fastai's own smoothing (0.98 a step) and margins (a tenth of the steps at the start, five at the end).
    """
    first, last = len(losses) // 10, max(len(losses) // 10 + 1, len(losses) - 5)
    falling = _longest_fall(smooth(losses, 50)[first:last])
    return lrs[first + falling[len(falling) // 2]]


def _longest_fall(losses: Sequence[float]) -> list[int]:
    """Places of the longest strictly falling subsequence (patience sorting)."""
    tails: list[float] = []  # of the falling runs of each length so far: the highest last loss, negated
    ends: list[int] = []
    parent: list[int] = []
    for at, loss in enumerate(losses):
        place = bisect.bisect_left(tails, -loss)
        tails[place : place + 1] = [-loss]
        ends[place : place + 1] = [at]
        parent.append(ends[place - 1] if place else -1)
    run = [ends[-1]]
    while parent[run[-1]] >= 0:
        run.append(parent[run[-1]])
    return run[::-1]
