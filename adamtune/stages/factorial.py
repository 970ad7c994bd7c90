"""Adam's other knobs together with lr, where the budget pays for no question of their own.

Betas, decay and warmup, each at its own value and a notch away: a factorial of two levels (Fisher 1935). Every trial
tells of every knob, so that a level's mean is over half of all trials, and eight short ones say more than eight
candidates compared one by one would.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages.context import StageContext

_LEAST_BETA1, _LEAST_BETA2, _MOST_DECAY = 0.5, 0.9, 0.3
"""A notch that leads beyond is not tried: what is published ends about there (Radford et al. 2016 and adversarial
training for beta1; language models' 0.95 and what is left of it for beta2; vision transformers for decay)."""
_ALL = 3
"""Up to so many knobs are tried in every combination."""


@dataclass(frozen=True)
class Factorial:
    """The short trials, and what they name."""

    recipe: Recipe
    """The recipe asked about, with the better level of every knob."""
    cells: tuple[tuple[Mapping[str, float], float], ...]
    """What each trial changed, and its score."""


def notches(spec: Spec, recipe: Recipe) -> dict[str, float]:
    """By knob, the other value to try: averages half as long for beta1, a tenth as long for beta2, ten times the decay,
    three times the warmup.

    Short runs have fewer gradients to average. Chosen by us, after a look at what helps on eight of the tasks in
    `benchmarks.lr_tasks` (the README names them), so figures there flatter it. Left out is what lies outside the spec's
    range, a warmup in steps, and all for SGD.
    """
    if recipe.optimizer == "sgd":
        return {}
    beta1, beta2 = recipe.betas
    warmup = recipe.schedule.warmup
    tried = {
        "beta1": (1 - 2 * (1 - beta1), _LEAST_BETA1, 1.0),
        "beta2": (1 - 10 * (1 - beta2), _LEAST_BETA2, 1.0),
        "weight_decay": (10 * recipe.weight_decay, 1e-12, _MOST_DECAY),
        "warmup": (3 * warmup if isinstance(warmup, float) else 0.0, 1e-12, 1.0),
    }
    return {
        name: float(f"{value:.6g}")
        for name, (value, low, high) in tried.items()
        if max(low, spec.knob(name).low) <= value <= min(high, spec.knob(name).high)
    }


def cost(spec: Spec, recipe: Recipe, horizon: int) -> int:
    """Steps of all cells, and of what they name."""
    moved = notches(spec, recipe)
    return (len(_cells(moved)) + (len(moved) > _ALL)) * horizon


def factorial(context: StageContext, stage: str, recipe: Recipe, horizon: int) -> Factorial:
    """Train the cells over `horizon` steps, the whole schedule squeezed into it, on the first search seed.

    Each knob takes the level whose trials have the lower mean, unless the combination of them all, which is trained too
    where it is none of the cells, does worse than the recipe as it is.
    """
    moved = notches(context.spec, recipe)
    seed = context.seeds.search[0]
    study = context.study(f"{stage}/{horizon}-steps-factorial", [context.spec.knob(name) for name in ("lr", *moved)])

    def scores_of(changes: Sequence[Mapping[str, float]]) -> list[float]:
        recipes = [_with(recipe, change) for change in changes]
        asked = [
            trial
            for own in recipes
            for trial in study.ask({"lr": own.lr} | {name: float(own.knob(name)) for name in moved}, [seed])
        ]
        requests = [context.request(own, seed, horizon) for own in recipes]
        return [context.score([context.value(each)]) for each in context.race(stage, study, asked, requests, [horizon])]

    cells = _cells(moved)
    scores = scores_of(cells)
    better = {
        name: value
        for name, value in moved.items()
        if _mean(cells, scores, name, changed=True) < _mean(cells, scores, name, changed=False)
    }
    if better not in cells:
        cells, scores = [*cells, better], [*scores, *scores_of([better])]
    if not scores[cells.index(better)] < scores[0]:
        better = {}
    return Factorial(_with(recipe, better), tuple(zip(cells, scores, strict=True)))


def _cells(moved: Mapping[str, float]) -> list[dict[str, float]]:
    """What each trial changes, nothing first: all combinations of up to three knobs. Of four, those that move an even
    number of them, a half in which no knob's mean difference holds that of a pair (resolution IV, Box and Hunter 1961).
    """
    levels = itertools.product((False, True), repeat=len(moved))
    every = [{name: moved[name] for name, other in zip(moved, chosen, strict=True) if other} for chosen in levels]
    return [cell for cell in every if len(moved) <= _ALL or len(cell) % 2 == 0]


def _with(recipe: Recipe, change: Mapping[str, float]) -> Recipe:
    for name, value in change.items():
        recipe = recipe.with_knob(name, value)
    return recipe


def _mean(changes: Sequence[Mapping[str, float]], scores: Sequence[float], name: str, changed: bool) -> float:
    """Of the trials that changed a knob, or did not; inf where one of them diverged."""
    own = [score for change, score in zip(changes, scores, strict=True) if (name in change) is changed]
    return statistics.fmean(own) if all(map(math.isfinite, own)) else math.inf
