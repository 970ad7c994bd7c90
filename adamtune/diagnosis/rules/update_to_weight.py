"""Updates too large for the weights: each step replaces percents of them. Too small ones are frozen groups."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import rounded, travelled

NAME = "update-to-weight"

LARGE = 0.03
"""Median over groups of weights of the mean step relative to the weight: thirty times the customary 1e-3 (Karpathy).
Tuned trainings of a hundred steps and more at most 0.017 (the example tasks, on average over the run); with a weight
decay a thousand times too large 0.037 to 0.18 (digits), 0.05 (characters)."""

FAR = 4.0
"""Times its own size the median weight must have been moved in all: the first steps of any training are large. Tuned
trainings of 150 to 300 steps at most 3.4."""

LESS = 0.01
"""What a remedy multiplies weight_decay by: where decay and updates balance, a step relative to the weight is as the
square root of lr * weight_decay, so that this brings it down ten times."""


def _find(observed: Observed) -> Iterator[Finding]:
    recipe = observed.recipe
    if recipe is None or recipe.optimizer == "sgd":
        return
    weights = [group for group in observed.groups if set(observed.kinds.get(group, ())) - {"bias", "norm"}]
    distances = {group: distance for group in weights if (distance := travelled(observed, group)) is not None}
    if not distances:
        return
    distance = median(distances.values())
    steps = observed.records[-1][0]
    step = distance / steps
    if step < LARGE or distance < FAR:
        return
    told = (
        f"a step changes the median weight by {step:.1%} of its size on average, and by {distance:.2g} times it in all"
    )
    evidence = {"update_to_weight": step, "travelled": distance, "lr_weight_decay": recipe.lr * recipe.weight_decay}
    if recipe.optimizer == "adamw" and 2 * recipe.lr * recipe.weight_decay >= step**2:
        value = rounded(recipe.weight_decay * LESS)
        told += ": weight decay keeps the weights that small"
        advice = f"lower weight_decay from {recipe.weight_decay:g} to {value:g}"
        yield Finding(NAME, Severity.WARNING, told, advice, None, {"weight_decay": value}, evidence)
    else:
        yield Finding(NAME, Severity.NOTE, told, "try a smaller lr", None, {}, evidence)


RULE = Rule(
    NAME,
    f"steps are {LARGE:g} of the weights or more on average (median element, median group of weights), {FAR:g} times "
    "their size in all, and sqrt(2 lr weight_decay) explains it; a note where it does not",
    "the rule of thumb of 1e-3: Karpathy, makemore part 3; balance of decay and updates at sqrt(2 lr weight_decay): "
    "Kosson et al. 2023, Rotational Equilibrium; thresholds: own measurement",
    _find,
)
