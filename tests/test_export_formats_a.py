"""hf, accelerate, deepspeed and lightning: what is written, and that nothing is left out unsaid."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from adamtune.cli.app import run
from adamtune.errors import ExportError
from adamtune.export import FORMATS, Context, Format, Settings, export_recipe
from adamtune.recipe import GroupRule, Kind, Match, Recipe, Schedule, Switch, WarmupSteps
from recipes import recipes

IN_KEYS = [format for format in FORMATS.values() if not format.whole]
OURS = ("hf", "accelerate", "deepspeed", "lightning")

HEAD = GroupRule(
    name="head", match=Match(params=("head.*",)), lr_mult=3.0, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-7
)
NO_DECAY = GroupRule(name="no_decay", match=Match(kind=("bias", "norm")), weight_decay=0.0)
BASES = {
    "adamw": Recipe(
        lr=1e-5,
        groups=(NO_DECAY, HEAD),
        schedule=Schedule(kind="cosine", warmup=0.07, floor=0.1),
        clip_norm=0.5,
        precision="bf16",
        accumulate=2,
        switch=Switch(at=0.5, lr=0.1),
    ),
    "adam": Recipe(optimizer="adam", schedule=Schedule(kind="linear", warmup=WarmupSteps(steps=9), floor=0.3)),
    "sgd": Recipe(optimizer="sgd", groups=(NO_DECAY,), schedule=Schedule(kind="step", warmup=0.0)),
    "plain": Recipe(weight_decay=0.0, schedule=Schedule(kind="constant", warmup=0.0)),
}
OTHER: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 0.25,
    "beta1": 0.5,
    "beta2": 0.75,
    "eps": 1e-5,
    "weight_decay": 0.125,
    "momentum": 0.375,
    "schedule": "linear",
    "warmup": 0.2,
    "floor": 0.45,
    "milestones": (0.3, 0.6),
    "gamma": 0.7,
    "clip_norm": 2.0,
    "precision": "fp16",
    "accumulate": 8,
    "switch": {"to": "sgd", "at": 0.8, "lr": 0.5, "momentum": 0.4},
    "groups.head.lr_mult": 7.0,
    "groups.head.weight_decay": 0.9,
    "groups.head.betas": (0.6, 0.7),
    "groups.head.eps": 1e-4,
    "groups.no_decay.lr_mult": 2.0,
    "groups.no_decay.weight_decay": 0.4,
    "groups.no_decay.betas": (0.3, 0.4),
    "groups.no_decay.eps": 1e-3,
}
OTHER_OF = {
    ("adam", "optimizer"): "adamw",
    ("adam", "schedule"): "cosine",
    ("sgd", "optimizer"): "adamw",
    ("plain", "optimizer"): "sgd",  # without decay adam and adamw are one
}
# A schedule and an optimizer ignore the knobs of others; `Recipe.to_dict` leaves these out, for that.
IGNORED = {
    "adamw": {"momentum", "milestones", "gamma"},
    "adam": {"momentum", "milestones", "gamma"},
    "sgd": {"beta1", "beta2", "eps", "switch", "groups.no_decay.betas", "groups.no_decay.eps"},
    "plain": {"momentum", "floor", "milestones", "gamma"},
}
CHANGES = [(base, knob) for base, recipe in BASES.items() for knob in recipe.knobs() if knob not in IGNORED[base]]


def told(recipe: Recipe, format: str, total: int | None = 100, version: int | None = None) -> Settings:
    return FORMATS[format].settings(recipe, Context(total, version))


def unsaid(recipe: Recipe, format: str, total: int | None = 100, version: int | None = None) -> dict[str, str]:
    """Knob -> why. Where both the two sides of one knob are unsaid, the last."""
    return {item.knob: item.why for item in told(recipe, format, total, version).unsaid}


@pytest.mark.parametrize(
    ("format", "version"),
    [(format, version) for format in IN_KEYS for version in (format.versions or (None,))],
    ids=lambda part: getattr(part, "name", part),
)
@pytest.mark.parametrize(("base", "knob"), CHANGES, ids=lambda part: part)
def test_a_changed_knob_changes_the_settings_or_is_named_as_unsaid(
    format: Format, version: int | None, base: str, knob: str
) -> None:
    context = Context(100, version)
    recipe = BASES[base]
    changed = recipe.with_knob(knob, OTHER_OF.get((base, knob), OTHER[knob]))
    assert changed != recipe
    before, after = format.settings(recipe, context), format.settings(changed, context)
    named = {item.knob for item in (*before.unsaid, *after.unsaid)}
    assert before.values != after.values or knob in named


@pytest.mark.parametrize("format", IN_KEYS, ids=lambda format: format.name)
@settings(max_examples=40, deadline=None)
@given(recipe=recipes(), total=st.sampled_from([1, 2, 3, 100, 12_345]))
def test_every_recipe_can_be_told_and_only_its_own_knobs_are_unsaid(format: Format, recipe: Recipe, total: int) -> None:
    export = export_recipe(recipe, format.name, Context(total))
    assert {item.knob for item in export.unsaid} <= set(recipe.knobs())
    assert (export.companion is not None) == bool(export.unsaid)
    if export.companion is not None:
        ast.parse(export.companion)


@pytest.mark.parametrize("format", [name for name in OURS if FORMATS[name].syntax in ("yaml", "json")])
@settings(max_examples=40, deadline=None)
@given(recipe=recipes())
def test_any_reader_of_the_syntax_gets_the_very_values_back(format: str, recipe: Recipe) -> None:
    text = export_recipe(recipe, format, Context(100)).text
    # PyYAML reads YAML 1.1, to which 1e-05 is a text.
    read = json.loads(text) if FORMATS[format].syntax == "json" else yaml.safe_load(text)
    assert read == dict(told(recipe, format).values)


@pytest.mark.parametrize("format", OURS)
@settings(max_examples=20, deadline=None)
@given(recipe=recipes(), total=st.sampled_from([100]))
def test_a_companion_uses_all_it_imports_and_all_it_defines(format: str, recipe: Recipe, total: int) -> None:
    export = export_recipe(recipe, format, Context(total))
    if export.companion is None:
        return
    tree = ast.parse(export.companion)
    nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    bound = {alias.asname or alias.name for node in nodes for alias in node.names}
    bound |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert bound - used <= {"annotations", "RecipeTrainer", "prepare", "initialize", "RecipeCLI"}
    compile(tree, "companion.py", "exec")


@pytest.mark.parametrize("format", OURS)
def test_what_a_format_can_say_in_full_has_no_companion(format: str) -> None:
    plain = export_recipe(BASES["plain"], format, Context(100))
    assert (plain.unsaid, plain.companion) == ((), None)
    switched = export_recipe(BASES["adamw"], format, Context(100))
    assert switched.companion is not None
    assert "class AdamThenSGD" in switched.companion


def test_hf_keys_are_those_of_training_arguments() -> None:
    recipe = Recipe.default().model_copy(update={"lr": 1e-5, "clip_norm": 0.5, "precision": "bf16", "accumulate": 4})
    assert dict(told(recipe, "hf").values) == {
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "learning_rate": 1e-5,
        "weight_decay": 0.01,
        "lr_scheduler_type": "cosine",
        "lr_scheduler_kwargs": None,
        "warmup_steps": 0.05,
        "max_grad_norm": 0.5,
        "bf16": True,
        "fp16": False,
        "gradient_accumulation_steps": 4,
    }
    assert told(recipe, "hf").unsaid == ()
    assert "learning_rate: 1.0e-05\n" in export_recipe(recipe, "hf", Context(100)).text


def test_hf_does_not_clip_where_the_recipe_does_not() -> None:
    assert told(Recipe(), "hf").values["max_grad_norm"] == 0.0


@pytest.mark.parametrize(
    ("schedule", "name", "kwargs"),
    [
        (Schedule(kind="constant"), "constant_with_warmup", None),
        (Schedule(kind="linear"), "linear", None),
        (Schedule(kind="linear", floor=0.25), "polynomial", {"lr_end": 0.5, "power": 1.0}),
        (Schedule(kind="linear", floor=1.0), "constant_with_warmup", None),
        (Schedule(kind="linear", warmup=WarmupSteps(steps=500), floor=0.25), "constant_with_warmup", None),
        (Schedule(kind="cosine"), "cosine", None),
        (Schedule(kind="cosine", floor=0.25), "cosine_with_min_lr", {"min_lr_rate": 0.25}),
        (Schedule(kind="cosine", floor=1.0), "constant_with_warmup", None),
        (Schedule(kind="step"), "constant_with_warmup", None),
    ],
)
def test_hf_schedules_have_the_names_of_transformers(schedule: Schedule, name: str, kwargs: object) -> None:
    values = told(Recipe(lr=2.0, schedule=schedule), "hf").values
    assert (values["lr_scheduler_type"], values["lr_scheduler_kwargs"]) == (name, kwargs)


@pytest.mark.parametrize(
    ("warmup", "total", "five", "four"),
    [
        (0.05, 100, {"warmup_steps": 0.05}, {"warmup_steps": 0, "warmup_ratio": 0.05}),
        (0.05, 90, {"warmup_steps": 4}, {"warmup_steps": 4, "warmup_ratio": 0.0}),  # 4.5: ours 4, rounded up 5
        (0.07, 100, {"warmup_steps": 7}, {"warmup_steps": 7, "warmup_ratio": 0.0}),  # 100 * 0.07 is above 7
        (0.004, 100, {"warmup_steps": 0}, {"warmup_steps": 0, "warmup_ratio": 0.0}),
        (0.0, None, {"warmup_steps": 0.0}, {"warmup_steps": 0, "warmup_ratio": 0.0}),
        (WarmupSteps(steps=1), None, {"warmup_steps": 1}, {"warmup_steps": 1, "warmup_ratio": 0.0}),
        (WarmupSteps(steps=300), 100, {"warmup_steps": 100}, {"warmup_steps": 100, "warmup_ratio": 0.0}),
    ],
)
def test_hf_warmup_is_a_fraction_where_that_is_the_same_number_of_steps(
    warmup: Any, total: int | None, five: dict[str, float], four: dict[str, float]
) -> None:
    recipe = Recipe(schedule=Schedule(warmup=warmup))
    for version, expected in ((None, five), (5, five), (4, four)):
        values = told(recipe, "hf", total, version).values
        assert {key: value for key, value in values.items() if key.startswith("warmup")} == expected
        assert "warmup" not in unsaid(recipe, "hf", total, version)


def test_hf_says_that_a_fraction_is_rounded_up_where_the_length_is_not_known() -> None:
    assert "rounds the fraction up" in unsaid(Recipe(), "hf", None)["warmup"]


def rule(*kinds: Kind, **own: Any) -> GroupRule:
    return GroupRule(name="_".join(kinds), match=Match(kind=kinds), **own)


@pytest.mark.parametrize(
    ("groups", "decay", "named"),
    [
        ((rule("bias", "norm", weight_decay=0.0),), 0.1, set()),
        ((rule("bias", weight_decay=0.0), rule("norm", weight_decay=0.0)), 0.1, set()),
        ((rule("bias", "norm"),), 0.0, set()),
        ((), 0.1, {"weight_decay"}),
        ((rule("bias", weight_decay=0.0),), 0.1, {"weight_decay"}),
        ((rule("bias", "norm", weight_decay=0.2),), 0.1, {"groups.bias_norm.weight_decay"}),
        ((rule("bias", "norm", "embedding", weight_decay=0.0),), 0.1, {"groups.bias_norm_embedding.weight_decay"}),
        ((rule("bias", "norm", weight_decay=0.0), rule("embedding", weight_decay=0.0)), 0.1, {"groups.embedding.weight_decay"}),  # noqa: E501
        ((HEAD.model_copy(update={"weight_decay": None}), NO_DECAY), 0.1, {"groups.head.weight_decay"}),
        ((rule("bias", "norm", weight_decay=0.0, lr_mult=2.0),), 0.1, {"groups.bias_norm.lr_mult"}),
    ],
)  # fmt: skip
def test_hf_says_a_rule_for_biases_and_norms_and_no_other(
    groups: tuple[GroupRule, ...], decay: float, named: set[str]
) -> None:
    recipe = Recipe(groups=groups, weight_decay=decay)
    mine = set(unsaid(recipe, "hf")) - {"groups.head.lr_mult", "groups.head.betas", "groups.head.eps"}
    assert mine == named


def test_hf_adam_is_adamw_where_nothing_decays() -> None:
    assert "optimizer" not in unsaid(Recipe(optimizer="adam", weight_decay=0.0), "hf")
    assert "does not add the decay to the gradient" in unsaid(Recipe(optimizer="adam"), "hf")["optimizer"]


def test_hf_sgd_has_momentum_from_version_5_on() -> None:
    recipe = Recipe(optimizer="sgd", momentum=0.8)
    assert told(recipe, "hf").values["optim_args"] == "momentum=0.8"
    assert "optim_args" not in told(recipe, "hf", version=4).values
    assert "momentum is 0" in unsaid(recipe, "hf", version=4)["momentum"]


def test_an_unknown_version_of_a_consumer_is_refused() -> None:
    with pytest.raises(ExportError, match="hf is written of version 4 or 5, not for version 3"):
        export_recipe(Recipe(), "hf", Context(100, 3))
    with pytest.raises(ExportError, match="lightning is written without a version, not for version 2"):
        export_recipe(Recipe(), "lightning", Context(100, 2))


def test_deepspeed_has_torchs_adam_and_its_own_schedules() -> None:
    recipe = Recipe(lr=0.5, schedule=Schedule(kind="cosine", warmup=0.1, floor=0.2), clip_norm=1.0, accumulate=4)
    assert dict(told(recipe, "deepspeed").values) == {
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 0.5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "torch_adam": True},
        },
        "scheduler": {
            "type": "WarmupCosineLR",
            "params": {
                "total_num_steps": 100,
                "warmup_min_ratio": 0.0,
                "warmup_num_steps": 10,
                "cos_min_ratio": 0.2,
                "warmup_type": "linear",
            },
        },
        "gradient_clipping": 1.0,
        "gradient_accumulation_steps": 4,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "torch_autocast": {"enabled": False},
    }
    assert "one update late, up to lr / 10 lower; from update 11 on lr is ours" in unsaid(recipe, "deepspeed")["warmup"]


@pytest.mark.parametrize(("kind", "mode"), [("adamw", None), ("adam", False)])
def test_deepspeed_adam_means_adamw_unless_told_otherwise(kind: Any, mode: bool | None) -> None:
    params = told(Recipe(optimizer=kind), "deepspeed").values["optimizer"]["params"]
    assert params.get("adam_w_mode") is mode


def test_deepspeed_needs_the_length_of_the_run_where_a_schedule_does() -> None:
    with pytest.raises(ExportError, match=r"deepspeed needs a cosine schedule in steps; .* --total-steps"):
        told(Recipe(), "deepspeed", None)
    with pytest.raises(ExportError, match="needs the warmup in steps"):
        told(Recipe(schedule=Schedule(kind="constant")), "deepspeed", None)
    in_steps = Recipe(schedule=Schedule(kind="constant", warmup=WarmupSteps(steps=5)))
    assert told(in_steps, "deepspeed", None).values["scheduler"]["params"]["warmup_num_steps"] == 4
    held = {"warmup_min_lr": 1e-3, "warmup_max_lr": 1e-3, "warmup_num_steps": 1, "warmup_type": "linear"}
    constant = told(BASES["plain"], "deepspeed", None).values
    assert constant["scheduler"] == {"type": "WarmupLR", "params": held}


def test_accelerate_adds_what_its_plugin_asks_for() -> None:
    recipe = Recipe.default()
    own = {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 0}}
    assert told(recipe, "accelerate").values == {**told(recipe, "deepspeed").values, **own}


def test_lightning_keys_are_those_of_its_command_line() -> None:
    recipe = Recipe(lr=1e-5, schedule=Schedule(kind="constant", warmup=0.0), clip_norm=0.5, precision="fp16")
    assert dict(told(recipe, "lightning").values) == {
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 1e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
        },
        "trainer": {
            "gradient_clip_val": 0.5,
            "gradient_clip_algorithm": "norm",
            "precision": "16-mixed",
            "accumulate_grad_batches": 1,
        },
    }
    assert told(recipe, "lightning").unsaid == ()


def test_lightning_writes_no_scheduler_that_would_step_once_an_epoch() -> None:
    recipe = Recipe(schedule=Schedule(kind="cosine", warmup=0.1, floor=0.1))
    assert "lr_scheduler" not in told(recipe, "lightning").values
    assert set(unsaid(recipe, "lightning")) == {"schedule", "warmup", "floor"}


CONVENTIONS = {
    "AdamW: each step shrinks a weight by lr * weight_decay.": Recipe(),
    "SGD, once it has taken over, adds it to the gradient.": Recipe(switch=Switch(at=0.5, lr=0.1)),
    "torch.optim.Adam: weight_decay times the weight is added to its gradient.": Recipe(optimizer="adam"),
    "torch.optim.SGD: weight_decay times the weight is added to its gradient.": Recipe(optimizer="sgd"),
}


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("yaml", "accelerate", "deepspeed")])
def test_a_file_names_its_convention_of_weight_decay_and_its_run(format: str) -> None:
    for convention, recipe in CONVENTIONS.items():
        text = " ".join(export_recipe(recipe, format, Context(12_345)).text.split())
        assert convention in text
        assert ("# For a run of 12,345 optimizer steps." in text) == (format != "python")
    without = export_recipe(Recipe(weight_decay=0.0), format, Context(100)).text
    assert "Weight decay" not in without
    assert not [line for line in without.splitlines() if line != line.rstrip()]


def test_the_length_that_a_recipe_was_tuned_for_is_told_where_nobody_said_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 0.5\nschedule: {kind: constant, warmup: 0.1}\nprovenance: {horizon: 300}\n")
    assert run(["export", str(path), "--format", "nanogpt"]) == 0
    told = capsys.readouterr()
    assert "for a run of 300 steps, as the recipe was tuned for; --total-steps says another\n" in told.err
    assert "max_iters = 299\n" in told.out
    assert run(["export", str(path), "--format", "nanogpt", "--total-steps", "50"]) == 0
    assert "for a run of" not in capsys.readouterr().err
    assert run(["export", str(path), "--format", "yaml"]) == 0
    assert not capsys.readouterr().err


def test_axolotl_s_warmup_is_a_fraction_where_that_is_the_same_number_of_steps() -> None:
    for warmup, total, written in ((0.05, 100, 0.05), (0.05, 90, 0.05), (0.057, 100, 6), ({"steps": 7}, None, 7)):
        recipe = Recipe(weight_decay=0.0).with_knob("warmup", warmup)
        values = told(recipe, "axolotl", total).values
        key = "warmup_ratio" if isinstance(written, float) else "warmup_steps"
        assert {name: value for name, value in values.items() if name.startswith("warmup")} == {key: written}
        assert "max_steps" not in values  # the length of a run is its owner's
        assert "warmup" not in unsaid(recipe, "axolotl", total)
    assert "rounds it down" in unsaid(Recipe(), "axolotl", None)["warmup"]
