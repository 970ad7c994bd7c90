"""How the objective responds to lr: the trials at one horizon, and the best lr between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from adamtune.history import Outcome


@dataclass(frozen=True)
class Response:
    """Mean objective by learning rate at one horizon, as losses (lower is better); inf where a seed diverged."""

    horizon: int
    lrs: tuple[float, ...]
    scores: tuple[float, ...]
    outcomes: tuple[Outcome, ...] = ()
    """How the trials at each lr ended, the worst over seeds; empty where that is not known."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for an answer's details."""
        outcomes = list(map(str, self.outcomes))
        return {"horizon": self.horizon, "lrs": list(self.lrs), "scores": list(self.scores), "outcomes": outcomes}

    @property
    def best(self) -> int:
        """Index of the lowest score; the first where all diverged.

        Of equal ones it is the largest lr: one too small to do anything has its equals below.
        """
        lowest = min(self.scores)
        return max(place for place, score in enumerate(self.scores) if score == lowest) if lowest < math.inf else 0

    @property
    def at_low_end(self) -> bool:
        """Whether the best is the smallest lr tried, so that the optimum may lie below."""
        return self.best == 0

    @property
    def at_high_end(self) -> bool:
        """Whether the best is the largest lr tried."""
        return self.best == len(self.lrs) - 1


def optimum(response: Response) -> float:
    """The lr at the bottom of `parabola`; where there is nothing to fit, the best one tried."""
    fit = parabola(response)
    return float(10 ** fit[0]) if fit else response.lrs[response.best]


def parabola(response: Response) -> tuple[float, float] | None:
    """log10 of the lr at the minimum of a parabola through the best point and its neighbours, and its curvature.

    It runs in log lr and, where losses are positive, log loss, since they rise by factors on either side of the best:
    it then names the best better (median regret 1.022 instead of 1.025 for half decades on `benchmarks.lr_tasks`). The
    curvature is the loss's rise a decade squared. None where a neighbour is missing (an end) or diverged.
    """
    at = response.best
    if response.at_low_end or response.at_high_end:
        return None
    x = [math.log10(response.lrs[k]) for k in (at - 1, at, at + 1)]
    y = [response.scores[k] for k in (at - 1, at, at + 1)]
    if not all(map(math.isfinite, y)):
        return None
    if min(y) > 0:
        y = list(map(math.log, y))
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (right - left) / (x[2] - x[0])
    if curvature <= 0:
        return None
    bottom = (x[0] + x[1]) / 2 - left / (2 * curvature)
    return min(max(bottom, x[0]), x[2]), curvature
