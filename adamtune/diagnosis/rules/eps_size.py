"""eps too large: it, and not v_hat, divides the steps. eps too small for the precision: nothing divides them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import betas_of, eps_knob, eps_of, mean, rounded, travelled

NAME = "eps-size"

MOST = 0.75
"""Share of the elements with a gradient whose sqrt(v_hat) is below eps. With eps 1e-2, which raised the loss by 6 to
90%, 0.85 and more; with 1e-3, which hardly did, at most 0.63; with 1e-8, 0.002."""

SHORT = 0.5
"""How far weights come (`readings.travelled`), below which a large eps is not made up for by a large lr. With eps 1e-2
and the lr that is best for 1e-8, 0.1 to 0.4."""

USUAL = 1e-8
"""Kingma & Ba 2014, and torch's default."""

OVER = 2.0
"""How many times the largest r that is possible, for rounding in half precision."""

_LONG = 100_000
"""Steps after which bias corrections are over. A remedy's eps holds the 90th percentile of r, where it was first beyond
what betas allow, to what they allow in the end: of eps 1e-5 to 1e-2 in fp16, the best were within three times of it.
Where beta1^2 is beta2 or more, they allow ever more; then to what they allow at that step."""


def _find(observed: Observed) -> Iterator[Finding]:
    for group in observed.groups:
        yield from _too_large(observed, group)
        yield from _too_small(observed, group)


def _too_large(observed: Observed, group: str) -> Iterator[Finding]:
    below, never = mean(observed.series(group, "below_eps")), mean(observed.series(group, "never_updated"))
    recipe = observed.recipe
    eps = eps_of(recipe, group) if recipe else math.inf
    if below is None or below < MOST * (1 - (never or 0.0)) or not below or eps <= USUAL:
        return
    distance = travelled(observed, group)
    share = min(1.0, below / (1 - (never or 0.0)))
    told = f"sqrt(v_hat) is below eps for {share:.0%} of {group}, whose steps eps divides and not v_hat"
    evidence = {"below_eps": below}
    if distance is not None:
        evidence["travelled"] = distance
    if recipe is None or distance is None or distance >= SHORT:
        advice = f"nothing, if eps was chosen together with lr (this is SGD with momentum); else eps {USUAL:g}"
        yield Finding(NAME, Severity.NOTE, told, advice, group, {}, evidence)
        return
    told += f"; weights can have come {distance:.2g} times their own size at most"
    remedy = {eps_knob(recipe, group): USUAL}
    yield Finding(NAME, Severity.WARNING, told, f"lower eps from {eps:g} to {USUAL:g}", group, remedy, evidence)


def _too_small(observed: Observed, group: str) -> Iterator[Finding]:
    recipe = observed.recipe
    if recipe is None:
        return
    ratios, means = observed.series(group, "r", 90), dict(observed.series(group, "m_hat", 90))
    beyond = [
        (step, ratio)
        for step, ratio in ratios
        if ratio > OVER * largest_r(*betas_of(recipe, group), max(1, step))
        and not math.isclose(ratio, means.get(step, math.nan), rel_tol=1e-3)  # RAdam's first steps divide by nothing
    ]
    if not beyond:
        return
    betas, eps = betas_of(recipe, group), eps_of(recipe, group)
    step, ratio = max(beyond, key=lambda pair: pair[1])
    first = next((each for each, _ in beyond if 0 < means.get(each, math.nan) < math.inf), None)
    advice, remedy = "raise eps", {}
    if first is not None:
        bounded = betas[0] ** 2 < betas[1]
        value = rounded(means[first] / largest_r(*betas, _LONG if bounded else max(1, first)))
        advice, remedy = f"raise eps from {eps:g} to {value:g}", {eps_knob(recipe, group): value}
    yield Finding(
        NAME,
        Severity.WARNING,
        f"r of {group} is {ratio:.2g} at step {step}, where v without underflow allows "
        f"{largest_r(*betas, max(1, step)):.2g}: small gradients squared are zero in this precision",
        f"{advice}, or keep Adam's state in fp32",
        group,
        remedy,
        {"r_p90": ratio, "step": float(step)},
    )


def largest_r(beta1: float, beta2: float, step: int) -> float:
    """The largest |m_hat| / sqrt(v_hat) that any gradients can give at step `step`, from 1.

    By Cauchy and Schwarz on m = (1 - beta1) sum beta1^k g_k and v = (1 - beta2) sum beta2^k g_k^2, with both bias
    corrections: 1 at step 1, 7.3 in the end for betas 0.9 and 0.999. Infinite where no float holds it: where beta1^2
    is above beta2 it grows without an end.
    """
    if not beta2:
        return math.inf if beta1 else 1.0
    ratio = beta1**2 / beta2
    if ratio > 1 and step * math.log(ratio) > math.log(sys.float_info.max):
        return math.inf
    total = step if ratio == 1 else (1 - ratio**step) / (1 - ratio)
    return (1 - beta1) / (1 - beta1**step) * math.sqrt(total * (1 - beta2**step) / (1 - beta2))


RULE = Rule(
    NAME,
    f"too large: sqrt(v_hat) is below eps for {MOST:.0%} of the elements with a gradient, and the median weight can "
    f"have come less than {SHORT:g} times its size (otherwise a note); too small: the 90th percentile of r is more "
    f"than {OVER:g} times what betas allow, which only an underflow of v can do",
    "Kingma & Ba 2014, algorithm 1, and the inequality of Cauchy and Schwarz; what is too large: own measurement",
    _find,
)
