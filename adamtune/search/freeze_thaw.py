"""Which of many half-trained recipes to train on next, and when to start another: a freeze-thaw search.

Every proposal has a learning curve. One unit of training at a time goes to the curve that promises to end lowest, and
the others are left frozen where they are (Swersky, Snoek & Adams 2014, "Freeze-Thaw Bayesian Optimization"). Their
surrogate over curves and knobs is replaced by a straight line: a curve goes on falling by what it fell in its later
half, a doubling of its length for a doubling. A regression of the promise on the knobs, used to choose what to start
next, gained nothing over the order of the proposals in `benchmarks.replay`, and was left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

GROWTH = 0.8
"""After what n whole curves cost, about breadth * n ** GROWTH proposals have been started."""

BREADTH = 9.0
"""For proposals in the order of a prior: 27 started after what four whole curves cost, 99 after twenty."""

TRUSTED_BREADTH = 5.7
"""For proposals that did well on tasks like this one: fewer are started, and they get further."""

FIRST = 0.16
"""Of its curve, what the first proposal gets before it is judged; the k-th gets FIRST / sqrt(k), and at least two
units. A slow starter needs it, and the earlier a proposal comes the more it is believed to be good. In
`benchmarks.replay` half or twice as much does a little worse."""

_FIRST_AT_LEAST = 2


class FreezeThaw:
    """Allots units of training to proposals, which are numbered in the order in which they should be started.

    Ask `next`, train that proposal for one more unit, `tell` its loss; as often as can be paid for. What it chooses
    does not depend on how long the search will go on.
    """

    def __init__(self, proposals: int, length: int, breadth: float = BREADTH) -> None:
        """`proposals` there are at most, each `length` units long."""
        if proposals < 1 or length < 1:
            raise ValueError(f"needs a proposal and a unit to train it, not {proposals} and {length}")
        self._proposals, self._length, self._breadth = proposals, length, breadth
        self._curves: list[list[float]] = []
        self._promises: list[float] = []
        self._units = 0
        self._due = 0
        """Units that the proposal started last still gets unjudged."""

    @property
    def started(self) -> int:
        """How many proposals have been started: the first so many."""
        return len(self._curves)

    def running(self, proposal: int) -> bool:
        """Whether a proposal that was started has neither diverged nor reached its end."""
        return math.isfinite(self._promises[proposal])

    @property
    def promising(self) -> int | None:
        """Of those started and not at their end, the one that promises to end lowest; None when there is none."""
        best = min(range(self.started), key=self._promises.__getitem__, default=None)
        return best if best is not None and math.isfinite(self._promises[best]) else None

    def next(self) -> int | None:
        """The proposal to train for one more unit, a new one if it equals `started`; None when nothing is left."""
        if self._due:
            return self.started - 1
        more = self.started < self._proposals
        if more and self.started < max(1.0, self._breadth * (self._units / self._length) ** GROWTH):
            return self.started
        best = self.promising
        return self.started if best is None and more else best

    def tell(self, proposal: int, loss: float, untrained: float = math.inf) -> None:
        """The loss (lower is better) of `proposal` after one more unit; one that is not finite ends it.

        `untrained` is the loss before any training, where it is known; it is read with a proposal's first unit.
        """
        if proposal == self.started:
            self._curves.append([untrained if math.isfinite(untrained) else loss])
            self._promises.append(math.inf)
            self._due = max(_FIRST_AT_LEAST, round(FIRST * self._length / math.sqrt(proposal + 1)))
        curve = self._curves[proposal]
        curve.append(loss)
        self._units += 1
        ended = not math.isfinite(loss) or len(curve) > self._length
        self._promises[proposal] = math.inf if ended else extrapolated(curve, self._length)
        if proposal == self.started - 1 and self._due:
            self._due = 0 if ended else self._due - 1


def extrapolated(curve: Sequence[float], length: int) -> float:
    """The lowest loss that a curve, given from before training on, should reach by `length` units.

    Losses fall about as much in every doubling of the training. So the fall of the lowest loss over the later half of
    the curve, for log(length), goes on to the end; a curve that no longer falls promises what it has reached.
    """
    last = len(curve) - 1
    middle = last - max(1, round(last / 2))
    now, before = min(curve), min(curve[: middle + 1])
    slope = (before - now) / math.log((last + 1) / (middle + 1))
    return now - slope * math.log((length + 1) / (last + 1))
