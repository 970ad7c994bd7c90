"""switch: whether SGD with momentum finishes better what Adam has begun, from where in the run, and at which lr."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adamtune.diagnosis.settling import LATE, late_to_middle, unready
from adamtune.evidence import Verdict
from adamtune.groups import ParamGroup
from adamtune.knobs import KNOBS, Knob, Scale
from adamtune.recipe import Recipe, Switch
from adamtune.spec import Spec
from adamtune.stages.choose import Candidate, Question, candidates_cost, choose
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.lr import squeezed
from adamtune.stages.missing import from_sparse
from adamtune.stages.own_lr import MOMENTUM, TRIALS, matching_lr, short_test
from adamtune.trial import Outcome

NAME = "switch"
QUESTION = "Does SGD with momentum finish the run better?"

FRACTIONS = (LATE, 0.8, 0.9)
"""Of the run, to hand over at."""

_TESTED = 0.8
"""The one of them at which SGD's lr is found for all."""

_SGD_STEPS = 20
"""That SGD should make in a short trial, twice the memory of its momentum."""

_SHORTEST_RUN = 8
"""Steps below which not every rung is a step of its own."""

SGD_LR = replace(KNOBS["lr"], name="sgd_lr")
_AT = Knob("at", 0.0, 1.0, Scale.LINEAR)


def missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    """Why it cannot matter; empty where it can."""
    if spec.base.optimizer == "sgd":
        return "the recipe's optimizer, sgd, makes all of the run"
    if spec.base.switch is not None:
        return f"the recipe hands over already, at {spec.base.switch.at:g} of the run"
    if spec.horizon < _SHORTEST_RUN:
        return f"a run of {spec.horizon} steps is too short to hand over in"
    return from_sparse(groups, "of which SGD keeps ever longer momenta")


def cost(spec: Spec) -> int:
    """Steps at most."""
    return candidates_cost(spec, len(FRACTIONS)) + TRIALS * _short(spec.horizon)


def _short(horizon: int) -> int:
    """Length of the short trials: SGD makes the last part of them alone."""
    return min(horizon, max(squeezed(horizon), round(_SGD_STEPS / (1 - _TESTED))))


def at_sgd_lr(recipe: Recipe, lr: float) -> Recipe:
    """A recipe with a switch, at another lr of SGD."""
    assert recipe.switch is not None
    return recipe.model_copy(update={NAME: recipe.switch.model_copy(update={"lr": lr})})


def sgd_lr(recipe: Recipe) -> float:
    """That lr. The schedule multiplies it as it does Adam's."""
    assert recipe.switch is not None
    return recipe.switch.lr


def _handing_over(recipe: Recipe, at: float, lr: float) -> Recipe:
    return recipe.model_copy(update={NAME: Switch(at=at, lr=lr, momentum=MOMENTUM)})


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """Hand-overs at `FRACTIONS` of the run, SGD's lr by a short test; see `adamtune.stages.choose`.

    Asked only where the incumbent's own training shows that m_hat has decayed and v_hat has settled by then. What
    counts is the objective; the gap between validation and training loss is told beside it.
    """
    context.measure(NAME, incumbent, context.seeds.search)
    records = [(rung.step, rung.probe) for rung in context.probed(incumbent)]
    changes = {name: late_to_middle(records, name, context.horizon) for name in ("m_hat", "sqrt_v_hat")}
    facts: dict[str, Any] = {"late_to_middle": changes}
    why = unready(changes["m_hat"], changes["sqrt_v_hat"])
    if why:
        return StageAnswer(NAME, QUESTION, Verdict.UNASKED, why, incumbent, details=facts)
    late = [record for step, record in records if step / context.horizon > LATE]
    test = short_test(
        context,
        NAME,
        lambda lr: _handing_over(incumbent, _TESTED, lr),
        matching_lr(incumbent, late),
        _short(context.horizon),
        SGD_LR,
    )
    if test.lr is None:
        told = f"SGD cannot take over: {test.failed}"
        return StageAnswer(NAME, QUESTION, Verdict.KEPT, told, incumbent, details=facts)
    candidates = [
        Candidate(f"{at:g}", _handing_over(incumbent, at, test.lr), {"at": at}, own_lr=True) for at in FRACTIONS
    ]
    # None is dropped on the way: until they hand over they are all the same.
    ask = Question(NAME, QUESTION, [_AT], at_lr=at_sgd_lr, lr_of=sgd_lr, lr_name=SGD_LR.name, prune=False)
    answer = choose(context, ask, incumbent, candidates, {**facts, **test.details})
    return _with_gaps(context, incumbent, candidates, answer)


def _with_gaps(
    context: StageContext, incumbent: Recipe, candidates: Sequence[Candidate], answer: StageAnswer
) -> StageAnswer:
    """The answer with the gaps of all on the search seeds; of a recipe that is taken, on those that confirmed it."""
    seeds = context.seeds.search
    recipes = {"none": incumbent} | {each.label: each.recipe for each in candidates}
    gaps = {label: gap(context, recipe, seeds) for label, recipe in recipes.items()}
    best = candidates[answer.details["scores"].index(min(answer.details["scores"]))].label
    with_it, without = gaps[best], gaps["none"]
    if answer.verdict is Verdict.CHANGED and answer.evidence is not None:
        with_it, without = (gap(context, recipe, answer.evidence.seeds) for recipe in (answer.recipe, incumbent))
        gaps |= {"taken, confirmed": with_it, "none, confirmed": without}
    reason = answer.reason
    if with_it and without:
        reason += f"; gap between validation and training loss {with_it['gap']:.3g}, without a switch "
        reason += f"{without['gap']:.3g}"
    found = {label: each for label, each in gaps.items() if each}
    return replace(answer, reason=reason, details={**answer.details, "gaps": found})


def gap(context: StageContext, recipe: Recipe, seeds: Sequence[int]) -> Mapping[str, float] | None:
    """Mean `training` and `validation` loss at the end of a recipe's runs on these seeds, and the `gap` between.

    Training loss is the mean over the last eighth of the run, since the rung before, as the model trains (with its
    dropout, say). None where no run completed.
    """
    known = [context.known(recipe, seed) for seed in seeds]
    done = [result for result in known if result is not None and result.outcome is Outcome.COMPLETED]
    if not done:
        return None
    losses = [loss for result in done for loss in result.rungs[-1].train_losses if math.isfinite(loss)]
    if not losses:
        return None
    training, validation = statistics.fmean(losses), statistics.fmean(result.final() for result in done)
    return {"training": training, "validation": validation, "gap": validation - training}
