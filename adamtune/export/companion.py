"""A companion: the exported Python module with what one consumer needs behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from adamtune.export.python_module import python_module, switch_at_source
from adamtune.recipe import Recipe

Piece = Literal["optimizer_for", "scheduler_for", "set_lr"]
"""Functions that make an optimizer before the number of steps is known, and move its lr once it is."""


def companion(
    recipe: Recipe, use: str, glue: str = "", *, pieces: Sequence[Piece] = (), imports: Sequence[str] = ()
) -> str:
    """Source of a module that needs torch, and what `imports` (one line each) names.

    `use` goes into its docstring, `pieces` and `glue` (source) behind `build_optimizer`.
    """
    written = [_piece(piece, recipe) for piece in pieces]
    more = "\n\n\n".join(part.strip("\n") for part in (*written, glue) if part)
    return python_module(recipe, title="Optimizer recipe, written by adamtune.", use=use, imports=imports, more=more)


def _piece(piece: Piece, recipe: Recipe) -> str:
    plan = ""
    if recipe.switch:
        plan = f"""
    for group in optimizer.param_groups:
        group["switch_at"] = {switch_at_source(recipe.switch, "total_steps")}"""
    match piece:
        case "optimizer_for":
            return '''def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer alone, where the number of steps is not known yet."""
    return build_optimizer(model, 1)[0]'''
        case "scheduler_for":
            scheduler = "HandoverLR" if recipe.switch else "LambdaLR"
            signature = "optimizer: torch.optim.Optimizer, total_steps: int, last_epoch: int = -1"
            return f'''def scheduler_for({signature}) -> LambdaLR:
    """The lr schedule for an optimizer of optimizer_for; call its step() after every optimizer step.

    last_epoch: the last update made, from 0, where a run is resumed.
    """{plan}
    return {scheduler}(optimizer, lambda step: lr_multiplier(step, total_steps), last_epoch)'''
        case "set_lr":
            base = 'group["initial_lr"]'
            if recipe.switch:
                base = 'group["sgd_lr"] if optimizer.handed_over else group["initial_lr"]'
            return f'''def set_lr(optimizer: torch.optim.Optimizer, step: int, total_steps: int) -> None:
    """Give every group its lr for update `step`, from 0, before it is made."""{plan}
    for group in optimizer.param_groups:
        base = {base}
        group["lr"] = base * lr_multiplier(step, total_steps)'''
