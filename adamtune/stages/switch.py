"""switch: whether SGD with momentum finishes better what Adam has begun, from where in the run, and at which lr."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adamtune.evidence import Verdict
from adamtune.groups import ParamGroup
from adamtune.knobs import KNOBS, Knob, Scale
from adamtune.recipe import Recipe, Switch
from adamtune.spec import Spec
from adamtune.stages.choose import ASIDE, Candidate, Question, candidates_cost, choose
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.lr import squeezed
from adamtune.stages.own_lr import MOMENTUM, TRIALS, matching_lr, short_test
from adamtune.trial import Outcome, RungReport

NAME = "switch"
QUESTION = "Does SGD with momentum finish the run better?"

FRACTIONS = (0.7, 0.8, 0.9)
"""Of the run, to hand over at."""

_TESTED = 0.8
"""The one of them at which SGD's lr is found for all."""

_MIDDLE = (0.3, 0.7)
"""Of the run: what its later rungs, those from the earliest hand-over on, are compared with."""

DECAYED = 0.75
"""m_hat has decayed when it is at most this share of what it was in the middle of the run. On nine of
`benchmarks.lr_tasks` at their best lr (three seeds) it was 0.83 to 1.26 where gradients are as large at the end as
midway (a GPT, embeddings, tables of noisy rows), so that a quarter is more than it scatters by, and 0.24 to 0.73 where
training came to rest (digits: MLPs, dropout, batch norm, an autoencoder)."""

SETTLED = ASIDE
"""sqrt(v_hat) has settled when it changes by less than this factor. SGD has one lr for the rest of the run, by which it
stands in for Adam's lr / sqrt(v_hat): what v_hat still moves, that lr is off by, and by less than this factor no stage
tells learning rates apart beforehand. On those tasks it was 0.73 to 1.04."""

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
    return f"a run of {spec.horizon} steps is too short to hand over in" if spec.horizon < _SHORTEST_RUN else ""


def cost(spec: Spec) -> int:
    """Steps at most."""
    return candidates_cost(spec, len(FRACTIONS)) + TRIALS * _short(spec.horizon)


def _short(horizon: int) -> int:
    """Length of the short trials: SGD makes the last part of them alone."""
    return min(horizon, max(squeezed(horizon), round(_SGD_STEPS / (1 - _TESTED))))


def late_to_middle(rungs: Iterable[RungReport], statistic: str, horizon: int) -> float | None:
    """How the median over weights of `m_hat` or `sqrt_v_hat` changes from the middle of the run to its last stretch.

    In each param group, the median over the later records over that of the middle ones; the geometric mean over
    groups. None where either has none above zero.
    """
    ending = f"/{statistic}/p50"
    middle: dict[str, list[float]] = {}
    late: dict[str, list[float]] = {}
    for rung in rungs:
        part = rung.step / horizon
        kept = late if part > FRACTIONS[0] else middle if _MIDDLE[0] < part < _MIDDLE[1] else None
        for key, value in rung.probe.items():
            if kept is not None and key.endswith(ending) and value > 0:
                kept.setdefault(key, []).append(value)
    ratios = [statistics.median(late[key]) / statistics.median(middle[key]) for key in middle if key in late]
    return statistics.geometric_mean(ratios) if ratios else None


def unready(m_hat: float | None, root_v_hat: float | None) -> str:
    """Why SGD should not take over yet, by how both change (see `late_to_middle`); empty where it may."""
    if m_hat is None or root_v_hat is None:
        return "nothing was recorded of Adam's state late in the run"
    if m_hat > DECAYED:
        return f"m_hat has not decayed: late in the run it is {m_hat:.2f} times what it was midway (at most {DECAYED})"
    if not 1 / SETTLED < root_v_hat < SETTLED:
        told = f"late in the run sqrt(v_hat) is {root_v_hat:.2f} times what it was midway"
        return f"v_hat has not settled: {told} (between {1 / SETTLED:.2f} and {SETTLED:.2f})"
    return ""


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
    rungs = context.probed(incumbent)
    changes = {name: late_to_middle(rungs, name, context.horizon) for name in ("m_hat", "sqrt_v_hat")}
    facts: dict[str, Any] = {"late_to_middle": changes}
    why = unready(changes["m_hat"], changes["sqrt_v_hat"])
    if why:
        return StageAnswer(NAME, QUESTION, Verdict.UNASKED, why, incumbent, details=facts)
    late = [rung.probe for rung in rungs if rung.step / context.horizon > FRACTIONS[0]]
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
