"""Exported files under timm's own code: its optimizer and scheduler factories, as train.py calls them.

timm imports torchvision, which does not load beside a CPU torch; its factories run without the package's `__init__`.
"""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
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

TRAIN_PY = {"opt_eps": None, "opt_betas": None, "momentum": 0.9, "layer_decay": None, "warmup_prefix": False}
"""Defaults of timm's train.py for what a file leaves out."""


@pytest.fixture
def factories(shells: Callable[..., None]) -> Namespace:
    shells("timm", "timm", "timm.models")
    sys.modules["timm.models"].group_parameters = None  # type: ignore[attr-defined]  # for layer_decay alone
    optim, scheduler = importlib.import_module("timm.optim"), importlib.import_module("timm.scheduler")
    return Namespace(optim=optim, scheduler=scheduler)


def built(recipe: Recipe, model: LM, timm: Namespace) -> tuple[torch.optim.Optimizer, Any]:
    """As train.py does."""
    args = Namespace(**TRAIN_PY | yaml.safe_load(export_recipe(recipe, "timm", CONTEXT).text))
    optimizer = timm.optim.create_optimizer_v2(model, **timm.optim.optimizer_kwargs(cfg=args))
    scheduler, epochs = timm.scheduler.create_scheduler(args, optimizer, updates_per_epoch=10)
    assert not scheduler.t_in_epochs
    if not unsaid_of(recipe, "timm") & {"schedule", "warmup"}:
        assert epochs == TOTAL // 10
    return optimizer, scheduler


@every_recipe
def test_train_py_builds_our_optimizer_and_schedule_but_for_what_is_unsaid(
    recipe: Recipe, factories: Namespace
) -> None:
    model = LM()
    optimizer, scheduler = built(recipe, model, factories)
    unsaid = unsaid_of(recipe, "timm")
    each = "schedule" not in unsaid  # which says that the run ends later
    assert_alike_but_for(unsaid, recipe, model, optimizer, scheduler.step_update, each=each)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=random_recipes)
def test_nothing_of_a_random_recipe_is_lost_unsaid(recipe: Recipe, factories: Namespace) -> None:
    model = model_for(recipe)
    optimizer, scheduler = built(recipe, model, factories)
    assert_alike_but_for(unsaid_of(recipe, "timm"), recipe, model, optimizer, scheduler.step_update, each=False)


@pytest.mark.parametrize("recipe", [GROUPED.with_knob("warmup", {"steps": 10}), SWITCHED], ids=["grouped", "switched"])
def test_train_py_runs_with_the_companion(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factories: Namespace
) -> None:
    module = importlib.import_module(write_companion(recipe, "timm", tmp_path, monkeypatch))
    args = Namespace(**TRAIN_PY | yaml.safe_load(export_recipe(recipe, "timm", CONTEXT).text))
    model = LM()
    optimizer = module.optimizer_for(model)
    _, num_epochs = factories.scheduler.create_scheduler(args, optimizer, updates_per_epoch=10)
    assert_alike(recipe, model, optimizer, module.Updates(optimizer, num_epochs * 10).step_update)
