"""Run directories and recipes from a stranger: shown as they are, read no further than they go, and never run."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamtune import rundir
from adamtune.cli.app import run as command
from adamtune.errors import RunDirError
from adamtune.plain_text import plain
from adamtune.report.html import report_html
from adamtune.rundir import read_result
from tests.test_report import HOSTILE, make_result, make_tables, tags, write_run

STEERING = "\x1b]0;owned\x07\x1b[2J\u202e"
MARKUP = "[red]x[/red] [/b] :red_heart: [link=http://example.org]"


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A finished run in runs/ of the working directory; `change` is made to its result."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def make_run(name: str = "mine", change: Callable[[dict[str, Any]], object] = lambda result: None) -> Path:
        result = make_result()
        change(result)
        folder = Path("runs") / name
        folder.mkdir(parents=True)
        write_run(folder, result, make_tables())
        return folder

    return make_run


def everywhere(text: str) -> Callable[[dict[str, Any]], object]:
    """A result whose every free text is `text`."""

    def change(result: dict[str, Any]) -> None:
        result["task"]["ref"] = result["objective"]["name"] = text
        result["changed"] = {text: {"default": text, "recommended": text}}
        result["findings"] = [
            {"rule": text, "severity": text, "told": text, "advice": text, "remedy": {text: text}, "group": text}
        ]
        for stage in result["stages"]:
            stage |= dict.fromkeys(("question", "reason", "verdict", "before", "after"), text)

    return change


@pytest.mark.parametrize("text", [MARKUP, f"a{STEERING}b", HOSTILE])
def test_whatever_a_run_holds_is_shown_as_it_is(
    text: str, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = make_run("mine", everywhere(text)), make_run("other")
    shown = plain(text)
    for arguments in (["show", run], ["show"], ["compare", run, other]):
        assert command(list(map(str, arguments))) == 0
        said = capsys.readouterr()
        assert shown in said.out
        assert plain(said.out, keep="\n") == said.out
    page = report_html(run)
    assert set(tags(page)) == set(tags(report_html(other)))
    assert HOSTILE not in page


@pytest.mark.parametrize(
    "name", ["[red]x", "a[b]", ":red_heart:", "a\x1b[31mb", "[link=x]y", "tab\there", "né", "\udcff"]
)
def test_the_list_of_runs_shows_folder_names_as_they_are(
    name: str, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(name)
    for arguments in (["show"], ["show", str(run)], ["compare", str(run), str(run)]):
        assert command(arguments) == 0
        out = capsys.readouterr().out
        assert plain(name) in out
        assert "\x1b" not in out
    assert command(["show", str(run) + "-gone"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_as_json_a_result_is_what_it_is(make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("mine", everywhere(f"a{STEERING}\u00a0b"))
    assert command(["show", str(run), "--json"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert json.loads(said) == json.loads((run / rundir.RESULT).read_text())


# --- files that are not what they seem


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "NaN",
        "[1e400]",
        "9" * 5000,
        '{"task": NaN}',
        json.dumps(make_result()).replace("26830", '"many"'),
        json.dumps(make_result()).replace("26830", "NaN"),
        json.dumps(make_result()).replace('"args": {}', '"args": ' + '{"a": ' * 60 + "1" + "}" * 60),
        json.dumps(make_result()).replace("[0.27, 0.29]", "[0.27]"),
        json.dumps(make_result()).replace('"stages": [', '"stages": [3, '),
    ],
    ids=range(11),
)
def test_a_result_that_is_none_is_refused_in_one_sentence(
    text: str, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    (run / rundir.RESULT).write_text(text)
    looks = (["show", run], ["show", run, "--json"], ["compare", run, run], ["diagnose", run], ["report", run])
    for arguments in looks:
        assert command(list(map(str, arguments))) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"adamtune: {run / rundir.RESULT} cannot be read as a result: ")
        assert said.err.count("\n") == 1
    assert command(["show"]) == 0
    assert capsys.readouterr().err.startswith("adamtune: left out: ")


def test_numbers_that_are_none_are_shown(make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    def change(result: dict[str, Any]) -> None:
        result["wall_seconds"] = result["default"]["mean"] = float("nan")
        result["recommended"]["ci95"] = [float("-inf"), float("inf")]

    run = make_run("mine", change)
    assert command(["show", str(run)]) == 0
    assert "recommended: loss 0.07 [-, -]" in capsys.readouterr().out


def test_a_result_without_a_loss_a_seed_is_not_paired(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("mine", lambda result: result["recipe"].update(provenance={"fresh_seeds": [1, 2, 3]}))
    assert command(["compare", str(run), str(run)]) == 0
    assert "not paired: the runs do not say on which fresh seeds they ended" in capsys.readouterr().out


def test_a_result_that_is_too_large_is_not_read(make_run: Callable[..., Path]) -> None:
    run = make_run()
    with (run / rundir.RESULT).open("rb+") as file:
        file.truncate(200_000_000)
    with pytest.raises(RunDirError, match="larger than 100 MB"):
        read_result(run)


def value_places(data: Any) -> list[tuple[Any, Any]]:
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [place for key in keys for place in [(data, key), *value_places(data[key])]]


ODD: list[Any] = [None, True, -1, 0.5, 10**400, float("nan"), float("inf"), "", "x", [], [[]], {}, {"a": {}}, MARKUP]


def test_a_result_changed_at_random_is_shown_or_refused(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, chance = make_run(), random.Random(0)
    whole, refused = json.loads((run / rundir.RESULT).read_text()), 0
    for _ in range(150):
        result = copy.deepcopy(whole)
        for _ in range(chance.randint(1, 2)):
            container, key = chance.choice(value_places(result))
            container[key] = chance.choice(ODD)
        (run / rundir.RESULT).write_text(json.dumps(result))
        looks = (["show"], ["compare", "default"], ["show", "--json"], ["report", "--open", "never"])
        codes = [command([*arguments, str(run)]) for arguments in looks]
        said = capsys.readouterr()
        assert set(codes) <= {0, 2}, said.err
        assert "has a bug" not in said.err, (said.err, result)
        refused += 2 in codes
    assert 20 < refused < 150


@pytest.mark.parametrize(("horizon", "step"), [(300, 10**12), (10**12, 10**12), (10**18, 300)])
def test_steps_beyond_reason_fill_no_memory(
    horizon: int, step: int, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("mine", lambda result: result.update(horizon=horizon))
    curves = (run / rundir.CURVES).read_text().replace(",300,", f",{step},")
    (run / rundir.CURVES).write_text(curves)
    assert command(["diagnose", str(run)]) == 2
    assert capsys.readouterr().err.startswith(f"adamtune: the tables of {run} cannot be read: ")


@pytest.mark.parametrize("names", ["a/b,r,p50", "a,r/p50,p50", "a,r,pxx", "a,r,50"])
def test_a_probe_record_that_no_probe_writes_is_refused(
    names: str, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    probe = (run / rundir.PROBE).read_text().replace("NA,r,p50", names)
    (run / rundir.PROBE).write_text(probe)
    assert command(["diagnose", str(run)]) == 2
    assert "has a statistic that no probe records" in capsys.readouterr().err


# --- what leads outside


@pytest.mark.parametrize("way", ["absolute", "relative"])
def test_a_link_out_of_a_run_directory_is_not_read(
    way: str, make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("lr: 0.5  # hunter2\nthis: is, hunter2\n")
    for name, commands in {
        rundir.RESULT: ["show", "compare", "diagnose"],
        rundir.RECIPE: ["export", "compare", "diagnose", "report"],
        rundir.TRIALS: ["diagnose", "report"],
        rundir.PROBE: ["diagnose", "report"],
        rundir.SPEC: ["report"],
    }.items():
        shutil.rmtree("runs", ignore_errors=True)
        run = make_run()
        (run / name).unlink()
        (run / name).symlink_to(secret if way == "absolute" else Path("..") / ".." / "secret")
        for each in commands:
            assert command([each, *(["default"] if each == "compare" else []), str(run)]) == 2
            said = capsys.readouterr()
            assert "hunter2" not in said.out + said.err
            assert (
                said.err == f"adamtune: {run / name} is a link that leads out of its run directory, so it is not read\n"
            )


def test_a_report_quotes_no_file_from_outside(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    (tmp_path / "secret").write_text("hunter2")
    (run / rundir.RECIPE).unlink()
    (run / rundir.RECIPE).symlink_to(tmp_path / "secret")
    with pytest.raises(RunDirError, match="leads out of its run directory"):
        report_html(run)


def test_a_link_within_a_run_directory_is_followed(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / rundir.RESULT).rename(run / "kept.json")
    (run / rundir.RESULT).symlink_to("kept.json")
    assert command(["show", str(run)]) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", [rundir.RESULT, rundir.RECIPE, rundir.TRIALS, rundir.SPEC])
def test_a_pipe_in_a_run_directory_is_not_waited_for(
    name: str, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    (run / name).unlink()
    os.mkfifo(run / name)
    codes = [command([each, str(run)]) for each in ("show", "diagnose", "export")]
    assert set(codes) <= {0, 2}
    assert ("is no plain file" in capsys.readouterr().err) == (name != rundir.SPEC)


# --- code that must not run


def test_looking_at_a_run_never_imports_its_task(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, canary = tmp_path / "canary_task.py", tmp_path / "sang"
    task.write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\ndef task(): raise SystemExit(0)\n")

    def change(result: dict[str, Any]) -> None:
        result["task"]["ref"] = f"{task}:task"

    run = make_run("mine", change)
    (run / rundir.SPEC).write_text(f"task: {{ref: '{task}:task'}}\nhorizon: 300\n")
    (run / rundir.RECIPE).write_text(f"lr: 0.0123\nprovenance: {{task: '{task}:task', run: mine}}\n")
    looks = [["show"], ["show", run], ["show", run, "--json"], ["compare", run, run], ["diagnose", run]]
    looks += [["report", run, "--open", "never"]]
    looks += [
        ["export", run, "--format", format, "--total-steps", 300] for format in ("python", "yaml", "hf", "megatron")
    ]
    for arguments in looks:
        assert command(list(map(str, arguments))) == 0, arguments
    report_html(run)
    assert not canary.exists()
    assert "canary_task" in capsys.readouterr().out
    assert command(["sweep", str(run / rundir.SPEC), "--dry-run"]) == 1  # that it would have sung is no accident
    assert canary.exists()


def test_text_in_a_recipe_is_not_code_in_an_exported_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "sang"
    sings = f"open({str(canary)!r}, 'w')"
    texts = [
        f'"""\n{sings}\n"""',
        f'\\"\\"\\"; {sings} #',
        f"\n{sings}\n",
        f"\r{sings}\r",
        f"\u2028{sings}",
        f"'; {sings}; '",
    ]
    for text in texts:
        recipe = {
            "groups": [{"name": "g", "match": {"params": [text, "*"]}, "lr_mult": 2.0}],
            "provenance": {"default": text, "recommended": text, "task": text, "horizon": text, "objective": text},
        }
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        for format in ("python", "nanogpt"):
            assert command(["export", "r.yaml", "--format", format, "--total-steps", "100"]) == 0
            exec(compile(capsys.readouterr().out, "exported", "exec"), {"__name__": "exported"})
    assert not canary.exists()
