"""torchtune: the optimizer, lr_scheduler and training keys of a recipe's YAML, `tune run RECIPE --config FILE`.

Keys and meaning from meta-pytorch/torchtune 0.6.1: recipes/full_finetune_single_device.py (and _distributed),
torchtune/training/lr_schedulers.py and precision.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from adamtune.export import told, unsayable
from adamtune.export.companion import companion
from adamtune.export.format import Context, Format, Settings, Unsaid
from adamtune.recipe import Recipe, WarmupSteps
from adamtune.schedule import warmup_steps

_COSINE = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"


def _settings(recipe: Recipe, context: Context) -> Settings:
    held = recipe.schedule.kind == "constant"
    values = {
        "optimizer": {"_component_": told.torch_class(recipe)} | told.torch_arguments(recipe),
        # Without one the lr stays as it is. The recipe itself adds num_training_steps.
        "lr_scheduler": None if held else {"_component_": _COSINE, "num_warmup_steps": _warmup(recipe, context)},
        "clip_grad_norm": recipe.clip_norm,
        "gradient_accumulation_steps": recipe.accumulate,
        "dtype": "bf16" if recipe.precision == "bf16" else "fp32",
    }
    return Settings(values, tuple(_unsaid(recipe, _warmup(recipe, context))))


def _warmup(recipe: Recipe, context: Context) -> int:
    warmup = recipe.schedule.warmup
    if context.total_steps is None and isinstance(warmup, WarmupSteps):
        return warmup.steps
    return warmup_steps(recipe.schedule, context.needs_total_steps("torchtune", "num_warmup_steps")) if warmup else 0


def _unsaid(recipe: Recipe, warmup: int) -> Iterator[Unsaid]:
    why = "torchtune's recipes give all weights one lr, betas, eps and weight decay"
    yield from unsayable.groups(recipe, why)
    if recipe.schedule.kind == "constant":
        if warmup:
            yield Unsaid("warmup", "torchtune's one scheduler is cosine; lr starts at its peak")
    else:
        if recipe.schedule.kind != "cosine":
            yield from unsayable.schedule(recipe, "torchtune has a cosine schedule only; lr decays by cosine to 0")
        if recipe.schedule.floor:
            yield Unsaid("floor", "torchtune's cosine ends at 0")
    if recipe.precision == "bf16":
        why = "weights, gradients and Adam's moments are bf16 themselves there; we autocast from fp32 weights"
        yield Unsaid("precision", why)
    if recipe.precision == "fp16":
        yield Unsaid("precision", "torchtune's full fine-tuning refuses fp16; fp32 written")
    yield from unsayable.switch(recipe, "torchtune")


def _companion(recipe: Recipe, context: Context) -> str:
    usage = """Take the recipe with `tune cp full_finetune_single_device train.py`, change in it

    optimizer = config.instantiate(cfg_optimizer, self._model.parameters())
to  optimizer = config.instantiate(cfg_optimizer, self._model)         # groups go by name and module
and import get_lr from this module, as torchtune's wants one lr for all groups. Then, with this module's name as NAME:

    optimizer: {_component_: NAME.optimizer_for}
    lr_scheduler: {_component_: NAME.lr_schedule}"""
    glue = '''def lr_schedule(optimizer, num_training_steps: int, last_epoch: int = -1) -> LambdaLR:
    """The lr schedule, as torchtune's recipes ask for it."""
    return scheduler_for(optimizer, num_training_steps, last_epoch)


def get_lr(optimizer: torch.optim.Optimizer) -> float:
    """The lr to log: the last group's, which is the one of parameters no rule matches."""
    return optimizer.param_groups[-1]["lr"]'''
    return companion(recipe, usage, glue, pieces=("optimizer_for", "scheduler_for"))


FORMAT = Format(
    "torchtune",
    "torchtune's fine-tuning recipes",
    "yaml",
    _settings,
    how="Put these keys into a recipe's config: tune run full_finetune_single_device --config FILE",
    companion=_companion,
)
