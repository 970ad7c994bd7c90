"""v_hat suppresses the steps: what it holds is of a gradient burst long past."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import FEWEST_RECORDS, betas_of, rounded, rule_of, unsolved, usual_norm
from adamtune.recipe import Recipe

NAME = "v-hat-lag"

OLD = 0.93
"""Share of the last v that is left from the first half of the training. Behind planted bursts 0.957 to 0.999 in one
group at least; in tuned trainings of twelve tasks at most 0.89."""

FRESH = 1e-3
"""m at the end in terms of m at the burst, above which gradients still come; where they do not (dead ReLUs), v is old
for another reason."""

MEMORIES = 20
"""The remedy's averaging length 1 / (1 - beta2) fits so often into the horizon: of 0.98, 0.95 and 0.9 in 200 steps,
0.9 lowered the loss most."""

SHORTEST = 0.9
"""The remedy's beta2 at least: v should average over no fewer steps than m."""


def _find(observed: Observed) -> Iterator[Finding]:
    recipe = observed.recipe
    if recipe is None or not unsolved(observed):
        return
    for group in observed.groups:
        beta2 = betas_of(recipe, group)[1]
        roots, means = dict(observed.series(group, "sqrt_v_hat", 90)), dict(observed.series(group, "m_hat", 90))
        if len(roots) < FEWEST_RECORDS or beta2 <= SHORTEST:
            continue
        end = max(roots)
        burst = max((step for step in roots if step <= end / 2), key=lambda step: roots[step], default=None)
        if burst is None or not roots[end] or not means.get(burst) or means.get(end, 0.0) < FRESH * means[burst]:
            continue
        old = _left(beta2, burst, end) * (roots[burst] / roots[end]) ** 2
        if not math.isfinite(old) or old < OLD:
            continue
        remedy, advice = _remedy(observed, recipe, group, burst, end)
        yield Finding(
            NAME,
            Severity.WARNING,
            f"{min(1.0, old):.0%} of v of {group} at step {end} is left from step {burst} and before: "
            "it holds the steps down for gradients long past",
            advice,
            group,
            remedy,
            {"old": old, "burst": float(burst), "sqrt_v_hat_p90": roots[end]},
        )


def _left(beta2: float, start: int, end: int) -> float:
    """v_hat at `end` in terms of v_hat at `start`, if all gradients between were zero (algorithm 1)."""
    return beta2 ** (end - start) * (1 - beta2**start) / (1 - beta2**end)


def _remedy(observed: Observed, recipe: Recipe, group: str, burst: int, end: int) -> tuple[dict[str, Any], str]:
    beta1, beta2 = betas_of(recipe, group)
    value = min(beta2, max(SHORTEST, _rounded_beta(1 - MEMORIES / (observed.horizon or end))))
    rule = rule_of(recipe, group)
    own = rule is not None and rule.betas is not None
    remedy: dict[str, Any] = {f"groups.{group}.betas": (beta1, value)} if own else {"beta2": value}
    advice = f"lower beta2 from {beta2:g} to {value:g}"
    usual = usual_norm(observed, after=burst)
    if recipe.clip_norm is None and usual is not None:
        remedy["clip_norm"] = rounded(usual)
        advice += f", and clip gradients at their usual norm, {rounded(usual):g}"
    return remedy, advice


def _rounded_beta(beta: float) -> float:
    """One minus beta to two digits."""
    return round(1 - rounded(1 - beta), 12)


RULE = Rule(
    NAME,
    f"at least {OLD:.0%} of v at the last record (its 90th percentile) is left from the first half of the training, "
    "while gradients still come and the training loss is not solved",
    "what is left of v follows from Kingma & Ba 2014, algorithm 1; threshold and remedy: own measurement",
    _find,
)
