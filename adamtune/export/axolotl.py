"""axolotl: training keys of its YAML config.

Keys from axolotl 0.19 utils/schemas/training.py and config.py; meaning from core/builders/base.py, from
core/trainers/mixins (optimizer.py, scheduler.py) and from transformers 5 behind them. axolotl's trainer never calls a
plugin's `create_optimizer`, so the companion's plugin replaces the trainer's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adamtune.export import told, unsayable
from adamtune.export.companion import companion
from adamtune.export.format import Context, Format, Settings, Unsaid
from adamtune.recipe import GroupRule, Recipe, Schedule, WarmupSteps
from adamtune.schedule import warmup_steps

_OTHERS = (
    "optim_args", "embedding_lr", "embedding_lr_scale", "lr_groups", "loraplus_lr_ratio", "lr_scheduler_kwargs",
    "cosine_min_lr_ratio", "cosine_constant_lr_ratio", "lr_quadratic_warmup", "warmup_steps", "warmup_ratio",
    "jagged_restart_steps", "jagged_restart_warmup_steps", "jagged_restart_anneal_steps",
)  # fmt: skip
"""What else moves lr there."""


def _settings(recipe: Recipe, context: Context) -> Settings:
    values: dict[str, Any] = {"learning_rate": recipe.lr}
    if recipe.optimizer == "sgd":
        values |= {"optimizer": "sgd", "optim_args": f"momentum={recipe.momentum!r}"}
    else:
        values |= {
            "optimizer": "adamw_torch",
            "adam_beta1": recipe.betas[0],
            "adam_beta2": recipe.betas[1],
            "adam_epsilon": recipe.eps,
        }
    values["weight_decay"] = recipe.weight_decay
    values |= _groups(recipe) | _schedule(recipe, context)
    values |= {
        "max_grad_norm": recipe.clip_norm or 0.0,  # left out, transformers clips at 1
        "gradient_accumulation_steps": recipe.accumulate,
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
    }
    return Settings(values, tuple(_unsaid(recipe, context)), {key: None for key in _OTHERS if key not in values})


def _groups(recipe: Recipe) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if embedding := _embedding_rule(recipe):
        said["embedding_lr_scale"] = embedding.lr_mult
    if named := _named_rules(recipe):
        said["lr_groups"] = [
            {"name": rule.name, "modules": _substrings(rule), "lr": recipe.lr * rule.lr_mult} for rule in named
        ]
    return said


def _embedding_rule(recipe: Recipe) -> GroupRule | None:
    """The rule by kind for embeddings, with the head or without, that has an lr of its own; 0 reads as unset."""
    wanted = ({"embedding"}, {"embedding", "head"})
    for rule in recipe.groups:
        if set(rule.match.kind or ()) in wanted and not rule.match.params and rule.lr_mult not in (0.0, 1.0):
            return rule
    return None


def _named_rules(recipe: Recipe) -> list[GroupRule]:
    """The rules with an lr of their own that match by a part of the name alone: axolotl's `modules` are substrings.

    The first module that fits takes a weight, so a rule counts only while no other rule before it may take weights.
    """
    named = []
    for rule in recipe.groups:
        if rule.lr_mult != 1.0 and not rule.match.kind and _substrings(rule):
            named.append(rule)
        elif not rule.match.kind or "rest" in rule.match.kind:
            break
    return named


def _substrings(rule: GroupRule) -> list[str]:
    patterns = rule.match.params or ()
    inner = [pattern[1:-1] for pattern in patterns if len(pattern) > 2 and pattern[0] == pattern[-1] == "*"]
    plain = [part for part in inner if not any(wild in part for wild in "*?[")]
    return plain if len(plain) == len(patterns) else []


def _schedule(recipe: Recipe, context: Context) -> dict[str, Any]:
    schedule = recipe.schedule
    name, kwargs = told.transformers_schedule(recipe, context.total_steps)
    said: dict[str, Any] = {"lr_scheduler": name}
    if name == "cosine_with_min_lr":
        said = {"lr_scheduler": "cosine", "cosine_min_lr_ratio": schedule.floor}  # axolotl's own word for it
    elif kwargs:
        said["lr_scheduler_kwargs"] = kwargs
    return said | _warmup(schedule, context.total_steps)


def _warmup(schedule: Schedule, total: int | None) -> dict[str, Any]:
    """As a fraction where that comes to the same number of steps, so that it holds for other lengths of run too."""
    if isinstance(schedule.warmup, WarmupSteps):
        return {"warmup_steps": schedule.warmup.steps if total is None else warmup_steps(schedule, total)}
    if total is None or int(schedule.warmup * total) == warmup_steps(schedule, total):  # as core/builders/base.py
        return {"warmup_ratio": schedule.warmup}
    return {"warmup_steps": warmup_steps(schedule, total)}


def _unsaid(recipe: Recipe, context: Context) -> Iterator[Unsaid]:
    yield from unsayable.plain_adam(recipe, "transformers")
    yield from _unsaid_groups(recipe)
    yield from unsayable.step_decay(recipe, "axolotl")
    total, warmup = context.total_steps, recipe.schedule.warmup
    if total is None and not isinstance(warmup, WarmupSteps) and warmup:
        yield Unsaid("warmup", "as a fraction axolotl rounds it down, we to the nearest; exact with --total-steps")
    elif (warmup.steps if isinstance(warmup, WarmupSteps) else warmup_steps(recipe.schedule, total or 0)) == 1:
        yield Unsaid("warmup", "axolotl makes 2 updates of 1")
    if recipe.precision != "fp32":
        yield Unsaid("precision", f"axolotl loads the weights themselves in {recipe.precision}; ours stay fp32")
    yield from unsayable.switch(recipe, "axolotl")


def _unsaid_groups(recipe: Recipe) -> Iterator[Unsaid]:
    embedding, named = _embedding_rule(recipe), _named_rules(recipe)
    for unsaid in unsayable.groups_but_decay(recipe, "axolotl knows lr groups only; here all weights are alike"):
        _, group, *key = unsaid.knob.split(".")
        if key != ["lr_mult"]:
            yield unsaid
        elif embedding and group == embedding.name:
            why = "embedding_lr_scale moves embed_tokens and lm_head together, before all rules"
            if recipe.groups.index(embedding) == 0 and "head" in (embedding.match.kind or ()):
                why = "embedding_lr_scale moves a bias of lm_head too, where there is one"
            yield Unsaid(unsaid.knob, why)
        elif any(group == rule.name for rule in named):
            yield Unsaid(unsaid.knob, "lr_groups leave biases, norms, embed_tokens and lm_head as they are")
        else:
            yield unsaid
    yield from unsayable.decay(recipe, "axolotl")
    if (embedding or named) and unsayable.decays(recipe) and not _embeddings_undecayed(recipe, embedding):
        yield Unsaid("weight_decay", "with lr groups axolotl takes it from embed_tokens and lm_head too")


def _embeddings_undecayed(recipe: Recipe, embedding: GroupRule | None) -> bool:
    return embedding is not None and embedding.weight_decay == 0.0 and "head" in (embedding.match.kind or ())


def _companion(recipe: Recipe, context: Context) -> str:
    usage = """In axolotl's config, with this module's name as NAME, and this module where Python finds it:

    plugins: [NAME.RecipePlugin]"""
    glue = '''class RecipePlugin(BasePlugin):
    """Gives axolotl's trainer the recipe's optimizer and lr schedule."""

    def post_trainer_create(self, cfg, trainer):
        def create_optimizer(model=None):
            if trainer.optimizer is None:
                trainer.optimizer = optimizer_for(trainer.model if model is None else model)
            return trainer.optimizer

        trainer.create_optimizer = create_optimizer

    def create_lr_scheduler(self, cfg, trainer, optimizer, num_training_steps):
        return scheduler_for(optimizer, num_training_steps)'''
    return companion(
        recipe,
        usage,
        glue,
        pieces=("optimizer_for", "scheduler_for"),
        imports=["", "from axolotl.integrations.base import BasePlugin"],
    )


FORMAT = Format(
    "axolotl",
    "axolotl",
    "yaml",
    _settings,
    how="Put these keys into the config: axolotl train FILE. It exempts biases and norms from decay.",
    companion=_companion,
)
