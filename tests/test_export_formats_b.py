from __future__ import annotations

import ast
import bisect
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_export import PATTERNS, Net, trained

from adamtune.cli.app import run
from adamtune.errors import ExportError, RecipeError
from adamtune.export import FORMATS, Context, Settings, export_recipe
from adamtune.recipe import GroupRule, Match, Recipe, Schedule, Switch, WarmupSteps
from adamtune.schedule import multiplier, warmup_steps
from recipes import recipes, schedules

NAMES = ("timm", "torchtune", "axolotl", "hydra", "megatron", "nanogpt")
CONTEXT = Context(total_steps=120, steps_per_epoch=10)

NO_DECAY = GroupRule(name="no_decay", match=Match(kind=("bias", "norm")), weight_decay=0.0)
HEAD = GroupRule(
    name="head", match=Match(params=("head.*",)), lr_mult=3.0, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-5
)
PLAIN = Recipe(groups=(NO_DECAY,))
GROUPED = Recipe(groups=(HEAD, NO_DECAY))
SGD = Recipe(optimizer="sgd", groups=(NO_DECAY,))
STEPS = Recipe(groups=(NO_DECAY,), schedule=Schedule(kind="step", warmup=0.0))

CHANGES: list[tuple[str, Recipe, str, Any]] = [
    ("lr", PLAIN, "lr", 0.02),
    ("beta1", PLAIN, "beta1", 0.8),
    ("beta2", PLAIN, "beta2", 0.99),
    ("eps", PLAIN, "eps", 1e-6),
    ("weight_decay", PLAIN, "weight_decay", 0.3),
    ("adam", PLAIN, "optimizer", "adam"),
    ("sgd", PLAIN, "optimizer", "sgd"),
    ("momentum", SGD, "momentum", 0.5),
    ("lr of sgd", SGD, "lr", 0.5),
    ("weight_decay of sgd", SGD, "weight_decay", 0.3),
    ("constant", PLAIN, "schedule", "constant"),
    ("linear", PLAIN, "schedule", "linear"),
    ("step", PLAIN, "schedule", "step"),
    ("warmup", PLAIN, "warmup", 0.25),
    ("warmup in steps", PLAIN, "warmup", {"steps": 7}),
    ("no warmup", PLAIN, "warmup", 0.0),
    ("warmup of linear", PLAIN.with_knob("schedule", "linear"), "warmup", 0.25),
    ("warmup of constant", PLAIN.with_knob("schedule", "constant"), "warmup", 0.25),
    ("warmup of step", STEPS, "warmup", 0.25),
    ("floor", PLAIN, "floor", 0.1),
    ("floor of linear", PLAIN.with_knob("schedule", "linear"), "floor", 0.1),
    ("floor of step", STEPS, "floor", 0.3),
    ("milestones", STEPS, "milestones", (0.25, 0.5)),
    ("gamma", STEPS, "gamma", 0.5),
    ("clip_norm", PLAIN, "clip_norm", 2.0),
    ("bf16", PLAIN, "precision", "bf16"),
    ("fp16", PLAIN, "precision", "fp16"),
    ("accumulate", PLAIN, "accumulate", 4),
    ("switch", PLAIN, "switch", {"at": 0.5, "lr": 0.1}),
    ("head lr", GROUPED, "groups.head.lr_mult", 5.0),
    ("head decay", GROUPED, "groups.head.weight_decay", 0.1),
    ("head betas", GROUPED, "groups.head.betas", (0.7, 0.9)),
    ("head eps", GROUPED, "groups.head.eps", 1e-3),
    ("decay of biases and norms", PLAIN, "groups.no_decay.weight_decay", 0.1),
    ("lr of biases and norms", PLAIN, "groups.no_decay.lr_mult", 0.1),
    ("betas of biases and norms", PLAIN, "groups.no_decay.betas", (0.7, 0.9)),
]


def settings_of(name: str, recipe: Recipe, context: Context = CONTEXT) -> Settings:
    return FORMATS[name].settings(recipe, context)


def knobs_unsaid(told: Settings) -> set[str]:
    return {unsaid.knob for unsaid in told.unsaid}


@pytest.mark.parametrize("context", [CONTEXT, Context(total_steps=120)], ids=["epochs known", "epochs unknown"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("base", "knob", "value"), [change[1:] for change in CHANGES], ids=[c[0] for c in CHANGES])
def test_no_knob_is_dropped_silently(name: str, context: Context, base: Recipe, knob: str, value: Any) -> None:
    before, after = (settings_of(name, recipe, context) for recipe in (base, base.with_knob(knob, value)))
    assert before.values != after.values or knob in knobs_unsaid(before) | knobs_unsaid(after)


def test_every_knob_of_a_recipe_is_among_the_changes() -> None:
    assert set(GROUPED.knobs()) - {"groups.no_decay.eps"} == {knob for _, _, knob, _ in CHANGES}


@pytest.mark.parametrize("name", NAMES)
def test_a_group_is_told_or_listed(name: str) -> None:
    """Whatever a rule matches by: a rule that is not said lists every setting of its own."""
    for match in (Match(kind=("embedding",)), Match(params=("*head*",)), Match(kind=("bias",), params=("*",))):
        rule = GroupRule(name="own", match=match, lr_mult=2.0, weight_decay=0.3, betas=(0.5, 0.9), eps=1e-4)
        told = settings_of(name, Recipe(groups=(rule,)))
        wanted = {f"groups.own.{key}" for key in ("lr_mult", "weight_decay", "betas", "eps")}
        unsaid = knobs_unsaid(told)
        assert wanted - unsaid <= ({"groups.own.lr_mult"} if "embedding_lr_scale" in told.values else set())


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_that_only_keeps_parameters_from_later_rules_is_listed(name: str) -> None:
    """Or, where the consumer exempts nothing by itself, the rule it keeps them from."""
    keeps = GroupRule(name="keeps", match=Match(params=("head.*",)))
    exempts = name in ("timm", "axolotl", "megatron", "nanogpt")
    unsaid = knobs_unsaid(settings_of(name, Recipe(groups=(keeps, NO_DECAY))))
    assert ("groups.keeps.weight_decay" in unsaid) == exempts
    assert ("groups.no_decay.weight_decay" in unsaid) != exempts
    assert "groups.keeps.weight_decay" not in knobs_unsaid(settings_of(name, Recipe(weight_decay=0.0, groups=(keeps,))))


@pytest.mark.parametrize("name", NAMES)
def test_decay_of_biases_is_unsaid_where_the_consumer_exempts_them_by_itself(name: str) -> None:
    exempts = name in ("timm", "axolotl", "megatron", "nanogpt")
    assert ("weight_decay" in knobs_unsaid(settings_of(name, Recipe()))) == exempts
    assert ("groups.no_decay.weight_decay" in knobs_unsaid(settings_of(name, PLAIN))) != exempts
    assert "weight_decay" not in knobs_unsaid(settings_of(name, Recipe(weight_decay=0.0)))


@pytest.mark.parametrize("name", ["timm", "axolotl", "megatron", "nanogpt"])
def test_decay_taken_from_biases_and_norms_by_two_rules_is_said_too(name: str) -> None:
    rules = [GroupRule(name=kind, match=Match(kind=(kind,)), weight_decay=0.0) for kind in ("bias", "norm")]
    assert not knobs_unsaid(settings_of(name, Recipe(groups=tuple(rules)))) & {
        "weight_decay",
        "groups.bias.weight_decay",
        "groups.norm.weight_decay",
    }
    one = knobs_unsaid(settings_of(name, Recipe(groups=tuple(rules[:1]))))
    assert "weight_decay" in one  # of norms
    assert "groups.bias.weight_decay" not in one
    slower = NO_DECAY.model_copy(update={"lr_mult": 0.5})
    unsaid = knobs_unsaid(settings_of(name, Recipe(groups=(slower,))))
    assert "groups.no_decay.lr_mult" in unsaid
    assert not unsaid & {"weight_decay", "groups.no_decay.weight_decay"}


# Argument names with their types, from the consumers' own sources:
#   timm: huggingface/pytorch-image-models train.py (2aabaef), argparse destinations; torchtune:
#   recipes/full_finetune_single_device.py (0.6.1); axolotl: utils/schemas/training.py and config.py (0.19.0);
#   Megatron-LM: megatron/training/arguments.py, in newer ones SchedulerConfig of config/training_config.py (008e9cd);
#   nanoGPT: the globals of train.py, whose types configurator.py (085bba5) checks.
NUMBER = (float, int)
KEYS: dict[str, dict[str, Any]] = {
    "timm": {
        "opt": str, "lr": NUMBER, "momentum": NUMBER, "opt_betas": list, "opt_eps": NUMBER, "weight_decay": NUMBER,
        "clip_grad": (*NUMBER, type(None)), "clip_mode": str, "sched": str, "sched_on_updates": bool,
        "warmup_lr": NUMBER, "warmup_prefix": bool, "min_lr": NUMBER, "decay_rate": NUMBER, "epochs": int,
        "warmup_epochs": int, "decay_milestones": list, "amp": bool, "amp_dtype": str, "grad_accum_steps": int,
    },
    "torchtune": {
        "optimizer": dict, "lr_scheduler": (dict, type(None)), "clip_grad_norm": (*NUMBER, type(None)),
        "gradient_accumulation_steps": int, "dtype": str,
    },
    "axolotl": {
        "learning_rate": NUMBER, "optimizer": str, "optim_args": str, "adam_beta1": NUMBER, "adam_beta2": NUMBER,
        "adam_epsilon": NUMBER, "weight_decay": NUMBER, "embedding_lr_scale": NUMBER, "lr_groups": list,
        "lr_scheduler": str, "lr_scheduler_kwargs": dict, "cosine_min_lr_ratio": NUMBER, "warmup_steps": int,
        "warmup_ratio": NUMBER, "max_grad_norm": NUMBER, "gradient_accumulation_steps": int,
        "bf16": bool, "fp16": bool,
    },
    "hydra": {"optimizer": dict, "scheduler": (dict, type(None))},
    "megatron": {
        "optimizer": str, "lr": NUMBER, "min-lr": NUMBER, "sgd-momentum": NUMBER, "adam-beta1": NUMBER,
        "adam-beta2": NUMBER, "adam-eps": NUMBER, "weight-decay": NUMBER, "lr-decay-style": str, "train-iters": int,
        "lr-decay-iters": int, "lr-warmup-iters": int, "clip-grad": NUMBER, "bf16": bool, "fp16": bool,
    },
    "nanogpt": {
        "learning_rate": NUMBER, "beta1": NUMBER, "beta2": NUMBER, "weight_decay": NUMBER, "grad_clip": NUMBER,
        "decay_lr": bool, "warmup_iters": int, "lr_decay_iters": int, "min_lr": NUMBER, "max_iters": int,
        "gradient_accumulation_steps": int, "dtype": str,
    },
}  # fmt: skip


@settings(max_examples=60)
@given(recipes(), st.sampled_from(NAMES), st.integers(1, 500), st.none() | st.integers(1, 50))
def test_settings_have_the_consumer_s_keys_and_types(recipe: Recipe, name: str, total: int, each: int | None) -> None:
    values = settings_of(name, recipe, Context(total, steps_per_epoch=each)).values
    assert set(values) <= set(KEYS[name])
    for key, value in values.items():
        assert isinstance(value, KEYS[name][key]), (key, value)


@settings(max_examples=60)
@given(recipes(), st.sampled_from(NAMES))
def test_files_are_read_back_as_their_settings_by_a_plain_reader(recipe: Recipe, name: str) -> None:
    text = export_recipe(recipe, name, CONTEXT).text
    values = settings_of(name, recipe).values
    match FORMATS[name].syntax:
        case "yaml":
            assert yaml.safe_load(text) == values
        case "assignments":
            names: dict[str, Any] = {}
            exec(text, {}, names)
            assert names == values
        case "arguments":
            lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
            read = {line[0].removeprefix("--"): " ".join(line[1:]) for line in lines}
            assert read == {
                key: "" if value is True else str(value) for key, value in values.items() if value is not False
            }


def test_an_unknown_horizon_is_asked_for_where_the_consumer_counts_steps() -> None:
    for name in ("torchtune", "hydra", "megatron", "nanogpt"):
        with pytest.raises(ExportError, match="say how long the run is with --total-steps"):
            export_recipe(Recipe(), name)
    in_steps = Recipe(schedule=Schedule(warmup=WarmupSteps(steps=7)))
    assert settings_of("torchtune", in_steps, Context()).values["lr_scheduler"]["num_warmup_steps"] == 7
    assert settings_of("axolotl", in_steps, Context()).values["warmup_steps"] == 7
    assert settings_of("axolotl", Recipe(), Context()).values["warmup_ratio"] == 0.05
    assert settings_of("hydra", PLAIN.with_knob("warmup", 0.0).with_knob("schedule", "constant"), Context()).values[
        "scheduler"
    ] is None  # fmt: skip


# nanoGPT's get_lr, from karpathy/nanoGPT train.py (MIT), re-expressed.
def nanogpt_lr(it: int, config: dict[str, Any]) -> float:
    peak, low, warmup, end = (config[key] for key in ("learning_rate", "min_lr", "warmup_iters", "lr_decay_iters"))
    if not config["decay_lr"]:
        return float(peak)
    if it < warmup:
        return float(peak * (it + 1) / (warmup + 1))
    if it > end:
        return float(low)
    done = (it - warmup) / (end - warmup)
    return float(low + 0.5 * (1.0 + math.cos(math.pi * done)) * (peak - low))


# Megatron-LM's OptimizerParamScheduler.get_lr, from megatron/core/optimizer_param_scheduler.py, re-expressed.
def megatron_lr(it: int, arguments: dict[str, Any], batch: int = 8) -> float:
    steps, peak, low = it * batch, arguments["lr"], arguments["min-lr"]
    warmup, end = arguments["lr-warmup-iters"] * batch, arguments["lr-decay-iters"] * batch
    if warmup > 0 and steps <= warmup:
        return float(peak * steps / warmup)
    if arguments["lr-decay-style"] == "constant":
        return float(peak)
    if steps > end:
        return float(low)
    done = (steps - warmup) / (end - warmup)
    kept = 1.0 - done if arguments["lr-decay-style"] == "linear" else 0.5 * (math.cos(math.pi * done) + 1.0)
    return float(low + kept * (peak - low))


# timm's _get_lr, from timm/scheduler/{cosine,poly,multistep,step}_lr.py (1.0), re-expressed for one cycle.
def timm_lr(t: int, args: dict[str, Any], each: int) -> float:
    peak, warmup = args["lr"], args["warmup_epochs"] * each
    if t < warmup:
        return float(args["warmup_lr"] + t * (peak - args["warmup_lr"]) / warmup)
    if args["sched"] == "step":
        return float(peak)
    if args["sched"] == "multistep":
        passed = bisect.bisect_right([milestone * each for milestone in args["decay_milestones"]], t + 1)
        return float(peak * args["decay_rate"] ** passed)
    done = (t - warmup if args["warmup_prefix"] else t) / (args["epochs"] * each)
    kept = (1 - done) ** args["decay_rate"] if args["sched"] == "poly" else 0.5 * (1 + math.cos(math.pi * done))
    return float(args["min_lr"] + (peak - args["min_lr"]) * kept)


@settings(max_examples=60)
@given(schedules(), st.integers(1, 9), st.integers(1, 40))
@example(Schedule(kind="step", warmup=0.0, milestones=(0.1, 0.33, 0.7)), 10, 10)
def test_timm_lr_is_ours_step_for_step_over_whole_epochs(schedule: Schedule, epochs: int, each: int) -> None:
    recipe, total = Recipe(lr=0.3, schedule=schedule), epochs * each
    told = settings_of("timm", recipe, Context(total, steps_per_epoch=each))
    args = dict(told.values)
    off = knobs_unsaid(told) & {"warmup", "schedule", "floor"}
    assert ("warmup" in off) == (warmup_steps(schedule, total) % each != 0)
    for t in range(0 if off else total):
        assert timm_lr(t, args, each) / recipe.lr == pytest.approx(multiplier(schedule, t, total), abs=1e-9)


@settings(max_examples=60)
@given(schedules(), st.integers(1, 300))
@example(Schedule(kind="constant", warmup=0.0), 10)
@example(Schedule(warmup=WarmupSteps(steps=10)), 10)
def test_nanogpt_lr_is_ours_but_for_the_warmup_it_tells_of(schedule: Schedule, total: int) -> None:
    recipe = Recipe(lr=0.3, schedule=schedule)
    told = settings_of("nanogpt", recipe, Context(total))
    config = dict(told.values)
    assert config["max_iters"] + 1 == total
    warmup = warmup_steps(schedule, total)
    for it in range(total):
        theirs, ours = nanogpt_lr(it, config) / recipe.lr, multiplier(schedule, it, total)
        if it < warmup:
            assert "warmup" in knobs_unsaid(told)
            assert 0.0 < theirs - ours <= 1 / (warmup + 1) + 1e-9
        elif schedule.kind in ("constant", "cosine"):
            assert theirs == pytest.approx(ours, abs=1e-9)
    assert ("schedule" in knobs_unsaid(told)) == (schedule.kind in ("linear", "step"))
    assert ("warmup" in knobs_unsaid(told)) == (warmup > 0)


@settings(max_examples=60)
@given(schedules(), st.integers(1, 300))
@example(Schedule(warmup=WarmupSteps(steps=10)), 10)
def test_megatron_lr_is_ours_step_for_step(schedule: Schedule, total: int) -> None:
    recipe = Recipe(lr=0.3, schedule=schedule)
    told = settings_of("megatron", recipe, Context(total))
    arguments = dict(told.values)
    assert arguments["lr-warmup-iters"] < arguments["lr-decay-iters"]  # its scheduler asserts so
    same = not knobs_unsaid(told) & {"schedule", "warmup"}
    assert same == (schedule.kind != "step" and warmup_steps(schedule, total) < total)
    for it in range(total * same):
        assert megatron_lr(it, arguments) / recipe.lr == pytest.approx(multiplier(schedule, it, total), abs=1e-9)


def test_timm_runs_whole_epochs_and_says_by_how_much_that_is_off() -> None:
    exact = settings_of("timm", PLAIN.with_knob("warmup", {"steps": 20}))
    assert (exact.values["epochs"], exact.values["warmup_epochs"]) == (10, 2)
    assert not exact.unsaid
    odd = settings_of("timm", PLAIN.with_knob("warmup", {"steps": 14}), Context(126, steps_per_epoch=10))
    assert {unsaid.knob: unsaid.why.split(":")[0] for unsaid in odd.unsaid} == {
        "warmup": "10 updates, not 14",
        "schedule": "130 updates long, not 126",
    }


def test_sgd_is_not_nesterov_s_in_timm() -> None:
    assert settings_of("timm", SGD).values["opt"] == "momentum"


def test_axolotl_says_an_lr_for_embeddings_and_by_part_of_a_name() -> None:
    embedding = GroupRule(name="embedding", match=Match(kind=("embedding", "head")), lr_mult=0.5, weight_decay=0.0)
    named = GroupRule(name="attention", match=Match(params=("*q_proj*", "*k_proj*")), lr_mult=2.0)
    told = settings_of("axolotl", Recipe(lr=1e-3, groups=(embedding, named, NO_DECAY)))
    assert told.values["embedding_lr_scale"] == 0.5
    assert told.values["lr_groups"] == [{"name": "attention", "modules": ["q_proj", "k_proj"], "lr": 2e-3}]
    # axolotl would not decay a bias that the recipe's rule by name takes.
    named_unsaid = {"groups.attention.lr_mult", "groups.attention.weight_decay"}
    of_a_bias = {"groups.embedding.lr_mult", "groups.embedding.weight_decay"}
    assert knobs_unsaid(told) == {*named_unsaid, *of_a_bias}
    anchored = named.model_copy(update={"match": Match(params=("head.*",))})
    assert "lr_groups" not in settings_of("axolotl", Recipe(groups=(anchored,))).values


def module_of(recipe: Recipe, name: str, total: int) -> ModuleType:
    """The companion, as `import` would give it; axolotl's base class, which holds hooks alone, is a bare one."""
    source = FORMATS[name].companion
    assert source is not None
    module = ModuleType("optim_recipe")
    text = source(recipe, Context(total)).replace(
        "from axolotl.integrations.base import BasePlugin", "BasePlugin = object"
    )
    exec(compile(text, "optim_recipe.py", "exec"), module.__dict__)
    return module


def by_scheduler(module: ModuleType) -> Callable[..., Any]:
    def build(model: torch.nn.Module, total_steps: int) -> tuple[Any, Any]:
        optimizer = module.optimizer_for(model)
        return optimizer, module.scheduler_for(optimizer, total_steps)

    return build


def by_set_lr(module: ModuleType) -> Callable[..., Any]:
    def build(model: torch.nn.Module, total_steps: int) -> tuple[Any, Any]:
        optimizer, updates = module.optimizer_for(model), itertools.count(1)
        module.set_lr(optimizer, 0, total_steps)
        return optimizer, SimpleNamespace(step=lambda: module.set_lr(optimizer, next(updates), total_steps))

    return build


def by_timm(module: ModuleType) -> Callable[..., Any]:
    def build(model: torch.nn.Module, total_steps: int) -> tuple[Any, Any]:
        optimizer, updates = module.optimizer_for(model), itertools.count(1)
        scheduler = module.Updates(optimizer, total_steps)
        return optimizer, SimpleNamespace(step=lambda: scheduler.step_update(next(updates), metric=None))

    return build


def by_torchtune(module: ModuleType) -> Callable[..., Any]:
    def build(model: torch.nn.Module, total_steps: int) -> tuple[Any, Any]:
        optimizer = module.optimizer_for(model)
        return optimizer, module.lr_schedule(optimizer, num_training_steps=total_steps, last_epoch=-1)

    return build


def by_axolotl(module: ModuleType) -> Callable[..., Any]:
    def build(model: torch.nn.Module, total_steps: int) -> tuple[Any, Any]:
        plugin, trainer = module.RecipePlugin(), SimpleNamespace(model=model, optimizer=None)
        plugin.post_trainer_create(None, trainer)
        optimizer = trainer.create_optimizer()
        assert optimizer is trainer.create_optimizer(model)
        return optimizer, plugin.create_lr_scheduler(None, trainer, optimizer, total_steps)

    return build


WAYS = {
    "timm": by_timm, "torchtune": by_torchtune, "axolotl": by_axolotl, "hydra": by_scheduler, "nanogpt": by_set_lr,
    "megatron": lambda module: module.build_optimizer,
}  # fmt: skip
SWITCHED = Recipe(lr=1e-2, groups=(HEAD,), switch=Switch(at=0.3, lr=0.1, momentum=0.8))
TRAINABLE = recipes(params=PATTERNS, max_lr=0.1, max_mult=3.0, min_eps=1e-8)


@settings(max_examples=40)
@given(TRAINABLE, st.sampled_from(sorted(WAYS)), st.sampled_from([1, 12, 15, 400]))
@example(SWITCHED, "nanogpt", 15)
@example(SWITCHED, "timm", 15)
@example(SWITCHED, "axolotl", 15)
@example(Recipe.default(), "torchtune", 15)
def test_a_companion_trains_bit_for_bit_as_the_recipe(recipe: Recipe, name: str, total: int) -> None:
    if name == "megatron":  # its companion makes no switch, and says so
        recipe = recipe.model_copy(update={"switch": None})
    try:
        ours = trained(recipe.build, total)
    except RecipeError:  # a rule whose patterns match nothing of the kinds it asks for
        assume(False)
    theirs = trained(WAYS[name](module_of(recipe, name, total)), total)
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1]
    torch.testing.assert_close(theirs[2], ours[2], rtol=0, atol=0, equal_nan=True)


def test_a_companion_s_schedule_resumes_as_torchtune_resumes() -> None:
    recipe = Recipe(lr=0.1)
    module, model = module_of(recipe, "torchtune", 20), Net()
    optimizer = module.optimizer_for(model)
    scheduler = module.lr_schedule(optimizer, num_training_steps=20, last_epoch=7 - 1)  # seven updates are made
    assert scheduler.get_last_lr() == pytest.approx([0.1 * multiplier(recipe.schedule, 7, 20)])
    assert module.get_lr(optimizer) == scheduler.get_last_lr()[-1]


@settings(max_examples=30)
@given(TRAINABLE)
@example(GROUPED)
def test_megatron_overrides_give_every_parameter_its_group_s_settings(recipe: Recipe) -> None:
    model = Net()
    try:
        optimizer, _ = recipe.build(model, total_steps=15)
    except RecipeError:
        assume(False)
    module = module_of(recipe, "megatron", 15)
    overrides = module.overrides_of(model, "module.")
    assert sorted(name for names in overrides for name in names) == sorted(
        f"module.{name}" for name, param in model.named_parameters() if param.requires_grad
    )
    for (names, own), group in zip(overrides.items(), optimizer.param_groups, strict=True):
        assert names == tuple(f"module.{name}" for name in group["param_names"])
        assert (own["max_lr"], own["start_wd"], own["end_wd"]) == (
            group["initial_lr"],
            group["weight_decay"],
            group["weight_decay"],
        )
        assert own["min_lr"] == group["initial_lr"] * recipe.schedule.floor
        assert {key: own[key] for key in ("betas", "eps", "momentum") if key in own} == {
            key: group[key] for key in (("momentum",) if recipe.optimizer == "sgd" else ("betas", "eps"))
        }
    scheduler = SimpleNamespace(lr_decay_steps=15 * 8)
    for step in range(15):
        scheduler.num_steps = step * 8  # samples
        assert module.lr_of(scheduler, {"max_lr": 2.0}) == 2.0 * multiplier(recipe.schedule, step, 15)


@settings(max_examples=40)
@given(recipes(), st.sampled_from(NAMES))
def test_a_companion_imports_torch_the_standard_library_and_its_consumer_only(recipe: Recipe, name: str) -> None:
    source = FORMATS[name].companion
    assert source is not None
    tree = ast.parse(source(recipe, CONTEXT))
    docstring = ast.get_docstring(tree)
    assert docstring is not None
    assert docstring.startswith("Optimizer recipe, written by adamtune.")
    roots = {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert roots <= {"torch", *sys.stdlib_module_names, *({name} if name in ("axolotl", "megatron") else set())}


def test_the_command_writes_a_file_and_its_companion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(GROUPED.to_yaml())
    for name in NAMES:
        command = ["export", "recipe.yaml", "--format", name, "--to", f"for_{name}.txt", "--companion"]
        assert run([*command, "--total-steps", "120"]) == 0
        told = capsys.readouterr()
        assert f"{name} cannot say groups.head.lr_mult: " in told.err
        assert told.out == f"wrote for_{name}.txt\nwrote for_{name}_optimizer.py\n"
        compile((tmp_path / f"for_{name}_optimizer.py").read_text(), name, "exec")
    assert run(["export", "recipe.yaml", "--format", "timm", "--total-steps", "120", "--steps-per-epoch", "12"]) == 0
    assert "epochs: 9\nwarmup_epochs: 1\n" in capsys.readouterr().out
