"""transformers' TrainingArguments, as YAML for `HfArgumentParser.parse_yaml_file`; keys as in transformers 4.57 and 5.

The Trainer's schedules start and end where ours do, so what can be said is equal step for step. Its param groups are
two: it decays no parameter of an `nn.LayerNorm` and none with `bias` or `norm` in its name
(`Trainer.get_decay_parameter_names`).
"""

from __future__ import annotations

import math
from typing import Any

from adamtune.export import told, unsayable
from adamtune.export.companion import companion
from adamtune.export.format import Context, Format, Settings, Unsaid
from adamtune.recipe import Recipe, WarmupSteps
from adamtune.schedule import warmup_steps


def _settings(recipe: Recipe, context: Context) -> Settings:
    optimizer, of_optimizer = _optimizer(recipe, context)
    name, kwargs = told.transformers_schedule(recipe, context.total_steps)
    warmup, of_warmup = _warmup(recipe, context)
    values = {
        **optimizer,
        "lr_scheduler_type": name,
        "lr_scheduler_kwargs": kwargs,
        **warmup,
        "max_grad_norm": recipe.clip_norm or 0.0,  # the Trainer's default clips at 1
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
        "gradient_accumulation_steps": recipe.accumulate,
    }
    unsaid = [
        *of_optimizer,
        *unsayable.decay(recipe, "the Trainer"),
        *unsayable.groups_but_decay(recipe, "the Trainer has one for all parameters"),
        *unsayable.step_decay(recipe, "the Trainer"),
        *of_warmup,
        *unsayable.switch(recipe, "the Trainer"),
    ]
    neutral: dict[str, Any] = {} if "optim_args" in values else {"optim_args": None}
    if context.version == 4:
        neutral["adafactor"] = False  # true wins over optim there
    return Settings(values, tuple(unsaid), neutral)


def _optimizer(recipe: Recipe, context: Context) -> tuple[dict[str, Any], list[Unsaid]]:
    shared = {"learning_rate": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        if context.version == 4:
            why = "transformers 4 hands SGD its lr only, so momentum is 0"
            return {"optim": "sgd"} | shared, [Unsaid("momentum", why)] if recipe.momentum else []
        # Read from transformers 5.3 on.
        return {"optim": "sgd", "optim_args": f"momentum={recipe.momentum!r}"} | shared, []
    adam = {
        "optim": "adamw_torch",  # the default is its fused twin, whose last bits differ
        "adam_beta1": recipe.betas[0],
        "adam_beta2": recipe.betas[1],
        "adam_epsilon": recipe.eps,
    }
    return adam | shared, list(unsayable.plain_adam(recipe, "the Trainer"))


def _warmup(recipe: Recipe, context: Context) -> tuple[dict[str, Any], list[Unsaid]]:
    """As a fraction where that comes to the same number of steps, so that it holds for other lengths of run too."""
    warmup, total = recipe.schedule.warmup, context.total_steps
    if isinstance(warmup, WarmupSteps):
        return _steps(warmup.steps if total is None else min(warmup.steps, total), context), []
    if total is None:
        why = "transformers rounds the fraction up to a step, where the recipe takes the nearest; give --total-steps"
        return _fraction(warmup, context), [Unsaid("warmup", why)] if warmup else []
    ours = warmup_steps(recipe.schedule, total)
    same = ours == math.ceil(total * warmup)  # as TrainingArguments.get_warmup_steps
    return _fraction(warmup, context) if same else _steps(ours, context), []


def _steps(steps: int, context: Context) -> dict[str, Any]:
    if context.version == 4:
        return {"warmup_steps": steps, "warmup_ratio": 0.0}  # the ratio holds where there are no steps
    return {"warmup_steps": steps}


def _fraction(fraction: float, context: Context) -> dict[str, Any]:
    if context.version == 4:
        return {"warmup_steps": 0, "warmup_ratio": fraction}
    return {"warmup_steps": fraction}


_TRAINER = '''class RecipeTrainer(Trainer):
    """Trainer with the recipe's optimizer and schedule; the rest is told by its TrainingArguments."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Called first, when the number of steps is not known yet."""
        if self.optimizer is None:
            self.optimizer = optimizer_for(self.model if model is None else model)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Called once the number of steps is known, after accelerate has wrapped the optimizer."""
        if self.lr_scheduler is None:
            wrapped = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = scheduler_for(getattr(wrapped, "optimizer", wrapped), num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler'''


def _companion(recipe: Recipe, context: Context) -> str:
    return companion(
        recipe,
        """In place of transformers' Trainer, with the settings written beside this module:

    trainer = RecipeTrainer(model=model, args=args, ...)""",
        _TRAINER,
        pieces=("optimizer_for", "scheduler_for"),
        imports=["", "from transformers import Trainer"],
    )


FORMAT = Format(
    name="hf",
    consumer="transformers TrainingArguments",
    syntax="yaml",
    settings=_settings,
    how="Read by HfArgumentParser(TrainingArguments).parse_yaml_file. The Trainer tells biases and norms by name.",
    companion=_companion,
    versions=(4, 5),
)
