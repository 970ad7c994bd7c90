"""eps: below which gradient size Adam stops normalising."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from adamtune.groups import ParamGroup
from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages.choose import Question, candidates_cost, choose, inside, numbers
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.missing import from_adam, from_groups

NAME = "eps"
QUESTION = "Should small gradients be kept small instead of being blown up to full steps?"

_SHARES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""eps as shares of the gradients' RMS. From 1 on, Adam is SGD with momentum but for a factor (Choi et al. 2019)."""

_PLAIN = (1e-8, 1e-6, 1e-5)
"""torch's default, open_clip's and PPO's."""

_APART = 3.0
"""Values nearer to one another than this factor are not both tried."""

_PRECISION = 2.0**-24
"""Half of what separates neighbouring fp32 numbers: what is smaller than this share of a number adds nothing to it."""


def gradient_rms(probes: Iterable[Mapping[str, float]]) -> tuple[float, float] | None:
    """The RMS of a typical weight's gradient, and that of a weight with small ones; None where nothing was recorded.

    sqrt(v_hat) is the RMS of one weight's gradient over Adam's memory. Typical is the median over records and groups of
    its median over weights; small, of its 10th percentile. Groups whose weights get no gradient are left out.
    """
    records = list(probes)

    def median(percentile: str) -> float:
        ending = f"/sqrt_v_hat/{percentile}"
        found = [value for record in records for key, value in record.items() if key.endswith(ending) and value > 0]
        return statistics.median(found) if found else 0.0

    typical = median("p50")
    return (typical, median("p10")) if typical else None


def _values(spec: Spec, own: float, rms: tuple[float, float] | None) -> list[float]:
    """What to try beside `own`: shares of the RMS and plain defaults, those alike to one another or in effect once."""
    typical, small = rms or (0.0, 0.0)
    values = [float(f"{share * typical:.2g}") for share in _SHARES if typical] + list(_PLAIN)
    kept: list[float] = []
    for value in inside(spec, NAME, values):
        if all(_differ(value, other, _PRECISION * small) for other in (own, *kept)):
            kept.append(value)
    return sorted(kept)


def _differ(a: float, b: float, least: float) -> bool:
    """Whether two eps make a difference to sqrt(v_hat) + eps in fp32, where sqrt(v_hat) is `least` / 2^-24 or more."""
    return abs(a - b) > least and max(a, b) >= _APART * min(a, b)


def missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    """Why it cannot matter; empty where it can."""
    return from_adam(NAME, spec.base) or from_groups(NAME, spec.base, groups)


def cost(spec: Spec) -> int:
    """Steps at most; how many values there are to try is known once gradients were measured."""
    return candidates_cost(spec, len(_SHARES) + len(_PLAIN))


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """Values relative to the RMS of the incumbent's gradients, by its probe; see `adamtune.stages.choose`."""
    context.measure(NAME, incumbent, context.seeds.search)
    rms = gradient_rms(context.probes(incumbent))
    values = _values(context.spec, incumbent.eps, rms)
    ask = Question(NAME, QUESTION, [context.spec.knob(NAME)])
    facts = {"gradient_rms": rms[0]} if rms else {}
    return choose(context, ask, incumbent, numbers(NAME, incumbent, values), facts)
