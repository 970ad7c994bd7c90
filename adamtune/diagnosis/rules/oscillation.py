"""Oscillation: m changes its sign more often than noise alone would make it.

A note without a remedy. In 13 settings with beta1 0.1, where flips are many (ten tasks and batch sizes, three seeds),
raising beta1 to 0.9 lowered the final loss in two and a third of lr in five; and the diabetes task flips as often at
its best lr as at five times that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import FEWEST_RECORDS, betas_of, mean

NAME = "oscillation"

BEYOND = 0.1
"""Share of flips above that of noise. Tuned trainings stay below noise."""


def _find(observed: Observed) -> Iterator[Finding]:
    recipe = observed.recipe
    for group in observed.groups if recipe else []:
        assert recipe is not None
        flips = observed.series(group, "flips")
        share = mean(flips)
        noise = flips_of_noise(betas_of(recipe, group)[0])
        if share is None or len(flips) < FEWEST_RECORDS or share < noise + BEYOND:
            continue
        yield Finding(
            NAME,
            Severity.NOTE,
            f"updates of {group} turn back at {share:.0%} of the steps, of pure noise {noise:.0%} would: gradients "
            "alternate in sign",
            "try a larger beta1 or a smaller lr where the loss does not fall; neither helped in general",
            group,
            {},
            {"flips": share, "noise": noise},
        )


def flips_of_noise(beta1: float) -> float:
    """The share of steps at which m changes its sign if gradients are independent noise around zero.

    m and the m before then have correlation beta1, and two such Gaussians differ in sign with probability
    arccos(beta1) / pi (Sheppard 1899): 0.14 for 0.9, 0.5 for 0.
    """
    return math.acos(beta1) / math.pi


RULE = Rule(
    NAME,
    f"m changes its sign at a share of the steps that is {BEYOND:g} above arccos(beta1) / pi, which noise alone gives",
    "Sheppard 1899 on the signs of correlated Gaussians; own measurement that no remedy helps in general",
    _find,
)
