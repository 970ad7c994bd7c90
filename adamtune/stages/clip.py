"""clip: at which norm gradients are cut, if at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adamtune.groups import ParamGroup
from adamtune.knobs import Choice
from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages.choose import Candidate, Question, candidates_cost, choose, inside
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.missing import from_sparse

NAME = "clip"
QUESTION = "Should rare large gradients be cut?"

_KNOB = "clip_norm"
_PERCENTILE = 0.9
"""Of the gradient's norm, to clip at (Google's tuning playbook)."""

_SHARES = {1.0: "the norm's 90th percentile", 0.5: "half of it"}
"""Of that percentile, to try."""

_ON = Choice(NAME, ("off", "on"))


def gradient_norms(probes: Iterable[Mapping[str, float]]) -> list[float]:
    """The norm of the whole gradient in each record, as the recipe clipped it, rising."""
    ending = "/grad_norm"
    by_group = [[value for key, value in record.items() if key.endswith(ending)] for record in probes]
    return sorted(norm for norms in by_group if norms and math.isfinite(norm := math.hypot(*norms)))


def _candidates(spec: Spec, incumbent: Recipe, norms: list[float]) -> list[Candidate]:
    """Values inside the spec's range, and no clipping unless the spec bounds it from above."""
    bounds = getattr(spec.space, _KNOB)
    candidates = []
    if incumbent.clip_norm is not None and (bounds is None or bounds.high is None):
        candidates.append(Candidate("none", incumbent.with_knob(_KNOB, None), {NAME: "off"}))
    high = _percentile(norms, _PERCENTILE) if norms else 0.0
    told = {float(f"{share * high:.3g}"): f" ({what})" for share, what in _SHARES.items()}
    for value in inside(spec, _KNOB, told):
        if value != incumbent.clip_norm:
            clipped = incumbent.with_knob(_KNOB, value)
            candidates.append(Candidate(f"{value:g}{told.get(value, '')}", clipped, {NAME: "on", _KNOB: value}))
    return candidates


def _percentile(rising: list[float], share: float) -> float:
    return rising[math.ceil(share * len(rising)) - 1]


def missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    """Why it cannot matter; empty where it can."""
    return from_sparse(groups, "which torch cannot clip")


def cost(spec: Spec) -> int:
    """Steps at most."""
    return candidates_cost(spec, 1 + max(3, len(_SHARES)))  # three where the spec has a range


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """None, the 90th percentile of the incumbent's gradient norm by its probe, and half of it.

    See `adamtune.stages.choose`.
    """
    context.measure(NAME, incumbent, context.seeds.search)
    norms = gradient_norms(context.probes(incumbent))
    facts: dict[str, Any] = {}
    if norms:
        facts = {
            "gradient_norm": {"p50": _percentile(norms, 0.5), "p90": _percentile(norms, 0.9), "records": len(norms)}
        }
    ask = Question(NAME, QUESTION, [_ON, context.spec.knob(_KNOB)], read=lambda recipe: recipe.clip_norm)
    return choose(context, ask, incumbent, _candidates(context.spec, incumbent, norms), facts)
