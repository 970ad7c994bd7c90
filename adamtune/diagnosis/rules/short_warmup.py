"""Warmup too short: the first full steps throw the loss above where it began."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import rounded
from adamtune.recipe import Recipe
from adamtune.schedule import warmup_steps

NAME = "short-warmup"

SPIKE = 0.5
"""By what share of the first loss a later one must exceed it. Without warmup, at two to six times the best lr, digits
rose by 1.3 to 9 times the first loss; tuned trainings of thirteen tasks by at most 0.1."""

NOISE = 5.0
"""By how many median differences between successive losses it must exceed it too: losses of small batches differ."""

AFTER = 10
"""Steps after warmup in which a spike is laid to it: what m remembers at beta1 0.9. Later ones have another cause."""

EARLY, SHARE = 100, 0.1
"""A spike is early within so many steps, or this share of the run if that is more."""

ENOUGH = 0.1
"""The remedy's warmup, of the run. Without warmup at too large an lr, 0.05, 0.1 and 0.2 all lowered the loss; 0.1 did
best or within noise of it. Where warmup is as long already, lr is too large."""

LESS = 0.3
"""What lr is then multiplied by: a CNN on digits with 10% warmup at ten times the best lr came from 0.33 to 0.10."""


def _find(observed: Observed) -> Iterator[Finding]:
    recipe, horizon, losses = observed.recipe, observed.horizon, observed.train_losses
    if recipe is None or not horizon or not losses or not math.isfinite(losses[0]):
        return
    ending = min(warmup_steps(recipe.schedule, horizon) + AFTER, max(EARLY, round(SHARE * horizon)))
    early = [(loss, step) for step, loss in enumerate(losses[:ending], start=1) if math.isfinite(loss)]
    peak, step = max(early)
    rise = peak - losses[0]
    if rise <= SPIKE * abs(losses[0]) or rise <= NOISE * _noise(losses[ending:]):
        return
    remedy, advice = _remedy(recipe, horizon)
    yield Finding(
        NAME,
        Severity.WARNING,
        f"the training loss jumped from {losses[0]:.3g} to {peak:.3g} at step {step}, as lr came to its full size",
        advice,
        None,
        remedy,
        {"first": losses[0], "peak": peak, "step": float(step)},
    )


def _noise(losses: Sequence[float]) -> float:
    """The median difference between successive losses; 0 where none follow."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    differences = [abs(there - here) for here, there in pairwise(finite)]
    return median(differences) if differences else 0.0


def _remedy(recipe: Recipe, horizon: int) -> tuple[dict[str, Any], str]:
    share = warmup_steps(recipe.schedule, horizon) / horizon
    if share < ENOUGH:
        return {"warmup": ENOUGH}, f"warm up over {ENOUGH:.0%} of the run instead of {share:.2g}"
    lr = rounded(recipe.lr * LESS)
    return {"lr": lr}, f"lower lr from {recipe.lr:g} to {lr:g}: warmup is long already"


RULE = Rule(
    NAME,
    f"until {AFTER} steps after warmup, and within the first {EARLY} steps or {SHARE:g} of the run, the training loss "
    f"rises above the first one by more than {SPIKE:g} of it and {NOISE:g} times the usual difference between steps",
    "Google's tuning playbook (warmup mends early instability); thresholds and remedy: own measurement",
    _find,
)
