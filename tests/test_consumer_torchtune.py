"""Exported files under torchtune's own code: its `instantiate` and its schedule.

torchtune 0.6.1 does not import with today's torchao; the files that build run without the package's `__init__`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from consumers import (
    CONTEXT,
    GROUPED,
    LM,
    SWITCHED,
    TOTAL,
    assert_alike,
    assert_alike_but_for,
    every_recipe,
    model_for,
    random_recipes,
    unsaid_of,
    write_companion,
)
from hypothesis import HealthCheck, given, settings

from adamtune.export import export_recipe
from adamtune.recipe import Recipe

pytestmark = pytest.mark.consumers

omegaconf = pytest.importorskip("omegaconf")
Instantiate = Callable[..., Any]


@pytest.fixture
def instantiate(shells: Callable[..., None]) -> Instantiate:
    shells("torchtune", "torchtune", "torchtune.config", "torchtune.utils", "torchtune.training")
    memory = ModuleType("torchtune.training.memory")
    memory.OptimizerInBackwardWrapper = object  # type: ignore[attr-defined]  # the schedule's file names it as a type
    sys.modules["torchtune.training.memory"] = memory
    made: Instantiate = importlib.import_module("torchtune.config._instantiate").instantiate
    return made


def built(recipe: Recipe, model: LM, instantiate: Instantiate) -> tuple[torch.optim.Optimizer, Any]:
    """As full_finetune_single_device.py does."""
    config = omegaconf.OmegaConf.create(export_recipe(recipe, "torchtune", CONTEXT).text)
    optimizer = instantiate(config.optimizer, model.parameters())
    return optimizer, instantiate(config.lr_scheduler, optimizer, num_training_steps=TOTAL, last_epoch=-1)


def test_torchtune_s_recipes_read_our_keys() -> None:
    files = importlib.metadata.files("torchtune") or pytest.skip("torchtune is not installed")
    for name in ("recipes/full_finetune_single_device.py", "recipes/full_finetune_distributed.py"):
        source = next(file for file in files if str(file) == name).read_text()
        for key in export_recipe(GROUPED, "torchtune", CONTEXT).text.splitlines():
            if key[0].isalpha():
                word = key.split(":")[0]
                assert f"cfg.{word}" in source or f'cfg.get("{word}"' in source, (name, word)


@every_recipe
def test_instantiate_builds_our_optimizer_and_schedule_but_for_what_is_unsaid(
    recipe: Recipe, instantiate: Instantiate
) -> None:
    model = LM()
    optimizer, scheduler = built(recipe, model, instantiate)
    step = lambda _: scheduler.step() if scheduler else None  # noqa: E731
    assert_alike_but_for(unsaid_of(recipe, "torchtune"), recipe, model, optimizer, step)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=random_recipes)
def test_nothing_of_a_random_recipe_is_lost_unsaid(recipe: Recipe, instantiate: Instantiate) -> None:
    model = model_for(recipe)
    optimizer, scheduler = built(recipe, model, instantiate)
    step = lambda _: scheduler.step() if scheduler else None  # noqa: E731
    assert_alike_but_for(unsaid_of(recipe, "torchtune"), recipe, model, optimizer, step, each=False)


@pytest.mark.parametrize("recipe", [GROUPED, SWITCHED], ids=["grouped", "switched"])
def test_the_companion_s_components_build_ours(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instantiate: Instantiate
) -> None:
    name = write_companion(recipe, "torchtune", tmp_path, monkeypatch)
    config = omegaconf.OmegaConf.create(
        {"o": {"_component_": f"{name}.optimizer_for"}, "s": {"_component_": f"{name}.lr_schedule"}}
    )
    model = LM()
    optimizer = instantiate(config.o, model)
    scheduler = instantiate(config.s, optimizer, num_training_steps=TOTAL, last_epoch=-1)
    assert_alike(recipe, model, optimizer, lambda _: scheduler.step())
