"""Plants: frozen groups, few that dominate, v behind a burst, the size of eps."""

from __future__ import annotations

from adamtune.recipe import GroupRule, Kind, Match, Recipe
from benchmarks.planted import Plant, Training
from benchmarks.planted_tasks import tuned


def _slow(lr: float, kind: Kind) -> Recipe:
    """A thousandth of lr for one kind of parameters."""
    return Recipe(lr=lr, groups=(GroupRule(name=kind, match=Match(kind=(kind,)), lr_mult=1e-3),))


_EARLY = (1, 2, 5, 10)
"""A training that underflows may diverge within a few steps."""

PLANTS = [
    Plant("frozen-group", "lr 1000x too small", Training("digits", tuned(1e-5), 200)),
    Plant("frozen-group", "lr 300x too small", Training("chars", tuned(1e-5), 100)),
    Plant("frozen-group", "lr_mult 0.001", Training("digits", _slow(1e-2, "rest"), 200)),
    Plant("frozen-group", "lr_mult 0.001", Training("chars", _slow(3e-3, "embedding"), 100)),
    Plant("few-dominate", "lr 10x too large", Training("digits", tuned(0.1), 200)),
    Plant("few-dominate", "lr 10x too large", Training("digits-cnn", tuned(0.1), 150)),
    Plant("v-hat-lag", "burst", Training("digits, inputs of batch 20 x1000", tuned(1e-2), 200)),
    Plant("v-hat-lag", "burst", Training("chars, batch 20 weighs x1000", tuned(3e-3), 150)),
    Plant("eps-size", "eps 0.01", Training("digits", tuned(1e-2).with_knob("eps", 1e-2), 200)),
    Plant("eps-size", "eps 0.01", Training("digits-cnn", tuned(1e-2).with_knob("eps", 1e-2), 120)),
    Plant("eps-size", "eps 0.1", Training("chars", tuned(3e-3).with_knob("eps", 1e-1), 100)),
    Plant("eps-size", "eps 1e-6", Training("digits in fp16", tuned(3e-3).with_knob("eps", 1e-6), 60, _EARLY)),
    Plant("eps-size", "eps 1e-6", Training("chars in fp16", tuned(3e-3).with_knob("eps", 1e-6), 60, _EARLY)),
    Plant("nonfinite-state", "overflow of v", Training("digits, batch 20 weighs x1e22", tuned(1e-2), 200)),
    Plant("nonfinite-state", "overflow of v", Training("chars, batch 20 weighs x1e22", tuned(3e-3), 100)),
]
