"""The exported config under nanoGPT's rules, re-expressed: nanoGPT is scripts to copy, not a package to install.

`train.py` (karpathy/nanoGPT, MIT) executes the file over its globals (`configurator.py`), makes one AdamW with two
groups (`GPT.configure_optimizers`: parameters of two dimensions or more decay) and sets every group's lr before
iteration `it`. Read in today's copies; older ones (005475c) warm up as `it / warmup_iters`, which is our own rule.
"""

from __future__ import annotations

import importlib
import math
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

# train.py's own values for what a config may override, with the types that --key=value is held to.
GLOBALS: dict[str, Any] = {
    "learning_rate": 6e-4, "max_iters": 600000, "weight_decay": 1e-1, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0,
    "decay_lr": True, "warmup_iters": 2000, "lr_decay_iters": 600000, "min_lr": 6e-5,
    "gradient_accumulation_steps": 40, "dtype": "bfloat16",
}  # fmt: skip


def config_of(recipe: Recipe) -> dict[str, Any]:
    names = dict(GLOBALS)
    exec(export_recipe(recipe, "nanogpt", CONTEXT).text, names)
    del names["__builtins__"]
    assert {key: type(value) for key, value in names.items()} == {key: type(value) for key, value in GLOBALS.items()}
    return names


def lr_at(it: int, config: dict[str, Any]) -> float:
    peak, low, warmup, end = (config[key] for key in ("learning_rate", "min_lr", "warmup_iters", "lr_decay_iters"))
    if not config["decay_lr"]:
        return float(peak)
    if it < warmup:
        return float(peak * (it + 1) / (warmup + 1))
    if it > end:
        return float(low)
    kept = 0.5 * (1.0 + math.cos(math.pi * (it - warmup) / (end - warmup)))
    return float(low + kept * (peak - low))


def assert_trained_alike(recipe: Recipe, model: LM, *, each: bool) -> None:
    config = config_of(recipe)
    params = list(model.parameters())
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": config["weight_decay"]},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (config["beta1"], config["beta2"])
    optimizer = torch.optim.AdamW(groups, lr=config["learning_rate"], betas=betas)

    def set_lr(it: int) -> None:
        if it <= config["max_iters"]:  # after which the loop ends
            for group in optimizer.param_groups:
                group["lr"] = lr_at(it, config)

    set_lr(0)
    assert config["max_iters"] == TOTAL - 1
    assert_alike_but_for(unsaid_of(recipe, "nanogpt"), recipe, model, optimizer, set_lr, each=each)


@every_recipe
def test_train_py_has_our_optimizer_and_schedule_but_for_what_is_unsaid(recipe: Recipe) -> None:
    assert_trained_alike(recipe, LM(), each=recipe.optimizer != "sgd")  # which says two things of one


@settings(max_examples=60)
@given(random_recipes)
def test_nothing_of_a_random_recipe_is_lost_unsaid(recipe: Recipe) -> None:
    assert_trained_alike(recipe, model_for(recipe), each=False)


@pytest.mark.parametrize("recipe", [GROUPED, SWITCHED], ids=["grouped", "switched"])
def test_the_companion_s_optimizer_and_lr_are_ours(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(write_companion(recipe, "nanogpt", tmp_path, monkeypatch))
    config, model = config_of(recipe), LM()
    optimizer = module.optimizer_for(model)
    module.set_lr(optimizer, 0, config["max_iters"] + 1)
    assert_alike(recipe, model, optimizer, lambda it: module.set_lr(optimizer, it, config["max_iters"] + 1))
