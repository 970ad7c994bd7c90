"""Exported files under axolotl's own code: its schema, and its trainer's optimizer and scheduler mixins.

axolotl pins dozens of packages to other versions than today's; these modules run without the package's `__init__`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from consumers import (
    CONTEXT,
    GROUPED,
    IDS,
    LM,
    NO_DECAY,
    RECIPES,
    SWITCHED,
    TOTAL,
    assert_alike,
    assert_alike_but_for,
    differences,
    every_recipe,
    model_for,
    random_recipes,
    unsaid_of,
    write_companion,
)
from hypothesis import HealthCheck, given, settings
from torch import nn

from adamtune.export import export_recipe
from adamtune.recipe import GroupRule, Match, Recipe

pytestmark = [pytest.mark.consumers, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def axolotl(shells: Callable[..., None]) -> ModuleType:
    for needed in ("transformers", "peft", "accelerate", "datasets", "addict"):
        pytest.importorskip(needed)
    shells("axolotl", "axolotl", "axolotl.core", "axolotl.core.trainers", "axolotl.core.trainers.mixins")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("axolotl.utils.schemas.training")


def trainer_of(model: nn.Module, values: dict[str, Any], folder: Path) -> Any:
    """Built from axolotl's mixins as its own trainer is, with the arguments its builder passes on."""
    transformers = importlib.import_module("transformers")
    mixins = "axolotl.core.trainers.mixins"
    optimizer_mixin = importlib.import_module(f"{mixins}.optimizer").OptimizerMixin
    scheduler_mixin = importlib.import_module(f"{mixins}.scheduler").SchedulerMixin
    names = {"optim": "optimizer", "lr_scheduler_type": "lr_scheduler"}
    own = ("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "lr_scheduler_kwargs")
    passed = {key: values[key] for key in (*own, "warmup_steps", "optim_args") if key in values}
    if values.get("warmup_ratio") is not None:
        passed["warmup_steps"] = int(values["warmup_ratio"] * TOTAL)
    passed |= {theirs: values[ours] for theirs, ours in names.items()}
    if passed.get("warmup_steps") == 1:  # as core/builders/base.py, which does not import without much else
        passed["warmup_steps"] = 2
    args = transformers.TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **passed)
    absent = ("embedding_lr", "embedding_lr_scale", "lr_groups", "cosine_min_lr_ratio", "loraplus_lr_ratio")
    absent = (*absent, "lr_quadratic_warmup", "cosine_constant_lr_ratio", "jagged_restart_steps")
    for key in (*absent, "alternate_lr_scheduler_type"):
        setattr(args, key, values.get(key))
    return type("Trainer", (scheduler_mixin, optimizer_mixin, transformers.Trainer), {})(model=model, args=args)


def built(recipe: Recipe, model: LM, schema: ModuleType, folder: Path) -> Any:
    values = yaml.safe_load(export_recipe(recipe, "axolotl", CONTEXT).text)
    read = schema.HyperparametersConfig.model_validate(values)
    known = [key for key in values if key in type(read).model_fields and key != "lr_groups"]
    assert {key: getattr(read, key) for key in known} == {key: values[key] for key in known}
    trainer = trainer_of(model, values, folder)
    trainer.create_optimizer()
    trainer.create_scheduler(TOTAL)
    return trainer


def assert_alike_in_axolotl(recipe: Recipe, schema: ModuleType, folder: Path, each: bool) -> None:
    model = model_for(recipe)
    trainer = built(recipe, model, schema, folder)
    step = lambda _: trainer.lr_scheduler.step()  # noqa: E731
    moving = {f"groups.{rule.name}.lr_mult" for rule in recipe.groups if rule.match.kind}  # lm_head with the embedding
    unsaid = unsaid_of(recipe, "axolotl")
    assert_alike_but_for(unsaid, recipe, model, trainer.optimizer, step, each=each, moving=moving)


@every_recipe
def test_axolotl_builds_our_optimizer_and_schedule_but_for_what_is_unsaid(
    recipe: Recipe, axolotl: ModuleType, tmp_path: Path
) -> None:
    assert_alike_in_axolotl(recipe, axolotl, tmp_path, each=True)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=random_recipes)
def test_nothing_of_a_random_recipe_is_lost_unsaid(recipe: Recipe, axolotl: ModuleType, tmp_path: Path) -> None:
    assert_alike_in_axolotl(recipe, axolotl, tmp_path, each=False)


@pytest.mark.parametrize("recipe", RECIPES[:20], ids=IDS[:20])
def test_axolotl_s_schema_has_every_key(recipe: Recipe, axolotl: ModuleType) -> None:
    files = importlib.metadata.files("axolotl") or []
    config = next(file for file in files if str(file) == "axolotl/utils/schemas/config.py").read_text()
    for key in yaml.safe_load(export_recipe(recipe, "axolotl", CONTEXT).text):
        known = key in axolotl.HyperparametersConfig.model_fields or re.search(rf"^    {key}: ", config, re.MULTILINE)
        assert known, key


def test_axolotl_gives_embeddings_and_modules_our_lr(axolotl: ModuleType, tmp_path: Path) -> None:
    head = GroupRule(name="outer", match=Match(kind=("embedding", "head")), lr_mult=0.5, weight_decay=0.0)
    named = GroupRule(name="attention", match=Match(params=("*q_proj.weight*",)), lr_mult=2.0)
    recipe = Recipe(lr=1e-3, weight_decay=0.3, groups=(head, named, NO_DECAY))
    values = yaml.safe_load(export_recipe(recipe, "axolotl", CONTEXT).text)
    assert axolotl.HyperparametersConfig.model_validate(values).lr_groups[0].lr == 2e-3
    model = LM()
    model.lm_head.bias = None  # as most language models have it
    trainer = built(recipe, model, axolotl, tmp_path)
    assert_alike(recipe, model, trainer.optimizer, lambda _: trainer.lr_scheduler.step())
    model = LM()
    trainer = built(recipe, model, axolotl, tmp_path)
    unsaid = unsaid_of(recipe, "axolotl")
    assert "groups.outer.lr_mult" in unsaid
    different = differences(recipe, model, trainer.optimizer, lambda _: trainer.lr_scheduler.step())
    assert {(one.parameter, one.key) for one in different} == {("lm_head.bias", "lr")}


@pytest.mark.parametrize("recipe", [GROUPED, SWITCHED], ids=["grouped", "switched"])
def test_axolotl_takes_the_companion_for_a_plugin(
    recipe: Recipe, axolotl: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write_companion(recipe, "axolotl", tmp_path, monkeypatch)
    values = yaml.safe_load(export_recipe(recipe, "axolotl", CONTEXT).text)
    base = importlib.import_module("axolotl.integrations.base")
    plugins = base.PluginManager.get_instance()
    monkeypatch.setattr(plugins, "plugins", {"recipe": base.load_plugin(f"{name}.RecipePlugin")})
    monkeypatch.setattr(plugins, "_cfg", None, raising=False)
    model = LM()
    trainer = trainer_of(model, values, tmp_path)
    plugins.post_trainer_create(None, trainer)
    trainer.create_optimizer()
    trainer.create_scheduler(TOTAL)
    assert_alike(recipe, model, trainer.optimizer, lambda _: trainer.lr_scheduler.step())
