"""benchmarks.replay on tables made here, in TaskSet's format."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.replay import METHODS, Replay, read_folder, read_table, regrets, searched

EPOCHS = 50


def write_table(path: Path, best_lr: float, rows: int = 300, seed: int = 0) -> None:
    """Losses that fall from 1 the lower the nearer lr is to `best_lr`, and diverge a decade and a half above."""
    rng = np.random.default_rng(seed)
    table = []
    for _ in range(rows):
        lr, b1, b2, eps, l1, l2 = 10.0 ** rng.uniform([-8, -4, -6, -10, -8, -8], [1, 0, 0, 3, 1, 1])
        hp = {"learning_rate": lr, "beta1": 1 - b1, "beta2": 1 - b2, "epsilon": eps, "l1": l1, "l2": l2}
        hp |= {"linear_decay": 10.0 ** rng.uniform(-7, -4), "exponential_decay": 10.0 ** rng.uniform(-6, -3)}
        off = abs(math.log10(lr / best_lr)) + 0.1 * abs(math.log10(b1 / 0.1)) + 0.1 * max(0.0, math.log10(eps / 1e-4))
        curve = [1.0 - max(0.0, 0.9 - 0.4 * off) * (epoch / EPOCHS) ** 0.5 for epoch in range(EPOCHS + 1)]
        if lr > 30 * best_lr:
            curve[3:] = [math.nan] * (EPOCHS - 2)
        table.append({"hp": hp, "valid": {"loss": curve}, "train": {"loss": curve}, "test": {"loss": curve}})
    text = json.dumps(table).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    write_table(folder / "one.json", 3e-3)
    write_table(folder / "two.json.gz", 1e-2)
    return folder


def test_what_is_not_finite_counts_as_the_median_before_training(folder: Path) -> None:
    table = read_table(folder / "one.json")
    assert np.isfinite(table.losses).all()
    assert table.untrained == 1.0
    assert table.epochs == EPOCHS


def test_a_search_never_trains_beyond_a_curve_and_pays_for_every_epoch(folder: Path) -> None:
    table = read_table(folder / "one.json")
    for method in METHODS.values():
        replay = searched(method, table, [], 0) if method is not METHODS["adamtune+knowledge"] else None
        if replay:
            assert len(replay.seen) == 1000
            assert replay.seen == sorted(replay.seen, reverse=True)
            assert 0.0 <= replay.regret(1000) <= replay.regret(100) <= 1.0


def test_snapping_gives_every_configuration_once(folder: Path) -> None:
    replay = Replay(read_table(folder / "one.json"))
    point = dict(replay.table.points[17])
    assert replay.snap(point) == 17
    assert replay.snap(point) != 17


def test_the_prior_and_what_is_known_beat_random_search(folder: Path) -> None:
    tables = read_folder(folder)
    at_200 = {
        name: np.mean([own[200] for own in regrets(METHODS[name], tables, tables, 3).values()])
        for name in ("adamtune", "adamtune+knowledge", "random")
    }
    assert at_200["adamtune"] < 0.3 * at_200["random"]
    assert at_200["adamtune+knowledge"] < 0.3 * at_200["random"]


def test_a_task_does_not_know_itself(folder: Path, tmp_path: Path) -> None:
    """With knowledge of itself alone there is nothing to propose; the same table by another name tells all."""
    (tmp_path / "copy.json").write_bytes((folder / "one.json").read_bytes())
    one, copy = read_table(folder / "one.json"), read_table(tmp_path / "copy.json")
    known = regrets(METHODS["adamtune+knowledge"], [one], [copy], 1)["one"][100]
    assert known == pytest.approx(0.0, abs=1e-9)
    unknown = regrets(METHODS["adamtune+knowledge"], [one], [one], 1)["one"]
    assert unknown == regrets(METHODS["adamtune"], [one], [], 1)["one"]


def test_the_json(folder: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.replay", "--data", str(folder), "--seeds", "1", "--json"]
    run = subprocess.run([*command, "--methods", "adamtune", "random"], capture_output=True, text=True, check=True)
    methods = json.loads(run.stdout)["methods"]
    assert set(methods) == {"adamtune", "random"}
    assert set(methods["adamtune"]) == {"100", "200", "500", "1000"}


@pytest.mark.parametrize("text", ["", "{}", "[]", '[{"hp": {}}]', '[{"hp": 3, "valid": {"loss": []}}]'])
def test_a_file_of_another_format_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SystemExit, match="not a table in TaskSet's format"):
        read_folder(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no"):
        read_folder(tmp_path)
