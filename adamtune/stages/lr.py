"""lr: refine inside the band with trials at fixed learning rates, under the real schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adamtune.errors import NothingLearned
from adamtune.evidence import Verdict
from adamtune.knobs import Knob
from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.costs import choice_cost
from adamtune.trial import TrialRequest

NAME = "lr"
QUESTION = "Which learning rate trains best over the whole run?"

SQUEEZE = 0.2
"""Share of the horizon of the first, short trials: the whole schedule squeezed into it. A short run under a schedule
that ends at zero ranks learning rates nearly as the full run does; one cut off midway favours small ones (short-horizon
bias, Wu et al. 2018)."""

_SHORTEST = 20
COARSE, _FINE = 0.5, 0.25
"""Spacing of the short and of the full-length trials, in decades."""

_MOST_COARSE, _MOST_FINE = 13, 6
"""Learning rates tried at most, with all widening."""


@dataclass(frozen=True)
class Response:
    """Mean objective by learning rate at one horizon, as losses (lower is better); inf where a seed diverged."""

    horizon: int
    lrs: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def best(self) -> int:
        """Index of the lowest score."""
        return min(range(len(self.scores)), key=self.scores.__getitem__)

    @property
    def at_low_end(self) -> bool:
        """Whether the best is the smallest lr tried, so that the optimum may lie below."""
        return self.best == 0

    @property
    def at_high_end(self) -> bool:
        """Whether the best is the largest lr tried."""
        return self.best == len(self.lrs) - 1


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
    `NothingLearned` when every trial diverges even at the lower limit.
    """
    seeds = context.seeds.search
    study = context.study(f"{stage}/{horizon}-steps", [limits], keep)
    scores: dict[float, float] = {}
    new = sorted(lrs)
    while new:
        asked = [trial for lr in new for trial in study.ask({"lr": lr}, seeds)]
        requests = [TrialRequest(recipe.with_knob("lr", lr), seed, horizon) for lr in new for seed in seeds]
        middle = [horizon // 2] if len(new) > 2 and horizon >= 2 else []
        results = context.race(stage, study, asked, requests, [*middle, horizon], prune_at=middle)
        for place, lr in enumerate(new):
            own = results[place * len(seeds) : (place + 1) * len(seeds)]
            scores[lr] = context.score(map(context.value, own))
        response = Response(horizon, tuple(sorted(scores)), tuple(scores[lr] for lr in sorted(scores)))
        new = _beyond(response, spacing, limits)[: most - len(scores)]
    if not any(map(math.isfinite, response.scores)):
        raise NothingLearned(
            f"all {len(scores) * len(seeds)} trials diverged, at every learning rate from {response.lrs[0]:.2g} to "
            f"{response.lrs[-1]:.2g}; check the loss for overflow, or clip the gradients (clip_norm: 1.0 in the base)"
        )
    return response


def _beyond(response: Response, spacing: float, limits: Knob) -> list[float]:
    """The next learning rates past an end where the best lies; none at the limits."""
    if not any(map(math.isfinite, response.scores)) or response.at_low_end:
        steps = [response.lrs[0] * 10 ** (-spacing * k) for k in (2, 1)]
        return [lr for lr in steps if lr >= limits.low * 0.999]
    if response.at_high_end:
        steps = [response.lrs[-1] * 10 ** (spacing * k) for k in (1, 2)]
        return [lr for lr in steps if lr <= limits.high * 1.001]
    return []


def optimum(response: Response) -> float:
    """The lr at the bottom of `parabola`; where there is nothing to fit, the best one tried."""
    fit = parabola(response)
    return float(10 ** fit[0]) if fit else response.lrs[response.best]


def parabola(response: Response) -> tuple[float, float] | None:
    """log10 of the lr at the minimum of a parabola through the best point and its neighbours, and its curvature.

    It runs in log lr and, where losses are positive, log loss, since they rise by factors on either side of the best:
    it then names the best better (median regret 1.022 instead of 1.025 for half decades on `benchmarks.lr_tasks`). The
    curvature is the loss's rise a decade squared. None where a neighbour is missing (an end) or diverged.
    """
    at = response.best
    if response.at_low_end or response.at_high_end:
        return None
    x = [math.log10(response.lrs[k]) for k in (at - 1, at, at + 1)]
    y = [response.scores[k] for k in (at - 1, at, at + 1)]
    if not all(map(math.isfinite, y)):
        return None
    if min(y) > 0:
        y = list(map(math.log, y))
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (right - left) / (x[2] - x[0])
    if curvature <= 0:
        return None
    bottom = (x[0] + x[1]) / 2 - left / (2 * curvature)
    return min(max(bottom, x[0]), x[2]), curvature


def spread(low: float, high: float, spacing: float) -> list[float]:
    """Learning rates at multiples of `spacing` decades that cover `low` to `high`."""
    first, last = math.floor(math.log10(low) / spacing + 1e-9), math.ceil(math.log10(high) / spacing - 1e-9)
    return [float(10 ** (k * spacing)) for k in range(first, last + 1)]


def squeezed(horizon: int) -> int:
    """Length of the short trials."""
    return min(horizon, max(_SHORTEST, round(SQUEEZE * horizon)))


def around(context: StageContext, incumbent: Recipe) -> list[float]:
    """Where to try first: over the band the range test found, else a decade either side of the incumbent."""
    found = context.answers.get("lr_range")
    band = found.details.get("band") if found else None
    low, high = band or (incumbent.lr / 10, incumbent.lr * 10)
    knob = context.spec.knob("lr")
    return sorted({knob.clip(lr) for lr in spread(knob.clip(low), knob.clip(high), COARSE)})


def cost(spec: Spec) -> int:
    """Steps at most."""
    return _MOST_COARSE * spec.seeds * squeezed(spec.horizon) + choice_cost(spec, [0.0] * (_MOST_FINE - 1))


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """Short trials over the band, full ones around their optimum, then the fitted best against the incumbent."""
    knob = context.spec.knob("lr")
    coarse = ladder(
        context, NAME, incumbent, around(context, incumbent), squeezed(context.horizon), COARSE, knob, _MOST_COARSE
    )
    centre = knob.clip(optimum(coarse))
    near = sorted({knob.clip(centre * 10 ** (_FINE * k)) for k in (-2, -1, 0, 1)})
    full = ladder(context, NAME, incumbent, near, context.horizon, _FINE, knob, _MOST_FINE, keep=0.75)
    best = float(f"{knob.clip(optimum(full)):.3g}")
    details: dict[str, Any] = {
        "responses": [{"horizon": r.horizon, "lrs": list(r.lrs), "scores": list(r.scores)} for r in (coarse, full)]
    }

    def answer(verdict: Verdict, reason: str, recipe: Recipe, **more: Any) -> StageAnswer:
        if full.at_low_end or full.at_high_end:
            reason += f"; the best lies at the {'lower' if full.at_low_end else 'upper'} end of what may be searched"
        return StageAnswer(NAME, QUESTION, verdict, reason, recipe, incumbent.lr, recipe.lr, details=details, **more)

    if best == incumbent.lr:
        return answer(Verdict.KEPT, f"the fit names {best:g} as well", incumbent)
    challenger = incumbent.with_knob("lr", best)
    evidence = context.confirm(NAME, incumbent, challenger)
    recipe = challenger if evidence.verdict is Verdict.CHANGED else incumbent
    return answer(evidence.verdict, f"lr {best:g}: {evidence.reason}", recipe, evidence=evidence)
