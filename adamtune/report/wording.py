"""Values and results in words, the same in the terminal and in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(value: object) -> str:
    """A value as people read it: numbers with four digits, a warmup in steps as such, several keys as `at 0.8, ...`."""
    if isinstance(value, Mapping) and set(value) == {"steps"}:
        return f"{value['steps']} steps"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    return "-" if value is None else str(value)


def beside_values(stage: str, after: object, reason: str) -> str:
    """A stage's reason where the knob and the value it was changed to stand before it: they are not said again.

    `lr 0.09: better by evidence` becomes `: better by evidence`, and `beta1 0.8 at lr 0.02: better` becomes
    ` at lr 0.02: better`. A reason that begins otherwise is left whole, behind a comma.
    """
    exact = f"{after:g}" if isinstance(after, float) else number(after)  # as stages name it: six digits, not four
    for value in (exact, number(after)):
        rest = reason.removeprefix(f"{stage} {value}")
        if rest != reason and rest[:1] in (":", " "):
            return rest
    return f", {reason}"


def with_bounds(interval: Mapping[str, Any]) -> str:
    """`mean [low, high]` of an entry of result.json."""
    low, high = interval["ci95"]
    return f"{number(interval['mean'])} [{number(low)}, {number(high)}]"


def with_interval(measured: Mapping[str, Any]) -> str:
    """The same of `default` or `recommended`, with how many seeds it stands on."""
    if measured["mean"] is None:
        return without_mean(measured)
    return f"{with_bounds(measured)} over {measured['seeds']} fresh seeds"


def without_mean(measured: Mapping[str, Any]) -> str:
    """Why `default` or `recommended` has no mean: on how many seeds it diverged, or its metric is not finite."""
    diverged = measured["diverged"]
    counts = (("diverged", diverged), ("not finite", sum(value is None for value in measured["values"]) - diverged))
    told = " and ".join(f"{how} on {count}" for how, count in counts if count > 0)
    return f"{told} of {measured['seeds']} fresh seeds"


def steps_to(measured: Mapping[str, Any]) -> str:
    """After how many steps `time_to` was reached, the median over the fresh seeds; null in the JSON is never."""
    steps = measured.get("median_steps_to")
    return "never" if steps is None else f"{steps:,.0f} steps"
