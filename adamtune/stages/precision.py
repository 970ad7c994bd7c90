"""precision: whether 16 bits train as well, and faster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from adamtune.engines import pick_device
from adamtune.evidence import LOOKS, Verdict, not_worse, settled, settled_unless_worse
from adamtune.groups import ParamGroup
from adamtune.history import worst
from adamtune.knobs import Choice
from adamtune.recipe import Precision, Recipe
from adamtune.spec import Spec
from adamtune.stages.choose import Candidate
from adamtune.stages.context import StageAnswer, StageContext, refuse_failed
from adamtune.trial import Outcome, TrialRequest, TrialResult

NAME = "precision"
QUESTION = "Does training in 16 bits lose nothing and save time?"

KINDS = Choice(NAME, get_args(Precision))

FASTER = 0.95
"""A 16-bit precision must need at most this share of the incumbent's time: less is within what timings scatter."""

_LEAST_EPS = 1e-6
"""Of 16-bit recipes: gradients that fp16 rounds to zero make sqrt(v_hat) tiny, and torch's default of 1e-8 would blow
up what is left of them (open_clip trains in 16 bits with 1e-6)."""


def _candidates(spec: Spec, incumbent: Recipe) -> list[Candidate]:
    """fp16 only on CUDA, where its overflows are handled by torch's GradScaler."""
    device = pick_device(spec.device).type
    candidates = []
    for precision in KINDS.values:
        if precision == incumbent.precision or (precision == "fp16" and device != "cuda"):
            continue
        recipe = incumbent.with_knob(NAME, precision)
        if precision != "fp32":
            recipe = recipe.with_knob("eps", max(_LEAST_EPS, recipe.eps))
        candidates.append(Candidate(precision, recipe, {NAME: precision}))
    return candidates


def missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    """Why it cannot matter; empty where it can."""
    device = pick_device(spec.device).type
    return "" if device in ("cpu", "cuda") else f"16 bits are not tried on {device}"


def cost(spec: Spec) -> int:
    """Steps at most: every precision alone on the search seeds, and all of them on those of confirmation."""
    kinds = len(KINDS.values) if pick_device(spec.device).type == "cuda" else 2
    return kinds * (spec.seeds + LOOKS[-1]) * spec.horizon


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """Take 16 bits when the recipe is not worse by evidence and faster; leave them for fp32 only when that is better.

    Each trial on the search seeds trains alone, the incumbent's too, so that seconds a step compare: the quickest of
    the seeds counts. Those that take at most `FASTER` of the incumbent's time are confirmed, the fastest first, and the
    first whose paired difference does not lie wholly on the worse side of zero is taken: on all twelve seeds, as far as
    the budget goes, since on few of them nearly any passes. A 16-bit precision that brings no speed here is kept out,
    however good its loss: it can only lose digits. From a 16-bit incumbent back to fp32 goes what every other change
    needs, better by evidence.
    """
    own = Candidate(incumbent.precision, incumbent, {NAME: incumbent.precision})
    candidates = _candidates(context.spec, incumbent)
    tried = [own, *candidates]
    results = _alone(context, tried)
    refuse_failed(NAME, results[own.label])
    seconds = {each.label: _seconds_a_step(results[each.label]) for each in tried}
    scores = {each.label: context.score(map(context.value, results[each.label])) for each in tried}
    details = {
        "candidates": [each.label for each in candidates],
        "scores": [scores[each.label] for each in candidates],
        "outcomes": [str(worst(results[each.label])) for each in candidates],
        "incumbent_score": scores[own.label],
        "incumbent_outcome": str(worst(results[own.label])),
        "seconds_a_step": seconds,
    }
    told = []
    for each in sorted(candidates, key=lambda each: seconds[each.label]):
        ratio = seconds[each.label] / seconds[own.label] if seconds[own.label] else math.inf
        others = [f"{name} {after:g}" for name, (_, after) in incumbent.diff(each.recipe).items() if name != NAME]
        named = f"{each.label} with {', '.join(others)}" if others else each.label
        pace = f"{named} takes {ratio:.2f} of the time of {own.label}"
        short = each.label != "fp32"
        if not math.isfinite(scores[each.label]):
            lost = next(result for result in results[each.label] if not math.isfinite(context.value(result)))
            told.append(f"{each.label} {context.ending(lost)}")
        elif short and not ratio <= FASTER:
            told.append(f"{pace}, which is no gain")
        elif not short and not scores[each.label] < scores[own.label]:
            told.append(f"{each.label} did no better")
        else:
            evidence = context.confirm(NAME, incumbent, each.recipe, settled_unless_worse if short else settled)
            told.append(f"{pace}; {evidence.reason}")
            if evidence.verdict is Verdict.CHANGED or (short and not_worse(evidence, context.spec.objective.direction)):
                return StageAnswer(
                    NAME, QUESTION, Verdict.CHANGED, told[-1], each.recipe, own.label, each.label, evidence, details
                )
    reason = "; ".join(told) or "there is nothing else to try"
    return StageAnswer(NAME, QUESTION, Verdict.KEPT, reason, incumbent, own.label, own.label, details=details)


def _alone(context: StageContext, candidates: Sequence[Candidate]) -> dict[str, list[TrialResult]]:
    """Each candidate on each search seed, in a batch of its own; in turn, so that a busy minute slows all alike."""
    study = context.study(f"{NAME}/candidates", [KINDS])
    results: dict[str, list[TrialResult]] = {each.label: [] for each in candidates}
    for seed in context.seeds.search:
        for each in candidates:
            asked = study.ask(each.parameters, [seed], candidate=each.label)
            request = TrialRequest(each.recipe, seed, context.horizon, probe=True)
            results[each.label] += context.race(NAME, study, asked, [request], context.rungs())
    return results


def _seconds_a_step(results: Sequence[TrialResult]) -> float:
    """Of the quickest trial that completed; infinite where none did."""
    done = [result for result in results if result.outcome is Outcome.COMPLETED]
    return min((result.seconds / result.steps for result in done), default=math.inf)
