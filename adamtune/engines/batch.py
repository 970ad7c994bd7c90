"""What an engine is, and a batch of trials that it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from adamtune.history import RungReport, TrialRequest, TrialResult


class TrialBatch(Protocol):
    """Trials that train side by side and meet at rungs; whoever opened it decides who goes on."""

    def advance(self, to_step: int, evaluate: bool = True) -> list[RungReport | None]:
        """Train every trial that still runs to `to_step`; one report each, None for those that have ended."""
        ...

    def prune(self, index: int) -> None:
        """End trial `index` of the batch."""
        ...

    def results(self) -> list[TrialResult]:
        """How the trials ended, in the order they were asked for; those still running count as pruned."""
        ...


class Engine(Protocol):
    """Trains batches of trials of one task."""

    name: str

    def open(self, requests: Sequence[TrialRequest]) -> TrialBatch:
        """Start the trials, untrained."""
        ...

    def facts(self) -> dict[str, Any]:
        """How trials are trained and what was measured to choose it, as plain data."""
        ...

    def close(self) -> None:
        """End what the engine keeps running; no batch of it can be used any more."""
        ...
