"""Hydra: `_target_` nodes for optimizer and lr scheduler, as hydra.utils.instantiate reads them (hydra-core 1.3).

`_partial_: true` leaves the parameters to the call, `instantiate(cfg.optimizer)(model.parameters())`.
Warmup is not in torch's own schedulers, so the nodes name transformers' (optimization.py), which count steps as we do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adamtune.export import told, unsayable
from adamtune.export.companion import companion
from adamtune.export.format import Context, Format, Settings, Unsaid
from adamtune.recipe import Recipe
from adamtune.schedule import warmup_steps

_FUNCTIONS = {
    "constant_with_warmup": "get_constant_schedule_with_warmup",
    "linear": "get_linear_schedule_with_warmup",
    "polynomial": "get_polynomial_decay_schedule_with_warmup",
    "cosine": "get_cosine_schedule_with_warmup",
    "cosine_with_min_lr": "get_cosine_with_min_lr_schedule_with_warmup",
}
"""What transformers' schedules are called as functions (`TYPE_TO_SCHEDULER_FUNCTION`)."""


def _settings(recipe: Recipe, context: Context) -> Settings:
    optimizer = _node(told.torch_class(recipe), **told.torch_arguments(recipe))
    values = {"optimizer": optimizer, "scheduler": _scheduler(recipe, context)}
    return Settings(values, tuple(_unsaid(recipe, context)))


def _scheduler(recipe: Recipe, context: Context) -> dict[str, Any] | None:
    schedule = recipe.schedule
    if schedule.kind == "constant" and not schedule.warmup:
        return None
    total = context.needs_total_steps("hydra", "the lr schedule")
    warmup = warmup_steps(schedule, total)
    if schedule.kind == "step":
        steps = [unsayable.first_step_at(fraction, total) for fraction in schedule.milestones]
        return _node("torch.optim.lr_scheduler.MultiStepLR", milestones=steps, gamma=schedule.gamma)
    name, kwargs = told.transformers_schedule(recipe, total)
    lengths = {"num_warmup_steps": warmup}
    if name != "constant_with_warmup":
        lengths["num_training_steps"] = total
    return _node(f"transformers.{_FUNCTIONS[name]}", **lengths, **(kwargs or {}))


def _node(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "_partial_": True, **arguments}


def _unsaid(recipe: Recipe, context: Context) -> Iterator[Unsaid]:
    yield from unsayable.groups(recipe, "one optimizer node gives all weights one lr, betas, eps and weight decay")
    if recipe.schedule.kind == "step":
        if recipe.schedule.warmup and warmup_steps(recipe.schedule, context.needs_total_steps("hydra", "warmup")):
            yield Unsaid("warmup", "torch's MultiStepLR has none; lr starts at its peak")
        yield from unsayable.floor_of_steps(recipe.schedule)
    loop = "is the training loop's to do, under its own key"
    if recipe.clip_norm:
        yield Unsaid("clip_norm", f"{loop} (Lightning: trainer.gradient_clip_val)")
    if recipe.precision != "fp32":
        yield Unsaid("precision", f"{loop} (Lightning: trainer.precision)")
    if recipe.accumulate > 1:
        yield Unsaid("accumulate", f"{loop} (Lightning: trainer.accumulate_grad_batches)")
    yield from unsayable.switch(recipe, "the node")


def _companion(recipe: Recipe, context: Context) -> str:
    usage = """In the config, with this module's name as NAME, and the model itself in place of model.parameters():

    optimizer: {_target_: NAME.optimizer_for, _partial_: true}             # instantiate(cfg.optimizer)(model)
    scheduler: {_target_: NAME.scheduler_for, _partial_: true, total_steps: ...}

CLIP_NORM, PRECISION and ACCUMULATE are for the training loop to read."""
    return companion(recipe, usage, pieces=("optimizer_for", "scheduler_for"))


FORMAT = Format(
    "hydra",
    "hydra.utils.instantiate",
    "yaml",
    _settings,
    how="instantiate(cfg.optimizer)(model.parameters()), instantiate(cfg.scheduler)(optimizer), stepped together. "
    "What is named transformers.* needs transformers installed.",
    companion=_companion,
)
