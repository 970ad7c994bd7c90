"""What former searches teach: in which order to try again what they tried. It proposes only; evidence decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adamtune.search.prior import Prior

_COVERING = 12
"""Points chosen because they serve tasks that the ones before do not; a dozen serve any family of tasks we have seen.
What comes after is ordered by how well it did in the mean."""

_MEAN_WEIGHT = 0.3
"""Weight of a point's mean regret beside what it adds to those chosen before: where two points add alike, the one that
does well everywhere. Anything from 0.1 to 1 does as well in `benchmarks.replay`; 0 does worse."""

NEAR = 0.5
"""Standard deviations of the prior within which a point counts as having been tried."""


@dataclass(frozen=True)
class KnownTask:
    """What a former search measured on one task."""

    points: Sequence[Mapping[str, float]]
    """Knob values tried."""
    regrets: Sequence[float]
    """By point: its loss above the lowest, as a share of what there was to gain there. 0 is the best, 1 no gain."""


def ordered(known: Sequence[KnownTask], prior: Prior) -> list[Mapping[str, float]]:
    """All distinct points tried on the `known` tasks, in the order in which to try them on a new one.

    The first ones are a greedy cover: each lowers the mean over the tasks of the lowest regret so far the most
    (the ordered portfolios of Feurer et al. 2020, "Auto-sklearn 2.0", and Metz et al. 2020, "Using a thousand
    optimization tasks"). A point has on every task the regret of the nearest point tried there, and 1 where none is
    near; among equals the one the `prior` believes in more comes first.
    """
    known = [task for task in known if task.points]
    points = list({tuple(sorted(point.items())): point for task in known for point in task.points}.values())
    if not points:
        return []
    regrets = np.stack([_regrets(points, task, prior) for task in known])
    doubt = -1e-9 * np.array([max(prior.log_density(point), -1e3) for point in points])
    mean = regrets.mean(axis=0) + doubt
    best = np.ones(len(known))
    chosen: list[int] = []
    while len(chosen) < min(_COVERING, len(points)):
        scores = np.minimum(best[:, None], regrets).mean(axis=0) + _MEAN_WEIGHT * mean + doubt
        scores[chosen] = np.inf
        chosen.append(int(np.argmin(scores)))
        best = np.minimum(best, regrets[:, chosen[-1]])
    others = [int(place) for place in np.argsort(mean, kind="stable") if int(place) not in set(chosen)]
    return [points[place] for place in chosen + others]


def _regrets(points: Sequence[Mapping[str, float]], task: KnownTask, prior: Prior) -> NDArray[np.float64]:
    """By point: the regret of the nearest point tried on the task; 1 where none is near."""

    def placed(some: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
        rows = [[b.knob.to_unit(p[b.knob.name]) / b.deviation for b in prior.beliefs] for p in some]
        return np.array(rows, dtype=np.float64)

    here, there, regrets = placed(points), placed(task.points), np.clip(np.asarray(task.regrets, float), 0.0, 1.0)
    found = np.ones(len(points))
    for place, row in enumerate(here):
        squares = ((there - row) ** 2).sum(axis=1)
        nearest = int(np.argmin(squares))
        if squares[nearest] <= NEAR**2:
            found[place] = regrets[nearest]
    return found
