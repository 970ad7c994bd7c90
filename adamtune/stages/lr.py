"""lr: bracket the best learning rate with short trials, and where the budget allows look again over the whole run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from adamtune.errors import NothingLearned
from adamtune.evidence import Verdict
from adamtune.history import Outcome, worst
from adamtune.knobs import Knob
from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages import factorial
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.costs import confirmation_cost, frugal
from adamtune.stages.lr_bracket import bracket, for_horizon, lower_end
from adamtune.stages.lr_response import Response, optimum
from adamtune.trial import TrialResult

NAME = "lr"
QUESTION = "Which learning rate trains best over the whole run?"

SQUEEZE = 0.25
"""Share of the horizon of the short trials: the whole schedule squeezed into it. A short run under a schedule that ends
at zero ranks learning rates nearly as the full run does; one cut off midway favours small ones (short-horizon bias, Wu
et al. 2018). `adamtune lr-find` does the same."""

_SHORTEST = 8

_SHORT_TRIALS, _UNGUIDED_TRIALS = 8, 14
"""Short trials at most: after a range test, and from the incumbent's lr without one."""

_LEAST_SHORT_TRIALS = 6
"""Of lr, before other knobs are tried together with it: a bracket from a pair, two more to either side of it."""

_FINE = 0.25
"""Spacing of the full-length trials, in decades."""

_MOST_FINE = 6
"""Learning rates tried over the whole run at most, with all widening."""


def ladder(
    context: StageContext,
    stage: str,
    recipe: Recipe,
    lrs: Sequence[float],
    horizon: int,
    spacing: float,
    limits: Knob,
    most: int = 21,
    keep: float = 0.5,
) -> Response:
    """Trials at `lrs` (rising) over `horizon`, up to `most` with those added while the best lies at an end.

    Each round goes on with the share `keep` of its learning rates at half its length, by Optuna's pruner. Raises
    `NothingLearned` when every trial diverges even at the lower limit, `TrialFailed` when none completes and one fails.
    """
    seeds = context.seeds.search
    study = context.study(f"{stage}/{horizon}-steps", [limits], keep)
    scores: dict[float, float] = {}
    outcomes: dict[float, Outcome] = {}
    trained: list[TrialResult] = []
    new = sorted(lrs)
    while new:
        asked = [trial for lr in new for trial in study.ask({"lr": lr}, seeds)]
        requests = [context.request(recipe.with_knob("lr", lr), seed, horizon) for lr in new for seed in seeds]
        middle = [horizon // 2] if len(new) > 2 and horizon >= 2 else []
        results = context.race(stage, study, asked, requests, [*middle, horizon], prune_at=middle)
        trained += results
        for place, lr in enumerate(new):
            own = results[place * len(seeds) : (place + 1) * len(seeds)]
            scores[lr], outcomes[lr] = context.score(map(context.value, own)), worst(own)
        tried = sorted(scores)
        response = Response(
            horizon, tuple(tried), tuple(scores[lr] for lr in tried), tuple(outcomes[lr] for lr in tried)
        )
        new = _beyond(response, spacing, limits)[: most - len(scores)]
    if not any(map(math.isfinite, response.scores)):
        context.refuse_unmeasured(stage, trained)
        raise NothingLearned(
            f"all {len(scores) * len(seeds)} trials diverged, at every learning rate from {response.lrs[0]:.2g} to "
            f"{response.lrs[-1]:.2g}; check the loss for overflow, or clip the gradients (clip_norm: 1.0 in the base)"
        )
    return response


def _beyond(response: Response, spacing: float, limits: Knob) -> list[float]:
    """The next learning rates past an end where the best lies, the nearest first; none at the limits."""
    if not any(map(math.isfinite, response.scores)) or response.at_low_end:
        steps = [response.lrs[0] * 10 ** (-spacing * k) for k in (1, 2)]
    elif response.at_high_end:
        steps = [response.lrs[-1] * 10 ** (spacing * k) for k in (1, 2)]
    else:
        return []
    near = 10 ** (spacing / 10)
    clipped = dict.fromkeys(limits.clip(lr) for lr in steps)
    return [lr for lr in clipped if all(max(lr / tried, tried / lr) > near for tried in response.lrs)]


def squeezed(horizon: int) -> int:
    """Length of the short trials."""
    return min(horizon, max(_SHORTEST, round(SQUEEZE * horizon)))


def cost(spec: Spec) -> int:
    """Steps, with a confirmation on as many seeds as it is reckoned with.

    Other knobs are tried together with lr where a small budget has more than this for it.
    """
    guided = spec.stages is None or "lr_range" in spec.stages
    short = (_SHORT_TRIALS if guided else _UNGUIDED_TRIALS) * squeezed(spec.horizon)
    full = 0 if frugal(spec) else _MOST_FINE * spec.seeds * spec.horizon
    return short + full + confirmation_cost(spec)


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """Short trials downhill from where the range test points, and the best of them corrected for the run's length.

    Unless the budget is small, full-length trials around it on all search seeds say it more exactly. Where it is, and
    the plan is left to `auto`, betas, decay and warmup are tried with it, by short trials too (`factorial`): no budget
    is left to ask about them in turn. What comes of it meets the incumbent on the confirmation seeds.
    """
    knob = context.spec.knob("lr")
    ranged = context.answers.get("lr_range")
    guide = ranged.details.get("centre") if ranged else None  # the range test may have been too dear
    centre = knob.clip(incumbent.lr if guide is None else guide)
    trials = _UNGUIDED_TRIALS if guide is None else _SHORT_TRIALS
    short = squeezed(context.horizon)
    left = context.budget.steps - context.budget.spent - confirmation_cost(context.spec)
    for_lr = left - factorial.cost(context.spec, incumbent, short)
    small = context.spec.stages is None and frugal(context.spec)
    together = small and bool(factorial.notches(context.spec, incumbent)) and for_lr >= _LEAST_SHORT_TRIALS * short
    trials = min(trials, int(for_lr // short)) if together else trials
    found = bracket(context, lambda lr: incumbent.with_knob("lr", lr), centre, short, trials, knob, baseline=False)
    best_short = lower_end(found.response)
    best = knob.clip(for_horizon(best_short, short, context.horizon).lr)
    responses = [found.response]
    if not frugal(context.spec):
        near = sorted({knob.clip(best * 10 ** (_FINE * k)) for k in (-1, 0, 1)})
        responses.append(ladder(context, NAME, incumbent, near, context.horizon, _FINE, knob, _MOST_FINE, keep=0.75))
        best = knob.clip(optimum(responses[-1]))
    best = knob.clip(float(f"{best:.3g}"))
    last = responses[-1]
    details: dict[str, Any] = {"responses": [response.to_dict() for response in responses]}

    def answer(verdict: Verdict, reason: str, recipe: Recipe, **more: Any) -> StageAnswer:
        if last.at_low_end or last.at_high_end:
            reason += f"; the best lies at the {'lower' if last.at_low_end else 'upper'} end of what was searched"
        return StageAnswer(NAME, QUESTION, verdict, reason, recipe, incumbent.lr, recipe.lr, details=details, **more)

    challenger, told = incumbent.with_knob("lr", best), f"lr {best:g}"
    if together:
        cells = factorial.factorial(context, NAME, incumbent.with_knob("lr", knob.clip(best_short)), short)
        challenger = cells.recipe.with_knob("lr", best)
        details["factorial"] = [{"changes": dict(changes), "score": score} for changes, score in cells.cells]
        others = [f"{name} {after:g}" for name, (_, after) in incumbent.diff(challenger).items() if name != NAME]
        told += f" with {', '.join(others)}" if others else ""
    if challenger == incumbent:
        return answer(Verdict.KEPT, f"the fit names {best:g} as well", incumbent)
    evidence = context.confirm(NAME, incumbent, challenger)
    recipe = challenger if evidence.verdict is Verdict.CHANGED else incumbent
    return answer(evidence.verdict, f"{told}: {evidence.reason}", recipe, evidence=evidence)
