"""Why a knob cannot matter to a recipe and a model. A clause, or empty where it can."""

from __future__ import annotations

from collections.abc import Sequence

from adamtune.groups import DEFAULT, ParamGroup
from adamtune.recipe import Recipe


def from_adam(knob: str, recipe: Recipe) -> str:
    """Of a knob that only Adam has."""
    return f"the recipe's optimizer, {recipe.optimizer}, has no {knob}" if recipe.optimizer == "sgd" else ""


def from_groups(key: str, recipe: Recipe, groups: Sequence[ParamGroup]) -> str:
    """Of a value that every group may replace by its own: `betas`, `eps` or `weight_decay`."""
    replaced = {rule.name for rule in recipe.groups if getattr(rule, key) is not None}
    used = {group.name for group in groups}
    if used and used <= replaced - {DEFAULT}:
        return f"every param group has {key} of its own"
    return ""


def from_sparse(groups: Sequence[ParamGroup], what: str) -> str:
    """Of what torch cannot do with sparse gradients."""
    return f"the model has tables with sparse gradients, {what}" if any(group.sparse for group in groups) else ""
