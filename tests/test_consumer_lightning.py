"""Exported files under Lightning's own code: LightningCLI, which reads with jsonargparse, and whole trainings."""

from __future__ import annotations

import importlib
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
    assert_alike_but_for,
    assert_same_weights,
    every_recipe,
    model_for,
    random_recipes,
    trained_by_hand,
    unsaid_of,
    write_companion,
)
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from adamtune.export import Context, export_into, export_recipe
from adamtune.recipe import Recipe, Schedule

pytestmark = [pytest.mark.consumers, pytest.mark.filterwarnings("ignore")]

pl = pytest.importorskip("lightning.pytorch")
cli = pytest.importorskip("lightning.pytorch.cli")
CONTEXT = Context(TOTAL)


class Module(LM, pl.LightningModule):  # type: ignore[misc, name-defined]
    """A language model that trains itself on the same batch again and again."""

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss: Tensor = self(*batch)["loss"]
        return loss

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        ids = torch.arange(7).repeat(32, 1)
        return DataLoader(TensorDataset(ids, ids.flip(1)), batch_size=4)


def command_line(recipe: Recipe, folder: Path, kind: Any = cli.LightningCLI) -> Any:
    """LightningCLI with the file, on a CPU and quiet."""
    path = folder / "lightning.yaml"
    path.write_text(export_recipe(recipe, "lightning", CONTEXT).text)
    quiet = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
    own = {"accelerator": "cpu", "max_steps": TOTAL, "default_root_dir": folder} | dict.fromkeys(quiet, "false")
    args = ["--config", str(path), *(f"--trainer.{key}={value}" for key, value in own.items())]
    return kind(Module, args=args, run=False, save_config_callback=None, seed_everything_default=0)


@every_recipe
def test_the_command_line_builds_our_optimizer_but_for_what_is_unsaid(recipe: Recipe, tmp_path: Path) -> None:
    model = command_line(recipe, tmp_path).model
    optimizer = model.configure_optimizers()  # which LightningCLI has put there
    assert_alike_but_for(unsaid_of(recipe, "lightning", CONTEXT), recipe, model, optimizer, lambda _: None)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=random_recipes)
def test_nothing_of_a_random_recipe_is_lost_unsaid(recipe: Recipe, tmp_path: Path) -> None:
    model_for(recipe)
    model = command_line(recipe, tmp_path).model
    unsaid = unsaid_of(recipe, "lightning", CONTEXT)
    assert_alike_but_for(unsaid, recipe, model, model.configure_optimizers(), lambda _: None, each=False)


@pytest.mark.parametrize("recipe", [LOOPS["fp32"], LOOPS["bf16, clipped"]], ids=["fp32", "bf16, clipped"])
def test_clipping_precision_and_accumulation_are_read(recipe: Recipe, tmp_path: Path) -> None:
    trainer = command_line(recipe.with_knob("accumulate", 4), tmp_path).trainer
    assert trainer.precision == {"fp32": "32-true", "bf16": "bf16-mixed"}[recipe.precision]
    assert (trainer.gradient_clip_val, trainer.gradient_clip_algorithm) == (recipe.clip_norm, "norm")
    assert trainer.accumulate_grad_batches == 4


def test_fp16_is_a_precision_of_lightning_s(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="precision='16-mixed'.*CPU"):  # it knows the word, and wants a GPU
        command_line(LOOPS["fp16, accumulated"], tmp_path)


def test_a_schedule_that_an_edit_takes_out_is_none(tmp_path: Path) -> None:
    path = tmp_path / "cli.yaml"
    path.write_text("lr_scheduler: torch.optim.lr_scheduler.ConstantLR\n")
    edited = export_into(GROUPED, "lightning", path, CONTEXT)
    assert edited.edit is not None
    assert edited.edit.replaced == ("$.lr_scheduler",)
    path.write_text(edited.text)
    made = cli.LightningCLI(Module, args=["--config", str(path)], run=False, save_config_callback=None)
    assert isinstance(made.model.configure_optimizers(), torch.optim.AdamW)  # with a schedule there would be two lists


def test_a_training_by_the_file_alone_ends_at_our_weights(tmp_path: Path) -> None:
    recipe = Recipe(lr=1e-2, weight_decay=0.3, clip_norm=0.05, schedule=Schedule(kind="constant", warmup=0.0))
    assert not unsaid_of(recipe, "lightning", CONTEXT)
    made = command_line(recipe, tmp_path)
    made.trainer.fit(made.model)
    assert_same_weights(trained_by_hand(recipe), made.model)


@pytest.mark.parametrize("recipe", [GROUPED, SWITCHED.with_knob("clip_norm", 0.05)], ids=["grouped", "switched"])
def test_a_training_with_the_companion_ends_at_our_weights(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(write_companion(recipe, "lightning", tmp_path, monkeypatch, CONTEXT))
    made = command_line(recipe, tmp_path, module.RecipeCLI)
    made.trainer.fit(made.model)
    assert made.trainer.global_step == TOTAL
    assert_same_weights(trained_by_hand(recipe), made.model)
    names = [group["name"] for group in made.trainer.optimizers[0].param_groups]
    assert names == ["embedding", "head", "no_decay", "default"]


class OwnNet(pl.LightningModule):  # type: ignore[misc, name-defined]
    """A module around the net that the recipe was tuned on."""

    def __init__(self, configured: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.configured = LM(), configured

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss: Tensor = self.net(*batch)["loss"]
        return loss

    train_dataloader = Module.train_dataloader

    def configure_optimizers(self) -> Any:
        return self.configured(self, self.net)


def test_the_companion_serves_a_module_without_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    companion = importlib.import_module(write_companion(GROUPED, "lightning", tmp_path, monkeypatch, CONTEXT))
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = pl.Trainer(accelerator="cpu", max_steps=TOTAL, default_root_dir=tmp_path, **quiet)
    module = OwnNet(companion.configured)
    trainer.fit(module)
    assert_same_weights(trained_by_hand(GROUPED), module.net)
