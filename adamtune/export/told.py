"""Words that several consumers share: torch's optimizers and transformers' schedules."""

from __future__ import annotations

from typing import Any

from adamtune.export import unsayable
from adamtune.recipe import Recipe
from adamtune.schedule import warmup_steps

_CLASSES = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}


def torch_class(recipe: Recipe) -> str:
    """Where torch has the recipe's optimizer, e.g. `torch.optim.AdamW`."""
    return f"torch.optim.{_CLASSES[recipe.optimizer]}"


def torch_arguments(recipe: Recipe) -> dict[str, Any]:
    """What that class is called with beside the parameters."""
    own = {"betas": list(recipe.betas), "eps": recipe.eps}
    if recipe.optimizer == "sgd":
        own = {"momentum": recipe.momentum}
    return {"lr": recipe.lr} | own | {"weight_decay": recipe.weight_decay}


def decay_convention(recipe: Recipe) -> str:
    """How weight decay is meant, in a sentence; empty where nothing decays."""
    if not unsayable.decays(recipe):
        return ""
    if recipe.optimizer != "adamw":
        return f"Weight decay as in {torch_class(recipe)}: weight_decay times the weight is added to its gradient."
    after = "; SGD, once it has taken over, adds it to the gradient" if recipe.switch else ""
    return f"Weight decay as in torch.optim.AdamW: each step shrinks a weight by lr * weight_decay{after}."


def transformers_schedule(recipe: Recipe, total_steps: int | None) -> tuple[str, dict[str, Any] | None]:
    """transformers' name for the recipe's schedule (`SchedulerType`) and the arguments it has beside the step counts.

    They start and end where ours do. A step decay has no name there: lr stays constant after the warmup.
    """
    schedule, lr_end = recipe.schedule, recipe.schedule.floor * recipe.lr
    only_warmup = total_steps is not None and warmup_steps(schedule, total_steps) == total_steps
    match schedule.kind:
        case "linear" if schedule.floor == 0.0:
            return "linear", None
        case "linear" if lr_end < recipe.lr and not only_warmup:  # the polynomial divides by the length of its decay
            return "polynomial", {"lr_end": lr_end, "power": 1.0}
        case "cosine" if schedule.floor == 0.0:
            return "cosine", None
        case "cosine" if schedule.floor < 1.0:
            return "cosine_with_min_lr", {"min_lr_rate": schedule.floor}
    return "constant_with_warmup", None
