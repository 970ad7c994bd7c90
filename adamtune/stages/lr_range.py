"""lr_range: one short run with lr rising exponentially, to find where learning begins and where it breaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adamtune.errors import NothingLearned
from adamtune.evidence import Verdict
from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages.context import StageAnswer, StageContext, refuse_failed
from adamtune.stages.costs import frugal
from adamtune.stages.lr_bracket import centre_of
from adamtune.stages.lr_curve import RangeCurve, RangeStatus, read_curve, smooth
from adamtune.trial import Outcome, Ramp, TrialRequest, TrialResult

NAME = "lr_range"
QUESTION = "Between which learning rates does the loss fall?"

STEPS, START, END = 300, 1e-6, 1e-1

FURTHEST = 10.0
"""A loss that is still flat or falling at the end of the ramp is followed on, at the same pace, up to this lr."""

_LEAST_STEPS = 60

_FRUGAL_SHARE = 0.2
"""Of the horizon, for the ramp of a small budget, on one seed."""

_CHECK_EVERY = 10
"""Steps between looks at whether the ramp has gone far enough."""


@dataclass(frozen=True)
class RangeTest:
    """A range test done: the curve read, and its trials."""

    ramp: Ramp
    curve: RangeCurve
    results: tuple[TrialResult, ...]
    stopped: str
    """Where and why the ramp ended."""


def smoothing_window(ramp: Ramp) -> float:
    """A sixth of a decade of lr, in steps: short, since an average tells of learning rates already left behind."""
    decades = math.log10(ramp.end / ramp.start)
    return max(1.0, ramp.steps / decades / 6)


def range_test(
    context: StageContext,
    recipe: Recipe,
    ramp: Ramp,
    furthest: float = FURTHEST,
    validation: bool = False,
    seeds: Sequence[int] | None = None,
) -> RangeTest:
    """Ramp lr on every search seed, or on those given, and read the curve.

    Adam's moments run on through the ramp, as they would under any schedule: with beta1 = 0.9 they remember ten steps,
    a sixth of a decade at the default 60 steps a decade, which is within the smoothing. A seed stops when it diverges
    or its smoothed loss has climbed back all it had fallen, and as much again; or at the end of the ramp, but a loss
    that has not turned there by then is followed on to lr `furthest`. A seed whose trial fails is left out; where all
    fail, `TrialFailed` is raised.

    With `validation` the curve is the validation loss, evaluated about three times in a smoothing window.
    """
    asked_for, ramp = ramp.steps, _extended(ramp, furthest)
    study = context.study(NAME)
    asked = study.ask({}, seeds or context.seeds.search, start=ramp.start, end=ramp.end)
    batch = context.open([TrialRequest(recipe, trial.seed, ramp.steps, ramp) for trial in asked])
    window = smoothing_window(ramp)
    every = max(1, round(window / 3)) if validation else _CHECK_EVERY
    losses: list[list[float]] = [[] for _ in asked]
    ended: dict[int, str] = {}
    for step in range(every, ramp.steps + every, every):
        for index, report in enumerate(batch.advance(min(step, ramp.steps), evaluate=validation)):
            if report is None:
                continue
            new = [report.values["loss"]] if validation else report.train_losses
            losses[index].extend(filter(math.isfinite, new))  # fp16 skips a step now and then
            why = why_stop(losses[index], window / every if validation else window, step >= asked_for)
            if why:
                batch.prune(index)
                ended[index] = f"{why} by lr {ramp.lr_at(report.step - 1):.2g}"
    results = context.close(NAME, study, asked, batch, _last_loss)
    sound = [index for index, result in enumerate(results) if result.outcome is not Outcome.FAILED]
    if not sound:
        refuse_failed(NAME, results)
    results, losses = [results[index] for index in sound], [losses[index] for index in sound]
    ended = {place: ended[index] for place, index in enumerate(sound) if index in ended}
    lrs = [ramp.lr_at(step) for step in range(ramp.steps)]
    if validation:
        curve = read_curve(lrs[every - 1 :: every], losses, max(1.0, window / every))
    else:
        # A step that fp16 skipped did not move the ramp, so the next loss stands at its place. What was trained
        # between the last look and a divergence is in the results only.
        finite = [[loss for loss in result.train_losses if math.isfinite(loss)] for result in results]
        curve = read_curve(lrs, finite, window)
    return RangeTest(ramp, curve, tuple(results), _stopped(ended, results, ramp))


def _last_loss(result: TrialResult) -> float:
    return result.train_losses[-1] if result.train_losses else math.nan


def why_stop(losses: list[float], window: float, past_the_end: bool) -> str:
    """Why a ramp with these losses need go no further, `past_the_end` of what was asked for or not; empty to go on."""
    if not losses:
        return ""
    smoothed = smooth(losses, window)
    if _climbed_back(smoothed):
        return "the loss had climbed back"
    return "the loss had stopped falling" if past_the_end and _turned(smoothed, window) else ""


def _stopped(ended: Mapping[int, str], results: tuple[TrialResult, ...] | list[TrialResult], ramp: Ramp) -> str:
    """The first of the seeds to stop speaks for all: the curve is read up to there."""
    first = min(range(len(results)), key=lambda index: results[index].steps)
    if first in ended:
        return ended[first]
    if results[first].outcome is Outcome.DIVERGED:
        return f"the loss diverged at lr {ramp.lr_at(max(0, len(results[first].train_losses) - 1)):.2g}"
    return f"the ramp ended at lr {ramp.end:.2g}"


def _extended(ramp: Ramp, furthest: float) -> Ramp:
    """The same ramp gone on at the same pace to `furthest`."""
    if ramp.end >= furthest:
        return ramp
    pace = math.log(ramp.end / ramp.start) / max(1, ramp.steps - 1)
    more = math.ceil(math.log(furthest / ramp.end) / pace)
    return replace(ramp, end=ramp.end * math.exp(more * pace), steps=ramp.steps + more)


def _turned(smoothed: list[float], window: float) -> bool:
    """Whether the loss has fallen, and has not been falling any more for twice the smoothing window."""
    lowest = smoothed.index(min(smoothed))
    fell = max(smoothed[: lowest + 1]) - smoothed[lowest] > 0.05 * abs(smoothed[0])
    return fell and len(smoothed) - lowest > 2 * window


def _climbed_back(smoothed: list[float]) -> bool:
    lowest = min(smoothed)
    fall = max(smoothed[: smoothed.index(lowest) + 1]) - lowest
    return fall > 0.05 * abs(smoothed[0]) and smoothed[-1] > lowest + 2 * fall


def cost(spec: Spec) -> int:
    """Steps at most."""
    return (1 if frugal(spec) else spec.seeds) * _extended(_ramp(spec), _furthest(spec)).steps


def _ramp(spec: Spec) -> Ramp:
    """The default ramp inside the spec's range of lr; no longer than the run itself, but for the shortest runs."""
    knob = spec.knob("lr")
    start = max(START, knob.low) if knob.high > 10 * START else knob.low
    steps = round(spec.horizon * (_FRUGAL_SHARE if frugal(spec) else 1.0))
    return Ramp(start, min(max(END, 10 * start), knob.high), min(STEPS, max(_LEAST_STEPS, steps)))


def _furthest(spec: Spec) -> float:
    return min(FURTHEST, spec.knob("lr").high)


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """The range test over the default ramp; changes nothing. Raises `NothingLearned` when no loss is ever finite."""
    seeds = context.seeds.search[: 1 if frugal(context.spec) else None]
    curve = range_test(context, incumbent, _ramp(context.spec), _furthest(context.spec), seeds=seeds).curve
    if curve.status is RangeStatus.DIVERGING and not curve.losses:
        raise NothingLearned(
            f"the range test found nothing to tune: {curve.reason}; check the task's data and loss for NaN or inf"
        )
    details: dict[str, Any] = {
        "lrs": list(curve.lrs), "losses": list(curve.losses), "low": list(curve.low), "high": list(curve.high),
        "status": curve.status, "band": curve.band, "suggestions": dict(curve.suggestions),
        "centre": centre_of(curve) if curve.status is RangeStatus.OK else None,
    }  # fmt: skip
    reason = curve.reason + (f" between lr {curve.band[0]:.2g} and {curve.band[1]:.2g}" if curve.band else "")
    return StageAnswer(NAME, QUESTION, Verdict.MEASURED, reason, incumbent, details=details)
