"""Recipe + model -> torch optimizer and scheduler. Nothing of our own steps a parameter: torch's optimizers do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from adamtune.errors import Problem, RecipeError
from adamtune.groups import ParamGroup, param_groups
from adamtune.handover import AdamThenSGD, HandoverLR
from adamtune.recipe import Recipe
from adamtune.schedule import multiplier, switch_step
from adamtune.sparse import AdamBesideSparseAdam


def build(recipe: Recipe, model: nn.Module, total_steps: int) -> tuple[Optimizer, LRScheduler]:
    """Optimizer and scheduler for a run of `total_steps` optimizer steps; see `Recipe.build`."""
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, not {total_steps}")

    def multiplier_at(step: int) -> float:
        return multiplier(recipe.schedule, step, total_steps)

    switch_at = switch_step(recipe.switch, total_steps) if recipe.switch else None
    return build_with(recipe, model, multiplier_at, switch_at=switch_at)


def build_with(
    recipe: Recipe,
    model: nn.Module,
    multiplier_at: Callable[[int], float],
    only: str | None = None,
    switch_at: int | None = None,
) -> tuple[Optimizer, LRScheduler]:
    """The same with any lr curve: every group runs at its own lr times `multiplier_at(step)`, step from 0.

    With `only`, the group of that name does, and the others hold their lr. The recipe's switch comes with update
    `switch_at`, from 0; with None it does not come.
    """
    groups = param_groups(recipe, model)
    _refuse_for_sparse(recipe, groups)
    curves = moves(groups, multiplier_at, only)
    after = recipe.after_switch
    if switch_at is None or after is None:
        optimizer = optimizer_for(recipe, groups)
        return optimizer, LambdaLR(optimizer, curves)
    settings = [
        _torch_group(recipe, group) | {"sgd_lr": then.lr}
        for group, then in zip(groups, param_groups(after, model), strict=True)
    ]
    adam = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    handing_over = AdamThenSGD(settings, adam, switch_at, recipe.lr, after.lr, after.momentum)
    return handing_over, HandoverLR(handing_over, curves)


def optimizer_for(recipe: Recipe, groups: Sequence[ParamGroup]) -> Optimizer:
    """The torch optimizer that a recipe names, over these param groups, without its switch.

    Groups with sparse gradients are SparseAdam's where the recipe says Adam or AdamW; see `adamtune.sparse`.
    """
    settings = [_torch_group(recipe, group) for group in groups]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=recipe.lr)
    adam = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    if not any(group.sparse for group in groups):
        return adam(settings, lr=recipe.lr)
    if all(group.sparse for group in groups):
        return torch.optim.SparseAdam(settings, lr=recipe.lr)
    for each, group in zip(settings, groups, strict=True):
        each["sparse"] = group.sparse
    return AdamBesideSparseAdam(settings, adam, recipe.lr)


def _refuse_for_sparse(recipe: Recipe, groups: Sequence[ParamGroup]) -> None:
    """Raise `RecipeError` for what torch cannot do with sparse gradients, before training meets it."""
    table = next((group.names[0] for group in groups if group.sparse), None)
    problems = []
    if table is not None and recipe.clip_norm is not None:
        problems.append(Problem("$.clip_norm", f"torch cannot clip sparse gradients, as those of '{table}' are"))
    if table is not None and recipe.switch is not None:
        what = f"SGD cannot take over from SparseAdam, which the sparse gradients of '{table}' need"
        problems.append(Problem("$.switch", what))
    if problems:
        raise RecipeError("recipe", problems)


def moves(
    groups: Sequence[ParamGroup], multiplier_at: Callable[[int], float], only: str | None
) -> list[Callable[[int], float]]:
    """By group: step, from 0 -> what its lr is multiplied by; see `build_with`."""
    return [multiplier_at if only in (None, group.name) else _hold for group in groups]


def _hold(step: int) -> float:
    return 1.0


def _torch_group(recipe: Recipe, group: ParamGroup) -> dict[str, Any]:
    # Named pairs make torch store `param_names` in the state dict, so that state can be told by name and not by place.
    shared = {
        "name": group.name,
        "params": list(zip(group.names, group.params, strict=True)),
        "lr": group.lr,
        "weight_decay": group.weight_decay,
    }
    if recipe.optimizer == "sgd":
        return shared | {"momentum": recipe.momentum}
    return shared | {"betas": group.betas, "eps": group.eps}
