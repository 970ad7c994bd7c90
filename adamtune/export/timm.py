"""timm: arguments of pytorch-image-models' train.py in a YAML file, `python train.py --config FILE`.

Names from huggingface/pytorch-image-models train.py, meaning from timm/scheduler and timm/optim (timm 1.0). Epochs are
whole there, updates are counted by `sched_on_updates`; `warmup_prefix` makes the decay begin after the warmup, as ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adamtune.export import unsayable
from adamtune.export.companion import companion
from adamtune.export.format import Context, Format, Settings, Unsaid
from adamtune.recipe import Recipe
from adamtune.schedule import warmup_steps

_OPTIMIZERS = {"adamw": "adamw", "adam": "adam", "sgd": "momentum"}  # timm's own `sgd` is Nesterov's
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def _settings(recipe: Recipe, context: Context) -> Settings:
    values: dict[str, Any] = {"opt": _OPTIMIZERS[recipe.optimizer], "lr": recipe.lr}
    if recipe.optimizer == "sgd":
        values["momentum"] = recipe.momentum
    else:
        values |= {"opt_betas": list(recipe.betas), "opt_eps": recipe.eps}
    values |= {"weight_decay": recipe.weight_decay, "clip_grad": recipe.clip_norm, "clip_mode": "norm"}
    values |= _curve(recipe) | _lengths(recipe, context)
    values |= {"amp": recipe.precision != "fp32"}
    if recipe.precision != "fp32":
        values["amp_dtype"] = _DTYPES[recipe.precision]
    values["grad_accum_steps"] = recipe.accumulate
    neutral = {"layer_decay": None, "lr_noise": None, "lr_k_decay": 1.0, "lr_cycle_limit": 1, "cooldown_epochs": 0}
    if recipe.optimizer == "sgd":
        neutral |= {"opt_betas": None, "opt_eps": None}
    return Settings(values, tuple(_unsaid(recipe, context)), neutral)


def _curve(recipe: Recipe) -> dict[str, Any]:
    schedule = recipe.schedule
    curve: dict[str, Any] = {"sched_on_updates": True, "warmup_lr": 0.0}
    decaying = curve | {"warmup_prefix": True, "min_lr": recipe.lr * schedule.floor}
    match schedule.kind:
        case "constant":
            return {"sched": "step", "decay_rate": 1.0, **curve, "warmup_prefix": False}
        case "linear":
            return {"sched": "poly", "decay_rate": 1.0, **decaying}  # decay_rate is the polynomial's power
        case "cosine":
            return {"sched": "cosine", **decaying}
        case "step":
            return {"sched": "multistep", "decay_rate": schedule.gamma, **curve, "warmup_prefix": False}


def _lengths(recipe: Recipe, context: Context) -> dict[str, Any]:
    if context.steps_per_epoch is None or context.total_steps is None:
        return {}
    each, total = context.steps_per_epoch, context.total_steps
    warmup = _whole_epochs(warmup_steps(recipe.schedule, total), each)
    lengths: dict[str, Any] = {"epochs": max(1, _whole_epochs(total, each)), "warmup_epochs": warmup}
    if recipe.schedule.kind in ("linear", "cosine"):  # there the warmup comes on top
        lengths["epochs"] = max(1, lengths["epochs"] - warmup)
    if recipe.schedule.kind == "step":
        # timm lowers lr at its update t where milestone * each <= t + 1; half a step keeps that clear of rounding.
        steps = [unsayable.first_step_at(fraction, total) for fraction in recipe.schedule.milestones]
        lengths["decay_milestones"] = [(step + 0.5) / each for step in steps]
    return lengths


def _whole_epochs(steps: int, each: int) -> int:
    return (2 * steps + each) // (2 * each)


def _unsaid(recipe: Recipe, context: Context) -> Iterator[Unsaid]:
    yield from unsayable.groups_but_decay(recipe, "timm gives all weights one lr, betas and eps (layer_decay aside)")
    yield from unsayable.decay(recipe, "timm", "bias, vector or what model.no_weight_decay() names")
    yield from unsayable.floor_of_steps(recipe.schedule)
    yield from _unsaid_lengths(recipe, context)
    yield from unsayable.switch(recipe, "timm")


def _unsaid_lengths(recipe: Recipe, context: Context) -> Iterator[Unsaid]:
    lengths = _lengths(recipe, context)
    each, total = context.steps_per_epoch, context.total_steps
    if not lengths or each is None or total is None:
        yield Unsaid("warmup", "counted in epochs; say --steps-per-epoch (and --total-steps), or warmup_epochs stays 5")
        if recipe.schedule.kind == "step":
            yield Unsaid(
                "milestones", "counted in epochs: decay_milestones stay [90, 180, 270] without --steps-per-epoch"
            )
        return
    warmup = warmup_steps(recipe.schedule, total)
    if (written := lengths["warmup_epochs"] * each) != warmup:
        yield Unsaid("warmup", f"{written} updates, not {warmup}: timm warms up for whole epochs")
    prefix = written if recipe.schedule.kind in ("linear", "cosine") else 0
    if (length := lengths["epochs"] * each + prefix) != total:
        yield Unsaid("schedule", f"{length} updates long, not {total}: timm trains for whole epochs")


def _companion(recipe: Recipe, context: Context) -> str:
    usage = """In timm's train.py:

    optimizer = optimizer_for(model)                # for: optimizer = create_optimizer_v2(...)
    _, num_epochs = create_scheduler_v2(...)        # as it is, for the number of epochs; then
    lr_scheduler = Updates(optimizer, num_epochs * updates_per_epoch)"""
    glue = '''class Updates:
    """What train.py asks of a scheduler: step_update(n) once n updates are made; nothing at the end of an epoch."""

    t_in_epochs = False

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        self.optimizer, self.total_steps = optimizer, total_steps
        self.step_update(0)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set lr for update num_updates, from 0."""
        set_lr(self.optimizer, num_updates, self.total_steps)

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Nothing: lr moves with updates."""'''
    return companion(recipe, usage, glue, pieces=("optimizer_for", "set_lr"))


FORMAT = Format(
    "timm",
    "timm's train.py",
    "yaml",
    _settings,
    how="python train.py --config FILE; with warmup_prefix its epochs come after warmup_epochs. It exempts biases and "
    "vectors, and what the model's no_weight_decay() names, from decay.",
    companion=_companion,
)
