"""The README's first hour, run as it stands there."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from adamtune.cli.app import run
from adamtune.recipe import Recipe

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def test_the_newcomers_task_and_spec_lead_to_a_recipe_that_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    script, task, exported_use, recipe_use, ramp_use, probe_use = blocks("python")
    assert sum(map(bool, task.splitlines())) < 15
    (tmp_path / "train.py").write_text(script)
    (tmp_path / "my_task.py").write_text(task)
    (tmp_path / "my_spec.yaml").write_text(next(text for text in blocks("yaml") if "my_task.py" in text))
    commands = next(text for text in blocks("sh") if "my_spec.yaml" in text).splitlines()
    for command in commands:
        words = shlex.split(command, comments=True)
        assert words[0] == "adamtune"
        assert run(words[1:]) == 0, command

    result = json.loads((tmp_path / "my_run" / "result.json").read_text())
    assert result["recommended"]["mean"] < result["default"]["mean"]
    made: dict[str, object] = {}
    exec(task, made)
    model = made["task"]().make_model()  # type: ignore[operator]
    for code in (exported_use, recipe_use):
        scope: dict[str, object] = {"model": model}
        exec(code, scope)
        groups = scope["optimizer"].param_groups  # type: ignore[attr-defined]
        assert groups[-1]["initial_lr"] == result["recipe"]["lr"]
    scope = {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}
    scope["loss"] = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    scope["train_loader"] = list(itertools.islice(made["task"]().train_batches(torch.Generator()), 20))  # type: ignore[operator]
    exec(ramp_use, scope)
    assert scope["found"].steps_used <= 100  # type: ignore[attr-defined]
    exec(ramp_use.splitlines()[0], scope)  # import adamtune
    for batch in scope["train_loader"][:2]:  # so that Adam has a state
        scope["loss"](model, batch).backward()  # type: ignore[operator]
        scope["optimizer"].step()  # type: ignore[attr-defined]
    scope["batches"] = scope["train_loader"] * 3
    exec(probe_use, scope)
    ((step, record),) = scope["probe"].records  # type: ignore[attr-defined]
    assert step == 50
    assert record["group0/r/p50"] > 0
    del sys.modules["train"]


def test_the_recipe_shown_is_one() -> None:
    text = next(text for text in blocks("yaml") if text.startswith("version:"))
    assert {rule.name for rule in Recipe.from_yaml(text).groups} == {"no_decay", "embedding", "head"}


def test_every_command_is_in_the_readmes_table_and_no_other() -> None:
    from adamtune.cli.app import app

    commands = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    section = README.split("## Commands")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `adamtune ([\w-]+)[ `]", section, re.M)) == commands


def test_the_first_hour_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (commands,) = (text.splitlines() for text in blocks("sh") if text.startswith("adamtune init"))
    for command in commands:
        words = shlex.split(command, comments=True)
        assert words[0] == "adamtune"
        assert run(words[1:]) == 0, command
    assert "def build_optimizer" in (tmp_path / "optim_recipe.py").read_text()


def test_every_export_format_is_in_the_readme() -> None:
    from adamtune.export import FORMATS

    section = README.split("## Export formats")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", section, re.M)) == sorted(FORMATS)
