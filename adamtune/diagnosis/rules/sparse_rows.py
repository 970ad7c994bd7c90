"""Sparse rows starved: the rows of an embedding are seen too seldom to come far from their initial values."""

from __future__ import annotations

from collections.abc import Iterator

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import FEWEST_RECORDS, betas_of, mean, rounded, rule_of, travelled
from adamtune.diagnosis.rules.frozen_group import FROZEN, r_of_noise

NAME = "sparse-rows"

RARE = 0.1
"""Of the r that noise gives, below which the median element was not seen for long: without a gradient m falls by beta1
a step, and r with it. Embeddings of many rare rows 0.01 to 0.03; of characters and of frequent names 0.6 to 3."""

SEEN = 0.3
"""The same for the other groups of weights, below which they come to rest too and nothing is said."""

MORE = 10.0
"""What a remedy multiplies lr_mult by. Of 0.1, 1, 10 and 100 it lowered the loss most, or 100 did; beta1 of 0 and 0.5,
beta2 of 0.9, 0.99 and 0.9999 and eps up to 1e-3 changed it by less than 0.5%."""


def _find(observed: Observed) -> Iterator[Finding]:
    recipe = observed.recipe
    if recipe is None:
        return
    weights = {group for group in observed.groups if set(observed.kinds.get(group, ())) - {"bias", "norm"}}
    ratios = {
        group: (mean(series) or 0.0) / r_of_noise(betas_of(recipe, group)[0])
        for group in weights
        if len(series := observed.series(group, "r", 50)) >= FEWEST_RECORDS
    }
    for group in observed.groups:
        rule, distance = rule_of(recipe, group), travelled(observed, group)
        others = [ratio for name, ratio in ratios.items() if name != group]
        if set(observed.kinds.get(group, ())) != {"embedding"} or distance is None or rule is None:
            continue
        if group not in ratios or not others or rule.lr_mult == 0:
            continue
        if ratios[group] > RARE or distance >= FROZEN or min(others) < SEEN:
            continue
        never = mean(observed.series(group, "never_updated")) or 0.0
        value = rounded(rule.lr_mult * MORE)
        yield Finding(
            NAME,
            Severity.WARNING,
            f"most rows of {group} are seldom seen ({never:.0%} not yet, on average over the run), and the median "
            f"element can have come {distance:.2g} times its own size at most",
            f"raise lr_mult of {group} from {rule.lr_mult:g} to {value:g}",
            group,
            {f"groups.{group}.lr_mult": value},
            {"travelled": distance, "r_to_noise": ratios[group], "never_updated": never},
        )


RULE = Rule(
    NAME,
    f"a group of embeddings alone whose median r is below {RARE:g} times that of noise, and whose median weight can "
    f"have come less than {FROZEN:g} times its own size, while the r of all other weights is above {SEEN:g} times it",
    "own measurement; that dense Adam treats seldom seen rows apart: Kingma & Ba 2014, section 3",
    _find,
)
