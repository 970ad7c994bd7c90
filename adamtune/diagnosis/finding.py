"""What a rule concludes from a training: a Finding, with what to do about it; and what it may look at: Observed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from adamtune.probe.frame import parts
from adamtune.recipe import Kind, Recipe

Record = Mapping[str, float]
"""What the probe measured at one step; see `adamtune.probe.AdamProbe`."""


class Severity(StrEnum):
    """How much a finding matters."""

    NOTE = "note"
    """Worth knowing; healthy trainings show it too."""
    WARNING = "warning"
    """Something to mend: where it was planted, its remedy lowered the final loss."""


@dataclass(frozen=True)
class Finding:
    """One thing a rule saw, with its remedy."""

    rule: str
    severity: Severity
    told: str
    """What was seen, in one sentence with its numbers."""
    advice: str
    """What to do about it, in one sentence."""
    group: str | None = None
    """The param group concerned; None for the whole training."""
    remedy: Mapping[str, Any] = field(default_factory=dict)
    """The recipe change: knob -> value, as `Recipe.with_knob` takes them; empty where none is known to help."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """The numbers the condition was judged by."""


@dataclass(frozen=True)
class Rule:
    """One way in which Adam can go wrong, or what is worth knowing about it."""

    name: str
    condition: str
    """When it is raised, in words, with its thresholds."""
    source: str
    """Where condition and remedy come from: a paper with its section or equation, or our own measurement."""
    find: Callable[[Observed], Iterable[Finding]]


@dataclass(frozen=True)
class Observed:
    """What is known of one training. Any part may be missing, and a rule that lacks what it needs finds nothing."""

    records: Sequence[tuple[int, Record]] = ()
    """What the probe measured after which optimizer step, in order."""
    recipe: Recipe | None = None
    horizon: int | None = None
    """Optimizer steps the training was planned for."""
    train_losses: Sequence[float] = ()
    """Of every step from the first; NaN where fp16 skipped the update."""
    validation: Sequence[tuple[int, float]] = ()
    """Validation loss after which step."""
    kinds: Mapping[str, tuple[Kind, ...]] = field(default_factory=dict)
    """Kinds of parameters in each param group."""

    @property
    def groups(self) -> list[str]:
        """Names of the param groups that the probe saw, in its order."""
        return list({parts(key)[0]: None for _, record in self.records for key in record})

    def series(self, group: str, statistic: str, percentile: int | None = None) -> list[tuple[int, float]]:
        """(step, value) of one statistic of a group, where it was measured; NaN says that nothing was there."""
        key = f"{group}/{statistic}" + (f"/p{percentile}" if percentile is not None else "")
        values = ((step, record.get(key, math.nan)) for step, record in self.records)
        return [(step, value) for step, value in values if not math.isnan(value)]
