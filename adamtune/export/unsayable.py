"""What most consumers have no word for: groups, the decay of biases and norms, parts of a schedule, the switch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from adamtune.export.format import Unsaid
from adamtune.recipe import GroupRule, Kind, Recipe, Schedule, WarmupSteps

_NOT_DECAYED = {"bias", "norm"}


def groups(
    recipe: Recipe, why: str, keys: tuple[str, ...] = ("lr_mult", "weight_decay", "betas", "eps")
) -> Iterator[Unsaid]:
    """Every setting of a group that differs from the recipe's own, of those in `keys`."""
    for rule in recipe.groups:
        for key in keys:
            if _differs(recipe, rule, key):
                yield Unsaid(f"groups.{rule.name}.{key}", why)


def groups_but_decay(recipe: Recipe, why: str) -> Iterator[Unsaid]:
    """The same without weight decay, for consumers that `decay` speaks of."""
    yield from groups(recipe, why, ("lr_mult", "betas", "eps"))


def _differs(recipe: Recipe, rule: GroupRule, key: str) -> bool:
    own = getattr(rule, key)
    match key:
        case "lr_mult":
            return bool(own != 1.0)
        case "weight_decay":
            return own is not None and own != recipe.weight_decay
        case _:  # betas and eps, which SGD has none of
            return own is not None and own != getattr(recipe, key) and recipe.optimizer != "sgd"


def decay(recipe: Recipe, consumer: str, exempt: str = "bias and no norm layer") -> Iterator[Unsaid]:
    """Where the recipe's decay is not the consumer's own: one value for all parameters, and 0 on biases and norms.

    `exempt` says which ones the consumer leaves out, after "decays no". A rule by name may match any kind.
    """
    left: set[str] = set(get_args(Kind))
    for rule in (*recipe.groups, None):
        kinds = left if rule is None or rule.match.kind is None else left & set(rule.match.kind)
        if rule is not None and rule.match.params is None:
            left = left - kinds
        own = rule.weight_decay if rule else None
        value = recipe.weight_decay if own is None else own
        knob = f"groups.{rule.name}.weight_decay" if rule else "weight_decay"
        if kinds & _NOT_DECAYED and value > 0:
            yield Unsaid(knob, f"{consumer} decays no {exempt}")
        if kinds - _NOT_DECAYED and value != recipe.weight_decay:
            yield Unsaid(knob, f"{consumer} has one for all the parameters it decays")


def decays(recipe: Recipe) -> bool:
    """Whether any parameter has weight decay; without it Adam and AdamW are one."""
    return recipe.weight_decay > 0.0 or any(rule.weight_decay for rule in recipe.groups)


def plain_adam(recipe: Recipe, consumer: str) -> Iterator[Unsaid]:
    """Adam with weight decay, for consumers whose Adam is AdamW."""
    if recipe.optimizer == "adam" and decays(recipe):
        yield Unsaid(
            "optimizer", f"{consumer} has AdamW only, which does not add the decay to the gradient as Adam does"
        )


def schedule(
    recipe: Recipe, why: str, knobs: tuple[str, ...] = ("schedule", "milestones", "gamma")
) -> Iterator[Unsaid]:
    """Every knob of the schedule that does something, of those in `knobs`."""
    schedule = recipe.schedule
    warmup = schedule.warmup.steps if isinstance(schedule.warmup, WarmupSteps) else schedule.warmup
    used = {
        "schedule": schedule.kind != "constant",
        "warmup": warmup > 0,
        "floor": schedule.floor > 0 and schedule.kind != "constant",
        "milestones": schedule.kind == "step",
        "gamma": schedule.kind == "step",
    }
    return (Unsaid(knob, why) for knob, does in used.items() if does and knob in knobs)


def step_decay(recipe: Recipe, consumer: str) -> Iterator[Unsaid]:
    """A step decay, for consumers that have transformers' schedules; see `told.transformers_schedule`."""
    if recipe.schedule.kind == "step":
        why = f"{consumer} has no schedule in steps; lr stays constant after the warmup"
        yield from schedule(recipe, why, ("schedule", "floor", "milestones", "gamma"))


def floor_of_steps(schedule: Schedule) -> Iterator[Unsaid]:
    """The floor of a step decay that would go below it, for consumers whose step decay has none."""
    if schedule.kind == "step" and schedule.floor > (lowest := schedule.gamma ** len(schedule.milestones)):
        yield Unsaid("floor", f"lr falls to {lowest:g} of its peak, not to {schedule.floor:g}")


def switch(recipe: Recipe, consumer: str) -> Iterator[Unsaid]:
    """The hand-over to SGD."""
    if recipe.switch:
        yield Unsaid("switch", f"{consumer} runs Adam to the end")


def first_step_at(fraction: float, total_steps: int) -> int:
    """The first update, from 0, that a milestone at this fraction of the horizon lowers."""
    step = max(0, int(fraction * total_steps) - 1)
    while step / total_steps < fraction:  # as `adamtune.schedule.multiplier` compares them
        step += 1
    return step
