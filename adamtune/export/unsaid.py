"""What formats have no word for, most of them alike: settings of groups, parts of the schedule, the switch."""

from __future__ import annotations

from collections.abc import Iterator

from adamtune.export.format import Unsaid
from adamtune.recipe import GroupRule, Recipe, WarmupSteps


def groups_unsaid(
    recipe: Recipe, why: str, keys: tuple[str, ...] = ("lr_mult", "weight_decay", "betas", "eps")
) -> Iterator[Unsaid]:
    """Every setting of a group that differs from the recipe's own, of those in `keys`."""
    for rule in recipe.groups:
        for key in keys:
            if _differs(recipe, rule, key):
                yield Unsaid(f"groups.{rule.name}.{key}", why)


def _differs(recipe: Recipe, rule: GroupRule, key: str) -> bool:
    own = getattr(rule, key)
    match key:
        case "lr_mult":
            return bool(own != 1.0)
        case "weight_decay":
            return own is not None and own != recipe.weight_decay
        case _:  # betas and eps, which SGD has none of
            return own is not None and own != getattr(recipe, key) and recipe.optimizer != "sgd"


def schedule_unsaid(recipe: Recipe, why: str, knobs: tuple[str, ...] | None = None) -> Iterator[Unsaid]:
    """Every knob of the schedule that does something, of those in `knobs` (all of them where None)."""
    schedule = recipe.schedule
    warmup = schedule.warmup.steps if isinstance(schedule.warmup, WarmupSteps) else schedule.warmup
    used = {
        "schedule": schedule.kind != "constant",
        "warmup": warmup > 0,
        "floor": schedule.floor > 0 and schedule.kind != "constant",
        "milestones": schedule.kind == "step",
        "gamma": schedule.kind == "step",
    }
    return (Unsaid(knob, why) for knob, does in used.items() if does and (knobs is None or knob in knobs))


def switch_unsaid(recipe: Recipe, why: str) -> Iterator[Unsaid]:
    """The switch, where there is one."""
    if recipe.switch:
        yield Unsaid("switch", why)
