"""lr-find: a range test, then short trials of the whole schedule inside the band it found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from optuna.storages import InMemoryStorage

from adamtune.engines import make_engine, pick_device
from adamtune.errors import InputError
from adamtune.recipe import Recipe
from adamtune.spec import Spec, TaskSpec
from adamtune.stages.context import Budget, Seeds, StageContext
from adamtune.stages.lr import Response, optimum
from adamtune.stages.lr_bracket import Bracket, Estimate, bracket, for_horizon
from adamtune.stages.lr_curve import RangeCurve, RangeStatus
from adamtune.stages.lr_range import END, START, STEPS, range_test
from adamtune.task import Task
from adamtune.trial import Ramp

RESULT_VERSION = 1

_RAMP_SHARE = 0.15
_LEAST_RAMP = 30
"""Steps: five a decade. Fewer did not tell learning from noise."""
_SHORT_TRIALS = 6
"""Three to bracket the best, three to move the bracket or to try its points on another seed."""
_LEAST_TRIAL = 8
_BELOW_LOWEST = 0.25
"""Decades below the ramp's lowest loss at which the bracket starts."""


class LRFindStatus(StrEnum):
    """Whether there is a suggestion to trust."""

    OK = "ok"
    AT_BOUNDARY = "at_boundary"
    """The best lr lies at the end of what was searched; the optimum may lie beyond."""
    FLAT = "flat"
    DIVERGING = "diverging"


@dataclass(frozen=True)
class LRFindResult:
    """What lr-find found out."""

    task: str
    status: LRFindStatus
    reason: str
    suggestion: float | None
    """Learning rate for a run of `horizon` steps; None where the status allows none."""
    interval: tuple[float, float] | None
    """Where the best one should lie, told honestly wide: see `adamtune.stages.lr_bracket`."""
    horizon: int
    seeds: int
    steps_used: int
    """Training steps of all trials and seeds."""
    seconds: float
    curve: RangeCurve
    response: Response | None
    """The short trials inside the band; None without a band or without refining."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, versioned."""
        curve = asdict(self.curve)
        return {
            "version": RESULT_VERSION,
            "task": self.task,
            "status": str(self.status),
            "reason": self.reason,
            "suggestion": self.suggestion,
            "interval": self.interval,
            "band": curve.pop("band"),
            "suggestions": curve.pop("suggestions"),
            "steps_used": self.steps_used,
            "horizon": self.horizon,
            "seeds": self.seeds,
            "seconds": round(self.seconds, 3),
            "curve": {key: curve[key] for key in ("lrs", "losses", "low", "high")},
            "response": self.response and asdict(self.response),
        }


def lr_find(
    task: Task,
    *,
    horizon: int | None = None,
    steps: int | None = None,
    start: float = START,
    end: float = END,
    seeds: int = 3,
    budget: int | None = None,
    recipe: Recipe | None = None,
    refine: bool = True,
    device: str = "auto",
    on_steps: Callable[[int], None] = lambda steps: None,
) -> LRFindResult:
    """Find a learning rate for a run of `horizon` steps (default: `steps`, or 300) under `recipe`'s schedule.

    First a ramp from lr `start` to `end` in `steps` steps a seed, then short trials of the whole schedule around where
    the loss was lowest. `budget` caps the training steps of it all: by default one horizon, above 2,000 steps three
    tenths of it. Left to itself the ramp takes about a seventh of the budget, on as many of the `seeds` as leaves each
    30 steps; given `steps` are taken on every seed, whatever they cost. Without `refine` the suggestion is read off
    the ramp alone. `on_steps(n)` hears of every n steps trained.

    Raises `InputError` for arguments that make no ramp, `NothingLearned` when every short trial diverges.
    """
    given = {"steps": steps, "seeds": seeds, "horizon": horizon, "budget": budget}
    least = {"steps": 10, "seeds": 1, "horizon": 1, "budget": 2 * _LEAST_RAMP}
    for name, value in given.items():
        if value is not None and value < least[name]:
            raise InputError(f"{name} must be at least {least[name]}, not {value}")
    if not (math.isfinite(start) and math.isfinite(end) and 0 < start < end):
        raise InputError(f"start must be above 0 and below end, not start {start:g} and end {end:g}")
    began = time.monotonic()
    horizon = horizon or steps or STEPS
    budget = budget or max(2 * _LEAST_RAMP, horizon if horizon <= 2000 else round(0.3 * horizon))
    recipe = recipe or Recipe.default()
    ramp_steps, ramp_seeds = (steps, seeds) if steps else _ramp_size(budget, seeds, refine)
    engine = make_engine("auto", task, pick_device(device), on_steps)

    def context(count: int) -> StageContext:
        spec = Spec(task=TaskSpec(ref=task.name), horizon=horizon, seeds=count, base=recipe)
        return StageContext(spec, engine, InMemoryStorage(), Budget(), Seeds.of(spec, fresh=0))

    ramping, refining = context(ramp_seeds), context(seeds)
    curve = range_test(ramping, recipe, Ramp(start, end, ramp_steps)).curve
    found = None
    if refine and curve.band:
        # Explicit --steps may have spent the whole budget; the short trials then get what they would have had.
        left = round((1 - _RAMP_SHARE) * budget) if steps else budget - ramping.budget.spent
        short = max(_LEAST_TRIAL, min(horizon, left // _SHORT_TRIALS))
        centre = curve.band[1] * 10**-_BELOW_LOWEST
        found = bracket(refining, recipe, centre, short, _SHORT_TRIALS, refining.spec.knob("lr"))
    status, reason, estimate = _conclude(curve, found, horizon)
    return LRFindResult(
        task=task.name,
        status=status,
        reason=reason,
        suggestion=_rounded(estimate.lr) if estimate else None,
        interval=(_rounded(estimate.low), _rounded(estimate.high)) if estimate else None,
        horizon=horizon,
        seeds=ramp_seeds,
        steps_used=ramping.budget.spent + refining.budget.spent,
        seconds=time.monotonic() - began,
        curve=curve,
        response=found.response if found else None,
    )


def _ramp_size(budget: int, seeds: int, refine: bool) -> tuple[int, int]:
    """Steps and seeds of the ramp when nobody says: all of the budget without refining, else its share."""
    share = _RAMP_SHARE * budget if refine else budget
    count = max(1, min(seeds, int(share // _LEAST_RAMP)))
    return max(_LEAST_RAMP, min(STEPS, round(share / count))), count


def _conclude(curve: RangeCurve, found: Bracket | None, horizon: int) -> tuple[LRFindStatus, str, Estimate | None]:
    if curve.status is not RangeStatus.OK:
        return LRFindStatus(curve.status), curve.reason, None
    if found is None:
        # Median regret 1.04 and worst 1.55 over the cases of benchmarks.lr_find; minimum/10 there 1.6 and 8.5.
        lr = curve.suggestions["lowest"]
        return LRFindStatus.OK, f"{curve.reason}; not refined", Estimate(lr, lr / 20, lr * 5)
    response = found.response
    estimate = for_horizon(optimum(response), response.horizon, horizon)
    if not found.closed:
        reason = f"the best lr tried, {response.lrs[response.best]:.2g}, is the last one: the optimum may lie beyond it"
        return LRFindStatus.AT_BOUNDARY, reason, estimate
    return LRFindStatus.OK, f"best of {len(response.lrs)} learning rates over {response.horizon} steps", estimate


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
