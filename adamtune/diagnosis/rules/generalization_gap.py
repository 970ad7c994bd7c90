"""Generalisation gap: the validation loss rises while the training loss falls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import FEWEST_RECORDS, rounded
from adamtune.recipe import Recipe

NAME = "generalization-gap"

RISE = 0.1
"""Share of what the validation loss had gained, from the first training loss on, that it has lost again at the end.
Small GPTs on a thousand characters 0.34 to 0.42, diabetes on a hundred rows 0.3 to 0.6; tuned trainings below 0.01."""

LEARNED = 0.05
"""Share of the first training loss that must have been gained: below it, rise and gain are both noise."""

DECAY = 3.0
"""The remedy's lr * weight_decay * horizon: weights then forget within a third of the run, as lr stands at its peak.
Beside it a third of lr lowered the loss as much, on average over five trainings on few data."""

LESS = 0.3
"""What lr is multiplied by where decay is as large already, or is not decoupled (`adam`)."""


def _find(observed: Observed) -> Iterator[Finding]:
    validation = [(step, loss) for step, loss in observed.validation if math.isfinite(loss)]
    losses = observed.train_losses
    start = next(iter(_finite(losses)), None)
    if start is None or len(validation) < FEWEST_RECORDS or len(losses) < 2 * len(validation):
        return
    best_step, best = min(validation, key=lambda each: each[1])
    last_step, last = validation[-1]
    gained = start - best
    if gained <= LEARNED * abs(start) or last - best < RISE * gained:
        return
    span = max(1, len(losses) // len(validation))
    before, lately = _finite(losses[max(0, best_step - span) : best_step]), _finite(losses[-span:])
    if not before or not lately:
        return
    then, now = fmean(before), fmean(lately)
    if now >= then:
        return  # both rise: not a gap but instability
    remedy, advice = _remedy(observed.recipe, observed.horizon)
    yield Finding(
        NAME,
        Severity.WARNING,
        f"the validation loss rose from {best:.3g} at step {best_step} to {last:.3g} at step {last_step}, while the "
        f"training loss fell from {then:.3g} to {now:.3g}",
        advice,
        None,
        remedy,
        {"best": best, "best_step": float(best_step), "last": last, "rise": (last - best) / gained},
    )


def _finite(losses: Sequence[float]) -> list[float]:
    return [loss for loss in losses if math.isfinite(loss)]


def _remedy(recipe: Recipe | None, horizon: int | None) -> tuple[dict[str, Any], str]:
    if recipe is None or not horizon:
        return {}, "more weight decay, a smaller lr, or fewer steps"
    value = rounded(DECAY / (recipe.lr * horizon))
    if recipe.optimizer == "adamw" and value >= 2 * recipe.weight_decay:
        return {"weight_decay": value}, f"raise weight_decay from {recipe.weight_decay:g} to {value:g}, or stop earlier"
    lr = rounded(recipe.lr * LESS)
    return {"lr": lr}, f"lower lr from {recipe.lr:g} to {lr:g}, or stop earlier"


RULE = Rule(
    NAME,
    f"the final validation loss is above the lowest one by {RISE:g} of what had been gained, while the training loss "
    "went on falling",
    "Prechelt 1998, Early Stopping; decay by lr * weight_decay * horizon: Wang & Aitchison 2024; threshold and remedy: "
    "own measurement",
    _find,
)
