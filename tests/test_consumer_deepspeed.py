"""Exported files under DeepSpeed's own code, by itself and by accelerate's plugin: one process, on a CPU."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from consumers import (
    GROUPED,
    LM,
    LOOPS,
    OPTIMIZERS,
    SWITCHED,
    TOTAL,
    assert_alike,
    assert_alike_but_for,
    assert_same_weights,
    differences,
    every_recipe,
    trained_by_hand,
    unsaid_of,
    write_companion,
)
from torch.utils.data import DataLoader, TensorDataset

from adamtune.export import Context, export_recipe
from adamtune.recipe import Recipe, Schedule, WarmupSteps
from adamtune.schedule import multiplier

pytestmark = [pytest.mark.consumers, pytest.mark.filterwarnings("ignore")]

CONTEXT = Context(TOTAL)


@pytest.fixture(scope="module")
def deepspeed() -> Iterator[Any]:
    """DeepSpeed in a process group of one."""
    with pytest.MonkeyPatch.context() as patch:
        one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29561"}
        for name, value in {**one, "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}.items():
            patch.setenv(name, value)
        library = pytest.importorskip("deepspeed")
        library.init_distributed(dist_backend="gloo")
        yield library
        torch.distributed.destroy_process_group()
        library.comm.comm.cdb = None


def engine_of(deepspeed: Any, recipe: Recipe, model: LM, folder: Path) -> tuple[Any, torch.optim.Optimizer, Any]:
    """Engine, torch's optimizer within, scheduler."""
    path = folder / "ds_config.json"
    text = export_recipe(recipe, "deepspeed", CONTEXT).text
    path.write_text(json.dumps(json.loads(text) | {"train_micro_batch_size_per_gpu": 4}))
    engine, optimizer, _, scheduler = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=str(path)
    )
    return engine, getattr(optimizer, "optimizer", optimizer), scheduler


@every_recipe
def test_deepspeed_builds_our_optimizer_and_schedule_but_for_what_is_unsaid(
    recipe: Recipe, deepspeed: Any, tmp_path: Path
) -> None:
    model = LM()
    _, optimizer, scheduler = engine_of(deepspeed, recipe, model, tmp_path)
    unsaid = unsaid_of(recipe, "deepspeed", CONTEXT)
    assert_alike_but_for(unsaid, recipe, model, optimizer, lambda _: scheduler.step())


LAGGING = [
    (Schedule(kind=kind, warmup=WarmupSteps(steps=steps), floor=floor), steps)
    for kind in ("cosine", "linear", "constant")
    for steps in (0, 1, 2, 3, 4, 10)
    for floor in (0.0, 0.2)
]


@pytest.mark.parametrize(("schedule", "steps"), LAGGING, ids=str)
def test_how_far_deepspeed_s_lr_is_off_is_what_the_file_says(
    schedule: Schedule, steps: int, deepspeed: Any, tmp_path: Path
) -> None:
    recipe, model = Recipe(schedule=schedule), LM()
    _, optimizer, scheduler = engine_of(deepspeed, recipe, model, tmp_path)
    step = lambda _: scheduler.step()  # noqa: E731
    off = {one.update: one.theirs for one in differences(recipe, model, optimizer, step) if one.key == "lr"}
    why = {unsaid.knob: unsaid.why for unsaid in export_recipe(recipe, "deepspeed", CONTEXT).unsaid}.get("warmup")
    if why is None:
        assert not off
    elif found := re.search(r"from update (\d+) on lr is ours", why):
        assert max(off) < int(found[1])
    else:
        assert steps < 3
        assert 0 in off or 1 in off
        assert all(update < 3 for update in off) or "late" in why
        for update in range(3, TOTAL):
            ours = [recipe.lr * multiplier(schedule, at, TOTAL) for at in range(update - 3, update + 1)]
            assert ours[-1] - 1e-12 <= float(str(off.get(update, ours[-1]))) <= max(ours) + 1e-12
    if why and "up to lr / " in why:
        bound = recipe.lr / int(re.findall(r"up to lr / (\d+)", why)[0])
        for update, lr in off.items():
            assert -1e-12 <= recipe.lr * multiplier(schedule, update, TOTAL) - float(str(lr)) <= bound + 1e-12


@pytest.mark.parametrize("recipe", LOOPS.values(), ids=LOOPS)
def test_clipping_precision_and_accumulation_are_read(recipe: Recipe, deepspeed: Any, tmp_path: Path) -> None:
    config = deepspeed.DeepSpeedConfig(
        json.loads(export_recipe(recipe, "deepspeed", CONTEXT).text) | {"train_micro_batch_size_per_gpu": 4}
    )
    assert config.gradient_clipping == (recipe.clip_norm or 0.0)
    assert config.gradient_accumulation_steps == recipe.accumulate
    assert not config.float16_config.enabled
    assert not config.bfloat16_config.enabled
    autocast = config.torch_autocast_enabled, config.torch_autocast_dtype
    wanted = {"bf16": (True, torch.bfloat16), "fp16": (True, torch.float16)}
    assert autocast == wanted.get(recipe.precision, (False, autocast[1]))


def trained(engine: Any) -> None:
    ids = torch.arange(7).repeat(4, 1)
    for _ in range(TOTAL):
        engine.backward(engine(ids, ids.flip(1))["loss"])
        engine.step()


PLAIN = Recipe(lr=1e-2, weight_decay=0.3, clip_norm=0.05, schedule=Schedule(kind="constant", warmup=0.0))
IDS = ["adamw", "adam", "sgd"]


@pytest.mark.parametrize("kind", IDS)
def test_a_training_by_the_file_alone_ends_at_our_weights(kind: str, deepspeed: Any, tmp_path: Path) -> None:
    recipe = PLAIN.with_knob("optimizer", kind)
    assert not unsaid_of(recipe, "deepspeed", CONTEXT)
    torch.manual_seed(0)
    model = LM()
    trained(engine_of(deepspeed, recipe, model, tmp_path)[0])
    assert_same_weights(trained_by_hand(recipe), model)


COMPANIONS = pytest.mark.parametrize(
    "recipe",
    [GROUPED, SWITCHED.with_knob("clip_norm", 0.05), OPTIMIZERS[-1]],
    ids=["grouped", "switched", "sgd"],
)


@COMPANIONS
def test_a_training_with_the_companion_ends_at_our_weights(
    recipe: Recipe, deepspeed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(write_companion(recipe, "deepspeed", tmp_path, monkeypatch, CONTEXT))
    config = json.loads(export_recipe(recipe, "deepspeed", CONTEXT).text) | {"train_micro_batch_size_per_gpu": 4}
    torch.manual_seed(0)
    model = LM()
    engine, optimizer, _, scheduler = module.initialize(model, TOTAL, config=config)
    torch.manual_seed(0)
    assert_alike(recipe, model, optimizer, lambda _: scheduler.step())
    torch.manual_seed(0)
    model = LM()
    engine, *_ = module.initialize(model, TOTAL, config=config)
    trained(engine)
    assert_same_weights(trained_by_hand(recipe), model)


@pytest.fixture
def accelerator(deepspeed: Any) -> Iterator[Any]:
    """Makes an Accelerator with DeepSpeed's plugin for a file."""
    accelerate = pytest.importorskip("accelerate")

    def make(path: Path) -> Any:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        plugin = accelerate.utils.DeepSpeedPlugin(hf_ds_config=str(path))
        return accelerate.Accelerator(deepspeed_plugin=plugin)

    yield make
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def accelerate_file(recipe: Recipe, folder: Path) -> Path:
    path = folder / "accelerate.json"
    path.write_text(export_recipe(recipe, "accelerate", CONTEXT).text)
    return path


def batches() -> DataLoader[tuple[torch.Tensor, ...]]:
    ids = torch.arange(7).repeat(4 * TOTAL, 1)
    return DataLoader(TensorDataset(ids, ids.flip(1)), batch_size=4)


@pytest.mark.parametrize("recipe", [PLAIN, *OPTIMIZERS, GROUPED], ids=str)
def test_accelerate_builds_from_its_file_what_deepspeed_does(recipe: Recipe, accelerator: Any, tmp_path: Path) -> None:
    from accelerate.utils import DummyOptim, DummyScheduler

    made, model = accelerator(accelerate_file(recipe, tmp_path)), LM()
    dummy = DummyOptim(model.parameters())
    engine, optimizer, *_ = made.prepare(model, dummy, batches(), DummyScheduler(dummy))
    unsaid = unsaid_of(recipe, "accelerate", CONTEXT)
    assert_alike_but_for(unsaid, recipe, model, optimizer.optimizer, lambda _: engine.lr_scheduler.step())


@COMPANIONS
@pytest.mark.parametrize("plugin", [True, False], ids=["by DeepSpeed", "plain"])
def test_accelerate_trains_with_the_companion_to_our_weights(
    plugin: bool, recipe: Recipe, accelerator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(write_companion(recipe, "accelerate", tmp_path, monkeypatch, CONTEXT))
    if plugin:
        made = accelerator(accelerate_file(recipe, tmp_path))
    else:
        monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
        made = importlib.import_module("accelerate").Accelerator(cpu=True)
    torch.manual_seed(0)
    model, optimizer, scheduler, loader = module.prepare(made, LM(), TOTAL, batches())
    for ids, labels in loader:
        with made.accumulate(model):
            made.backward(model(ids, labels)["loss"])
            if made.sync_gradients and recipe.clip_norm:
                made.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert_same_weights(trained_by_hand(recipe), made.unwrap_model(model))
