"""A curve in one line of text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.:-=+*#"
"""Eight heights, the lowest first."""


def binned(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values: means over stretches of equal length; NaN where none of a stretch is finite."""
    count = min(width, len(values))
    ends = [len(values) * place // count for place in range(count + 1)] if count else []
    means = []
    for start, end in itertools.pairwise(ends):
        finite = [value for value in values[start:end] if math.isfinite(value)]
        means.append(math.fsum(finite) / len(finite) if finite else math.nan)
    return means


def sparkline(values: Sequence[float], low: float, high: float, blocks: str = BLOCKS) -> str:
    """One character a value: its height between `low` and `high`, on a log scale where both are positive.

    What lies beyond them is drawn as high or low as can be, and what is not finite as `x`.
    """
    if low > 0 and high > low:
        values = [math.log(value) if value > 0 else (-math.inf if value <= 0 else math.nan) for value in values]
        low, high = math.log(low), math.log(high)

    def drawn(value: float) -> str:
        if math.isnan(value) or value == math.inf:
            return "x"
        share = (value - low) / (high - low) if high > low else 0.0
        return blocks[round(min(1.0, max(0.0, share)) * (len(blocks) - 1))]

    return "".join(map(drawn, values))
