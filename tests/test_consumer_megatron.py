"""Exported files under megatron-core's own code: its param groups and its schedule, put together as its scripts do."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from consumers import (
    CONTEXT,
    GROUPED,
    LM,
    SWITCHED,
    assert_alike,
    assert_alike_but_for,
    every_recipe,
    model_for,
    random_recipes,
    unsaid_of,
    write_companion,
)
from hypothesis import HealthCheck, given, settings
from torch import nn

from adamtune.export import export_recipe
from adamtune.recipe import Recipe, Schedule

pytestmark = [pytest.mark.consumers, pytest.mark.filterwarnings("ignore")]  # Transformer Engine and Apex are not there

BATCH = 8


@pytest.fixture
def megatron() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("megatron.core.optimizer")
        return importlib.import_module("megatron.core.optimizer_param_scheduler")


def arguments(text: str) -> dict[str, Any]:
    lines = [line.removeprefix("--").split() for line in text.splitlines() if line.startswith("--")]
    return {line[0]: yaml.safe_load(line[1]) if len(line) > 1 else True for line in lines}


def scheduler_of(module: ModuleType, optimizer: Any, read: dict[str, Any]) -> Any:
    """As megatron/training/training.py, get_optimizer_param_scheduler, makes it: steps count samples."""
    decay = float(read["weight-decay"])
    return module.OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=float(read["lr"]),
        min_lr=float(read["min-lr"]),
        lr_warmup_steps=read["lr-warmup-iters"] * BATCH,
        lr_decay_steps=read["lr-decay-iters"] * BATCH,
        lr_decay_style=read["lr-decay-style"],
        start_wd=decay,
        end_wd=decay,
        wd_incr_steps=read["train-iters"] * BATCH,
        wd_incr_style="constant",
    )


def groups_of(model: nn.Module, read: dict[str, Any], overrides: Any = None) -> list[dict[str, Any]]:
    """megatron-core's own param groups for a model, in a process group of one."""
    optimizer = importlib.import_module("megatron.core.optimizer")
    config = optimizer.OptimizerConfig(
        optimizer=read["optimizer"], lr=float(read["lr"]), min_lr=float(read["min-lr"]),
        weight_decay=float(read["weight-decay"]), adam_eps=float(read.get("adam-eps", 1e-8)),
    )  # fmt: skip
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        groups: list[dict[str, Any]] = optimizer._get_param_groups([model], config, overrides)
    finally:
        torch.distributed.destroy_process_group()
    return groups


def torch_optimizer(groups: list[dict[str, Any]], read: dict[str, Any]) -> torch.optim.Optimizer:
    """As megatron/core/optimizer/__init__.py makes it without Transformer Engine and Apex."""
    lr, decay = float(read["lr"]), float(read["weight-decay"])
    if read["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=lr, weight_decay=decay, momentum=float(read["sgd-momentum"]))
    betas = (float(read["adam-beta1"]), float(read["adam-beta2"]))
    return torch.optim.AdamW(groups, lr=lr, weight_decay=decay, betas=betas, eps=float(read["adam-eps"]))


def built(recipe: Recipe, model: LM, megatron: ModuleType) -> tuple[torch.optim.Optimizer, Any]:
    read = arguments(export_recipe(recipe, "megatron", CONTEXT).text)
    optimizer = torch_optimizer(groups_of(model, read), read)
    return optimizer, scheduler_of(megatron, optimizer, read)


@every_recipe
def test_megatron_builds_our_optimizer_and_schedule_but_for_what_is_unsaid(
    recipe: Recipe, megatron: ModuleType
) -> None:
    model = LM()
    optimizer, scheduler = built(recipe, model, megatron)
    unsaid = unsaid_of(recipe, "megatron")
    assert_alike_but_for(unsaid, recipe, model, optimizer, lambda _: scheduler.step(BATCH))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=random_recipes)
def test_nothing_of_a_random_recipe_is_lost_unsaid(recipe: Recipe, megatron: ModuleType) -> None:
    model = model_for(recipe)
    optimizer, scheduler = built(recipe, model, megatron)
    unsaid = unsaid_of(recipe, "megatron")
    assert_alike_but_for(unsaid, recipe, model, optimizer, lambda _: scheduler.step(BATCH), each=False)


COMPANIONS = {
    "linear": GROUPED,
    "step": GROUPED.model_copy(update={"schedule": Schedule(kind="step")}),
    "switched, which is not made": SWITCHED,
}


@pytest.mark.parametrize("recipe", COMPANIONS.values(), ids=COMPANIONS)
def test_megatron_takes_the_companion_s_overrides(
    recipe: Recipe, megatron: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(write_companion(recipe, "megatron", tmp_path, monkeypatch))
    monkeypatch.setattr(megatron.OptimizerParamScheduler, "get_lr", module.lr_of)
    read, model = arguments(export_recipe(recipe, "megatron", CONTEXT).text), LM()
    overrides = module.overrides_for([SimpleNamespace(module=model)])
    wrapper = nn.Module()
    wrapper.module = model
    optimizer = torch_optimizer(groups_of(wrapper, read, overrides), read)
    scheduler = scheduler_of(megatron, optimizer, read)
    unswitched = recipe.model_copy(update={"switch": None})
    assert_alike(unswitched, model, optimizer, lambda _: scheduler.step(BATCH))
