"""Layer imbalance: one group moves far less than the others, relative to its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import geometric_mean
from typing import Any

from adamtune.diagnose.finding import Finding, Observed, Rule, Severity
from adamtune.diagnose.readings import betas_of, mean, rounded, rule_of, travelled
from adamtune.diagnose.rules.frozen_group import CONSISTENT, FROZEN, r_of_noise
from adamtune.recipe import Recipe

NAME = "layer-imbalance"

APART = 6.0
"""How many times farther, of their own size, the other groups' weights must have come. Embeddings drawn from N(0, 1)
beside linear layers 9 to 12; tuned trainings at most 4.3 (a GRU's embedding; the example tasks 2.1)."""

MOST = 100.0
"""By what a remedy multiplies lr at most."""


def _find(observed: Observed) -> Iterator[Finding]:
    distances = {
        group: distance
        for group in observed.groups
        if set(observed.kinds.get(group, ())) - {"bias", "norm"}
        and (distance := travelled(observed, group)) is not None
        and distance > 0
    }
    if len(distances) < 2:
        return
    for group, distance in distances.items():
        if distance < FROZEN:
            continue  # the rule of frozen groups speaks of it
        others = geometric_mean([each for name, each in distances.items() if name != group])
        ratio = mean(observed.series(group, "r", 50)) or 0.0
        noise = r_of_noise(betas_of(observed.recipe, group)[0] if observed.recipe else 0.9)
        if others < APART * distance or ratio < CONSISTENT * noise:
            continue
        times = min(MOST, others / distance)
        remedy, advice = _remedy(observed.recipe, group, times)
        yield Finding(
            NAME,
            Severity.WARNING,
            f"the weights of {group} came at most {distance:.2g} times their own size, those of the other groups "
            f"{others:.2g} times, while their gradients kept their direction (median r {ratio:.2g})",
            advice,
            group,
            remedy,
            {"travelled": distance, "others": others, "r_p50": ratio},
        )


def _remedy(recipe: Recipe | None, group: str, times: float) -> tuple[Mapping[str, Any], str]:
    rule = rule_of(recipe, group)
    if recipe is None:
        return {}, f"give it about {times:.2g} times its lr"
    if rule is not None:
        value = rounded(rule.lr_mult * times)
        return {f"groups.{group}.lr_mult": value}, f"raise lr_mult of {group} from {rule.lr_mult:g} to {value:g}"
    # What no rule takes has no multiplier of its own: lr rises, and the others' multipliers fall.
    lr = rounded(recipe.lr * times)
    others = {f"groups.{each.name}.lr_mult": rounded(each.lr_mult / times) for each in recipe.groups}
    return {"lr": lr, **others}, f"raise lr from {recipe.lr:g} to {lr:g}, and lower lr_mult of the other groups as much"


RULE = Rule(
    NAME,
    f"the other groups' weights came at least {APART:g} times as far, of their own size, as those of one group of "
    f"weights, which came {FROZEN:g} times theirs or more and whose median r is {CONSISTENT:g} times that of noise",
    "that layers want steps in proportion to their weights: You et al. 2017 (LARS); threshold: own measurement",
    _find,
)
