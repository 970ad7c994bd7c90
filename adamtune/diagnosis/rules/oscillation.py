"""Oscillation: m changes its sign more often than noise alone would make it, as beta1 is too small to damp it.

Adam is stable up to a curvature, divided by sqrt(v_hat), of (2 + 2 beta1) / ((1 - beta1) lr): nearly five times as much
at beta1 0.7 as at 0.1. Beyond that, steps along it turn back every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import FEWEST_RECORDS, betas_of, mean, rule_of

NAME = "oscillation"

BEYOND = 0.1
"""Share of flips above that of noise. Of 84 settings at beta1 0.1 (nine tasks, some in several batch sizes, three lrs,
cosine and constant, three seeds each) it was beyond in 23: `ENOUGH` then lowered the final loss in 19, and in all 23 by
9% at the median. Of the four others, all on the diabetes data, three lost 0.3% at most, and one overfitted. Where it
was not beyond, `ENOUGH` changed the loss by less than 1% at the median."""

SMALL = 0.5
"""A beta1 below which raising it is the remedy. It helped in 17 of 22 such settings at 0.3; by 1% at the median
at 0.5; and going from 0.6 to 0.9 did harm in most."""

ENOUGH = 0.7
"""The remedy's beta1. 0.6 to 0.8 did about as well; 0.9 lowered the loss in fewer settings, being slow at first."""


def _find(observed: Observed) -> Iterator[Finding]:
    recipe = observed.recipe
    for group in observed.groups if recipe else []:
        assert recipe is not None
        beta1, beta2 = betas_of(recipe, group)
        flips = observed.series(group, "flips")
        share, noise = mean(flips), flips_of_noise(beta1)
        if share is None or len(flips) < FEWEST_RECORDS or share < noise + BEYOND:
            continue
        told = f"updates of {group} turn back at {share:.0%} of the steps, of pure noise {noise:.0%} would"
        evidence = {"flips": share, "noise": noise}
        if beta1 >= SMALL:
            advice = "try a smaller lr where the loss does not fall; no remedy helped in general"
            yield Finding(NAME, Severity.NOTE, told, advice, group, {}, evidence)
            continue
        rule = rule_of(recipe, group)
        own = rule is not None and rule.betas is not None
        remedy = {f"groups.{group}.betas": (ENOUGH, beta2)} if own else {"beta1": ENOUGH}
        advice = f"raise beta1 from {beta1:g} to {ENOUGH:g}, which damps it"
        yield Finding(NAME, Severity.WARNING, told, advice, group, remedy, evidence)


def flips_of_noise(beta1: float) -> float:
    """The share of steps at which m changes its sign if gradients are independent noise around zero.

    m and the m before then have correlation beta1, and two such Gaussians differ in sign with probability
    arccos(beta1) / pi (Sheppard 1899): 0.14 for 0.9, 0.5 for 0.
    """
    return math.acos(beta1) / math.pi


RULE = Rule(
    NAME,
    f"m changes its sign at a share of the steps that is {BEYOND:g} above arccos(beta1) / pi, which noise alone gives, "
    f"while beta1 is below {SMALL:g}; otherwise a note",
    "Sheppard 1899 on the signs of correlated Gaussians; Cohen et al. 2022, Adaptive Gradient Methods at the Edge of "
    "Stability, on what beta1 damps; thresholds and remedy: own measurement",
    _find,
)
