"""Exported files under Hydra's own code: OmegaConf reads them, hydra.utils.instantiate builds from them."""

from __future__ import annotations

from pathlib import Path
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
from hypothesis import given, settings

from adamtune.export import export_recipe
from adamtune.recipe import Recipe

pytestmark = pytest.mark.consumers

hydra = pytest.importorskip("hydra.utils")
omegaconf = pytest.importorskip("omegaconf")
pytest.importorskip("transformers")  # has the schedules


def built(recipe: Recipe, model: LM) -> tuple[torch.optim.Optimizer, Any]:
    """By a configuration of one's own that the file overrides."""
    own = omegaconf.OmegaConf.create({"model": {"width": 4}, "optimizer": {"lr": 1.0}, "scheduler": None})
    config = omegaconf.OmegaConf.merge(own, omegaconf.OmegaConf.create(export_recipe(recipe, "hydra", CONTEXT).text))
    assert config.model.width == 4
    optimizer = hydra.instantiate(config.optimizer)(model.parameters())
    return optimizer, None if config.scheduler is None else hydra.instantiate(config.scheduler)(optimizer)


@every_recipe
def test_instantiate_builds_our_optimizer_and_schedule_but_for_what_is_unsaid(recipe: Recipe) -> None:
    model = LM()
    optimizer, scheduler = built(recipe, model)
    unsaid = unsaid_of(recipe, "hydra")
    assert_alike_but_for(unsaid, recipe, model, optimizer, lambda _: scheduler.step() if scheduler else None)


@settings(max_examples=60)
@given(random_recipes)
def test_nothing_of_a_random_recipe_is_lost_unsaid(recipe: Recipe) -> None:
    model = model_for(recipe)
    optimizer, scheduler = built(recipe, model)
    step = lambda _: scheduler.step() if scheduler else None  # noqa: E731
    assert_alike_but_for(unsaid_of(recipe, "hydra"), recipe, model, optimizer, step, each=False)


@pytest.mark.parametrize("recipe", [GROUPED, SWITCHED], ids=["grouped", "switched"])
def test_the_companion_s_nodes_build_ours(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_companion(recipe, "hydra", tmp_path, monkeypatch)
    model = LM()
    optimizer = hydra.instantiate({"_target_": f"{name}.optimizer_for", "_partial_": True})(model)
    node = {"_target_": f"{name}.scheduler_for", "_partial_": True, "total_steps": TOTAL}
    scheduler = hydra.instantiate(node)(optimizer)
    assert_alike(recipe, model, optimizer, lambda _: scheduler.step())
