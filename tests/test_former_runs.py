"""What former runs teach a sweep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamtune.errors import InputError
from adamtune.plan import Progress
from adamtune.recipe import Recipe
from adamtune.search.former_runs import learned_starts
from adamtune.spec import Budget, Spec, TaskSpec
from adamtune.sweeps import sweep

HORIZON = 20


def spec(**options: Any) -> Spec:
    base = Recipe.default().with_knob("lr", 1e-4)
    given = {"horizon": HORIZON, "seeds": 2, "base": base, "budget": Budget(trials=200), "engine": "sequential"}
    return Spec.model_validate(
        {"task": TaskSpec(ref="tasks_for_tests:separable"), "stages": ["lr_range", "lr"]} | given | options
    )


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, note: str) -> None:
        self.notes.append(note)


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("former")
    for seed in (0, 1):
        sweep(spec(seed=seed), folder / f"run-{seed}")
    return folder


def learned(folders: list[Path]) -> tuple[list[Any], list[str]]:
    notes: list[str] = []
    return learned_starts(folders, Path("nowhere"), notes.append), notes


def test_what_did_well_comes_first_with_its_lr(former: Path) -> None:
    starts, notes = learned([former])
    assert notes == ["learned from 2 former runs: run-0, run-1"]
    assert 1 <= len(starts) <= 8
    assert 0.01 < starts[0].knobs["lr"] < 1.0  # the base has 1e-4
    assert starts[0].name == "learned 1"
    assert starts[0].source in ("your run run-0", "your run run-1")
    assert learned([former / "run-0", former]) == learned([former])  # a run by itself, and none twice


def test_a_sweep_tries_it_first_and_evidence_decides(former: Path, tmp_path: Path) -> None:
    told = Notes()
    result = sweep(spec(seed=5, stages=["portfolio"]), tmp_path / "run", told, learn_from=[former])
    answer = result.answers["portfolio"]
    assert answer.details["candidates"][0] == "learned 1"
    assert answer.verdict == "changed"
    assert result.recipe.lr > 0.01
    assert "learned from 2 former runs: run-0, run-1" in told.notes
    assert "learned from 2 former runs" in (tmp_path / "run" / "log.txt").read_text()


def test_without_former_runs_nothing_is_different(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    one = sweep(spec(stages=["portfolio"]), tmp_path / "one")
    other = sweep(spec(stages=["portfolio"]), tmp_path / "other", learn_from=[tmp_path / "none"])
    without = {"wall_seconds": 0, "recipe": None}
    assert one.to_dict() | without == other.to_dict() | without


def test_a_run_does_not_learn_from_itself(former: Path) -> None:
    notes: list[str] = []
    learned_starts([former], former / "run-1", notes.append)
    assert notes == ["learned from 1 former run: run-0"]


def broken_json(run: Path) -> None:
    (run / "result.json").write_text("{")


def no_object(run: Path) -> None:
    (run / "result.json").write_text("[1, 2]")


def another_version(run: Path) -> None:
    result = json.loads((run / "result.json").read_text()) | {"version": 99}
    (run / "result.json").write_text(json.dumps(result))


def no_table(run: Path) -> None:
    (run / "trials.csv").unlink()


def torn_table(run: Path) -> None:
    text = (run / "trials.csv").read_text()
    (run / "trials.csv").write_text(text[: len(text) // 2])


def other_columns(run: Path) -> None:
    (run / "trials.csv").write_text("a,b\n1,2\n")


def binary(run: Path) -> None:
    (run / "trials.csv").write_bytes(bytes(range(256)) * 40)


def wrong_types(run: Path) -> None:
    result = json.loads((run / "result.json").read_text()) | {"horizon": {}, "objective": 3}
    (run / "result.json").write_text(json.dumps(result))


def words_for_numbers(run: Path) -> None:
    text = (run / "trials.csv").read_text()
    (run / "trials.csv").write_text(text.replace("completed,20,", "completed,20,x"))


@pytest.mark.parametrize(
    "spoil",
    [broken_json, no_object, another_version, no_table, other_columns, binary, wrong_types],
)
def test_a_run_that_cannot_be_read_is_passed_over_with_one_line(
    spoil: Callable[[Path], None], former: Path, tmp_path: Path
) -> None:
    shutil.copytree(former / "run-0", tmp_path / "good")
    shutil.copytree(former / "run-1", tmp_path / "bad")
    spoil(tmp_path / "bad")
    starts, notes = learned([tmp_path])
    assert starts
    assert len(notes) == 2
    assert notes[0].startswith("not learned from: ")
    assert "bad" in notes[0]
    assert "\n" not in notes[0]
    assert notes[1] == "learned from 1 former run: good"


@pytest.mark.parametrize("spoil", [torn_table, words_for_numbers])
def test_a_damaged_table_does_no_harm(spoil: Callable[[Path], None], former: Path, tmp_path: Path) -> None:
    shutil.copytree(former / "run-0", tmp_path / "bad")
    spoil(tmp_path / "bad")
    starts, notes = learned([tmp_path])
    assert len(notes) == 1
    assert starts or notes[0].startswith("not learned from: ")


def test_a_folder_that_is_none_is_an_error_of_the_person(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder; name one that holds runs"):
        sweep(spec(), tmp_path / "run", learn_from=[tmp_path / "missing"])
    assert not (tmp_path / "run").exists()
