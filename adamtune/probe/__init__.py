"""What Adam really does: percentiles of its state, per named param group."""

from __future__ import annotations

from adamtune.probe.adam_probe import PERCENTILES, AdamProbe
from adamtune.probe.sample import SAMPLE

__all__ = ["PERCENTILES", "SAMPLE", "AdamProbe"]
