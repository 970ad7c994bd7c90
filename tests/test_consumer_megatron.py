"""The exported files under the consumers' own code, each where it is installed.

Some packages do not import whole beside a CPU torch (timm asks for torchvision, torchtune for an old torchao, axolotl
for dozens of pinned packages). Of those the very files that build optimizer and schedule run, without the package's
`__init__`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from adamtune.export import Context, export_recipe
from adamtune.recipe import GroupRule, Match, Recipe, Schedule, WarmupSteps

pytestmark = pytest.mark.consumers

TOTAL = 60
CONTEXT = Context(total_steps=TOTAL, steps_per_epoch=10)
NO_DECAY = GroupRule(name="no_decay", match=Match(kind=("bias", "norm")), weight_decay=0.0)


class LM(nn.Module):
    """Named as a language model of transformers'."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(7, 4)
        self.q_proj = nn.Linear(4, 4)
        self.mlp = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 7, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.norm(self.mlp(self.q_proj(self.embed_tokens(input_ids)))))


def settings_by_parameter(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, float]]:
    """What each parameter is trained with now."""
    names = {id(param): name for name, param in model.named_parameters()}
    keys = ("lr", "weight_decay", "eps", "momentum", "nesterov", "amsgrad", "dampening")
    return {
        names[id(param)]: {key: float(group[key]) for key in keys if key in group}
        | {f"beta{at}": float(beta) for at, beta in enumerate(group.get("betas", ()))}
        for group in optimizer.param_groups
        for param in group["params"]
    }


def assert_alike(recipe: Recipe, model: nn.Module, theirs: torch.optim.Optimizer, step: Callable[[int], None]) -> None:
    """Their optimizer and ours train every parameter alike, at each of TOTAL updates; `step(n)` after n updates."""
    ours, scheduler = recipe.build(model, total_steps=TOTAL)
    assert type(theirs) is type(ours)
    for update in range(TOTAL):
        told, wanted = settings_by_parameter(theirs, model), settings_by_parameter(ours, model)
        assert told.keys() == wanted.keys()
        for name, values in wanted.items():
            assert told[name] == pytest.approx(values, rel=1e-6, abs=1e-12), (update, name)
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        theirs.step()
        ours.step()
        scheduler.step()
        step(update + 1)


SCHEDULES = [
    Schedule(),
    Schedule(warmup=WarmupSteps(steps=20), floor=0.1),
    Schedule(warmup=0.0),
    Schedule(kind="linear", warmup=WarmupSteps(steps=10)),
    Schedule(kind="linear", warmup=0.0, floor=0.2),
    Schedule(kind="constant", warmup=0.0),
    Schedule(kind="constant", warmup=WarmupSteps(steps=10)),
    Schedule(kind="step", warmup=0.0, milestones=(0.33, 0.5, 0.71), gamma=0.3),
    Schedule(kind="step", warmup=WarmupSteps(steps=10)),
    Schedule(kind="cosine", floor=1.0),
]
WHOLE_EPOCHS = Schedule(warmup=WarmupSteps(steps=20))
OPTIMIZERS = [
    Recipe(lr=3e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3, schedule=WHOLE_EPOCHS),
    Recipe(optimizer="adam", lr=3e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3, schedule=WHOLE_EPOCHS),
    Recipe(optimizer="sgd", lr=0.1, momentum=0.8, weight_decay=0.3, schedule=WHOLE_EPOCHS),
]
RECIPES = [
    *(OPTIMIZERS[0].model_copy(update={"schedule": schedule}) for schedule in SCHEDULES),
    *OPTIMIZERS[1:],
]
IDS = [f"{recipe.optimizer}-{recipe.schedule.kind}-{at}" for at, recipe in enumerate(RECIPES)]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=IDS)


def said(recipe: Recipe, format: str) -> tuple[dict[str, Any], Recipe]:
    """The file as plain YAML reads it, and the recipe; skips where the file itself says that it differs."""
    export = export_recipe(recipe, format, CONTEXT)
    unsaid = {unsaid.knob for unsaid in export.unsaid}
    if unsaid & {"optimizer", "schedule", "warmup", "floor"}:
        pytest.skip(f"the file says that it does not say {', '.join(sorted(unsaid))}")
    assert not unsaid
    return yaml.safe_load(export.text), recipe


def with_no_decay(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"groups": (NO_DECAY,)})


@pytest.fixture
def shells(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes packages whose modules import without the package's own `__init__`; undone afterwards."""
    before = set(sys.modules)

    def make(distribution: str, *packages: str) -> None:
        try:
            root = Path(str(importlib.metadata.distribution(distribution).locate_file("")))
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{distribution} is not installed")
        for name in packages:
            shell = ModuleType(name)
            shell.__path__ = [str(root.joinpath(*name.split(".")))]
            monkeypatch.setitem(sys.modules, name, shell)
            if "." in name:
                parent, _, child = name.rpartition(".")
                if parent in packages:
                    setattr(sys.modules[parent], child, shell)

    yield make
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("timm", "torchtune", "axolotl"):
            del sys.modules[name]


def companion_file(recipe: Recipe, format: str, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source = export_recipe(recipe, format, CONTEXT).companion
    assert source is not None
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)


GROUPED = Recipe(
    lr=3e-3,
    weight_decay=0.3,
    schedule=Schedule(kind="linear", floor=0.2),
    groups=(
        GroupRule(name="embedding", match=Match(kind=("embedding",)), lr_mult=0.5, betas=(0.7, 0.9)),
        GroupRule(name="head", match=Match(params=("lm_head.*",)), lr_mult=3.0, eps=1e-5),
        NO_DECAY,
    ),
)


@every_recipe
def test_hydra_builds_our_optimizer_and_schedule(recipe: Recipe) -> None:
    hydra = pytest.importorskip("hydra.utils")
    omegaconf = pytest.importorskip("omegaconf")
    pytest.importorskip("transformers")
    said(recipe, "hydra")
    config = omegaconf.OmegaConf.create(export_recipe(recipe, "hydra", CONTEXT).text)
    model = LM()
    optimizer = hydra.instantiate(config.optimizer)(model.parameters())
    scheduler = None if config.scheduler is None else hydra.instantiate(config.scheduler)(optimizer)
    assert_alike(recipe, model, optimizer, lambda _: scheduler.step() if scheduler else None)


def test_hydra_finds_the_companion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra = pytest.importorskip("hydra.utils")
    companion_file(GROUPED, "hydra", tmp_path, monkeypatch, "recipe_for_hydra")
    model = LM()
    optimizer = hydra.instantiate({"_target_": "recipe_for_hydra.optimizer_for", "_partial_": True})(model)
    node = {"_target_": "recipe_for_hydra.scheduler_for", "_partial_": True, "total_steps": TOTAL}
    scheduler = hydra.instantiate(node)(optimizer)
    assert_alike(GROUPED, model, optimizer, lambda _: scheduler.step())


TRAIN_PY = {"opt_eps": None, "opt_betas": None, "momentum": 0.9, "layer_decay": None, "warmup_prefix": False}
"""Defaults of timm's train.py for what a file leaves out."""


@every_recipe
def test_timm_builds_our_optimizer_and_schedule(recipe: Recipe, shells: Callable[..., None]) -> None:
    shells("timm", "timm", "timm.models")
    sys.modules["timm.models"].group_parameters = None  # type: ignore[attr-defined]  # for layer_decay alone
    optim, scheduler_factory = importlib.import_module("timm.optim"), importlib.import_module("timm.scheduler")
    values, recipe = said(with_no_decay(recipe), "timm")
    args = Namespace(**TRAIN_PY | values)
    model = LM()
    optimizer = optim.create_optimizer_v2(model, **optim.optimizer_kwargs(cfg=args))
    scheduler, epochs = scheduler_factory.create_scheduler(args, optimizer, updates_per_epoch=10)
    assert (epochs, scheduler.t_in_epochs) == (TOTAL // 10, False)
    assert_alike(recipe, model, optimizer, scheduler.step_update)


def test_timm_runs_with_the_companion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shells: Callable[..., None]
) -> None:
    shells("timm", "timm", "timm.models")
    create_scheduler = importlib.import_module("timm.scheduler").create_scheduler
    recipe = GROUPED.with_knob("warmup", {"steps": 10})
    companion_file(recipe, "timm", tmp_path, monkeypatch, "recipe_for_timm")
    module = importlib.import_module("recipe_for_timm")
    args = Namespace(**TRAIN_PY | yaml.safe_load(export_recipe(recipe, "timm", CONTEXT).text))
    model = LM()
    optimizer = module.optimizer_for(model)
    _, num_epochs = create_scheduler(args, optimizer, updates_per_epoch=10)
    assert_alike(recipe, model, optimizer, module.Updates(optimizer, num_epochs * 10).step_update)


@every_recipe
def test_torchtune_builds_our_optimizer_and_schedule(recipe: Recipe, shells: Callable[..., None]) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    shells("torchtune", "torchtune", "torchtune.config", "torchtune.utils", "torchtune.training")
    memory = ModuleType("torchtune.training.memory")
    memory.OptimizerInBackwardWrapper = object  # type: ignore[attr-defined]  # the schedule's file names it as a type
    sys.modules["torchtune.training.memory"] = memory
    instantiate = importlib.import_module("torchtune.config._instantiate").instantiate
    said(recipe, "torchtune")
    config = omegaconf.OmegaConf.create(export_recipe(recipe, "torchtune", CONTEXT).text)
    model = LM()
    optimizer = instantiate(config.optimizer, model.parameters())
    scheduler = instantiate(config.lr_scheduler, optimizer, num_training_steps=TOTAL, last_epoch=-1)
    assert_alike(recipe, model, optimizer, lambda _: scheduler.step() if scheduler else None)


def test_torchtune_finds_the_companion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shells: Callable[..., None]
) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    shells("torchtune", "torchtune", "torchtune.config", "torchtune.utils")
    instantiate = importlib.import_module("torchtune.config._instantiate").instantiate
    companion_file(GROUPED, "torchtune", tmp_path, monkeypatch, "recipe_for_torchtune")
    config = omegaconf.OmegaConf.create(
        {
            "o": {"_component_": "recipe_for_torchtune.optimizer_for"},
            "s": {"_component_": "recipe_for_torchtune.lr_schedule"},
        }
    )
    model = LM()
    optimizer = instantiate(config.o, model)
    scheduler = instantiate(config.s, optimizer, num_training_steps=TOTAL, last_epoch=-1)
    assert_alike(GROUPED, model, optimizer, lambda _: scheduler.step())


class AxolotlTrainer:
    """Built from axolotl's mixins as its own trainer is, with the arguments its builder passes on."""

    def __new__(cls, model: nn.Module, values: dict[str, Any], folder: Path) -> Any:
        transformers = importlib.import_module("transformers")
        mixins = "axolotl.core.trainers.mixins"
        optimizer_mixin = importlib.import_module(f"{mixins}.optimizer").OptimizerMixin
        scheduler_mixin = importlib.import_module(f"{mixins}.scheduler").SchedulerMixin
        names = {"optim": "optimizer", "lr_scheduler_type": "lr_scheduler"}
        own = ("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "lr_scheduler_kwargs")
        passed = {key: values[key] for key in (*own, "warmup_steps", "max_steps", "optim_args") if key in values}
        passed |= {theirs: values[ours] for theirs, ours in names.items()}
        args = transformers.TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **passed)
        absent = ("embedding_lr", "embedding_lr_scale", "lr_groups", "cosine_min_lr_ratio", "loraplus_lr_ratio")
        absent = (*absent, "lr_quadratic_warmup", "cosine_constant_lr_ratio", "jagged_restart_steps")
        for key in (*absent, "alternate_lr_scheduler_type"):
            setattr(args, key, values.get(key))
        return type("Trainer", (scheduler_mixin, optimizer_mixin, transformers.Trainer), {})(model=model, args=args)


@pytest.fixture
def axolotl(shells: Callable[..., None]) -> ModuleType:
    for needed in ("transformers", "peft", "accelerate", "datasets", "addict"):
        pytest.importorskip(needed)
    shells("axolotl", "axolotl.core", "axolotl.core.trainers", "axolotl.core.trainers.mixins")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("axolotl.utils.schemas.training")


@every_recipe
def test_axolotl_builds_our_optimizer_and_schedule(recipe: Recipe, axolotl: ModuleType, tmp_path: Path) -> None:
    values, recipe = said(with_no_decay(recipe), "axolotl")
    read = axolotl.HyperparametersConfig.model_validate(values)
    assert {key: getattr(read, key) for key in values if key in type(read).model_fields} == {
        key: value for key, value in values.items() if key in type(read).model_fields
    }
    model = LM()
    trainer = AxolotlTrainer(model, values, tmp_path)
    trainer.create_optimizer()
    trainer.create_scheduler(TOTAL)
    assert_alike(recipe, model, trainer.optimizer, lambda _: trainer.lr_scheduler.step())


def test_axolotl_gives_embeddings_and_modules_our_lr(axolotl: ModuleType, tmp_path: Path) -> None:
    head = GroupRule(name="outer", match=Match(kind=("embedding", "head")), lr_mult=0.5, weight_decay=0.0)
    named = GroupRule(name="attention", match=Match(params=("*q_proj.weight*",)), lr_mult=2.0)
    recipe = Recipe(lr=1e-3, weight_decay=0.3, groups=(head, named, NO_DECAY))
    values = yaml.safe_load(export_recipe(recipe, "axolotl", CONTEXT).text)
    assert axolotl.HyperparametersConfig.model_validate(values).lr_groups[0].lr == 2e-3
    model = LM()
    trainer = AxolotlTrainer(model, values, tmp_path)
    trainer.create_optimizer()
    trainer.create_scheduler(TOTAL)
    assert_alike(recipe, model, trainer.optimizer, lambda _: trainer.lr_scheduler.step())


def test_axolotl_takes_the_companion_for_a_plugin(
    axolotl: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    companion_file(GROUPED, "axolotl", tmp_path, monkeypatch, "recipe_for_axolotl")
    values = yaml.safe_load(export_recipe(GROUPED, "axolotl", CONTEXT).text)
    base = importlib.import_module("axolotl.integrations.base")
    plugins = base.PluginManager.get_instance()
    monkeypatch.setattr(plugins, "plugins", {"recipe": base.load_plugin("recipe_for_axolotl.RecipePlugin")})
    monkeypatch.setattr(plugins, "_cfg", None, raising=False)
    model = LM()
    trainer = AxolotlTrainer(model, values, tmp_path)
    plugins.post_trainer_create(None, trainer)
    trainer.create_optimizer()
    trainer.create_scheduler(TOTAL)
    assert_alike(GROUPED, model, trainer.optimizer, lambda _: trainer.lr_scheduler.step())


@pytest.fixture
def megatron() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Transformer Engine and Apex are not there
        pytest.importorskip("megatron.core.optimizer")
        return importlib.import_module("megatron.core.optimizer_param_scheduler")


def arguments(text: str) -> dict[str, Any]:
    lines = [line.removeprefix("--").split() for line in text.splitlines() if line.startswith("--")]
    return {line[0]: yaml.safe_load(line[1]) if len(line) > 1 else True for line in lines}


def scheduler_of(module: ModuleType, optimizer: Any, read: dict[str, Any], batch: int) -> Any:
    """As megatron/training/training.py, get_optimizer_param_scheduler, makes it: steps count samples."""
    decay = float(read["weight-decay"])
    return module.OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=float(read["lr"]),
        min_lr=float(read["min-lr"]),
        lr_warmup_steps=read["lr-warmup-iters"] * batch,
        lr_decay_steps=read["lr-decay-iters"] * batch,
        lr_decay_style=read["lr-decay-style"],
        start_wd=decay,
        end_wd=decay,
        wd_incr_steps=read["train-iters"] * batch,
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


def torch_optimizer(groups: list[dict[str, Any]], read: dict[str, Any], decoupled: bool) -> torch.optim.Optimizer:
    """As megatron/core/optimizer/__init__.py makes it without Transformer Engine and Apex."""
    lr, decay = float(read["lr"]), float(read["weight-decay"])
    if read["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=lr, weight_decay=decay, momentum=read["sgd-momentum"])
    adam = torch.optim.AdamW if decoupled else torch.optim.Adam
    betas = (float(read["adam-beta1"]), float(read["adam-beta2"]))
    return adam(groups, lr=lr, weight_decay=decay, betas=betas, eps=float(read["adam-eps"]))


@every_recipe
def test_megatron_builds_our_optimizer_and_schedule(recipe: Recipe, megatron: ModuleType) -> None:
    recipe = with_no_decay(recipe)
    export = export_recipe(recipe, "megatron", CONTEXT)
    if {unsaid.knob for unsaid in export.unsaid} & {"optimizer", "schedule"}:
        pytest.skip("the file says that it does not say it")
    assert not export.unsaid
    read, model = arguments(export.text), LM()
    optimizer = torch_optimizer(groups_of(model, read), read, decoupled=True)
    scheduler = scheduler_of(megatron, optimizer, read, batch=8)
    assert_alike(recipe, model, optimizer, lambda _: scheduler.step(8))


@pytest.mark.parametrize("schedule", [GROUPED.schedule, Schedule(kind="step")], ids=["linear", "step"])
def test_megatron_takes_the_companion_s_overrides(
    schedule: Schedule, megatron: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = GROUPED.model_copy(update={"schedule": schedule})
    companion_file(recipe, "megatron", tmp_path, monkeypatch, "recipe_for_megatron")
    module = importlib.import_module("recipe_for_megatron")
    monkeypatch.setattr(megatron.OptimizerParamScheduler, "get_lr", module.lr_of)
    read, model = arguments(export_recipe(recipe, "megatron", CONTEXT).text), LM()
    wrapped = SimpleNamespace(module=model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Apex is not there
        overrides = module.overrides_for([wrapped])
    wrapper = nn.Module()
    wrapper.module = model
    optimizer = torch_optimizer(groups_of(wrapper, read, overrides), read, decoupled=True)
    scheduler = scheduler_of(megatron, optimizer, read, batch=8)
    assert_alike(recipe, model, optimizer, lambda _: scheduler.step(8))
