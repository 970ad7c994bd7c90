"""Megatron-LM: command line arguments of its pretrain scripts.

Names from NVIDIA/Megatron-LM megatron/training/arguments.py, meaning from megatron/core/optimizer_param_scheduler.py
and megatron/core/optimizer/__init__.py (megatron-core 0.16).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adamtune.export import unsayable
from adamtune.export.companion import companion
from adamtune.export.format import Context, Format, Settings, Unsaid
from adamtune.recipe import Recipe
from adamtune.schedule import warmup_steps

_STYLES = {"constant": "constant", "linear": "linear", "cosine": "cosine", "step": "cosine"}


def _settings(recipe: Recipe, context: Context) -> Settings:
    total = context.needs_total_steps("megatron", "--lr-decay-iters")
    warmup = warmup_steps(recipe.schedule, total)
    own = {"sgd-momentum": recipe.momentum}
    if recipe.optimizer != "sgd":
        own = {"adam-beta1": recipe.betas[0], "adam-beta2": recipe.betas[1], "adam-eps": recipe.eps}
    values: dict[str, Any] = {
        "optimizer": "sgd" if recipe.optimizer == "sgd" else "adam",
        "lr": recipe.lr,
        "min-lr": recipe.lr * recipe.schedule.floor,
        **own,
        "weight-decay": recipe.weight_decay,
        "lr-decay-style": _STYLES[recipe.schedule.kind],
        "train-iters": total,
        "lr-decay-iters": total,
        "lr-warmup-iters": min(warmup, total - 1),  # its scheduler asserts warmup < decay
        "clip-grad": recipe.clip_norm or 0.0,
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
    }
    return Settings(values, tuple(_unsaid(recipe, warmup, total)))


def _unsaid(recipe: Recipe, warmup: int, total: int) -> Iterator[Unsaid]:
    if recipe.optimizer == "adam" and unsayable.decays(recipe):
        why = "--optimizer adam is AdamW; set OptimizerConfig.decoupled_weight_decay to False in your script"
        yield Unsaid("optimizer", why)
    why = "Megatron-LM gives all weights one lr, betas and eps"
    yield from unsayable.groups_but_decay(recipe, why)
    yield from unsayable.decay(recipe, "Megatron-LM", "bias and nothing of one dimension")
    if recipe.schedule.kind == "step":
        yield from unsayable.schedule(recipe, "Megatron-LM has no step decay; lr decays by cosine to --min-lr")
    if warmup >= total:
        yield Unsaid("warmup", f"must be shorter than the run: {total - 1} updates written, not {warmup}")
    if recipe.precision != "fp32":
        yield Unsaid(
            "precision",
            f"--{recipe.precision} casts the model itself, with fp32 weights kept by the optimizer; no autocast",
        )
    if recipe.accumulate > 1:
        yield Unsaid(
            "accumulate",
            f"follows from batch sizes: --global-batch-size must be {recipe.accumulate} * --micro-batch-size * the "
            "data-parallel size",
        )
    if recipe.switch:
        yield Unsaid("switch", "Megatron-LM runs Adam to the end, with the companion too")


_OVERRIDES = '''def overrides_of(model: nn.Module, prefix: str = "") -> dict[tuple[str, ...], dict]:
    """For the parameters of each param group: what they have in place of the defaults."""
    return {
        tuple(prefix + name for name in group["param_names"]): {
            "max_lr": group["initial_lr"],
            "min_lr": group["initial_lr"] * FLOOR,
            "start_wd": group["weight_decay"],
            "end_wd": group["weight_decay"],
            **{key: group[key] for key in OWN},
        }
        for group in optimizer_for(model).param_groups
    }


def overrides_for(model_chunks: list[nn.Module]) -> dict:
    """The config_overrides of get_megatron_optimizer."""
    from megatron.core.optimizer import ParamKey

    know_megatron_layers()
    overrides = {}
    for chunk in model_chunks:
        inner, prefix = chunk, ""
        while hasattr(inner, "module"):  # DistributedDataParallel, Float16Module
            inner, prefix = inner.module, prefix + "module."
        overrides |= {ParamKey(name=names): own for names, own in overrides_of(inner, prefix).items()}
    return overrides


def lr_of(scheduler, param_group: dict) -> float:
    """In place of OptimizerParamScheduler.get_lr, which counts iterations times the global batch size."""
    step = scheduler.num_steps * TOTAL_STEPS // scheduler.lr_decay_steps
    return param_group["max_lr"] * lr_multiplier(step, TOTAL_STEPS)'''

_LAYERS = '''def know_megatron_layers() -> None:
    """Let groups by kind find Megatron's own layers."""{body}'''

_LAYERS_BY_KIND = """
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding

    global EMBEDDINGS, PROJECTIONS
    EMBEDDINGS = (*EMBEDDINGS, VocabParallelEmbedding)
    PROJECTIONS = (*PROJECTIONS, ColumnParallelLinear, RowParallelLinear)"""


def _companion(recipe: Recipe, context: Context) -> str:
    total = context.needs_total_steps("megatron", "--lr-decay-iters")
    usage = f"""In megatron/training/training.py, before get_megatron_optimizer(config, model, ...):

    config.decoupled_weight_decay = {recipe.optimizer == "adamw"}
    config_overrides = overrides_for(model)
    OptimizerParamScheduler.get_lr = lr_of

Groups by kind know Megatron's embeddings and parallel layers; vectors inside a fused layer count as biases. Updates
stay Megatron's own: a switch to SGD is not made."""
    own = ("momentum",) if recipe.optimizer == "sgd" else ("betas", "eps")
    by_kind = any(rule.match.kind for rule in recipe.groups)
    constants = f"TOTAL_STEPS = {total}\nFLOOR = {recipe.schedule.floor!r}\nOWN = {own!r}"
    layers = _LAYERS.format(body=_LAYERS_BY_KIND if by_kind else "")
    alone = recipe.model_copy(update={"switch": None})
    return companion(alone, usage, "\n\n\n".join([constants, layers, _OVERRIDES]), pieces=["optimizer_for"])


FORMAT = Format(
    "megatron",
    "Megatron-LM's pretrain scripts",
    "arguments",
    _settings,
    how="torchrun ... pretrain_gpt.py ... $(grep -v '^#' FILE)",
    companion=_companion,
)
