"""Paired statistics: whether a challenger is better than the incumbent, or only lucky."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Direction = Literal["minimize", "maximize"]

LEVEL = 0.95
"""Of every interval we state, two-sided."""


class Verdict(StrEnum):
    """What a stage decided."""

    CHANGED = "changed"
    KEPT = "kept"
    MEASURED = "measured"
    """The stage asked for no change: it only measured."""
    UNASKED = "unasked"
    """The budget was spent before."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and Student's 95% interval for it; unbounded with fewer than two values."""

    mean: float
    low: float
    high: float
    count: int


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95% t interval of independent values; NaN when any value is not finite."""
    count = len(values)
    if not count or not all(map(math.isfinite, values)):
        return Interval(math.nan, math.nan, math.nan, count)
    mean = statistics.fmean(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    from scipy.special import stdtrit  # half a second of import that `show` and `export` can do without

    quantile = float(stdtrit(count - 1, 0.5 + LEVEL / 2))
    half = quantile * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


@dataclass(frozen=True)
class Evidence:
    """Challenger against incumbent on the same seeds, none of which chose the challenger."""

    seeds: tuple[int, ...]
    incumbent: tuple[float, ...]
    """The objective by seed; NaN where the trial diverged."""
    challenger: tuple[float, ...]
    difference: Interval
    """Challenger minus incumbent, in units of the objective, over the seeds where both completed."""
    verdict: Verdict
    reason: str


def weigh(
    seeds: Sequence[int], incumbent: Sequence[float], challenger: Sequence[float], direction: Direction
) -> Evidence:
    """Decide between two recipes from their results on the same seeds (common random numbers).

    The challenger wins only when the 95% interval of the mean paired difference lies wholly on the better side of zero,
    or when it completes on every seed, the incumbent diverges on some, and the challenger is no worse on the rest. The
    seeds must not have been used to pick the challenger: then one comparison is made, and no correction is due for how
    many candidates stood for selection.
    """
    if not len(seeds) == len(incumbent) == len(challenger):
        raise ValueError("one value a seed is needed on both sides")
    both = [(a, b) for a, b in zip(incumbent, challenger, strict=True) if math.isfinite(a) and math.isfinite(b)]
    difference = interval([b - a for a, b in both])
    sign = 1.0 if direction == "minimize" else -1.0
    worst, gain = max(sign * difference.low, sign * difference.high), -sign * difference.mean
    lost = sum(not math.isfinite(value) for value in challenger)
    saved = sum(not math.isfinite(value) for value in incumbent)
    count = len(seeds)

    def answer(verdict: Verdict, reason: str) -> Evidence:
        return Evidence(tuple(seeds), tuple(incumbent), tuple(challenger), difference, verdict, reason)

    if lost:
        return answer(Verdict.KEPT, f"the challenger diverged on {lost} of {count} seeds")
    if saved:
        if not both or gain >= 0:
            return answer(
                Verdict.CHANGED, f"the incumbent diverged on {saved} of {count} seeds, the challenger on none"
            )
        return answer(Verdict.KEPT, "the challenger is worse on the seeds where the incumbent did not diverge")
    spread = f"{difference.mean:+.3g} [{difference.low:+.2g}, {difference.high:+.2g}] over {count} seeds"
    if worst < 0:
        return answer(Verdict.CHANGED, f"better by evidence: {spread}")
    return answer(Verdict.KEPT, f"no better by evidence: {spread}")
