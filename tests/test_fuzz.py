"""A share of `make fuzz`, and that its cases are what they are meant to be."""

from __future__ import annotations

import json
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from adamtune.cli.app import run
from adamtune.diagnosis.pickle_scan import Refused, scan_pickle
from benchmarks import fuzz, fuzz_checkpoints, fuzz_texts
from benchmarks.fuzz import Count

BUSY = 10.0
"""Times as long as `make fuzz` allows: tests run beside others."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MOST_SECONDS", BUSY * fuzz.MOST_SECONDS)


def survived(count: Count, cases: int, least_valid: int) -> bool:
    assert count.failed == []
    return count.cases == cases and least_valid <= count.codes.get(0, 0) < cases


def test_mutated_specs_are_planned_or_refused() -> None:
    assert survived(fuzz.fuzz_specs(150, seed=7), 150, least_valid=5)


def test_mutated_recipes_are_exported_compared_and_tried_or_refused() -> None:
    assert survived(fuzz.fuzz_recipes(100, seed=7), 100, least_valid=15)


def test_mutated_runs_are_shown_compared_and_diagnosed_or_refused() -> None:
    assert survived(fuzz.fuzz_results(100, seed=7), 100, least_valid=30)


def test_damaged_checkpoints_are_refused_or_their_damage_does_not_matter() -> None:
    assert survived(fuzz.fuzz_damaged(100, seed=7), 100, least_valid=0)


def test_hostile_checkpoints_are_refused_run_nothing_and_take_no_memory() -> None:
    count = fuzz.fuzz_hostile()
    assert count.failed == []
    assert count.codes == {2: count.cases}
    assert count.cases >= 24


def test_what_is_mutated_is_valid_and_a_mutation_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for spec in fuzz_texts.SPECS:
        Path("s.yaml").write_text(json.dumps(spec))
        assert run(["sweep", "s.yaml", "--dry-run"]) == 0
    for recipe in fuzz_texts.RECIPES:
        Path("r.yaml").write_text(json.dumps(recipe))
        assert run(["export", "r.yaml"]) == 0
    texts = {fuzz_texts.changed(fuzz_texts.SPECS[1], random.Random(seed)) for seed in range(100)}
    assert len(texts) > 90


def test_a_case_that_does_not_survive_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamtune.spec.load_spec", lambda *_: 1 / 0)
    count = fuzz.fuzz_specs(3, seed=0)
    assert len(count.failed) == count.cases == 3
    assert "ZeroDivisionError" in count.failed[0]


def test_the_bombs_are_harmless_where_they_are_small_and_would_be_read(tmp_path: Path) -> None:
    def loaded(data: bytes) -> object:
        file = tmp_path / "c.pt"
        file.write_bytes(data)
        with zipfile.ZipFile(file) as archive, archive.open("archive/data.pkl") as pickled:
            scan_pickle(pickled)
        return torch.load(file, weights_only=True)

    assert loaded(fuzz_checkpoints.key_bomb(2)) == {((1, 1), (1, 1)): 1}
    assert loaded(fuzz_checkpoints.deep_key(3)) == {(((1,),),): 1}
    assert loaded(fuzz_checkpoints.deep_lists(3)) == [[[]]]
    named = loaded(fuzz_checkpoints.name_bomb(2))
    assert isinstance(named, dict)
    assert named["param_groups"][0]["name"] == [[1, 1], [1, 1]]
    shaped = loaded(fuzz_checkpoints.of_shape((16,)))
    assert isinstance(shaped, dict)
    assert shaped["state"][0]["exp_avg"].shape == (16,)
    for data in (fuzz_checkpoints.key_bomb(30), fuzz_checkpoints.deep_key(101)):
        with pytest.raises(Refused):
            loaded(data)


def test_the_code_in_a_hostile_file_would_run_where_it_is_let(tmp_path: Path) -> None:
    canary = tmp_path / "sang"
    (tmp_path / "c.pt").write_bytes(fuzz_checkpoints.hostile(canary)["os.system in a zip"])
    assert run(["diagnose", str(tmp_path / "c.pt")]) == 2
    assert not canary.exists()
    torch.load(tmp_path / "c.pt", weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize(
    "data", [(1, 2.5, "x"), {"a": [1, (2, 3)]}, [(0.9, 0.99)] * 1000, {(1, 2): {3}}, tuple(range(500))]
)
def test_plain_data_passes_the_scan(data: object, tmp_path: Path) -> None:
    for protocol in range(6):
        (tmp_path / "p").write_bytes(pickle.dumps(data, protocol))
        with (tmp_path / "p").open("rb") as file:
            scan_pickle(file)
            assert file.read() == b""
