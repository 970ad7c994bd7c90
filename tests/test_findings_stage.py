"""The stage `findings`: what the rules find wrong becomes a candidate, and evidence decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adamtune.cli.app import run
from adamtune.diagnosis import Severity, diagnose
from adamtune.evidence import Verdict
from adamtune.recipe import Recipe
from adamtune.spec import Budget, Spec, TaskSpec
from adamtune.sweeps import SweepResult, sweep


def swept(base: Recipe, folder: Path, horizon: int = 300) -> SweepResult:
    task = TaskSpec(ref="adamtune.tasks.digits:task", args={})
    spec = Spec(task=task, horizon=horizon, budget=Budget(trials=60), seeds=2, base=base, stages=("findings",))
    return sweep(spec, folder)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return swept(Recipe(lr=0.01, eps=0.01), tmp_path_factory.mktemp("planted") / "run")


def test_a_planted_fault_is_found_and_its_remedy_taken_on_evidence(planted: SweepResult) -> None:
    answer = planted.answers["findings"]
    assert answer.verdict is Verdict.CHANGED
    assert "against eps-size" in answer.reason
    assert planted.recipe.eps == 1e-8
    assert answer.evidence is not None
    assert {found["rule"] for found in answer.details["findings"]} >= {"eps-size"}
    assert not any(told.finding.rule == "eps-size" for told in planted.findings)  # it is mended


def test_findings_of_the_recommended_recipe_are_in_the_result_and_shown(
    planted: SweepResult, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((planted.run_dir / "result.json").read_text())
    assert result["findings"] == [told.to_dict() for told in planted.findings]
    assert run(["show", str(planted.run_dir)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for told in planted.findings:
        assert " ".join(told.finding.told.split()) in shown


def test_where_nothing_is_wrong_nothing_is_tried(tmp_path: Path) -> None:
    result = swept(Recipe.default().with_knob("lr", 0.01), tmp_path / "run")
    answer = result.answers["findings"]
    assert answer.verdict is Verdict.KEPT
    assert answer.reason == "nothing was found in 2 trials"
    assert result.steps_used == 300 * (2 + 5)  # the incumbent looked at, and measured at the end


def test_what_a_stage_has_settled_is_a_note_in_the_end(tmp_path: Path) -> None:
    """Here because it may only try what is as bad; `diagnose` of the run says the same."""
    spec = Spec(
        task=TaskSpec(ref="adamtune.tasks.digits:task"),
        horizon=100,
        budget=Budget(trials=60),
        seeds=2,
        base=Recipe(lr=0.01, eps=0.01),
        stages=("eps",),
        space={"eps": {"low": 0.01, "high": 0.011}},  # type: ignore[dict-item]
    )
    result = sweep(spec, tmp_path / "run")
    assert result.answers["eps"].verdict is Verdict.KEPT
    for found in (result.findings, diagnose(tmp_path / "run").findings):
        (told,) = [each.finding for each in found if each.finding.rule == "eps-size"]
        assert told.severity is Severity.NOTE
        assert told.advice.startswith("nothing: eps was asked and decided by evidence (else: ")
