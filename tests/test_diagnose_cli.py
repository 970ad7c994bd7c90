from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from adamtune.cli.app import run
from adamtune.diagnosis import Finding, Observed, Rule, Severity, diagnose
from adamtune.diagnosis.run import read_run
from adamtune.errors import RunDirError
from adamtune.recipe import GroupRule, Match, Recipe

TASKS = Path(__file__).parent / "tasks_for_tests.py"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Cli = Callable[..., Said]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "80")

    def cli(*arguments: object) -> Said:
        return Said(run(["diagnose", *map(str, arguments)]), *capfd.readouterr())

    return cli


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> Rule:
    """In place of all rules: a warning where lr_r is large, a note in every training."""

    def find(observed: Observed) -> Iterator[Finding]:
        for group in observed.groups:
            largest = max((value for _, value in observed.series(group, "lr_r", 50)), default=0.0)
            yield Finding("seen", Severity.NOTE, f"{group} was seen.", "Look at it.", group)
            if largest > 0.1:
                told = f"Half of the steps in {group} are above {largest:.2f}, a long sentence to see where it folds."
                remedy = {"lr": 1e-3, "schedule": "cosine"}
                yield Finding("large", Severity.WARNING, told, "Lower lr.", group, remedy, {"lr_r": largest})

    rule = Rule("test", "always", "this test", find)
    monkeypatch.setattr("adamtune.diagnosis.judging.RULES", (rule,))
    return rule


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = nn.Linear(4, 3)
    groups = [{"params": [model.weight], "name": "body", "lr": 0.5}, {"params": [model.bias]}]
    optimizer = AdamW(groups, lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    path = tmp_path / "optimizer.pt"
    torch.save({"optimizer": optimizer.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose task can no longer be imported."""
    folder = tmp_path_factory.mktemp("swept")
    task = folder / "vanishing.py"
    task.write_text(TASKS.read_text())
    (folder / "spec.yaml").write_text(
        f"task: {{ref: '{task}:separable'}}\nhorizon: 20\nbudget: {{trials: 300}}\nstages: [eps]\n"
    )
    assert run(["sweep", str(folder / "spec.yaml"), "--run-dir", str(folder / "run"), "--json"]) == 0
    task.write_text("raise SystemExit('the task was imported')")
    sys.modules.pop("vanishing", None)
    return folder / "run"


# --- checkpoints


def test_the_json_of_a_checkpoint_is_pinned(cli: Cli, checkpoint: Path, rule: Rule) -> None:
    said = cli(checkpoint, "--json")
    assert (said.code, said.err) == (0, "")
    data = json.loads(said.out)
    assert list(data) == ["version", "target", "kind", "step", "groups", "findings", "notes"]
    assert (data["version"], data["target"], data["kind"], data["step"]) == (1, str(checkpoint), "checkpoint", 2)
    percentiles = {f"{name}/p{p}" for name in ("m_hat", "sqrt_v_hat", "r", "lr_r") for p in (10, 50, 90)}
    assert {group: set(record) for group, record in data["groups"].items()} == dict.fromkeys(
        ("body", "group1"), percentiles | {"below_eps", "never_updated", "nonfinite"}
    )
    assert data["groups"]["body"]["lr_r/p50"] == pytest.approx(0.5)
    large, *notes = data["findings"]
    assert large == {
        "rule": "large",
        "severity": "warning",
        "group": "body",
        "told": large["told"],
        "advice": "Lower lr.",
        "remedy": {"lr": 0.001, "schedule": "cosine"},
        "evidence": {"lr_r": pytest.approx(0.5)},
    }
    assert [(note["severity"], note["group"], note["remedy"]) for note in notes] == [
        ("note", "body", {}),
        ("note", "group1", {}),
    ]
    assert data == json.loads(cli(checkpoint.parent, "--json", "--exact").out) | {"target": str(checkpoint)}


def test_exact_reads_what_a_sample_misses(cli: Cli, tmp_path: Path) -> None:
    param = nn.Parameter(torch.ones(1_000_000))
    optimizer = AdamW([param], betas=(0.0, 0.0))
    param.grad = torch.where(torch.arange(1_000_000) < 3, 1.0, 0.0)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    told = [json.loads(cli(tmp_path, "--json", *exact).out)["groups"]["group0"] for exact in (["--exact"], [])]
    assert told[0]["never_updated"] == pytest.approx(1 - 3e-6, abs=1e-7)
    assert told[1]["never_updated"] != pytest.approx(1 - 3e-6, abs=1e-7)


def test_a_checkpoint_is_shown_in_eighty_columns(cli: Cli, checkpoint: Path, rule: Rule) -> None:
    said = cli(checkpoint)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.fullmatch(r" *group +statistic +p10 +p50 +p90 +value *", line) for line in lines)
    assert any(re.fullmatch(r" +lr \* r +0\.5 +0\.5 +0\.5 *", line) for line in lines)
    assert any(re.fullmatch(r" +share never updated +0 *", line) for line in lines)
    found = lines.index("warning: large in body")
    assert lines[found + 1].startswith("  Half of the steps in body are above 0.50")
    assert lines[found + 2] == "  folds."
    assert lines[found + 3 : found + 5] == ["  Lower lr.", "  remedy: lr = 0.001, schedule = cosine"]
    assert "note: seen in group1" in lines[found:]


def test_nothing_found_is_said(cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamtune.diagnosis.judging.RULES", ())
    assert cli(checkpoint).out.endswith("\nno findings\n")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04cut", b"\x80\x04N."])
def test_what_is_no_checkpoint_is_answered_with_one_sentence(cli: Cli, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    for target in (tmp_path / "file", tmp_path, tmp_path / "gone", "x" * 300):
        said = cli(target)
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith("adamtune: ")
        assert said.err.count("\n") == 1
        assert "bug" not in said.err


def test_names_from_a_file_are_no_markup(cli: Cli, checkpoint: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    saved["optimizer"]["param_groups"][0]["name"] = "[bold]x[/nope]"
    torch.save(saved, checkpoint)
    assert "[bold]x[.nope]" in re.sub(r"\s", "", cli(checkpoint).out)


# --- runs


def test_a_run_is_read_without_its_task(cli: Cli, swept: Path, rule: Rule) -> None:
    said = cli(swept, "--json")
    assert (said.code, said.err) == (0, "")
    data = json.loads(said.out)
    assert (data["version"], data["kind"], data["step"], data["notes"]) == (1, "run", 20, [])
    result = json.loads((swept / "result.json").read_text())
    assert {each["rule"] for each in data["findings"]} >= {"seen"}
    seeds = result["recommended"]["seeds"]
    assert all(each["seeds"]["of"] == seeds for each in data["findings"])
    assert next(each["seeds"]["raised"] for each in data["findings"] if each["rule"] == "seen") == seeds
    assert set(data["groups"]) == {"default", "no_decay"}
    assert "r/p50" in data["groups"]["default"]
    shown = cli(swept)
    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= 80
    assert f"note: seen in default, on {seeds} of {seeds} seeds" in shown.out


def test_what_is_observed_of_a_run_is_what_its_tables_hold(swept: Path) -> None:
    observed = read_run(swept)
    recipe = Recipe.from_yaml((swept / "recipe.yaml").read_text())
    with (swept / "curves.csv").open() as file:
        curves = [row for row in csv.DictReader(file) if row["stage"] == "final"]
    for seed, each in observed.seeds.items():
        assert (each.recipe, each.horizon, observed.horizon) == (recipe, 20, 20)
        trials = sorted({int(row["trial"]) for row in curves if int(row["seed"]) == seed})
        own = [row for row in curves if int(row["trial"]) == trials[-1]]
        assert each.validation == tuple((int(row["step"]), float(row["loss"])) for row in own)
        assert len(each.train_losses) == 20
        assert {each.train_losses[int(row["step"]) - 1] for row in own} == {float(row["train_loss"]) for row in own}
        assert [step for step, _ in each.records] == [int(row["step"]) for row in own]
    result = json.loads((swept / "result.json").read_text())
    assert [each.validation[-1][1] for each in observed.seeds.values()] == pytest.approx(
        result["recommended"]["values"]
    )


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A run by hand: on three fresh seeds the default, then the recommended recipe, whose lr_r is large on two."""
    measured = {"mean": 0.1, "ci95": [0, 1], "seeds": 3, "values": [0.1] * 3, "diverged": 0}
    result = {
        "task": {"ref": "t.py:task", "args": {}},
        "objective": {"name": "loss", "direction": "minimize"},
        **{"default": measured, "recommended": measured, "stages": [], "changed": {}},
        **{"horizon": 10, "steps_used": 60, "wall_seconds": 1.0},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    groups = (
        GroupRule(name="emb", match=Match(kind=("embedding",))),
        GroupRule(name="some", match=Match(kind=("bias",), params=("0.*",))),
    )
    (tmp_path / "recipe.yaml").write_text(Recipe(groups=groups).to_yaml())
    tables: dict[str, list[dict[str, Any]]] = {"trials": [], "curves": [], "probe": []}
    default = [("final", seed, 9.0) for seed in (20, 21, 22)]
    recommended = [("final", 20, 0.25), ("final", 21, 0.0625), ("final", 22, 0.5)]
    for trial, (stage, seed, lr_r) in enumerate([("lr", 7, 9.0), *default, *recommended]):
        own = {"stage": stage, "study": "s", "trial": trial, "seed": seed}
        tables["trials"].append(own | {"outcome": "completed", "lr": 0.1})
        for step in (5, 10):
            tables["curves"].append(own | {"step": step, "train_loss": lr_r, "loss": step if step == 5 else ""})
            row = own | {"step": step, "group": "NA", "statistic": "lr_r", "percentile": "p50", "value": lr_r}
            tables["probe"].append(row)
            tables["probe"].append(row | {"statistic": "grad_norm", "percentile": "", "value": step})
    for name, rows in tables.items():
        write_table(tmp_path / f"{name}.csv", rows)
    return tmp_path


def test_findings_of_a_run_tell_how_many_seeds_raised_them(made: Path, rule: Rule) -> None:
    diagnosis = diagnose(made)
    told = [(each.finding.rule, each.finding.group, each.seeds, each.of) for each in diagnosis.findings]
    assert told == [("large", "NA", 2, 3), ("seen", "NA", 3, 3)]
    assert diagnosis.record == {"NA/lr_r/p50": 0.25, "NA/grad_norm": 10.0}  # medians over the seeds
    assert diagnosis.step == 10
    observed = read_run(made).seeds[21]
    assert observed.records == ((5, {"NA/lr_r/p50": 0.0625, "NA/grad_norm": 5.0}), (10, observed.records[1][1]))
    assert observed.train_losses == (0.0625,) * 10
    assert observed.validation == ((5, 5.0),)
    assert observed.kinds == {"emb": ("embedding",)}


def test_a_run_without_probe_records_says_so(cli: Cli, made: Path) -> None:
    (made / "probe.csv").unlink()
    diagnosis = diagnose(made)
    assert (diagnosis.step, diagnosis.record) == (None, {})
    assert "no records" in diagnosis.notes[0]
    assert cli(made).code == 0


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("result.json", None, "has not finished"),
        ("result.json", "{", "cannot be read as a result"),
        ("trials.csv", None, "no trials of its recommended recipe"),
        ("trials.csv", "stage,seed\nfinal,1\n", "the tables of"),
        ("probe.csv", "stage,trial\nfinal,1\n", "the tables of"),
        ("curves.csv", "", "the tables of"),
        ("curves.csv", '"stage\n', "the tables of"),
        ("recipe.yaml", "lr: [", "not valid YAML"),
    ],
)
def test_a_run_that_cannot_be_read_is_answered_with_one_sentence(
    cli: Cli, made: Path, name: str, text: str | None, told: str
) -> None:
    (made / "spec.yaml").write_text("horizon: 10\n")
    (made / name).unlink() if text is None else (made / name).write_text(text)
    said = cli(made)
    assert (said.code, said.out) == (2, "")
    assert told in said.err
    assert said.err.count("\n") == 1
    assert "bug" not in said.err


def test_a_run_that_is_not_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="does not exist"):
        read_run(tmp_path / "gone")


# --- trainings at hand


def test_a_training_at_hand_is_judged_by_its_last_record(rule: Rule) -> None:
    observed = Observed(records=((1, {"a/lr_r/p50": 0.5}), (2, {"a/lr_r/p50": 0.01})))
    diagnosis = diagnose(observed)
    assert (diagnosis.kind, diagnosis.step, diagnosis.groups) == ("training", 2, {"a": {"lr_r/p50": 0.01}})
    assert [each.finding.rule for each in diagnosis.findings] == ["large", "seen"]
    assert diagnose(Observed()).to_dict()["groups"] == {}
