"""Layer imbalance: one group moves far less than the others, relative to its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import geometric_mean
from typing import Any

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import betas_of, mean, rounded, rule_of, travelled
from adamtune.diagnosis.rules.frozen_group import CONSISTENT, FROZEN, r_of_noise
from adamtune.recipe import Kind, Recipe

NAME = "layer-imbalance"

APART = 6.0
"""How many times farther, of their own size, the other groups' weights must have come. Embeddings drawn from N(0, 1)
beside linear layers 10 to 19; tuned trainings at most 4.3 (a GRU's embedding; the example tasks 2.1). Where that GRU
was trained for less long or at a smaller lr, so that it was at 5.4 to 8.8, five times the lr of its embedding lowered
the loss by 1 to 2%; at 4.3 it raised it by 1%."""

MOST = 100.0
"""By what a remedy multiplies lr at most."""

_JUDGED: set[Kind] = {"embedding", "head"}
"""Kinds that a faster group was measured to help. GPTs whose other layers had a tenth or a twentieth of the lr of
embeddings and head lost by having it back, in four trainings of four (0.05 of 2.6): of such groups it is a note."""


def _find(observed: Observed) -> Iterator[Finding]:
    distances = {
        group: distance
        for group in observed.groups
        if set(observed.kinds.get(group, ())) - {"bias", "norm"}
        and (distance := travelled(observed, group)) is not None
        and 0 < distance < math.inf
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
        told = (
            f"the weights of {group} came at most {distance:.2g} times their own size, those of the other groups "
            f"{others:.2g} times, while their gradients kept their direction (median r {ratio:.2g})"
        )
        evidence = {"travelled": distance, "others": others, "r_p50": ratio}
        if set(observed.kinds[group]) - {"bias", "norm"} <= _JUDGED:
            remedy, advice = _remedy(observed.recipe, group, times)
            yield Finding(NAME, Severity.WARNING, told, advice, group, remedy, evidence)
        else:
            yield Finding(NAME, Severity.NOTE, told, _KEPT, group, {}, evidence)


_KEPT = "nothing, unless the training stands still: then try a larger lr for it"


def _remedy(recipe: Recipe | None, group: str, times: float) -> tuple[Mapping[str, Any], str]:
    rule = rule_of(recipe, group)
    if rule is None:
        return {}, f"give it about {times:.2g} times its lr"
    value = rounded(rule.lr_mult * times)
    return {f"groups.{group}.lr_mult": value}, f"raise lr_mult of {group} from {rule.lr_mult:g} to {value:g}"


RULE = Rule(
    NAME,
    f"the other groups' weights came at least {APART:g} times as far, of their own size, as those of one group of "
    f"weights, which came {FROZEN:g} times theirs or more and whose median r is {CONSISTENT:g} times that of noise; "
    "a warning of embeddings and heads, a note of other layers",
    "that layers want steps in proportion to their weights: You et al. 2017 (LARS); threshold: own measurement",
    _find,
)
