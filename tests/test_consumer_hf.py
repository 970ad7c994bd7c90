"""Exported files under transformers' own code: HfArgumentParser, TrainingArguments and Trainer, of version 4 or 5."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from consumers import (
    GROUPED,
    LM,
    LOOPS,
    SWITCHED,
    TOTAL,
    assert_alike,
    assert_alike_but_for,
    assert_same_weights,
    every_recipe,
    model_for,
    random_recipes,
    trained_by_hand,
    unsaid_of,
    with_no_decay,
    write_companion,
)
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.utils.data import Dataset

from adamtune.export import Context, export_recipe
from adamtune.recipe import Recipe
from adamtune.schedule import multiplier

pytestmark = [pytest.mark.consumers, pytest.mark.filterwarnings("ignore")]

transformers = pytest.importorskip("transformers")
CONTEXT = Context(TOTAL, version=int(transformers.__version__.split(".")[0]))


def arguments(recipe: Recipe, folder: Path, **others: object) -> Any:
    """The file as transformers reads it, with what a run needs beside it."""
    text = export_recipe(recipe, "hf", CONTEXT).text
    run = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "max_steps": TOTAL} | others
    path = folder / "hf.yaml"
    path.write_text(text + "".join(f"{key}: {json.dumps(value)}\n" for key, value in run.items()))
    (read,) = transformers.HfArgumentParser(transformers.TrainingArguments).parse_yaml_file(str(path))
    return read


@every_recipe
def test_the_trainer_builds_our_optimizer_and_schedule_but_for_what_is_unsaid(recipe: Recipe, tmp_path: Path) -> None:
    model = LM()
    trainer = transformers.Trainer(model=model, args=arguments(recipe, tmp_path))
    trainer.create_optimizer_and_scheduler(TOTAL)
    unsaid = unsaid_of(recipe, "hf", CONTEXT)
    assert_alike_but_for(unsaid, recipe, model, trainer.optimizer, lambda _: trainer.lr_scheduler.step())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=random_recipes)
def test_nothing_of_a_random_recipe_is_lost_unsaid(recipe: Recipe, tmp_path: Path) -> None:
    model = model_for(recipe)
    recipe = recipe.model_copy(update={"precision": "fp32"})  # the Trainer wants a GPU for fp16
    trainer = transformers.Trainer(model=model, args=arguments(recipe, tmp_path))
    trainer.create_optimizer_and_scheduler(TOTAL)
    unsaid = unsaid_of(recipe, "hf", CONTEXT)
    assert_alike_but_for(unsaid, recipe, model, trainer.optimizer, lambda _: trainer.lr_scheduler.step(), each=False)


@pytest.mark.parametrize("total", [1, 3, 7, 59, 61, 1000])
def test_a_warmup_in_a_fraction_comes_to_as_many_steps_as_ours(total: int, tmp_path: Path) -> None:
    for warmup in (0.0, 0.02, 0.05, 0.11, 0.5, 0.99):
        recipe = with_no_decay(Recipe(lr=0.5)).with_knob("warmup", warmup)
        text = export_recipe(recipe, "hf", Context(total, CONTEXT.version)).text
        (tmp_path / "hf.yaml").write_text(f"{text}output_dir: {tmp_path}\nuse_cpu: true\n")
        (args,) = transformers.HfArgumentParser(transformers.TrainingArguments).parse_yaml_file(
            str(tmp_path / "hf.yaml")
        )
        trainer = transformers.Trainer(model=LM(), args=args)
        trainer.create_optimizer_and_scheduler(total)
        lrs = []
        for _ in range(total):
            lrs.append(trainer.optimizer.param_groups[0]["lr"])
            trainer.lr_scheduler.step()
        assert lrs == pytest.approx([0.5 * multiplier(recipe.schedule, step, total) for step in range(total)])


@pytest.mark.parametrize("recipe", LOOPS.values(), ids=LOOPS)
def test_clipping_precision_and_accumulation_are_read(recipe: Recipe, tmp_path: Path) -> None:
    args = arguments(recipe, tmp_path)
    assert args.max_grad_norm == (recipe.clip_norm or 0.0)
    assert (args.bf16, args.fp16) == (recipe.precision == "bf16", recipe.precision == "fp16")
    assert args.gradient_accumulation_steps == recipe.accumulate


class Rows(Dataset[dict[str, Tensor]]):
    """The same row again and again, so that the order in which they are taken changes nothing."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": torch.arange(7), "labels": torch.arange(7).flip(0)}


def trained_by_trainer(recipe: Recipe, folder: Path, make_trainer: Any) -> LM:
    args = arguments(recipe, folder, per_device_train_batch_size=4, disable_tqdm=True, save_strategy="no")
    torch.manual_seed(0)
    model = LM()
    make_trainer(model=model, args=args, train_dataset=Rows()).train()
    return model


def test_a_training_by_the_file_alone_ends_at_our_weights(tmp_path: Path) -> None:
    recipe = with_no_decay(Recipe(lr=1e-2, weight_decay=0.3, clip_norm=0.05))
    assert not unsaid_of(recipe, "hf", CONTEXT)
    assert_same_weights(trained_by_hand(recipe), trained_by_trainer(recipe, tmp_path, transformers.Trainer))


@pytest.mark.parametrize("recipe", [GROUPED, SWITCHED.with_knob("clip_norm", 0.05)], ids=["grouped", "switched"])
def test_a_training_with_the_companion_ends_at_our_weights(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(write_companion(recipe, "hf", tmp_path, monkeypatch, CONTEXT))
    by_companion = trained_by_trainer(recipe, tmp_path, module.RecipeTrainer)
    assert_same_weights(trained_by_hand(recipe), by_companion)


@pytest.mark.parametrize("recipe", [GROUPED, SWITCHED], ids=["grouped", "switched"])
def test_the_companion_s_trainer_has_our_groups(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(write_companion(recipe, "hf", tmp_path, monkeypatch, CONTEXT))
    model = LM()
    trainer = module.RecipeTrainer(model=model, args=arguments(recipe, tmp_path))
    trainer.create_optimizer_and_scheduler(TOTAL)
    assert_alike(recipe, model, trainer.optimizer, lambda _: trainer.lr_scheduler.step())
