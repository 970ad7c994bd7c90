"""A companion: the exported Python module with a few functions for one consumer behind it."""

from __future__ import annotations

from adamtune.export.python_module import python_module
from adamtune.recipe import Recipe

_LAST_IMPORT = "from torch.optim.lr_scheduler import LambdaLR"


def companion(recipe: Recipe, usage: str, glue: str = "", imports: str = "") -> str:
    """Source of a module that needs torch, and what `imports` names.

    `usage` goes into its docstring, `glue` behind `build_optimizer`, `optimizer_for`, `scheduler_for` and `set_lr`.
    """
    _, _, code = python_module(recipe).split('"""', 2)  # texts from a recipe file have no quotes there
    if imports:
        code = code.replace(_LAST_IMPORT, f"{_LAST_IMPORT}\n{imports}", 1)
    docstring = f'"""Optimizer recipe, written by adamtune.\n\n{usage.strip()}\n"""'
    parts = [docstring + code, _own(recipe), glue]
    return "\n\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _own(recipe: Recipe) -> str:
    base, scheduler = 'group["initial_lr"]', "LambdaLR"
    plan = ""
    if recipe.switch:
        base, scheduler = 'group["sgd_lr"] if optimizer.handed_over else group["initial_lr"]', "HandoverLR"
        plan = f"""
    for group in optimizer.param_groups:
        group["switch_at"] = max(1, min(round({recipe.switch.at!r} * total_steps), total_steps - 1))"""
    return f'''def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer alone; scheduler_for or set_lr tells it how long the run is."""
    return build_optimizer(model, 1)[0]


def scheduler_for(optimizer: torch.optim.Optimizer, total_steps: int, last_epoch: int = -1) -> LambdaLR:
    """The lr schedule for an optimizer of optimizer_for; call its step() after every optimizer step.

    last_epoch: the last update made, from 0, where a run is resumed.
    """{plan}
    return {scheduler}(optimizer, lambda step: lr_multiplier(step, total_steps), last_epoch)


def set_lr(optimizer: torch.optim.Optimizer, step: int, total_steps: int) -> None:
    """Where there is no scheduler: give every group its lr for update `step`, from 0, before it is made."""{plan}
    for group in optimizer.param_groups:
        base = {base}
        group["lr"] = base * lr_multiplier(step, total_steps)'''
