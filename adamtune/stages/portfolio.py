"""portfolio: recipes that served elsewhere, all their knobs at once, in a freeze-thaw race at the lr that was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adamtune.engines import ResumableBatch
from adamtune.evidence import Verdict
from adamtune.groups import ParamGroup
from adamtune.history import worst
from adamtune.knobs import KNOBS, Value
from adamtune.recipe import Recipe
from adamtune.search import Asked, KnobStudy
from adamtune.search.freeze_thaw import BREADTH, TRUSTED_BREADTH, FreezeThaw
from adamtune.search.portfolio import PORTFOLIO, Start
from adamtune.spec import Spec
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.costs import confirmation_cost, frugal
from adamtune.stages.missing import from_adam
from adamtune.stages.schedule import KINDS
from adamtune.trial import TrialRequest, TrialResult

NAME = "portfolio"
QUESTION = "Does a recipe that serves elsewhere train better at this learning rate?"

_WHOLE_TRIALS = 5
"""What the race may cost, in trials of the whole run on every search seed. Started are all of a dozen."""


@dataclass
class _Racer:
    """A recipe in the race: its trials, one a search seed, and how far they are."""

    start: Start
    recipe: Recipe
    asked: Sequence[Asked]
    batch: ResumableBatch
    rung: int = 0
    results: Sequence[TrialResult] = ()


def missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    """Why it cannot matter; empty where it can."""
    return from_adam("betas to choose", spec.base)


def cost(spec: Spec) -> int:
    """The race, the incumbent beside it, and the confirmation."""
    return (1 + _WHOLE_TRIALS) * _seeds(spec) * spec.horizon + confirmation_cost(spec)


def _seeds(spec: Spec) -> int:
    return 1 if frugal(spec) else spec.seeds


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """Race the portfolio, an eighth of a run at a time, and confirm the best against the incumbent.

    What did well in former runs (`--learn-from`) comes first in it. `adamtune.search.freeze_thaw` tells who is trained
    on.
    """
    seeds = context.seeds.search[: _seeds(context.spec)]
    racing: dict[str, tuple[Start, Recipe]] = {}
    for start in (*context.learned, *PORTFOLIO):
        recipe = _recipe(start, incumbent, context.spec)
        racing.setdefault(recipe.training_key(), (start, recipe))
    racing.pop(incumbent.training_key(), None)
    mine = context.measure(NAME, incumbent, seeds)
    own = list(map(context.value, mine))
    breadth = TRUSTED_BREADTH if context.learned else BREADTH
    racers = _race(context, list(racing.values()), seeds, breadth) if racing else []
    scores = [context.score(map(context.value, racer.results)) for racer in racers]
    details: dict[str, Any] = {
        "candidates": [racer.start.name for racer in racers],
        "sources": [racer.start.source for racer in racers],
        "scores": scores,
        "outcomes": [str(worst(racer.results)) for racer in racers],
        "eighths": [racer.rung for racer in racers],
        "incumbent_score": context.score(own),
        "incumbent_outcome": str(worst(mine)),
    }

    def answer(verdict: Verdict, reason: str, recipe: Recipe, **more: Any) -> StageAnswer:
        return StageAnswer(NAME, QUESTION, verdict, reason, recipe, details=details, **more)

    best = min(range(len(racers)), key=scores.__getitem__, default=None)
    if best is None or not scores[best] < context.score(own):
        told = f"none of {len(racers)} recipes did better on {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
        return answer(Verdict.KEPT, told, incumbent)
    challenger = racers[best].recipe
    evidence = context.confirm(NAME, incumbent, challenger)
    recipe = challenger if evidence.verdict is Verdict.CHANGED else incumbent
    return answer(evidence.verdict, f"{racers[best].start.name}: {evidence.reason}", recipe, evidence=evidence)


def _recipe(start: Start, incumbent: Recipe, spec: Spec) -> Recipe:
    """The incumbent with the knobs of `start`, as far as the spec lets them be searched."""
    recipe = incumbent
    for name, value in start.knobs.items():
        knob = spec.knob(name) if name in KNOBS else None
        free = getattr(spec.space, name, None) is None and value == 0.0  # no decay: off the knob's scale, but a value
        if knob is None or free or knob.low <= float(value) <= knob.high:
            recipe = recipe.with_knob(name, value)
    return recipe


def _race(
    context: StageContext, racing: Sequence[tuple[Start, Recipe]], seeds: Sequence[int], breadth: float
) -> list[_Racer]:
    """Every recipe that was started, with its trials; those that were left on the way count as pruned."""
    rungs = context.rungs()
    requests = [TrialRequest(recipe, seed, context.horizon) for _, recipe in racing for seed in seeds]
    context.claim(requests, _WHOLE_TRIALS * len(seeds) * context.horizon)
    study = context.study(f"{NAME}/race", [*KNOBS.values(), KINDS])
    search = FreezeThaw(len(racing), len(rungs), breadth)
    racers: list[_Racer] = []
    try:
        units = _WHOLE_TRIALS * len(rungs)
        last: int | None = None
        for unit in range(units):
            place = search.next()
            if unit >= units - len(rungs):
                # The last whole trial's worth goes to one racer until it ends, so that something is measured whole.
                ended = last is None or racers[last].rung == len(rungs) or not search.running(last)
                place = last = search.promising if ended else last
            if place is None:
                break
            if place == len(racers):
                racers.append(_start(context, study, *racing[place], seeds))
            racer = racers[place]
            search.tell(place, _advance(context, study, racer, rungs))
    finally:  # whatever happens, what was trained is counted and kept
        for racer in racers:
            racer.results = context.close(NAME, study, racer.asked, racer.batch)
    return racers


def _start(context: StageContext, study: KnobStudy, start: Start, recipe: Recipe, seeds: Sequence[int]) -> _Racer:
    asked = study.ask(_parameters(start, recipe), seeds, candidate=start.name)
    return _Racer(start, recipe, asked, context.open([TrialRequest(recipe, seed, context.horizon) for seed in seeds]))


def _parameters(start: Start, recipe: Recipe) -> Mapping[str, Value]:
    """For the study: lr, and the knobs of `start` that could be set. A decay of nothing has no place on a log scale."""
    values = {name: recipe.knob(name) for name in ("lr", *start.knobs)}
    return {name: value for name, value in values.items() if isinstance(value, float | str) and value != 0.0}


def _advance(context: StageContext, study: KnobStudy, racer: _Racer, rungs: Sequence[int]) -> float:
    """Train a recipe to its next rung; its score there, inf where a seed has diverged."""
    step = rungs[racer.rung]
    racer.rung += 1
    values = []
    for trial, report in zip(racer.asked, racer.batch.advance(step), strict=True):
        value = report.values[context.spec.objective.name] if report else math.nan
        values.append(value)
        if report:
            study.report(trial, step, value)
    return context.score(values)
