from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import adamtune
from adamtune.errors import ExitCode, RecipeError
from adamtune.recipe import GroupRule, Match, Recipe, Schedule, Switch, WarmupSteps, load_recipe
from recipes import recipes


def problems(text: str) -> dict[str, str]:
    """What is wrong with a recipe, by path."""
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text)
    assert caught.value.exit_code is ExitCode.USAGE
    return {problem.where: problem.what for problem in caught.value.problems}


GROUPED = Recipe(
    groups=(
        GroupRule(name="no_decay", match=Match(kind=("bias", "norm")), weight_decay=0.0),
        GroupRule(name="head", match=Match(params=("head.*",)), lr_mult=3.0, betas=(0.8, 0.99)),
    ),
    schedule=Schedule(warmup=WarmupSteps(steps=50)),
    switch=Switch(at=0.8, lr=0.05),
)


@settings(deadline=None)
@given(recipes())
def test_a_recipe_written_as_yaml_is_read_back_equal(recipe: Recipe) -> None:
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(recipes())
def test_a_thousand_recipes_written_as_yaml_are_read_back_equal(recipe: Recipe) -> None:
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@settings(max_examples=50, deadline=None)
@given(recipes())
def test_a_written_recipe_means_the_same_to_a_plain_yaml_reader(recipe: Recipe) -> None:
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(optimizer="sgd", betas=(0.8, 0.9), eps=1e-3),
        Recipe(momentum=0.5),
        Recipe(schedule=Schedule(milestones=(0.9,), gamma=0.5)),
    ],
)
def test_values_set_but_unused_survive_being_written(recipe: Recipe) -> None:
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_a_recipe_survives_being_written_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GROUPED.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == GROUPED
    assert adamtune.load_recipe(str(path)) == GROUPED


def test_a_recipe_as_people_type_it_is_understood() -> None:
    recipe = Recipe.from_yaml(
        "optimizer: adamw\nlr: 3e-4\nbetas: [0, 0.95]\neps: 1e-8\n"
        "groups:\n  - {name: head, match: {kind: head}, lr_mult: 2}\n  - {name: x, match: {params: 'x.*'}, eps: 1e-6}\n"
        "schedule: {kind: linear, warmup: {steps: 500}}\n"
    )
    assert (recipe.lr, recipe.betas, recipe.eps) == (3e-4, (0.0, 0.95), 1e-8)
    assert recipe.groups[0] == GroupRule(name="head", match=Match(kind=("head",)), lr_mult=2.0)
    assert recipe.groups[1] == GroupRule(name="x", match=Match(params=("x.*",)), eps=1e-6)
    assert recipe.schedule == Schedule(kind="linear", warmup=WarmupSteps(steps=500))


def test_the_default_is_torchs_adamw_under_warmed_up_cosine_without_decay_on_biases_and_norms() -> None:
    recipe = Recipe.default()
    assert (recipe.optimizer, recipe.lr, recipe.betas) == ("adamw", 1e-3, (0.9, 0.999))
    assert (recipe.eps, recipe.weight_decay) == (1e-8, 1e-2)
    assert recipe.schedule == Schedule(kind="cosine", warmup=0.05, floor=0.0)
    (rule,) = recipe.groups
    assert rule == GroupRule(name="no_decay", match=Match(kind=("bias", "norm")), weight_decay=0.0)


@pytest.mark.parametrize(
    "thing", [GROUPED, GROUPED.schedule, GROUPED.schedule.warmup, GROUPED.groups[0].match, GROUPED.switch]
)
def test_a_recipe_is_frozen_all_the_way_down(thing: Any) -> None:
    for field in type(thing).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(thing, field, None)


GROUP = "groups: [{name: g, match: {kind: [bias]}, "


@pytest.mark.parametrize(
    ("text", "path", "what"),
    [
        ("lr: 0", "$.lr", "above 0"),
        ("lr: -1e-3", "$.lr", "above 0"),
        ("lr: .nan", "$.lr", "finite"),
        ("lr: .inf", "$.lr", "finite"),
        ("lr: 1e999", "$.lr", "finite"),
        ("lr: true", "$.lr", "a number"),
        ("lr: '1e-3'", "$.lr", "a number"),
        ("lr: null", "$.lr", "a number"),
        ("betas: [0.9, 1]", "$.betas[1]", "below 1"),
        ("betas: [-0.1, 0.9]", "$.betas[0]", "at least 0"),
        ("betas: [0.9, 0.99, 0.999]", "$.betas", "at most 2"),
        ("betas: [0.9]", "$.betas[1]", "required"),
        ("betas: 0.9", "$.betas", "a list"),
        ("eps: -1e-8", "$.eps", "at least 0"),
        ("weight_decay: -0.1", "$.weight_decay", "at least 0"),
        ("momentum: 1.0", "$.momentum", "below 1"),
        ("optimizer: adanw", "$.optimizer", "did you mean 'adamw'?"),
        ("optimizer: AdamW", "$.optimizer", "did you mean 'adamw'?"),
        ("optimizer: SGD", "$.optimizer", "did you mean 'sgd'?"),
        ("precision: fp8", "$.precision", "fp32"),
        ("accumulate: 0", "$.accumulate", "at least 1"),
        ("accumulate: 1.5", "$.accumulate", "a whole number"),
        ("clip_norm: 0", "$.clip_norm", "above 0"),
        ("switch: sgd", "$.switch", "a mapping"),
        ("switch: {to: sgd, at: 0.8}", "$.switch.lr", "required"),
        ("switch: {to: sgd, lr: 0.1}", "$.switch.at", "required"),
        ("switch: {to: lion, at: 0.8, lr: 0.1}", "$.switch.to", "'sgd'"),
        ("switch: {at: 0, lr: 0.1}", "$.switch.at", "above 0"),
        ("switch: {at: 1, lr: 0.1}", "$.switch.at", "below 1"),
        ("switch: {at: 0.5, lr: 0}", "$.switch.lr", "above 0"),
        ("switch: {at: 0.5, lr: 0.1, momentum: 1}", "$.switch.momentum", "below 1"),
        ("switch: {at: 0.5, lr: 0.1, momentun: 0}", "$.switch.momentun", "did you mean 'momentum'?"),
        ("optimizer: sgd\nswitch: {at: 0.5, lr: 0.1}", "$.switch", "optimizer must be adamw or adam, not sgd"),
        ("learning_rate: 1", "$.learning_rate", "unknown key"),
        ("weight_decy: 1", "$.weight_decy", "did you mean 'weight_decay'?"),
        ("schedule: cosine", "$.schedule", "a mapping"),
        ("schedule: {kind: cosin}", "$.schedule.kind", "did you mean 'cosine'?"),
        ("schedule: {warmup: 1.0}", "$.schedule.warmup", "below 1"),
        ("schedule: {warmup: -0.1}", "$.schedule.warmup", "at least 0"),
        ("schedule: {warmup: {steps: -1}}", "$.schedule.warmup.steps", "at least 0"),
        ("schedule: {warmup: {steps: 0.5}}", "$.schedule.warmup.steps", "a whole number"),
        ("schedule: {warmup: {step: 1, steps: 1}}", "$.schedule.warmup.step", "did you mean 'steps'?"),
        ("schedule: {floor: 1.1}", "$.schedule.floor", "at most 1"),
        ("schedule: {milestones: [0.7, 0.5]}", "$.schedule.milestones", "must rise"),
        ("schedule: {milestones: [0.5, 0.5]}", "$.schedule.milestones", "must rise"),
        ("schedule: {milestones: [0.5, 1.0]}", "$.schedule.milestones[1]", "below 1"),
        ("schedule: {gamma: 0}", "$.schedule.gamma", "above 0"),
        ("groups: {name: g}", "$.groups", "a list"),
        ("groups: [{name: g}]", "$.groups[0].match", "required"),
        ("groups: [{match: {kind: bias}}]", "$.groups[0].name", "required"),
        ("groups: [{name: g, match: {}}]", "$.groups[0].match", "must name kinds"),
        ("groups: [{name: g, match: {kind: [bias, nrom]}}]", "$.groups[0].match.kind[1]", "did you mean 'norm'?"),
        ("groups: [{name: 'a b', match: {kind: bias}}]", "$.groups[0].name", "a b"),
        ("groups: [{name: a.b, match: {kind: bias}}]", "$.groups[0].name", "a.b"),
        ("groups: [{name: default, match: {kind: bias}}]", "$.groups", "'default'"),
        ("groups: [{name: g, match: {kind: bias}}, {name: g, match: {kind: norm}}]", "$.groups", "called 'g'"),
        ("groups: [{name: a, match: {kind: [bias, norm]}}, {name: b, match: {kind: norm}}]", "$.groups", "'b' is left"),
        ("groups: [{name: a, match: {kind: bias}}, {name: b, match: {kind: bias}}]", "$.groups", "put 'b' first, or"),
        (GROUP + "lr_mult: -1}]", "$.groups[0].lr_mult", "at least 0"),
        (GROUP + "weight_decay: -1}]", "$.groups[0].weight_decay", "at least 0"),
        (GROUP + "betas: [0.9, 2]}]", "$.groups[0].betas[1]", "below 1"),
        (GROUP + "eps: tiny}]", "$.groups[0].eps", "a number"),
        (GROUP + "lr: 1e-3}]", "$.groups[0].lr", "lr_mult"),
        ("provenance: none", "$.provenance", "a mapping"),
    ],
)
def test_a_bad_value_is_refused_with_its_path_and_the_reason(text: str, path: str, what: str) -> None:
    told = problems(text)
    assert list(told) == [path]
    assert what in told[path]


def test_all_bad_values_are_told_at_once() -> None:
    text = "lr: 0\nepsilon: 1\nschedule: {floor: 2}\ngroups: [{name: g, match: {kind: [bias]}, eps: -1}]"
    assert set(problems(text)) == {"$.lr", "$.epsilon", "$.schedule.floor", "$.groups[0].eps"}


def test_a_rule_by_kind_may_come_after_rules_by_name() -> None:
    text = "groups: [{name: a, match: {kind: bias, params: 'x*'}}, {name: b, match: {kind: [bias, norm]}}, "
    text += "{name: c, match: {kind: bias, params: 'y*'}}, {name: d, match: {kind: [bias, head]}}]"
    assert len(Recipe.from_yaml(text).groups) == 4


def test_of_a_newer_recipe_nothing_but_its_version_is_told() -> None:
    assert list(problems("version: 2\nlr: {peak: 1}\nmuon: true\n")) == ["$.version"]


@pytest.mark.parametrize("version", [0, 2, 10**30])
def test_a_recipe_of_another_version_is_refused(version: int) -> None:
    assert f"version 1, not {version}" in problems(f"version: {version}")["$.version"]


def test_the_file_a_recipe_was_read_from_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(RecipeError, match="no such file") as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    path.write_text("lr: 0\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: $.lr: ")


FIELDS = [
    *Recipe.model_fields,
    *Schedule.model_fields,
    *Switch.model_fields,
    *GroupRule.model_fields,
    "params",
    "steps",
    "lrr",
    "bias",
]


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(FIELDS),
        st.recursive(
            st.sampled_from([None, True, 0, 1, -1, 10**400, 0.5, float("nan"), float("inf"), "", "cosine", "bias"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(FIELDS) | st.integers() | st.none(), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_any_mapping_is_a_recipe_or_a_recipe_error(data: dict[str, object]) -> None:
    try:
        Recipe.from_yaml(yaml.safe_dump(data))
    except RecipeError as error:
        assert error.problems  # noqa: PT017 - either end is fine


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("optimizer", "adamw"),
        ("lr", 1e-3),
        ("beta1", 0.9),
        ("beta2", 0.999),
        ("eps", 1e-8),
        ("weight_decay", 0.01),
        ("momentum", 0.9),
        ("schedule", "cosine"),
        ("warmup", {"steps": 50}),
        ("floor", 0.0),
        ("milestones", (0.5, 0.75)),
        ("gamma", 0.1),
        ("clip_norm", None),
        ("precision", "fp32"),
        ("accumulate", 1),
        ("switch", {"to": "sgd", "at": 0.8, "lr": 0.05, "momentum": 0.9}),
        ("groups.no_decay.weight_decay", 0.0),
        ("groups.no_decay.lr_mult", 1.0),
        ("groups.head.lr_mult", 3.0),
        ("groups.head.betas", (0.8, 0.99)),
        ("groups.head.eps", None),
    ],
)
def test_each_knob_reads_the_field_it_names(knob: str, value: object) -> None:
    assert GROUPED.knob(knob) == value
    assert GROUPED.knobs()[knob] == value


@settings(max_examples=50, deadline=None)
@given(recipes(), recipes(), st.data())
def test_turning_one_knob_changes_that_knob_alone(recipe: Recipe, other: Recipe, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(recipe.knobs().keys() & other.knobs().keys())))
    before, value = recipe.knob(name), other.knob(name)
    if (name == "switch" and value and recipe.optimizer == "sgd") or (value == "sgd" and recipe.switch):
        with pytest.raises(RecipeError, match="adamw or adam"):
            recipe.with_knob(name, value)
        return
    turned = recipe.with_knob(name, value)
    assert turned.knob(name) == value
    assert recipe.diff(turned) == ({} if before == value else {name: (before, value)})
    assert recipe.knob(name) == before
    assert turned.with_knob(name, before) == recipe


@settings(max_examples=50, deadline=None)
@given(recipes(), recipes())
def test_turning_every_knob_that_differs_makes_one_recipe_the_other(one: Recipe, other: Recipe) -> None:
    other = other.model_copy(update={"groups": one.groups, "provenance": one.provenance})
    turned = one.with_knob("switch", None)  # which does not go with every optimizer on the way
    for name, (_, there) in turned.diff(other).items():
        turned = turned.with_knob(name, there)
    assert turned == other


@pytest.mark.parametrize(
    ("knob", "value"),
    [("groups.head.lr_mult", 5.0), ("groups.no_decay.betas", (0.5, 0.6)), ("groups.head.weight_decay", 0.2)],
)
def test_a_groups_knob_is_turned_in_that_group_alone(knob: str, value: Any) -> None:
    turned = GROUPED.with_knob(knob, value)
    _, group, field = knob.split(".")
    for before, after in zip(GROUPED.groups, turned.groups, strict=True):
        assert after == (before.model_copy(update={field: value}) if before.name == group else before)


@pytest.mark.parametrize(
    ("knob", "value", "path"),
    [
        ("lr", 0.0, "$.lr"),
        ("beta2", 1.0, "$.betas[1]"),
        ("warmup", 1.5, "$.schedule.warmup"),
        ("schedule", "cosin", "$.schedule.kind"),
        ("groups.head.lr_mult", -1.0, "$.groups[1].lr_mult"),
        ("switch", {"at": 1.5, "lr": 0.1}, "$.switch.at"),
        ("optimizer", "sgd", "$.switch"),
    ],
)
def test_a_knob_cannot_be_turned_out_of_range(knob: str, value: Any, path: str) -> None:
    with pytest.raises(RecipeError) as caught:
        GROUPED.with_knob(knob, value)
    assert [problem.where for problem in caught.value.problems] == [path]
    assert knob in str(caught.value)


@pytest.mark.parametrize(
    ("knob", "hint"),
    [("beta_1", "beta1"), ("groups.heads.lr_mult", "groups.head.lr_mult"), ("weightdecay", "weight_decay")],
)
def test_an_unknown_knob_is_refused_with_the_nearest(knob: str, hint: str) -> None:
    for use in (lambda: GROUPED.knob(knob), lambda: GROUPED.with_knob(knob, 0.5)):
        with pytest.raises(RecipeError, match=f"did you mean '{hint}'"):
            use()


def test_diff_shows_both_sides_and_none_where_a_group_is_missing() -> None:
    changed = GROUPED.with_knob("lr", 0.1).model_copy(update={"groups": GROUPED.groups[1:]})
    assert GROUPED.diff(changed) == {
        "lr": (1e-3, 0.1),
        "groups.no_decay.lr_mult": (1.0, None),
        "groups.no_decay.weight_decay": (0.0, None),
    }
    assert changed.diff(GROUPED) == {
        "lr": (0.1, 1e-3),
        "groups.no_decay.lr_mult": (None, 1.0),
        "groups.no_decay.weight_decay": (None, 0.0),
    }
    assert GROUPED.diff(GROUPED) == {}


def test_a_switch_is_turned_as_a_whole_and_written_in_one_line() -> None:
    switched = Recipe().with_knob("switch", {"at": 0.5, "lr": 0.1})
    assert switched.switch == Switch(to="sgd", at=0.5, lr=0.1, momentum=0.9)
    assert switched.with_knob("switch", {**switched.knob("switch"), "at": 0.9}).switch == Switch(at=0.9, lr=0.1)
    assert Recipe().diff(switched) == {"switch": (None, {"to": "sgd", "at": 0.5, "lr": 0.1, "momentum": 0.9})}
    assert "\nswitch: {to: sgd, at: 0.5, lr: 0.1, momentum: 0.9}\n" in switched.to_yaml()
    assert switched.with_knob("switch", None) == Recipe()


def test_what_follows_a_switch_is_sgd_with_the_same_groups_and_schedule() -> None:
    after = GROUPED.after_switch
    assert after is not None
    changed = {"optimizer": ("adamw", "sgd"), "lr": (1e-3, 0.05), "switch": (GROUPED.knob("switch"), None)}
    assert GROUPED.diff(after) == changed
    assert (after.after_switch, after.groups, after.schedule) == (None, GROUPED.groups, GROUPED.schedule)


def test_recipes_that_train_alike_share_a_key_whatever_their_provenance() -> None:
    told = GROUPED.model_copy(update={"provenance": {"run": "a"}})
    assert told.training_key() == GROUPED.training_key()
    turns = [("lr", 0.1), ("accumulate", 2), ("switch", None), ("switch", {"at": 0.8, "lr": 0.06})]
    keys = {GROUPED.with_knob(name, value).training_key() for name, value in turns}
    assert len(keys | {GROUPED.training_key()}) == 5


def test_a_group_without_overrides_is_written_in_one_short_line() -> None:
    recipe = Recipe(groups=(GroupRule(name="g", match=Match(kind=("bias",)), weight_decay=0.0),))
    assert recipe.to_dict()["groups"] == [{"name": "g", "match": {"kind": ["bias"]}, "weight_decay": 0.0}]
    assert "momentum" not in recipe.to_dict()
    assert "betas" not in recipe.with_knob("optimizer", "sgd").to_dict()
