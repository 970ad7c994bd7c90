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
from adamtune.stages import lr
from adamtune.stages.context import Budget, Seeds, StageContext
from adamtune.stages.lr import Response
from adamtune.stages.lr_curve import RangeCurve, RangeStatus
from adamtune.stages.lr_range import END, START, STEPS, range_test
from adamtune.task import Task
from adamtune.trial import Ramp

RESULT_VERSION = 1


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
    steps: int = STEPS,
    start: float = START,
    end: float = END,
    seeds: int = 3,
    horizon: int | None = None,
    recipe: Recipe | None = None,
    refine: bool = True,
    device: str = "auto",
    on_steps: Callable[[int], None] = lambda steps: None,
) -> LRFindResult:
    """Find a learning rate for a run of `horizon` steps (by default `steps`) under `recipe`'s schedule.

    The ramp runs from lr `start` to `end` in `steps` steps on `seeds` seeds. Without `refine` the suggestion is read
    off the ramp alone. `on_steps(n)` hears of every n steps trained. Raises `InputError` for arguments that make no
    ramp.
    """
    for name, value, least in (("steps", steps, 10), ("seeds", seeds, 1), ("horizon", horizon or steps, 1)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, not {value}")
    if not (math.isfinite(start) and math.isfinite(end) and 0 < start < end):
        raise InputError(f"start must be above 0 and below end, not start {start:g} and end {end:g}")
    began = time.monotonic()
    horizon = horizon or steps
    recipe = recipe or Recipe.default()
    spec = Spec(task=TaskSpec(ref=task.name), horizon=horizon, seeds=seeds, base=recipe)
    engine = make_engine("auto", task, pick_device(device), on_steps)
    context = StageContext(spec, engine, InMemoryStorage(), Budget(), Seeds.of(spec, fresh=0))
    curve = range_test(context, recipe, Ramp(start, end, steps)).curve
    response = _refine(context, recipe, curve) if refine and curve.band else None
    status, reason, suggestion = _conclude(curve, response)
    return LRFindResult(
        task=task.name,
        status=status,
        reason=reason,
        suggestion=suggestion,
        horizon=horizon,
        seeds=seeds,
        steps_used=context.budget.spent,
        seconds=time.monotonic() - began,
        curve=curve,
        response=response,
    )


def _refine(context: StageContext, recipe: Recipe, curve: RangeCurve) -> Response:
    assert curve.band is not None
    lrs = lr.spread(*curve.band, lr.COARSE)
    return lr.ladder(context, "lr", recipe, lrs, lr.squeezed(context.horizon), lr.COARSE, context.spec.knob("lr"))


def _conclude(curve: RangeCurve, response: Response | None) -> tuple[LRFindStatus, str, float | None]:
    if curve.status is not RangeStatus.OK:
        return LRFindStatus(curve.status), curve.reason, None
    if response is None:
        return LRFindStatus.OK, curve.reason, _rounded(curve.suggestions["minimum/10"])
    suggestion = _rounded(lr.optimum(response))
    if response.at_low_end or response.at_high_end:
        reason = f"the best lr tried, {suggestion:g}, is the last one: the optimum may lie beyond it"
        return LRFindStatus.AT_BOUNDARY, reason, suggestion
    return LRFindStatus.OK, f"best of {len(response.lrs)} learning rates over {response.horizon} steps", suggestion


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
