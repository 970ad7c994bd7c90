"""What several rules read from the records of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median

from adamtune.diagnosis.finding import Observed
from adamtune.recipe import Betas, GroupRule, Recipe

FEWEST_RECORDS = 4
"""Records below which nothing is said of a whole training: half of what a sweep keeps of each trial."""

SOLVED = 0.01
"""A training loss below this share of the first has nothing left to teach: gradients vanish for a good reason."""


def travelled(observed: Observed, group: str) -> float | None:
    """How far the median weight of a group could have come at most, relative to its size: 1 is as far as it is large.

    The sum over the steps of `update_to_weight`, each record standing for the steps since the one before; weights that
    turn back have come less far. None where fewer than `FEWEST_RECORDS` tell.
    """
    series = observed.series(group, "update_to_weight", 50)
    if len(series) < FEWEST_RECORDS:
        return None
    starts = [0, *(step for step, _ in series[:-1])]
    return math.fsum((step - start) * value for start, (step, value) in zip(starts, series, strict=True))


def mean(series: Sequence[tuple[int, float]]) -> float | None:
    """Over the records; None where there is none."""
    return fmean(value for _, value in series) if series else None


def unsolved(observed: Observed) -> bool:
    """Whether the last training losses say that there is something left to learn; False where there are none.

    Judged by the mean of the last tenth; steps that fp16 skipped are left out. A loss that goes below zero does not say
    where its end is, and counts as unsolved.
    """
    losses = [loss for loss in observed.train_losses if math.isfinite(loss)]
    if len(losses) < 2:
        return False
    return min(losses) < 0 or fmean(losses[-max(1, len(losses) // 10) :]) > SOLVED * losses[0]


def rule_of(recipe: Recipe | None, group: str) -> GroupRule | None:
    """The recipe's rule that made a group; None for the group of the rest."""
    return next((rule for rule in recipe.groups if rule.name == group), None) if recipe else None


def betas_of(recipe: Recipe, group: str) -> Betas:
    """The betas of a group."""
    rule = rule_of(recipe, group)
    return (rule.betas if rule else None) or recipe.betas


def eps_of(recipe: Recipe, group: str) -> float:
    """The eps of a group."""
    rule = rule_of(recipe, group)
    return recipe.eps if rule is None or rule.eps is None else rule.eps


def eps_knob(recipe: Recipe, group: str) -> str:
    """The knob that sets the eps of a group: its own, where its rule gives it one."""
    rule = rule_of(recipe, group)
    return "eps" if rule is None or rule.eps is None else f"groups.{group}.eps"


def usual_norm(observed: Observed, after: int = 0) -> float | None:
    """The median gradient norm, over all groups, of the records after a step; None where none is above zero."""
    norms = [
        math.hypot(*(value for key, value in record.items() if key.endswith("/grad_norm")))
        for step, record in observed.records
        if step > after
    ]
    known = [norm for norm in norms if math.isfinite(norm) and norm > 0]
    return median(known) if known else None


def rounded(value: float) -> float:
    """To two digits: a remedy is no more exact than that."""
    return float(f"{value:.2g}")
