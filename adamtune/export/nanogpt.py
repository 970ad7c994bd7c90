"""nanoGPT: a config file that its train.py executes, `python train.py FILE`.

Names and meaning from karpathy/nanoGPT, train.py (`get_lr`, the training loop) and model.py (`configure_optimizers`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adamtune.export import unsayable
from adamtune.export.companion import companion
from adamtune.export.format import Context, Format, Settings, Unsaid
from adamtune.recipe import Recipe
from adamtune.schedule import warmup_steps

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_TORCH_EPS = 1e-8


def _settings(recipe: Recipe, context: Context) -> Settings:
    total = context.needs_total_steps("nanogpt", "max_iters")
    held = recipe.schedule.kind == "constant"
    warmup = warmup_steps(recipe.schedule, total)
    values: dict[str, Any] = {
        "learning_rate": recipe.lr,
        "beta1": recipe.betas[0],
        "beta2": recipe.betas[1],
        "weight_decay": recipe.weight_decay,
        "grad_clip": recipe.clip_norm or 0.0,
        "decay_lr": not held or warmup > 0,  # off, there is no warmup either
        "warmup_iters": warmup,
        "lr_decay_iters": total,
        "min_lr": recipe.lr * (1.0 if held else recipe.schedule.floor),
        "max_iters": total - 1,  # the loop stops once iter_num, from 0, is above it
        "gradient_accumulation_steps": recipe.accumulate,
        "dtype": _DTYPES[recipe.precision],
    }
    return Settings(values, tuple(_unsaid(recipe, warmup)))


def _unsaid(recipe: Recipe, warmup: int) -> Iterator[Unsaid]:
    if recipe.optimizer == "sgd":
        yield Unsaid("optimizer", "nanoGPT always runs AdamW, for which this lr is not meant: take the companion")
        yield Unsaid("momentum", "AdamW's beta1 stands in its place")
    yield from unsayable.plain_adam(recipe, "nanoGPT")
    if recipe.optimizer != "sgd" and recipe.eps != _TORCH_EPS:
        yield Unsaid("eps", f"nanoGPT leaves it at torch's {_TORCH_EPS:g}")
    yield from unsayable.groups_but_decay(recipe, "nanoGPT has one lr, betas and eps for all weights")
    yield from unsayable.decay(recipe, "nanoGPT", "parameter of fewer than two dimensions")
    if recipe.schedule.kind in ("linear", "step"):
        why = f"nanoGPT has no {recipe.schedule.kind} decay; lr decays by cosine to min_lr"
        yield from unsayable.schedule(recipe, why)
    if warmup:
        rise = f"(it + 1) / {warmup + 1} of the peak, where ours rises as it / {warmup}"
        yield Unsaid("warmup", f"rises as {rise}: 1/{warmup + 1} too high at first, the same from update {warmup} on")
    yield from unsayable.switch(recipe, "nanoGPT")


def _companion(recipe: Recipe, context: Context) -> str:
    usage = """In nanoGPT's train.py, run as `python train.py CONFIG`:

    optimizer = optimizer_for(model)                  # for: optimizer = model.configure_optimizers(...)
    set_lr(optimizer, iter_num, max_iters + 1)        # for: the loop that gives param groups their lr"""
    return companion(recipe, usage, pieces=("optimizer_for", "set_lr"))


FORMAT = Format(
    "nanogpt",
    "nanoGPT's train.py",
    "assignments",
    _settings,
    how="python train.py FILE; max_iters is one below the updates, since iteration max_iters is trained too.",
    companion=_companion,
)
