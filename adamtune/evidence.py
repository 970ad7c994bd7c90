"""Paired statistics: whether a challenger is better than the incumbent, or only lucky."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Direction = Literal["minimize", "maximize"]

LEVEL = 0.95
"""Of every interval we state, two-sided."""

ERROR = 0.025
"""How often, at most, a sweep over knobs that do nothing may change any of them: the side of `LEVEL` on which a
challenger is better. All confirmations of a sweep share it."""

LOOKS = (3, 5, 8, 12)
"""Numbers of seeds after which a comparison may be decided. Few where the case is clear, more where it is not."""


class Verdict(StrEnum):
    """What a stage decided."""

    CHANGED = "changed"
    KEPT = "kept"
    MEASURED = "measured"
    """The stage asked for no change: it only measured."""
    UNASKED = "unasked"
    """The budget was spent before, or the answer could not have mattered; the reason says which."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and a 95% interval for it by Student's t; unbounded with fewer than two values."""

    mean: float
    low: float
    high: float
    count: int


def interval(values: Sequence[float], others: int | None = None) -> Interval:
    """Mean and 95% t interval of independent values; NaN when any value is not finite.

    The interval is for the true mean, or with `others` for the mean of so many other values, which scatters itself:
    95 of 100 such intervals hold it.
    """
    count = len(values)
    if not count or not all(map(math.isfinite, values)):
        return Interval(math.nan, math.nan, math.nan, count)
    mean = statistics.fmean(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    half = (
        _quantile(count - 1, 0.5 - LEVEL / 2)
        * statistics.stdev(values)
        * math.sqrt(1 / count + (1 / others if others else 0))
    )
    return Interval(mean, mean - half, mean + half, count)


@dataclass(frozen=True)
class Evidence:
    """Challenger against incumbent on the same seeds, none of which chose the challenger."""

    seeds: tuple[int, ...]
    incumbent: tuple[float, ...]
    """The objective by seed; NaN where the trial diverged or failed, or its metric is none."""
    challenger: tuple[float, ...]
    difference: Interval
    """Challenger minus incumbent, in units of the objective, over the seeds where both completed."""
    verdict: Verdict
    reason: str

    @property
    def tested(self) -> bool:
        """Whether Student's t has decided, which may err; where any trial diverged, that did."""
        return self.difference.count == len(self.seeds)


def share_of_error(comparison: int) -> float:
    """What the `comparison`-th of a sweep, from 1, may err by: ERROR / (k (k + 1)), which adds up to `ERROR`.

    Alpha-spending (Foster & Stine 2008): how many comparisons there will be need not be known, and the first, which
    asks for lr, gets half.
    """
    return ERROR / (comparison * (comparison + 1))


def weigh(
    seeds: Sequence[int],
    incumbent: Sequence[float],
    challenger: Sequence[float],
    direction: Direction,
    error: float = ERROR,
    ends: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Evidence:
    """Decide between two recipes from their results on the same seeds (common random numbers).

    The challenger wins only when Student's one-sided interval of the mean paired difference, which errs with
    probability `error`, lies wholly on the better side of zero; or when it completes on every seed, the incumbent
    diverges on some, and the challenger is no worse on the rest. The seeds must not have been used to pick the
    challenger: then one comparison is made, and no correction is due for how many candidates stood for selection.
    `ends` says of each trial of either how it ended, as in `failed`; without it those with no value have diverged.
    """
    if not len(seeds) == len(incumbent) == len(challenger):
        raise ValueError("one value a seed is needed on both sides")
    both = [(a, b) for a, b in zip(incumbent, challenger, strict=True) if math.isfinite(a) and math.isfinite(b)]
    difference = interval([b - a for a, b in both])
    sign = 1.0 if direction == "minimize" else -1.0
    gain = -sign * difference.mean
    saved, lost = (_lost(values, own) for values, own in zip((incumbent, challenger), ends or ((), ()), strict=True))
    count = len(seeds)

    def answer(verdict: Verdict, reason: str) -> Evidence:
        return Evidence(tuple(seeds), tuple(incumbent), tuple(challenger), difference, verdict, reason)

    if lost:
        return answer(Verdict.KEPT, f"the challenger {lost} of {count} seeds")
    if saved:
        if not both or gain >= 0:
            return answer(Verdict.CHANGED, f"the incumbent {saved} of {count} seeds, the challenger on none")
        return answer(Verdict.KEPT, "the challenger is worse on the seeds where the incumbent has a value")
    spread = f"{difference.mean:+.3g} [{difference.low:+.2g}, {difference.high:+.2g}] over {count} seeds"
    spread += _in_noise([b - a for a, b in both])
    if gain > _needed([b - a for a, b in both], error):
        return answer(Verdict.CHANGED, f"better by evidence: {spread}")
    return answer(Verdict.KEPT, f"no better by evidence: {spread}")


def _lost(values: Sequence[float], ends: Sequence[str]) -> str:
    """How the trials without a value ended, and on how many seeds each; empty where all have one."""
    without = Counter(
        end for value, end in zip(values, ends or ["diverged"] * len(values), strict=True) if not math.isfinite(value)
    )
    return " and ".join(f"{end} on {seeds}" for end, seeds in sorted(without.items()))


def settled(evidence: Evidence, direction: Direction, looks_left: Sequence[int], error: float) -> bool:
    """Whether more seeds are not worth their cost: the challenger has won, diverges, or is too little better.

    Too little: were the gain half as large again, with this noise and the most seeds there may be, it would still be no
    evidence at `error`. That ends a comparison in favour of the incumbent only, so it needs no share of the error.
    """
    both = [(a, b) for a, b in zip(evidence.incumbent, evidence.challenger, strict=True) if math.isfinite(a + b)]
    if evidence.verdict is not Verdict.KEPT or not looks_left or len(both) < len(evidence.seeds) or len(both) < 2:
        return True
    differences = [b - a for a, b in both]
    gain = -statistics.fmean(differences) * (1.0 if direction == "minimize" else -1.0)
    if gain <= 0:
        return True
    most = looks_left[-1]
    return 1.5 * gain < _quantile(most - 1, error) * statistics.stdev(differences) / math.sqrt(most)


def not_worse(evidence: Evidence, direction: Direction) -> bool:
    """Whether the challenger completed on every seed and the interval of the difference reaches zero or better."""
    if not all(map(math.isfinite, evidence.challenger)):
        return False
    return evidence.difference.low <= 0 if direction == "minimize" else evidence.difference.high >= 0


def settled_unless_worse(evidence: Evidence, direction: Direction, looks_left: Sequence[int], error: float) -> bool:
    """As `settled`, of a challenger that is taken unless it is worse: that it is, or is better, alone ends it early.

    Absence of evidence is not evidence of absence (Altman & Bland 1995): over three seeds one that is worse by twice
    the noise would pass more often than not. Each look may find an equal one worse, which errs for the incumbent.
    """
    return evidence.verdict is Verdict.CHANGED or not looks_left or not not_worse(evidence, direction)


def _needed(differences: Sequence[float], error: float) -> float:
    """The mean gain from which on these paired differences are evidence; inf with fewer than two."""
    count = len(differences)
    if count < 2:
        return math.inf
    return _quantile(count - 1, error) * statistics.stdev(differences) / math.sqrt(count)


def _quantile(freedom: int, error: float) -> float:
    from scipy.special import stdtrit  # half a second of import that `show` and `export` can do without

    return float(stdtrit(freedom, 1.0 - error))


def _in_noise(differences: Sequence[float]) -> str:
    """The effect on the scale of the noise that is left between seeds after pairing."""
    noise = statistics.stdev(differences) if len(differences) > 1 else 0.0
    if not noise:
        return ""
    times = abs(statistics.fmean(differences)) / noise
    return f", {f'{times:.1f}' if times < 1000 else 'over 1,000'} times the noise between seeds"
