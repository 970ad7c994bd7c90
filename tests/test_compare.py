from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from adamtune.cli.app import run
from adamtune.comparison import compare, differences
from adamtune.evidence import interval
from adamtune.recipe import GroupRule, Match, Recipe
from recipes import recipes

TASKS = Path(__file__).parent / "tasks_for_tests.py"
DEFAULT = Recipe.default()
SEEDS = [200, 201, 202]
A_LOSSES, B_LOSSES = [0.30, 0.32, 0.31], [0.20, 0.23, 0.22]
B_MINUS_A = interval([-0.10, -0.09, -0.09])

Compare = Callable[..., tuple[int, str, str]]
MakeRun = Callable[..., Path]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Compare:
    """Run `adamtune compare` in an empty working directory, 80 columns wide: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def say(*arguments: object) -> tuple[int, str, str]:
        code = run(["compare", *map(str, arguments)])
        return (code, *capfd.readouterr())

    return say


def measured(values: list[float | None]) -> dict[str, Any]:
    known = interval([float("nan") if value is None else value for value in values])
    diverged = values.count(None)
    mean, bounds = (None, [None, None]) if diverged else (known.mean, [known.low, known.high])
    return {"mean": mean, "ci95": bounds, "seeds": len(values), "values": values, "diverged": diverged}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A finished run directory, as a sweep leaves it; `changes` are to its result."""

    def make_run(name: str, losses: list[float | None], lr: float = 1e-3, **changes: Any) -> Path:
        recipe = DEFAULT.model_copy(update={"lr": lr, "provenance": {"run": name, "fresh_seeds": SEEDS}})
        stages = {"lr": "kept" if lr == DEFAULT.lr else "changed", **changes.pop("stages", {})}
        unmeasured = {"question": "?", "reason": "-", "before": None, "after": None, "evidence": None, "details": {}}
        result = {
            "version": 1,
            "task": {"ref": "my_task.py:task", "args": {"hidden": 64}},
            "horizon": 3000,
            "objective": {"name": "loss", "direction": "minimize"},
            "steps_used": 26830,
            "wall_seconds": 24.479,
            "default": measured([0.5, 0.52, 0.51]),
            "recommended": measured(losses),
            "difference": {"mean": -0.2, "ci95": [-0.21, -0.19]},
            "changed": {},
            "stages": [unmeasured | {"stage": stage, "verdict": verdict} for stage, verdict in stages.items()],
            "recipe": recipe.to_dict(),
            **changes,
        }
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make_run


def write(path: Path, recipe: Recipe) -> Path:
    path.write_text(recipe.to_yaml())
    return path


# --- what differs between two recipes


@given(recipes(), recipes())
def test_nothing_differs_only_where_both_recipes_train_alike(a: Recipe, b: Recipe) -> None:
    assert differences(a, a) == {}
    assert (differences(a, b) == {}) == (a.training_key() == b.training_key())
    assert differences(b, a) == {name: (theirs, mine) for name, (mine, theirs) in differences(a, b).items()}


def test_knobs_of_groups_and_what_a_group_takes() -> None:
    bias, head = Match(kind=("bias",)), Match(params=("head.*",))
    a = Recipe(groups=(GroupRule(name="small", match=bias, lr_mult=0.5), GroupRule(name="top", match=head)))
    b = a.model_copy(update={"groups": (a.groups[1], a.groups[0].model_copy(update={"match": head, "lr_mult": 2.0}))})
    assert differences(a, b) == {
        "groups.small.lr_mult": (0.5, 2.0),
        "groups.small.match": ({"kind": ["bias"]}, {"params": ["head.*"]}),
        "groups": (["small", "top"], ["top", "small"]),
    }
    without = a.model_copy(update={"groups": a.groups[:1]})
    assert differences(a, without) == {
        "groups.top.lr_mult": (1.0, None),
        "groups.top.match": ({"params": ["head.*"]}, None),
        "groups": (["small", "top"], ["small"]),
    }


def test_the_same_recipe_is_told_in_one_sentence_wherever_it_comes_from(
    say: Compare, make_run: MakeRun, tmp_path: Path
) -> None:
    write(tmp_path / "mine.yaml", DEFAULT)
    make_run("one", A_LOSSES)
    assert say("one", "mine.yaml") == (0, "A: one\nB: mine.yaml\n\nthe recipes are the same\n", "")
    assert say("mine.yaml", "mine.yaml")[1].endswith("\nthe recipes are the same\n")


def test_two_recipe_files_are_told_apart_knob_by_knob(say: Compare, tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", DEFAULT)
    write(tmp_path / "b.yaml", DEFAULT.with_knob("lr", 0.0123).with_knob("groups.no_decay.lr_mult", 2.0))
    code, out, err = say("a.yaml", "b.yaml")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["A:", "a.yaml"],
        ["B:", "b.yaml"],
        [],
        ["knob", "A", "B"],
        ["lr", "0.001", "0.0123"],
        ["groups.no_decay.lr_mult", "1", "2"],
    ]


def test_values_that_differ_are_told_in_as_many_digits_as_it_takes(say: Compare, tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", DEFAULT)
    write(tmp_path / "b.yaml", DEFAULT.with_knob("lr", 0.00100001))
    assert say("a.yaml", "b.yaml")[1].splitlines()[-1].split() == ["lr", "0.001", "0.00100001"]


def test_a_switch_is_told_in_words(say: Compare, tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", DEFAULT)
    write(tmp_path / "b.yaml", DEFAULT.with_knob("switch", {"at": 0.8, "lr": 0.05}))
    line = say("a.yaml", "b.yaml")[1].splitlines()[-1]
    assert " ".join(line.split()) == "switch - to sgd, at 0.8, lr 0.05, momentum 0.9"
    told = json.loads(say("a.yaml", "b.yaml", "--json")[1])["knobs"]
    assert told == {"switch": {"a": None, "b": {"to": "sgd", "at": 0.8, "lr": 0.05, "momentum": 0.9}}}


def test_what_is_wide_is_folded_and_brackets_are_told_as_they_are(say: Compare, tmp_path: Path) -> None:
    rule = GroupRule(name="no_decay", match=Match(params=tuple(f"[red]layers.{k}.*" for k in range(9))))
    write(tmp_path / "[red]x.yaml", DEFAULT.model_copy(update={"groups": (rule,)}))
    write(tmp_path / "b.yaml", DEFAULT)
    _, out, _ = say("[red]x.yaml", "b.yaml")
    assert out.startswith("A: [red]x.yaml\n")
    assert "[red]layers.0" in out
    assert max(map(len, out.splitlines())) <= 80


# --- what two runs measured


def test_two_runs_are_told_side_by_side(say: Compare, make_run: MakeRun) -> None:
    make_run("one", A_LOSSES, stages={"eps": "kept"})
    make_run("two", B_LOSSES, lr=0.0123, steps_used=1000, wall_seconds=3.0, stages={"beta2": "unasked"})
    code, out, err = say("one", "two")
    assert (code, err) == (0, "")
    rows = [" ".join(line.split()) for line in out.splitlines()]
    for row in (
        "lr 0.001 0.0123",
        "task my_task.py:task hidden=64 my_task.py:task hidden=64",
        "horizon 3,000 3,000",
        "objective loss, minimize loss, minimize",
        "default 0.51 [0.4852, 0.5348] 0.51 [0.4852, 0.5348]",
        "recommended 0.31 [0.2852, 0.3348] 0.2167 [0.1787, 0.2546]",
        "fresh seeds 3 3",
        "steps used 26,830 1,000",
        "wall seconds 24 3",
        "lr kept changed",
        "eps kept -",
        "beta2 - unasked",
        "recommended, B minus A: -0.09333 [-0.1077, -0.07899] over 3 fresh seeds",
        "better by evidence: B",
    ):
        assert row in rows
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("a", "b", "direction", "difference", "better"),
    [
        (A_LOSSES, B_LOSSES, "minimize", "-0.09333 [-0.1077, -0.07899] over 3", "B"),
        (A_LOSSES, B_LOSSES, "maximize", "-0.09333 [-0.1077, -0.07899] over 3", "A"),
        (B_LOSSES, A_LOSSES, "minimize", "0.09333 [0.07899, 0.1077] over 3", "A"),
        (A_LOSSES, A_LOSSES, "minimize", "0 [0, 0] over 3", "neither"),
        (
            A_LOSSES,
            [0.4, None, 0.3],
            "minimize",
            "0.045 [-0.6538, 0.7438] over 2 of 3",
            "A (the other lacks some)",
        ),
        (A_LOSSES, [0.2, None, 0.3], "minimize", "-0.055 [-0.6268, 0.5168] over 2 of 3", "neither"),
        ([None, 0.2, 0.2], [0.1, None, 0.2], "minimize", "0 [-, -] over 1 of 3", "neither"),
    ],
)
def test_the_paired_difference_names_the_better_run_only_by_evidence(
    say: Compare,
    make_run: MakeRun,
    a: list[float | None],
    b: list[float | None],
    direction: str,
    difference: str,
    better: str,
) -> None:
    objective = {"name": "score", "direction": direction}
    make_run("one", a, objective=objective)
    make_run("two", b, objective=objective)
    _, out, _ = say("one", "two")
    assert f"\nrecommended, B minus A: {difference} fresh seeds\nbetter by evidence: {better}\n" in out
    assert ("diverged on 1 of 3" in out) == (None in a + b)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"horizon": 10}, "the runs differ in horizon"),
        ({"task": {"ref": "my_task.py:task", "args": {}}}, "the runs differ in task"),
        ({"objective": {"name": "error", "direction": "minimize"}}, "the runs differ in objective"),
        (
            {"recipe": {"provenance": {"fresh_seeds": [1, 2, 3]}}, "horizon": 9},
            "the runs differ in horizon, fresh seeds",
        ),
    ],
)
def test_runs_that_did_not_measure_the_same_are_not_paired(
    say: Compare, make_run: MakeRun, changes: dict[str, Any], told: str
) -> None:
    make_run("one", A_LOSSES)
    make_run("two", B_LOSSES, **changes)
    assert f"\nnot paired: {told}\n" in say("one", "two")[1]
    runs = json.loads(say("one", "two", "--json")[1])["runs"]
    assert (runs["paired"], runs["unpaired"]) == (None, told)


def test_runs_that_name_no_fresh_seeds_are_not_paired(make_run: MakeRun) -> None:
    runs = compare(make_run("one", A_LOSSES, recipe={}), make_run("two", B_LOSSES, recipe={})).runs
    assert runs is not None
    assert (runs.paired, runs.unpaired) == (None, "the runs do not say on which fresh seeds they ended")


# --- as JSON, for scripts


def without_values(values: list[float | None]) -> dict[str, Any]:
    return {key: value for key, value in measured(values).items() if key != "values"}


def test_two_runs_as_json(say: Compare, make_run: MakeRun) -> None:
    make_run("one", A_LOSSES, stages={"eps": "kept"})
    make_run("two", [*B_LOSSES], lr=0.0123)
    code, out, err = say("one", "two", "--json")
    figures = {
        "task": {"ref": "my_task.py:task", "args": {"hidden": 64}},
        "horizon": 3000,
        "objective": {"name": "loss", "direction": "minimize"},
        "steps_used": 26830,
        "wall_seconds": 24.479,
        "default": without_values([0.5, 0.52, 0.51]),
    }
    difference = pytest.approx([B_MINUS_A.mean, B_MINUS_A.low, B_MINUS_A.high])
    found = json.loads(out)
    paired = found["runs"]["paired"]
    assert (code, err) == (0, "")
    assert [paired["difference"]["mean"], *paired["difference"]["ci95"]] == difference
    assert found == {
        "version": 1,
        "a": "one",
        "b": "two",
        "knobs": {"lr": {"a": 0.001, "b": 0.0123}},
        "runs": {
            "a": {**figures, "recommended": without_values([*A_LOSSES])},
            "b": {**figures, "recommended": without_values([*B_LOSSES])},
            "verdicts": {"lr": {"a": "kept", "b": "changed"}, "eps": {"a": "kept", "b": None}},
            "paired": {"seeds": SEEDS, "difference": {**paired["difference"], "seeds": 3}, "better": "b"},
            "unpaired": None,
        },
    }
    assert set(paired["difference"]) == {"mean", "ci95", "seeds"}


def test_a_run_and_a_recipe_file_as_json(say: Compare, make_run: MakeRun, tmp_path: Path) -> None:
    make_run("one", A_LOSSES)
    write(tmp_path / "b.yaml", Recipe())
    code, out, _ = say("one", "b.yaml", "--json")
    assert code == 0
    assert json.loads(out) == {
        "version": 1,
        "a": "one",
        "b": "b.yaml",
        "knobs": {
            "groups": {"a": ["no_decay"], "b": []},
            "groups.no_decay.lr_mult": {"a": 1.0, "b": None},
            "groups.no_decay.weight_decay": {"a": 0.0, "b": None},
            "groups.no_decay.match": {"a": {"kind": ["bias", "norm"]}, "b": None},
        },
        "runs": None,
    }


# --- arguments


def test_what_is_neither_a_run_nor_a_recipe_is_refused(say: Compare, make_run: MakeRun, tmp_path: Path) -> None:
    one = make_run("one", A_LOSSES)
    (tmp_path / "unfinished").mkdir()
    write(tmp_path / "unfinished" / "recipe.yaml", DEFAULT)
    (tmp_path / "unfinished" / "spec.yaml").touch()
    (tmp_path / "unfinished" / "log.txt").touch()
    (tmp_path / "spec.yaml").write_text("horizon: 3\n")
    for other, told in {
        "gone": "gone: no such file",
        "/": "/ is no run directory: it has no result.json",
        "unfinished": "unfinished has not finished: it has no result.json yet",
        "spec.yaml": "spec.yaml: $.horizon: unknown key",
    }.items():
        for pair in ((one, other), (other, one)):
            code, out, err = say(*pair)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert err.startswith(f"adamtune: {told}")


def test_two_sweeps_that_differ_in_seed_alone(
    say: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # tasks put their folder on it
    text = f"task: {{ref: '{TASKS}:separable'}}\nhorizon: 20\nbudget: {{trials: 300}}\nstages: [eps]\nseeds: 2\n"
    (tmp_path / "spec.yaml").write_text(text)
    for name, seed in (("one", 0), ("two", 1)):
        assert run(["sweep", "spec.yaml", "--seed", str(seed), "--run-dir", name, "--json"]) == 0
    capfd.readouterr()
    paired = json.loads(say("one", "one", "--json")[1])["runs"]["paired"]
    assert (len(paired["seeds"]), paired["difference"]["mean"], paired["better"]) == (5, 0.0, None)
    assert json.loads(say("one", "two", "--json")[1])["runs"]["unpaired"] == "the runs differ in fresh seeds"
    assert say("one", "two")[0] == 0
