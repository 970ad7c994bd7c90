"""lr-find: a range test, then short trials of the whole schedule inside the band it found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from optuna.storages import InMemoryStorage

from adamtune.engines import MEMORY, make_engine, pick_device
from adamtune.errors import InputError
from adamtune.knobs import Knob
from adamtune.recipe import Recipe
from adamtune.spec import Spec, TaskSpec
from adamtune.stages.context import Budget, Seeds, StageContext
from adamtune.stages.lr_bracket import SPACING, Bracket, Estimate, bracket, centre_of, for_horizon, lower_end
from adamtune.stages.lr_curve import CLEAR_FALL, RangeCurve, RangeStatus
from adamtune.stages.lr_group import lr_mult, with_group
from adamtune.stages.lr_range import END, START, STEPS, range_test
from adamtune.stages.lr_response import Response
from adamtune.task import Task
from adamtune.task_calls import must_return
from adamtune.trial import Ramp

RESULT_VERSION = 1

_RAMP_SHARE = 0.1
_LEAST_RAMP = 30
"""Steps: five a decade. Fewer did not tell learning from noise."""
_SHORT_TRIALS = 4
"""Three to bracket the best, one to move the bracket. Fewer and longer ones name the best lr better than more and
shorter ones: on `benchmarks.lr_tasks` mean regret 1.013 against 1.020 for six, since a longer trial is less noisy and
tells of a longer run."""
_LEAST_TRIAL = 8


class LRFindStatus(StrEnum):
    """Whether there is a suggestion to trust."""

    OK = "ok"
    AT_BOUNDARY = "at_boundary"
    """The best lr lies at the end of what was searched; the optimum may lie beyond."""
    FLAT = "flat"
    NOISY = "noisy"
    DIVERGING = "diverging"


@dataclass(frozen=True)
class LRFindResult:
    """What lr-find found out."""

    task: str
    status: LRFindStatus
    reason: str
    stopped: str
    """Where and why the ramp ended."""
    group: str | None
    """The param group whose lr this is; None: the recipe's lr."""
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
            "stopped": self.stopped,
            "group": self.group,
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


@must_return()
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
    group: str | None = None,
    refine: bool = True,
    validation: bool = False,
    seed: int = 0,
    device: str = "auto",
    engine: str = "auto",
    memory: float = MEMORY,
    on_steps: Callable[[int], None] = lambda steps: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> LRFindResult:
    """Find a learning rate for a run of `horizon` steps (default: `steps`, or 300) under `recipe`'s schedule.

    First a ramp from lr `start` to `end` in `steps` steps a seed, then short trials of the whole schedule around where
    the loss was lowest. `budget` caps the training steps of it all: by default one horizon, above 2,000 steps three
    tenths of it. Left to itself the ramp takes about a tenth of the budget, on as many of the `seeds` as leaves each
    30 steps; given `steps` are taken on every seed, whatever they cost. Without `refine` the suggestion is read off
    the ramp alone. With `validation` the ramp is judged by the validation loss, as the short trials always are.

    A ramp too noisy to tell where the loss falls is not the last word: only where the short trials do not lower the
    validation loss clearly either is the status `noisy`.

    With `group`, a group of the recipe or a kind of parameter the model has (such as `embedding` or `head`), only that
    group's lr is ramped and tried, and the others hold the recipe's (what they learn is in the ramp's curve too, so the
    short trials start halfway from the lowest loss to the recipe's lr). Another `seed` takes other initial weights,
    batches and dropout. `on_steps(n)` hears of every n steps trained, `on_note` one line on how trials are trained;
    `engine` and `memory` are those of a spec.

    Raises `InputError` for arguments that make no ramp, `NothingLearned` when every short trial diverges.
    """
    given = {"steps": steps, "seeds": seeds, "horizon": horizon, "budget": budget}
    if seed < 0:
        raise InputError(f"seed must be 0 or more, not {seed}")
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
    if group is not None:
        recipe = with_group(recipe, group, task)
    with closing(make_engine(engine, task, pick_device(device), on_steps, on_note, memory)) as trainer:

        def context(count: int) -> StageContext:
            spec = Spec(task=TaskSpec(ref=task.name), horizon=horizon, seeds=count, seed=seed, base=recipe)
            return StageContext(spec, trainer, InMemoryStorage(), Budget(), Seeds.of(spec, fresh=0))

        def at(lr: float) -> Recipe:
            return recipe.with_knob("lr", lr) if group is None else recipe.with_knob(*lr_mult(recipe, group, lr))

        ramp_steps, ramp_seeds = (steps, seeds) if steps else _ramp_size(budget, seeds, refine)
        ramping, refining = context(ramp_seeds), context(seeds)
        test = range_test(ramping, recipe, Ramp(start, end, ramp_steps, group), validation=validation)
        found = None
        if refine and test.curve.status in (RangeStatus.OK, RangeStatus.NOISY):
            # Explicit --steps may have spent the whole budget; the short trials then get what they would have had.
            left = round((1 - _RAMP_SHARE) * budget) if steps else budget - ramping.budget.spent
            trials = max(2, min(_SHORT_TRIALS, left // _LEAST_TRIAL))
            short = max(_LEAST_TRIAL, min(horizon, left // trials))
            # While a group's lr rises the others learn at theirs, so the curve falls from the start and its lowest loss
            # tends to lie too high: there the trials start halfway to the lr that the others hold, and further apart.
            centre, spacing = centre_of(test.curve), SPACING
            if group is not None:
                centre, spacing = math.sqrt(centre * recipe.lr), 2 * SPACING
            limits = _limits(refining.spec, start, end)
            found = bracket(refining, at, centre, short, trials, limits, spacing)
    status, reason, estimate = _conclude(test.curve, found, horizon)
    return LRFindResult(
        task=task.name,
        status=status,
        reason=reason,
        stopped=test.stopped,
        group=group,
        suggestion=_rounded(estimate.lr) if estimate else None,
        interval=(_rounded(estimate.low), _rounded(estimate.high)) if estimate else None,
        horizon=horizon,
        seeds=ramp_seeds,
        steps_used=ramping.budget.spent + refining.budget.spent,
        seconds=time.monotonic() - began,
        curve=test.curve,
        response=found.response if found else None,
    )


def _limits(spec: Spec, start: float, end: float) -> Knob:
    """Where trials may go: what the lr knob allows anyway, and what was asked to be ramped through."""
    knob = spec.knob("lr")
    return replace(knob, low=min(knob.low, start), high=max(knob.high, end))


def _ramp_size(budget: int, seeds: int, refine: bool) -> tuple[int, int]:
    """Steps and seeds of the ramp when nobody says: all of the budget without refining, else its share."""
    share = _RAMP_SHARE * budget if refine else budget
    count = max(1, min(seeds, int(share // _LEAST_RAMP)))
    return max(_LEAST_RAMP, min(STEPS, round(share / count))), count


def _conclude(curve: RangeCurve, found: Bracket | None, horizon: int) -> tuple[LRFindStatus, str, Estimate | None]:
    if found is None:
        if curve.status is not RangeStatus.OK:
            return LRFindStatus(curve.status), curve.reason, None
        # The nearest of the rules for a ramp: in `benchmarks.lr_find` median regret 1.065 and worst 1.58, where
        # minimum/10 has 1.13 and 1.61.
        lr = curve.suggestions["lowest"]
        return LRFindStatus.OK, f"{curve.reason}; not refined", Estimate(lr, lr / 20, lr * 5)
    response = found.response
    gain, scale = found.untrained - min(response.scores), abs(found.untrained)
    if curve.status is RangeStatus.NOISY and gain < CLEAR_FALL * scale:
        told = f"runs of {response.horizon} steps do not lower the validation loss clearly either"
        return LRFindStatus.NOISY, f"{curve.reason}; {told}", None
    if gain <= 0:
        tried = " to ".join(dict.fromkeys(f"{lr:.2g}" for lr in (response.lrs[0], response.lrs[-1])))
        told = f"no run of {response.horizon} steps at lr {tried} lowers the validation loss below the untrained"
        starved = found.cut_short and len(response.lrs) < _SHORT_TRIALS
        more = "; lower ones were not tried: raise the budget" if starved else ""
        return LRFindStatus.FLAT, f"{told} model's, {found.untrained:.4g}, though the training loss falls{more}", None
    estimate = for_horizon(lower_end(response), response.horizon, horizon)
    if not found.closed:
        reason = f"the best lr tried, {response.lrs[response.best]:.2g}, is the last one: the optimum may lie beyond it"
        return LRFindStatus.AT_BOUNDARY, reason, estimate
    return LRFindStatus.OK, f"best of {len(response.lrs)} learning rates over {response.horizon} steps", estimate


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
