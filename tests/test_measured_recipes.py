"""The recipes that sweeps of `configs/` found: they stand in the README as they were measured."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from adamtune import load_recipe
from adamtune.spec import load_spec

TOP = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (TOP / "configs").glob("*.yaml"))
README = (TOP / "README.md").read_text(encoding="utf-8")


def cells(name: str) -> list[str]:
    (line,) = re.findall(rf"^\| `{name}` \|(.*)\|$", README, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def test_each_spec_has_its_measured_recipe() -> None:
    assert sorted(path.stem for path in (TOP / "recipes" / "measured").glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_measured_recipe_is_what_the_readme_says(name: str) -> None:
    """Task, objective, both means, steps, and the knobs that differ from the spec's base."""
    spec = load_spec(TOP / "configs" / f"{name}.yaml")
    recipe = load_recipe(TOP / "recipes" / "measured" / f"{name}.yaml")
    from_sweep = recipe.provenance
    assert (from_sweep["run"], from_sweep["task"]) == (name, spec.task.ref)
    assert (from_sweep["horizon"], from_sweep["objective"]) == (spec.horizon, spec.objective.name)
    _, objective, default, recommended, steps, _, changed = cells(name)
    assert objective == spec.objective.name
    for cell, key in ((default, "default"), (recommended, "recommended")):
        mean, low, high = (float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", cell))
        assert math.isclose(mean, from_sweep[key], rel_tol=1e-3)
        assert low <= mean <= high
    assert steps == f"{from_sweep['steps_used']:,}"
    differing = {knob for knob, (before, now) in spec.base.diff(recipe).items() if before != now}
    named = {rule.name for rule in recipe.groups} - {rule.name for rule in spec.base.groups}
    told = {part.split()[0] for part in changed.split(", ")} - {"none"}
    assert told == {knob for knob in differing if not _as_the_rest(knob, named, recipe.knobs()[knob])}


def _as_the_rest(knob: str, named: set[str], value: object) -> bool:
    """Whether it only says that a group which the task names, or a stage made, has no value of its own there."""
    group, key = knob.split(".")[1:] if knob.startswith("groups.") else ("", "")
    return group in named and value == (1.0 if key == "lr_mult" else None)


def test_no_recommended_recipe_is_worse_than_the_default() -> None:
    for name in NAMES:
        from_sweep = load_recipe(TOP / "recipes" / "measured" / f"{name}.yaml").provenance
        sign = -1 if load_spec(TOP / "configs" / f"{name}.yaml").objective.direction == "maximize" else 1
        assert sign * from_sweep["recommended"] <= sign * from_sweep["default"], name
