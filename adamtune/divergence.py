"""When a training loss has diverged. Told here and nowhere else."""

from __future__ import annotations

import math

FACTOR = 4.0
"""How many times the first loss counts as diverged, if it stays there."""


class DivergenceWatch:
    """Reads one loss after another and says when the run has diverged.

    Diverged means: not finite, or above FACTOR times the first loss for `patience` steps on end. "Times the first" is
    measured on a scale, so that it also holds for losses that start near zero or below: the bar is
    first + (FACTOR - 1) * scale, where the scale is |first| or, if larger, how far the loss has fallen from the first.
    A run that starts at exactly zero and never falls has no scale; there only non-finite losses count.
    """

    def __init__(self, patience: int) -> None:
        """`patience` is in steps; see `patience_for`."""
        self._patience = patience
        self._first: float | None = None
        self._lowest = math.inf
        self._above = 0

    def state(self) -> tuple[float | None, float, int]:
        """What it has seen, for `restore`."""
        return self._first, self._lowest, self._above

    def restore(self, state: tuple[float | None, float, int]) -> None:
        """Go on from there."""
        self._first, self._lowest, self._above = state

    def diverged(self, loss: float) -> bool:
        """Take the next loss; whether the run has diverged with it."""
        if not math.isfinite(loss):
            return True
        if self._first is None:
            self._first = loss
        self._lowest = min(self._lowest, loss)
        scale = max(abs(self._first), self._first - self._lowest)
        high = scale > 0 and loss > self._first + (FACTOR - 1) * scale
        self._above = self._above + 1 if high else 0
        return self._above >= self._patience


def patience_for(horizon: int) -> int:
    """Steps a loss may stay high in a run of `horizon` steps: a twentieth, at least ten.

    Adam at a good learning rate often spikes for a few steps while its second moment fills.
    """
    return max(10, horizon // 20)
