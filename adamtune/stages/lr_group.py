"""A learning rate for one param group alone: the recipe that has such a group, and what to multiply its lr by."""

from __future__ import annotations

from typing import get_args

from adamtune.errors import InputError
from adamtune.groups import kinds, param_groups
from adamtune.recipe import GroupRule, Kind, Match, Recipe
from adamtune.task import Task
from adamtune.task_calls import new_model, with_named_groups


def with_group(recipe: Recipe, name: str, task: Task) -> Recipe:
    """The recipe with a group `name` at the recipe's own lr: one of its rules, one that the task names, or
    a new first rule for a kind.

    A new rule for a kind keeps the weight decay of a rule that names that kind. Raises `InputError` when the model has
    no such group, naming those it has.
    """
    model = new_model(task)
    recipe = with_named_groups(recipe, task, model)
    ruled = [group.name for group in param_groups(recipe, model) if group.name != "default"]
    present = set(kinds(model).values())
    if name in ruled:
        return recipe.with_knob(f"groups.{name}.lr_mult", 1.0)
    kind = next((kind for kind in present if kind == name), None)
    if kind is None:
        known = ", ".join(dict.fromkeys([*ruled, *(kind for kind in get_args(Kind) if kind in present)]))
        raise InputError(f"the model of task '{task.name}' has no param group '{name}'; it has: {known}")
    decays = [rule.weight_decay for rule in recipe.groups if kind in (rule.match.kind or ())]
    rule = GroupRule(name=name, match=Match(kind=(kind,)), weight_decay=decays[0] if decays else None)
    return recipe.model_copy(update={"groups": (rule, *recipe.groups)})


def lr_mult(recipe: Recipe, group: str, lr: float) -> tuple[str, float]:
    """The knob, and its value, by which the group runs at `lr`."""
    return f"groups.{group}.lr_mult", lr / recipe.lr
