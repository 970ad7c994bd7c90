"""The param groups that a task names: in its recipe, in a sweep, by lr-find and doctor."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tasks_for_tests
import torch
from torch import nn

from adamtune import lr_find
from adamtune.doctor.task_checks import check_task
from adamtune.errors import AdamtuneError, RecipeError, TaskError
from adamtune.groups import ParamGroup, param_groups
from adamtune.recipe import GroupRule, Match, Recipe
from adamtune.spec import Budget, Spec, TaskSpec
from adamtune.stages.groups import missing
from adamtune.sweeps import sweep
from adamtune.task_calls import with_named_groups


def grouped(recipe: Recipe, groups: Any = None) -> dict[str, tuple[str, ...]]:
    task = tasks_for_tests.two_parts(groups)
    model = task.make_model()
    return {group.name: group.names for group in param_groups(with_named_groups(recipe, task, model), model)}


def test_named_groups_come_behind_the_recipes_own() -> None:
    """Biases stay without decay, whatever else they belong to."""
    assert grouped(Recipe.default()) == {
        "no_decay": ("0.bias", "2.bias"),
        "lower": ("0.weight",),
        "upper": ("2.weight",),
    }
    assert list(grouped(Recipe())) == ["lower", "upper"]


def test_the_recipes_own_groups_win() -> None:
    upper = GroupRule(name="upper", match=Match(params=("0.*",)), lr_mult=2.0)
    rest = GroupRule(name="body", match=Match(kind=("rest",)))
    assert grouped(Recipe(groups=(upper,))) == {"upper": ("0.weight", "0.bias"), "default": ("2.weight", "2.bias")}
    kept = grouped(Recipe(groups=(rest, GroupRule(name="no_decay", match=Match(kind=("bias",))))))
    assert kept == {"body": ("0.weight",), "no_decay": ("0.bias", "2.bias"), "upper": ("2.weight",)}


def raising(model: nn.Module) -> Any:
    raise KeyError("encoder")


@pytest.mark.parametrize(
    ("groups", "error", "told"),
    [
        (lambda model: {"lower": ["1.*"]}, RecipeError, r"groups of task 'two-parts': \$.lower: .*e.g. 0.weight"),
        (lambda model: {"lower": ["0.*", "zzz"]}, RecipeError, r"\$.lower: params \['zzz'\] match no parameter"),
        (lambda model: {"all": ["*"], "lower": ["0.*"]}, RecipeError, r"\$.lower: is left nothing by 'all'"),
        (lambda model: {"two words": ["0.*"]}, RecipeError, "groups of task 'two-parts'.*two words"),
        (lambda model: {"lower": []}, RecipeError, "groups of task 'two-parts'.*must name"),
        (lambda model: {"lower": [model]}, RecipeError, "groups of task 'two-parts'"),
        (lambda model: ["0.*"], TaskError, "groups raised ValueError.*patterns such as"),
        (raising, TaskError, "groups raised KeyError.*patterns such as"),
    ],
)
def test_what_are_no_groups_is_told(groups: Callable[[nn.Module], Any], error: type[AdamtuneError], told: str) -> None:
    task = replace(tasks_for_tests.two_parts(), groups=groups)
    with pytest.raises(error, match=told):
        with_named_groups(Recipe.default(), task, task.make_model())


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_a_tied_weight_named_by_its_other_name_is_told_as_in_a_recipe(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.ModuleDict({"emb": nn.Embedding(5, 3), "lm_head": nn.Linear(3, 5)})
    model["lm_head"].weight = model["emb"].weight
    task = replace(tasks_for_tests.two_parts(), groups=lambda model: {"last": ["lm_head.weight"]})
    with pytest.raises(RecipeError) as named:
        with_named_groups(Recipe(), task, wrap(model))
    with pytest.raises(RecipeError) as ruled:
        param_groups(Recipe(groups=(GroupRule(name="last", match=Match(params=("lm_head.weight",))),)), wrap(model))
    assert [problem.what for problem in named.value.problems] == [problem.what for problem in ruled.value.problems]
    assert "match 'lm_head.weight', which is tied to 'emb.weight'" in str(named.value)


@pytest.mark.parametrize("pattern", ["head.*", "module.head.*"])
@pytest.mark.parametrize("by_task", [True, False])
def test_parameters_of_a_parallel_model_are_named_as_it_has_them_or_as_the_users_own_does(
    pattern: str, by_task: bool
) -> None:
    def prepared(model: nn.Module, pattern: str) -> tuple[Spec, list[ParamGroup]]:
        task = replace(tasks_for_tests.two_parts(), groups=(lambda model: {"last": [pattern]}) if by_task else None)
        rules = () if by_task else (GroupRule(name="last", match=Match(params=(pattern,))),)
        base = with_named_groups(Recipe(groups=rules), task, model)
        spec = Spec(task=TaskSpec(ref="tasks_for_tests:two_parts"), horizon=40, budget=Budget(trials=9), base=base)
        return spec, param_groups(base, model)

    model = nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.RNN(3, 2)})  # the weights of both are of one kind
    spec, plain = prepared(model, "head.*")
    parallel_spec, parallel = prepared(nn.DataParallel(model), pattern)
    assert [group.name for group in plain] == ["last", "default"]
    assert [(group.name, group.params) for group in parallel] == [(group.name, group.params) for group in plain]
    assert missing(spec, plain) == missing(parallel_spec, parallel) == ""


def test_a_sweep_asks_about_them(tmp_path: Path) -> None:
    """At first they train as the rest does, so that the default is the same without them."""

    def swept(name: str, groups: Any) -> dict[str, Any]:
        spec = Spec(
            task=TaskSpec(ref="tasks_for_tests:two_parts", args={"groups": groups}),
            horizon=40,
            seeds=2,
            budget=Budget(trials=200),
            stages=["lr", "groups"],
            engine="sequential",
        )
        sweep(spec, tmp_path / name)
        told: dict[str, Any] = json.loads((tmp_path / name / "result.json").read_text())
        return told

    named, without = swept("named", None), swept("without", {"nothing": ["*"]})
    assert named["default"]["values"] == without["default"]["values"]
    assert [rule["name"] for rule in named["recipe"]["groups"]][:3] == ["no_decay", "lower", "upper"]
    asked = (tmp_path / "named" / "trials.csv").read_text()
    assert "lower" in asked
    assert "upper" in asked


def test_lr_find_and_doctor_know_them() -> None:
    task = tasks_for_tests.two_parts()
    found = lr_find(task, horizon=60, group="upper", engine="sequential", refine=False, seeds=1)
    assert found.group == "upper"
    lines = {line.name: line for line in check_task(task, torch.device("cpu"))}
    assert lines["groups"].found.endswith("; the task names lower, upper")
