"""transformers' TrainingArguments, as YAML for `HfArgumentParser.parse_yaml_file`; keys as in transformers 4.57 and 5.

The Trainer's schedules start and end where ours do, so what can be said is equal step for step. Its param groups are
two: it decays no parameter of an `nn.LayerNorm` and none with `bias` or `norm` in its name
(`Trainer.get_decay_parameter_names`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

from adamtune.export.format import Context, Format, Settings, Unsaid
from adamtune.export.python_module import python_module, switch_at_source
from adamtune.export.unsaid import groups_unsaid, schedule_unsaid, switch_unsaid
from adamtune.recipe import Kind, Recipe, WarmupSteps
from adamtune.schedule import warmup_steps

_NOT_DECAYED = {"bias", "norm"}


def _settings(recipe: Recipe, context: Context) -> Settings:
    optimizer, of_optimizer = _optimizer(recipe, context)
    schedule, of_schedule = _schedule(recipe, context)
    values = {
        **optimizer,
        **schedule,
        "max_grad_norm": recipe.clip_norm or 0.0,  # the Trainer's default clips at 1
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
        "gradient_accumulation_steps": recipe.accumulate,
    }
    unsaid = [
        *of_optimizer,
        *_decay_unsaid(recipe),
        *groups_unsaid(recipe, "the Trainer has one for all parameters", ("lr_mult", "betas", "eps")),
        *of_schedule,
        *switch_unsaid(recipe, "the Trainer keeps its optimizer to the end"),
    ]
    return Settings(values, tuple(unsaid))


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
    decays = recipe.weight_decay or any(rule.weight_decay for rule in recipe.groups)
    if recipe.optimizer == "adam" and decays:
        why = "the Trainer has AdamW only, which does not add the decay to the gradient as Adam does"
        return adam | shared, [Unsaid("optimizer", why)]
    return adam | shared, []


def _decay_unsaid(recipe: Recipe) -> Iterator[Unsaid]:
    """Where the decay of the recipe is not the Trainer's: the recipe's on all but biases and norms, 0 on those."""
    left = set(get_args(Kind))
    for rule in (*recipe.groups, None):
        kinds = left if rule is None or rule.match.kind is None else left & set(rule.match.kind)
        if rule is not None and rule.match.params is None:
            left = left - kinds
        own = rule.weight_decay if rule else None
        decay = recipe.weight_decay if own is None else own
        knob = f"groups.{rule.name}.weight_decay" if rule else "weight_decay"
        if kinds & _NOT_DECAYED and decay > 0:
            yield Unsaid(knob, "the Trainer decays no bias and no norm layer")
        if kinds - _NOT_DECAYED and decay != recipe.weight_decay:
            yield Unsaid(knob, "the Trainer has one for all parameters but biases and norm layers")


def _schedule(recipe: Recipe, context: Context) -> tuple[dict[str, Any], list[Unsaid]]:
    schedule, lr_end = recipe.schedule, recipe.schedule.floor * recipe.lr
    warmup, unsaid = _warmup(recipe, context)
    name, kwargs = "constant_with_warmup", None
    no_decay = context.total_steps is not None and warmup_steps(schedule, context.total_steps) == context.total_steps
    match schedule.kind:
        case "step":
            why = "the Trainer has no schedule in steps; lr stays constant after the warmup"
            unsaid += schedule_unsaid(recipe, why, ("schedule", "floor", "milestones", "gamma"))
        case "linear" if schedule.floor == 0.0:
            name = "linear"
        case "linear" if lr_end < recipe.lr and not no_decay:  # the polynomial divides by the length of its decay
            name, kwargs = "polynomial", {"lr_end": lr_end, "power": 1.0}
        case "cosine" if schedule.floor == 0.0:
            name = "cosine"
        case "cosine" if schedule.floor < 1.0:
            name, kwargs = "cosine_with_min_lr", {"min_lr_rate": schedule.floor}
    return {"lr_scheduler_type": name, "lr_scheduler_kwargs": kwargs} | warmup, unsaid


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
            self.optimizer, _ = build_optimizer(self.model if model is None else model, total_steps=1)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Called once the number of steps is known, after accelerate has wrapped the optimizer."""
        if self.lr_scheduler is None:
            wrapped = self.optimizer if optimizer is None else optimizer
            own = getattr(wrapped, "optimizer", wrapped)
            {made}
            self._created_lr_scheduler = True
        return self.lr_scheduler
'''

_SCHEDULER = "self.lr_scheduler = LambdaLR(own, lambda step: lr_multiplier(step, num_training_steps))"

_HANDOVER = """for group in own.param_groups:
                group["switch_at"] = {switch_at}
            self.lr_scheduler = HandoverLR(own, lambda step: lr_multiplier(step, num_training_steps))"""


def _companion(recipe: Recipe, context: Context) -> str:
    made = _SCHEDULER
    if recipe.switch:
        made = _HANDOVER.format(switch_at=switch_at_source(recipe.switch, "num_training_steps"))
    return python_module(
        recipe,
        title="Trainer with the optimizer recipe that TrainingArguments cannot say, written by adamtune.",
        use="trainer = RecipeTrainer(model=model, args=args, ...)  # args as the YAML file has them",
        imports=["from transformers import Trainer"],
        more=_TRAINER.format(made=made),
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
