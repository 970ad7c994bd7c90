"""Bracket the best learning rate with few short trials, and say what it is for a longer run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from adamtune.errors import NothingLearned
from adamtune.history import worst
from adamtune.knobs import Knob
from adamtune.recipe import Recipe
from adamtune.stages.context import StageContext
from adamtune.stages.lr_curve import RangeCurve
from adamtune.stages.lr_response import Response, optimum, parabola
from adamtune.trial import TrialResult

SPACING = 0.5
"""Decades between neighbours of the bracket. Half of it named the optimum no better, for twice the trials."""

SHORT_HORIZON = 0.15
"""The best lr falls as horizon ** -SHORT_HORIZON (short-horizon bias; Wu et al. 2018 saw 0.15 on fresh data). Whole
schedules squeezed into a quarter of the run, on the sixteen tasks of `benchmarks.lr_tasks`, gave -0.55 (a transformer)
to 0.55 (a GPT), 0.25 in the middle; on two that overfit within the run, 1.2. Two short horizons do not tell which: the
difference between 6% and 25% of the run says little about the rest. 0.15 with `FLAT` lost least in the mean, and a
little less than 0.2 without it on those that overfit."""

FLAT = 0.003
"""Of learning rates whose fitted loss is within this share of the lowest, the smallest is taken: a flat optimum's lower
end. What comes of too small a lr is a little slower; what comes of too large a one may break."""

_FURTHEST_DOWN = 0.5
"""Decades that rule may go."""

EXPONENTS = (-0.55, 0.75)
"""The range of that exponent which the interval allows for: from the lowest on those tasks to what a run over few
examples shows (best lr 32 times lower from 20 to 2,000 steps over 4,096 samples, under a schedule to zero). A model
that overfits within the run can need a lower lr still."""

BELOW_LOWEST = 0.4
"""Decades from the ramp's lowest loss down to the best lr of the short trials (median on those tasks; scatter 0.35)."""

FIT_ERROR = 0.1
"""Decades by which the bracket's own optimum scatters between seeds (standard deviation 0.07 on those tasks)."""


@dataclass(frozen=True)
class Estimate:
    """A learning rate for a run of another length, and the interval it is stated with."""

    lr: float
    low: float
    high: float


@dataclass(frozen=True)
class Bracket:
    """The short trials."""

    response: Response
    closed: bool
    """Whether the best of them had a worse one on either side."""
    untrained: float
    """Score of the model before training, on the first seed; inf where it was not asked for."""
    cut_short: bool
    """Whether the next lr downhill was left untried, as the trials were spent."""


def centre_of(curve: RangeCurve) -> float:
    """Where to begin: below the lr of the range test's lowest loss. One too noisy for a band still hints."""
    lowest = curve.suggestions.get("lowest")
    if lowest is None:
        width = max(1, len(curve.losses) // 6)
        sums = [math.fsum(curve.losses[at : at + width]) for at in range(len(curve.losses) - width + 1)]
        lowest = curve.lrs[sums.index(min(sums)) + width // 2]
    return lowest * 10**-BELOW_LOWEST


def bracket(
    context: StageContext,
    at: Callable[[float], Recipe],
    centre: float,
    horizon: int,
    trials: int,
    limits: Knob,
    spacing: float = SPACING,
    stage: str = "lr",
    baseline: bool = True,
) -> Bracket:
    """At most `trials` trials of `horizon` steps, downhill from a pair around `centre` until the best is between worse.

    Neighbours lie `spacing` decades apart. The untrained model's score is that of an lr of almost zero: while none is
    below it, downhill is towards lower lrs, and of a pair that would be all there is the lower comes first.

    `at(lr)` is the recipe to train. What is left of the trials then goes to a second seed for the best and its
    neighbours. `stage` is the stage that the trials go by; without `baseline` the untrained model is not scored.

    Raises `NothingLearned` when every trial diverges, `TrialFailed` when none completes and one fails.
    """
    seeds = context.seeds.search
    study = context.study(f"{stage}/{horizon}-steps", [limits])
    results: dict[float, list[TrialResult]] = {}

    def train(lrs: list[float], seed: int) -> None:
        asked = [trial for lr in lrs for trial in study.ask({limits.name: lr}, [seed])]
        requests = [context.request(at(lr), seed, horizon) for lr in lrs]
        for lr, result in zip(lrs, context.race(stage, study, asked, requests, [horizon]), strict=True):
            results.setdefault(lr, []).append(result)

    def response(lrs: list[float]) -> Response:
        scores = (context.score(map(context.value, results[lr])) for lr in lrs)
        return Response(horizon, tuple(lrs), tuple(scores), tuple(worst(results[lr]) for lr in lrs))

    before = context.open([context.request(at(centre), seeds[0], horizon)]).advance(0) if baseline else []
    untrained = context.score(report.values[context.spec.objective.name] for report in before if report)
    factor = 10**spacing
    first = [lr for lr in (centre / factor**0.5, centre * factor**0.5) if limits.low <= lr <= limits.high]
    first = first or [limits.clip(centre)]
    only_pair = baseline and trials == len(first) == 2
    train(first[:1] if only_pair else first, seeds[0])
    used = len(results)
    while True:
        found = response(sorted(results))
        below, above = _beyond(found, factor, too_large=not min(found.scores) < untrained)
        beyond = [lr for lr in (above + below if only_pair else below + above) if limits.low <= lr <= limits.high]
        if not beyond or used >= trials:
            break
        train(beyond[:1], seeds[0])
        used += 1
    if not any(map(math.isfinite, found.scores)):
        context.refuse_unmeasured(stage, chain.from_iterable(results.values()))
        raise NothingLearned(
            f"all {used} trials diverged, down to a learning rate of {found.lrs[0]:.2g}; check the loss for overflow"
        )
    near = list(found.lrs[max(0, found.best - 1) : found.best + 2])
    more = [seed for place, seed in enumerate(seeds[1:], start=1) if used + place * len(near) <= trials]
    for seed in more:
        train(near, seed)
    # The points far from the best have one seed only, and a mean over other seeds is no match for theirs.
    closed = not (found.at_low_end or found.at_high_end)
    if more:
        found = response(near)
    return Bracket(found, closed, untrained, cut_short=bool(beyond))


def _beyond(response: Response, factor: float, too_large: bool) -> tuple[list[float], list[float]]:
    """The learning rates past the lower and the upper end where the best lies there; of a single one, past both."""
    below = [response.lrs[0] / factor] if response.at_low_end or too_large else []
    above = [response.lrs[-1] * factor] if response.at_high_end and not too_large else []
    return below, above


def lower_end(response: Response) -> float:
    """The smallest lr that is as good as the best: the optimum, moved down while the fit rises by less than `FLAT`.

    Where there is no parabola, because the best is the last one or its neighbour diverged, the smallest lr tried that
    scores as well. Losses that may be negative have no shares; there it is the optimum itself.
    """
    best = response.scores[response.best]
    if not min(response.scores) > 0:
        return optimum(response)
    fit = parabola(response)
    if fit is None:
        as_good = (lr for lr, score in zip(response.lrs, response.scores, strict=True) if score <= best * (1 + FLAT))
        return min(as_good)
    bottom, curvature = fit
    return float(10 ** (bottom - min(math.sqrt(FLAT / curvature), _FURTHEST_DOWN)))


def for_horizon(lr: float, measured: int, horizon: int) -> Estimate:
    """The best lr of a run of `horizon` steps, from the best over `measured` steps of the same schedule squeezed."""
    ratio = horizon / measured  # below 1 for a horizon shorter than trials can be
    low, high = sorted(lr * ratio**-exponent for exponent in EXPONENTS)
    return Estimate(lr * ratio**-SHORT_HORIZON, low * 10**-FIT_ERROR, high * 10**FIT_ERROR)
