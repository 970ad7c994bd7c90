"""Frozen groups: lr or lr_mult is so small that the weights stay where they were initialised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import betas_of, mean, rounded, rule_of, travelled
from adamtune.recipe import Recipe

NAME = "frozen-group"

FROZEN = 0.1
"""Of its own size a weight may come at most; see `readings.travelled`. Measured over 200 steps: tuned trainings of the
example tasks 0.7 to 1.7, lr 30 times too small 0.2, 100 times 0.07 (digits)."""

CONSISTENT = 1.3
"""Mean over the records of the median r, in terms of what noise alone gives (`r_of_noise`), from which on gradients are
said to point where they did before. Frozen groups showed 1.5 to 4.9, tuned trainings at most 0.9. A weight that is near
where it should be, as in fine-tuning, moves little and sees gradients that turn."""

AIM = 0.3
"""How far weights should come at least: less than any tuned training showed."""

MOST = 100.0
"""By what a remedy multiplies lr at most."""


def _find(observed: Observed) -> Iterator[Finding]:
    distances = {group: travelled(observed, group) for group in observed.groups}
    frozen = {
        group: distance
        for group, distance in distances.items()
        if distance is not None and distance < FROZEN and set(observed.kinds.get(group, ())) != {"norm"}
    }
    others_move = any(distance is not None and distance >= FROZEN for distance in distances.values())
    for group, distance in frozen.items():
        reached = mean(observed.series(group, "never_updated"))
        ratio = mean(observed.series(group, "r", 50)) or 0.0
        evidence = {"travelled": distance, "r_p50": ratio}
        if not distance or (reached is not None and reached > 0.5):
            continue  # held on purpose by lr_mult 0, or no gradient comes: not a matter of the recipe
        told = f"the weights of {group} can have come {distance:.2g} times their own size at most"
        noise = r_of_noise(betas_of(observed.recipe, group)[0] if observed.recipe else 0.9)
        if ratio < CONSISTENT * noise:
            yield Finding(NAME, Severity.NOTE, f"{told}, as in fine-tuning", _KEPT, group, {}, evidence)
            continue
        told += f", while their gradients kept their direction (median r {ratio:.2g}, of noise {noise:.2g})"
        remedy, advice = _remedy(observed.recipe, group, distance, others_move)
        yield Finding(NAME, Severity.WARNING, told, advice, group, remedy, evidence)


def r_of_noise(beta1: float) -> float:
    """The median r of gradients that are independent Gaussian noise around zero: 0.15 for beta1 0.9.

    m then has the variance (1 - beta1) / (1 + beta1) of a gradient's, and half of a Gaussian lies within 0.6745 sigma.
    """
    return 0.6745 * math.sqrt((1 - beta1) / (1 + beta1))


_KEPT = "nothing, unless the training stands still: then raise lr, or the lr_mult of this group"


def _remedy(recipe: Recipe | None, group: str, distance: float, others_move: bool) -> tuple[dict[str, Any], str]:
    times = min(MOST, AIM / distance)
    rule = rule_of(recipe, group)
    if recipe is None:
        return {}, f"raise its lr, about {times:.2g} times"
    if rule is not None and others_move:
        value = min(1.0, rounded(rule.lr_mult * times)) if rule.lr_mult < 1.0 else rounded(rule.lr_mult * times)
        return {f"groups.{group}.lr_mult": value}, f"raise lr_mult of {group} from {rule.lr_mult:g} to {value:g}"
    lr = rounded(recipe.lr * times)
    return {"lr": lr}, f"raise lr from {recipe.lr:g} to {lr:g}"


RULE = Rule(
    NAME,
    f"the median weight can have come less than {FROZEN:g} times its own size, while the mean over the records of the "
    f"median r is at least {CONSISTENT:g} times that of noise; below that, a note",
    "own measurement on weights initialised as PyTorch and GPT-2 do; norms, which start at one, are not judged",
    _find,
)
