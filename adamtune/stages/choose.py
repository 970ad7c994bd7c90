"""Choose among values of one knob: the procedure that the one-knob stages share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adamtune.evidence import Verdict
from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages.context import CONFIRM_SEEDS, StageAnswer, StageContext
from adamtune.trial import TrialRequest


def choose(context: StageContext, stage: str, question: str, incumbent: Recipe, values: Sequence[float]) -> StageAnswer:
    """Try each value on the search seeds to the horizon, then confirm the best against the incumbent on other seeds.

    Half of the values are dropped at half the horizon, which lies behind any warmup. The incumbent's own value is
    measured beside them; when none of the others does better, it stays without further cost.
    """
    knob = context.spec.knob(stage)
    before = incumbent.knob(stage)
    seeds = context.seeds.search
    own = context.score(context.value(result) for result in context.measure(stage, incumbent, seeds))
    study = context.study(f"{stage}/values", [knob])
    points = [incumbent.with_knob(stage, value) for value in values]
    asked = [trial for value in values for trial in study.ask({stage: value}, seeds)]
    requests = [TrialRequest(recipe, seed, context.horizon) for recipe in points for seed in seeds]
    rungs = context.rungs()
    middle = rungs[(len(rungs) - 1) // 2]
    results = context.race(stage, study, asked, requests, rungs, prune_at=[middle] if middle < context.horizon else [])
    scores = [
        context.score(map(context.value, results[at : at + len(seeds)]))
        for at in range(0, len(results), len(seeds))
    ]  # fmt: skip
    details = {"values": list(values), "scores": scores, "incumbent_score": own}

    def answer(verdict: Verdict, reason: str, recipe: Recipe, **more: Any) -> StageAnswer:
        after = recipe.knob(stage)
        return StageAnswer(stage, question, verdict, reason, recipe, before, after, details=details, **more)

    best = min(range(len(values)), key=scores.__getitem__, default=None)
    if best is None or not scores[best] < own:
        tried = ", ".join(f"{value:g}" for value in values)
        return answer(Verdict.KEPT, f"none of {tried} did better on {len(seeds)} seeds", incumbent)
    evidence = context.confirm(stage, incumbent, points[best])
    recipe = points[best] if evidence.verdict is Verdict.CHANGED else incumbent
    return answer(evidence.verdict, f"{stage} {values[best]:g}: {evidence.reason}", recipe, evidence=evidence)


def choice_cost(spec: Spec, values: Sequence[float]) -> int:
    """The most steps `choose` can take: every value to the horizon, and both recipes on the confirmation seeds."""
    seeds = spec.seeds
    incumbent_and_values = seeds * (1 + len(values))  # what is claimed before the pruner has spoken
    return spec.horizon * (incumbent_and_values + 2 * max(CONFIRM_SEEDS, seeds))


def others(spec: Spec, stage: str, incumbent: Recipe, values: Sequence[float]) -> list[float]:
    """The values inside the spec's range, without the incumbent's own."""
    knob = spec.knob(stage)
    own = incumbent.knob(stage)
    return [value for value in values if knob.low <= value <= knob.high and value != own]
