"""What commands print at a terminal of 80 columns, without colour, in a dumb one; and what --quiet and --json leave."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adamtune.cli.app import run
from tests.terminals import said_at, terminal, without_codes

TASKS = Path(__file__).parent / "tasks_for_tests.py"
TASK = f"{TASKS}:separable"
COLOUR = re.compile(r"\x1b\[[0-9;]*\b(3[0-7]|4[0-7]|9[0-7]|38|48)\b[0-9;]*m")

PRINTING = [
    ["show", "runs/one"],
    ["show"],
    ["compare", "runs/one", "fine-tune"],
    ["compare", "runs/one", "runs/one"],
    ["diagnose", "runs/one"],
    ["recipes"],
    ["sweep", "spec.yaml", "--dry-run"],
    ["lr-find", TASK, "--horizon", "60"],
]
HELP = [["--help"], *([name, "--help"] for name in ("lr-find", "sweep", "show", "compare", "diagnose", "export"))]
HELP += [["worker", "--help"], ["recipes", "--help"], ["recipes", "show", "--help"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a finished run."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "spec.yaml").write_text(
        f"task: {{ref: '{TASK}'}}\nhorizon: 20\nbudget: {{trials: 300}}\nstages: [eps, warmup, findings]\n"
    )
    assert run(["sweep", str(folder / "spec.yaml"), "--run-dir", str(folder / "runs" / "one"), "--quiet"]) == 0
    return folder


def words(text: str) -> list[str]:
    return [word for word in text.split() if not re.fullmatch(r"[\d.,]+", word)]  # times differ


@pytest.mark.parametrize("command", [*PRINTING, *HELP], ids=" ".join)
def test_at_80_columns_no_line_is_wider_and_no_colour_stays_on(folder: Path, command: list[str]) -> None:
    said = said_at(*command, cwd=folder, env={"NO_COLOR": "1"}) if command[0] != "lr-find" else lr_find(folder)
    assert not COLOUR.search(said)
    long = [line for line in without_codes(said).splitlines() if len(line) > 80]
    assert [line for line in long if not re.search(r"/\S{40,}", line)] == []  # a path is never broken


def lr_find(folder: Path) -> str:
    """Its exit code is 1 where the learning rate is not to be trusted."""
    with terminal("lr-find", TASK, "--horizon", "60", cwd=folder, env={"NO_COLOR": "1"}) as at:
        assert at.code() in (0, 1)
        return at.said


@pytest.mark.parametrize("command", [["show", "runs/one"], ["recipes"]], ids=" ".join)
def test_sentences_break_between_words(folder: Path, command: list[str]) -> None:
    wide = said_at(*command, cwd=folder, columns=300, env={"NO_COLOR": "1"})
    narrow = said_at(*command, cwd=folder, columns=80, env={"NO_COLOR": "1"})
    assert len(narrow.splitlines()) > len(wide.splitlines())
    assert sorted(words(without_codes(narrow))) == sorted(words(without_codes(wide)))


@pytest.mark.parametrize("command", PRINTING[:5:2], ids=" ".join)
def test_a_dumb_terminal_gets_text_alone(folder: Path, command: list[str]) -> None:
    assert "\x1b" not in said_at(*command, cwd=folder, env={"TERM": "dumb"})


def piped(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adamtune", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_quiet_leaves_the_result_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    found = piped("lr-find", TASK, "--horizon", "60", "--quiet", cwd=folder)
    assert (found.stderr, "suggestion:" in found.stdout) == ("", True)
    swept = piped("sweep", folder / "spec.yaml", "--run-dir", "quiet", "-q", cwd=tmp_path)
    assert (swept.returncode, swept.stderr) == (0, "")
    assert "recommended: loss" in swept.stdout
    for more in (["--format", "timm"], ["--format", "timm", "--to", str(tmp_path / "timm.yaml"), "--companion"]):
        told, quiet = (piped("export", "runs/one", *more, *last, cwd=folder) for last in ([], ["--force", "--quiet"]))
        assert told.returncode == quiet.returncode == 0
        assert "timm cannot say" in told.stderr
        assert quiet.stderr == ""
        assert quiet.stdout == ("" if "--to" in more else told.stdout)
    assert (tmp_path / "timm.yaml").exists()


def test_quiet_says_errors(folder: Path) -> None:
    done = piped("export", "gone", "--quiet", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("adamtune: gone: no such file")


def test_export_as_json_has_the_text_and_what_it_cannot_say(folder: Path, tmp_path: Path) -> None:
    plain = piped("export", "runs/one", "--format", "timm", cwd=folder)
    done = piped("export", "runs/one", "--format", "timm", "--json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert list(told) == ["version", "format", "total_steps", "written", "backup", "text", "unsaid", "companion"]
    assert (told["version"], told["format"], told["total_steps"], told["written"]) == (1, "timm", 20, [])
    assert told["text"] == plain.stdout
    assert [f"timm cannot say {each}" for each in told["unsaid"]] == plain.stderr.splitlines()[1:]

    into = tmp_path / "mine.yaml"
    into.write_text("lr: 5\nmine: 1\n")
    shown = json.loads(
        piped("export", "runs/one", "--into", into, "--format", "timm", "--dry-run", "--json", cwd=folder).stdout
    )
    assert into.read_text() == "lr: 5\nmine: 1\n"
    assert shown["edit"]["replaced"] == ["$.lr"]
    assert "-lr: 5" in shown["edit"]["diff"]
    done = piped("export", "runs/one", "--into", into, "--format", "timm", "--force", "--json", cwd=folder)
    told = json.loads(done.stdout)
    assert (told["written"], told["backup"]) == ([str(into)], f"{into}.bak")
    assert "mine: 1" in into.read_text()


def test_a_worker_tells_its_end_as_json_and_is_quiet(folder: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'work.db'}"
    options = ("--engine", "workers", "--workers", "0", "--storage", storage)
    sweep = [
        sys.executable,
        "-m",
        "adamtune",
        "sweep",
        str(folder / "spec.yaml"),
        "--run-dir",
        "shared",
        *options,
        "-q",
    ]
    with subprocess.Popen(sweep, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweeping:
        common = ("worker", "--storage", storage, "--study", "shared", "--task", TASK)
        done = piped(*common, "--json", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        told = json.loads(done.stdout)
        assert (list(told), told["version"]) == (["version", "worker", "study", "ended"], 1)
        assert told["ended"] == "shared has ended"
        _, said = sweeping.communicate(timeout=60)
        assert (sweeping.returncode, said) == (0, "")


LOUD = f"""
import os, sys

sys.path.append({str(TASKS.parent)!r})
from tasks_for_tests import separable

from adamtune import Task

print("imported")


def task() -> Task:
    print("called")
    quiet = separable()

    def loss(model, batch):
        print("at a step")
        os.write(1, b"by a C library\\n")
        return quiet.loss(model, batch)

    return Task("loud", quiet.make_model, quiet.train_batches, loss, quiet.val_batches)
"""


def test_what_a_task_prints_is_no_part_of_the_result(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    (tmp_path / "spec.yaml").write_text(
        "task: {ref: 'loud.py:task'}\nhorizon: 20\nbudget: {trials: 60}\nseeds: 2\nstages: [eps]\n"
    )
    for command in (
        ["doctor", "--task", "loud.py:task"],
        ["lr-find", "loud.py:task", "--horizon", "20"],
        ["sweep", "spec.yaml", "--dry-run"],
        ["sweep", "spec.yaml", "--run-dir", "one", "--engine", "auto"],
    ):
        done = piped(*command, "--json", cwd=tmp_path)
        assert json.loads(done.stdout)["version"] == 1, command
        assert "imported\ncalled\n" in done.stderr
        assert "by a C library" in done.stderr
    shown = piped("sweep", "spec.yaml", "--run-dir", "two", cwd=tmp_path)
    assert "recommended: " in shown.stdout
    assert "at a step" not in shown.stdout
    assert "at a step" in shown.stderr
