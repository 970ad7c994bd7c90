"""Step -> multiplier of lr. Pure arithmetic; `Schedule` in `adamtune.recipe` says which curve.

Steps count from 0: update k runs at `multiplier(schedule, k, total)`. As in transformers'
`get_cosine_schedule_with_warmup` and `get_linear_schedule_with_warmup`, warmup rises as k / W, so update 0 of a
warmed-up run moves nothing but fills Adam's moments, and update W is the first at full lr; the decay reaches its floor
at k = total, just after the last update. Sharing that convention is what lets an exported recipe train the same there,
step for step.
"""

from __future__ import annotations

import math

from adamtune.recipe import Schedule, Switch, WarmupSteps


def warmup_steps(schedule: Schedule, total_steps: int) -> int:
    """Updates spent warming up in a run of `total_steps`; never more than the run has."""
    if isinstance(schedule.warmup, WarmupSteps):
        return min(schedule.warmup.steps, total_steps)
    return round(schedule.warmup * total_steps)


def rescaled(schedule: Schedule, total_steps: int, steps: int) -> Schedule:
    """The schedule of a run of `total_steps` for one of `steps`: a warmup in steps stays the share of the run it is."""
    if not isinstance(schedule.warmup, WarmupSteps) or steps == total_steps:
        return schedule
    warmup = WarmupSteps(steps=round(warmup_steps(schedule, total_steps) * steps / total_steps))
    return schedule.model_copy(update={"warmup": warmup})


def multiplier(schedule: Schedule, step: int, total_steps: int) -> float:
    """What lr is multiplied by at update `step` (from 0) of `total_steps`; past the end, the last value."""
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        return step / warmup
    span = max(1, total_steps - warmup)
    done = min(step, total_steps) - warmup
    match schedule.kind:
        case "constant":
            return 1.0
        case "linear":
            return schedule.floor + (1.0 - schedule.floor) * ((span - done) / span)
        case "cosine":
            return schedule.floor + (1.0 - schedule.floor) * 0.5 * (1.0 + math.cos(math.pi * (done / span)))
        case "step":
            passed = sum(step / total_steps >= fraction for fraction in schedule.milestones)
            return max(schedule.floor, schedule.gamma**passed)


def switch_step(switch: Switch, total_steps: int) -> int:
    """The first update, from 0, that SGD makes in a run of `total_steps`; at least one is Adam's and one SGD's.

    A run of one step is Adam's: there it is 1, which never comes.
    """
    return max(1, min(round(switch.at * total_steps), total_steps - 1))
