"""`adamtune report`: where it writes, what of, and when it opens a browser."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamtune import rundir
from adamtune.cli import browser
from adamtune.cli.app import run as command
from tests.test_report import HOSTILE, figure, make_result, make_tables, tags, text_of, write_run


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A finished run below the working directory, of `make_result` and `make_tables` unless told otherwise."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, result: dict[str, Any] | None = None, tables: dict[str, Any] | None = None) -> Path:
        folder = Path(name)
        folder.mkdir()
        tables = tables or make_tables()
        for row in tables["trials.csv"]:
            row.setdefault("value", row["lr"] + 0.01)
        write_run(folder, result or make_result(), tables)
        (folder / rundir.SPEC).write_text("task: {ref: 'my_task.py:task'}\nhorizon: 300\n")
        (folder / rundir.ENVIRONMENT).write_text("{}")
        (folder / rundir.RECIPE).write_text("lr: 0.0123\n")
        return folder

    return make


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser is asked to open; there is one, and a screen."""
    asked: list[str] = []

    def opens(address: str) -> bool:
        asked.append(address)
        return True

    monkeypatch.setattr(browser.webbrowser, "open", opens)
    monkeypatch.setenv("DISPLAY", ":0")
    return asked


def unfinish(run: Path) -> None:
    for name in (rundir.RESULT, rundir.RECIPE):
        (run / name).unlink()
    log = [
        "2026-01-01T00:00:00Z plan: lr (<= 900 steps), final (1200 steps)",
        "2026-01-01T00:00:01Z lr: trial s/lr#0 seed 7 completed after 300 of 300 steps: 0.51",
        "2026-01-01T00:00:02Z lr: changed: 0.001 -> 0.5 <because>",
    ]
    (run / rundir.LOG).write_text("\n".join(log) + "\n")
    trials = (run / rundir.TRIALS).read_text()
    (run / rundir.TRIALS).write_text(trials.replace("\nfinal,", "\nbeta1,"))


def test_the_report_is_written_into_the_run_directory_or_where_told(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("mine")
    assert command(["report", "mine", "--open", "never"]) == 0
    page = (run / rundir.REPORT).read_text()
    assert capsys.readouterr().out == f"{run / rundir.REPORT} ({len(page.encode()) / 1e6:.1f} MB)\n"
    assert command(["report", "mine", "--to", "elsewhere.html", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "version": 1, "report": "elsewhere.html", "bytes": len(page.encode()), "runs": ["mine"], "finished": True,
        "opened": False,
    }  # fmt: skip
    assert Path("elsewhere.html").read_text() == page


def test_all_trials_stand_in_parallel_coordinates(make_run: Callable[..., Path]) -> None:
    tables = make_tables()
    for row in tables["trials.csv"]:
        row |= {"value": row["lr"] + 0.01, "eps": 1e-8, "schedule": "linear" if row["lr"] == 0.5 else "cosine"}
    tables["trials.csv"].append({**tables["trials.csv"][0], "trial": 1, "lr": 9.0, "outcome": "diverged", "value": ""})
    tables["trials.csv"].append({**tables["trials.csv"][0], "trial": 2, "lr": 0.3, "outcome": "pruned", "value": ""})
    tables["trials.csv"].append({**tables["trials.csv"][0], "trial": 3, "lr": 0.2, "value": ""})
    run = make_run("mine", tables=tables)
    assert command(["report", "mine", "--open", "never"]) == 0
    page = (run / rundir.REPORT).read_text()
    drawn = figure(page, "A line is a recipe trained over 300 steps")
    axes = drawn["layout"]["xaxis"]["ticktext"]
    assert axes == ["<b>lr</b>", "<b>schedule</b>", "<b>loss</b>"]  # eps never varied
    lines = {trace["name"]: trace["y"] for trace in drawn["data"]}
    assert set(lines) == {"default", "recommended", "the best tenth", "diverged", "not finite"}
    assert lines["diverged"][:3] == [1.0, 1.0, None]  # the highest lr, linear, and no loss
    assert lines["default"][:3] == [0.0, 0.0, 0.0]  # the lowest lr, cosine, the lowest loss
    assert lines["the best tenth"][1:3] == [1.0, 1.0]
    text = text_of(page)
    assert "8 trials (6 completed, 1 diverged, 1 pruned)" in text
    assert "0.0223 2 recommended 0.0123 cosine" in " ".join(text.split())
    assert "not finite 1 0.2 linear" in " ".join(text.split())


def test_of_many_recipes_few_are_drawn_the_default_and_the_recommended_among_them(
    make_run: Callable[..., Path],
) -> None:
    tables = make_tables()
    blank = tables["trials.csv"][0]
    tables["trials.csv"] += [{**blank, "trial": 100 + place, "lr": 1e-4 * place} for place in range(1, 1001)]
    for row in tables["trials.csv"]:
        row["value"] = 5.0 if row["lr"] == 0.001 else row["lr"]
    run = make_run("mine", tables=tables)
    assert command(["report", "mine", "--open", "never"]) == 0
    page = (run / rundir.REPORT).read_text()
    drawn = figure(page, "A line is a recipe")
    lines = {trace["name"]: trace["y"].count(None) for trace in drawn["data"]}
    assert lines == {
        "the worse half": 125, "the better half": 134, "the best tenth": 100, "default": 1, "recommended": 1
    }  # fmt: skip
    assert "Drawn are 361 of 1,001, evenly spread by rank." in text_of(page)


def test_the_loss_stands_beside_adams_state(make_run: Callable[..., Path]) -> None:
    run = make_run("mine")
    assert command(["report", "mine", "--open", "never"]) == 0
    drawn = figure((run / rundir.REPORT).read_text(), "r = ")
    (loss,) = [trace for trace in drawn["data"] if trace["name"] == "validation loss"]
    assert (loss["yaxis"], loss["y"]) == ("y2", [0.0123 + 1 / 150, 0.0123 + 1 / 300])
    assert drawn["layout"]["yaxis"]["domain"][1] < drawn["layout"]["yaxis2"]["domain"][0]


def test_the_group_called_default_is_not_taken_for_the_recipe(make_run: Callable[..., Path]) -> None:
    run, told = (
        make_run("mine"),
        "The group called default is that of the parameters which no rule of the recipe names.",
    )
    for group, tells in (("head", False), ("default", True)):
        probe = (run / rundir.PROBE).read_text()
        (run / rundir.PROBE).write_text(probe.replace(",NA,", f",{group},").replace(",head,", f",{group},"))
        assert command(["report", "mine", "--open", "never"]) == 0
        assert (told in text_of((run / rundir.REPORT).read_text())) == tells


def test_an_unfinished_run_is_told_as_far_as_it_came(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("mine")
    unfinish(run)
    assert command(["report", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] is False
    page = (run / rundir.REPORT).read_text()
    text = " ".join(text_of(page).split())
    assert "This run has not finished: there is no recipe yet. No figure here has been confirmed" in text
    assert "It came to 5 trials and 1,500 training steps." in text
    assert '<a href="#reproduce">' in page
    assert "lr 1 300 0.51 changed 0.001 -> 0.5 <because>" in text
    assert "beta1 4 1,200 0.011 under way" in text
    assert "adamtune sweep mine/spec.yaml --run-dir mine" in text
    assert "trial s/lr#0" not in text
    best = figure(page, "The best 5 trials so far")
    assert best["data"][0]["name"] == "beta1, trial 0, seed 20 (0.011)"
    assert figure(page, "r = ")
    for name in (rundir.TRIALS, rundir.CURVES, rundir.PROBE, rundir.LOG):
        (run / name).unlink()
    assert command(["report", "mine", "--json"]) == 0
    assert "It has no trials.csv" in text_of((run / rundir.REPORT).read_text())


def test_an_unfinished_run_opens_no_element_either(make_run: Callable[..., Path]) -> None:
    run = make_run("mine")
    unfinish(run)
    assert command(["report", "mine", "--open", "never"]) == 0
    harmless = tags((run / rundir.REPORT).read_text())
    spec = {"task": {"ref": HOSTILE}, "horizon": 300, "objective": {"name": "loss"}}
    (run / rundir.SPEC).write_text(json.dumps(spec))
    for name in (rundir.LOG, rundir.TRIALS):
        text = (run / name).read_text()
        (run / name).write_text(text.replace("<because>", HOSTILE).replace("\nbeta1,", f'\n"{HOSTILE}",'))
    assert command(["report", "mine", "--open", "never"]) == 0
    page = (run / rundir.REPORT).read_text()
    assert tags(page) == harmless
    assert HOSTILE in text_of(page)


def test_several_runs_stand_side_by_side(make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    seeds = {"provenance": {"fresh_seeds": [20, 21]}}
    one, other = make_result() | {"recipe": seeds}, make_result() | {"recipe": seeds}
    other["recommended"] = {"mean": 0.05, "ci95": [0.04, 0.06], "seeds": 2, "values": [0.05, 0.05], "diverged": 0}
    other["changed"] = {"eps": {"default": 1e-8, "recommended": 1e-6}}
    other["stages"] = other["stages"][:2]
    make_run("one", one), make_run("other", other)
    assert command(["report", "one", "other", "--to", "both.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == ["one", "other"]
    page = Path("both.html").read_text()
    text = " ".join(text_of(page).split())
    assert "0.05 [0.04, 0.06] over 2 fresh seeds" in text
    assert (
        "Better by evidence: other. Recommended, other minus one: -0.02 [-0.02, -0.02] over 2 of 2 shared seeds."
        in text
    )
    assert "beta2 kept -" in text
    assert "lr 0.001 to 0.0123 kept" in text
    assert "eps kept 1e-08 to 1e-06" in text
    drawn = figure(page, "The recommended recipe of each run, one line")
    assert [trace["name"] for trace in drawn["data"]] == ["one", "one", "other", "other"]
    assert command(["report", "one", "other"]) == 2
    assert "with --to FILE" in capsys.readouterr().err
    assert command(["report", "one", "./one", "--to", "both.html"]) == 2
    assert "is named twice" in capsys.readouterr().err


def test_the_means_of_three_runs_stand_in_one_picture(make_run: Callable[..., Path]) -> None:
    measured = {
        "a": {"mean": 0.07, "ci95": [0.06, 0.08], "seeds": 2, "values": [0.065, 0.075], "diverged": 0},
        "b<i>": {"mean": 0.05, "ci95": [0.04, 0.07], "seeds": 3, "values": [0.04, 0.05, 0.06], "diverged": 0},
        "c": {"mean": None, "ci95": [None, None], "seeds": 2, "values": [0.09, None], "diverged": 1},
    }
    for name, recommended in measured.items():
        make_run(name, make_result() | {"recommended": recommended})
    assert command(["report", *measured, "--to", "all.html", "--open", "never"]) == 0
    page = Path("all.html").read_text()
    drawn = figure(page, "The recommended recipe of each run: a dot")
    traces = {trace["name"]: trace for trace in drawn["data"]}
    assert list(traces) == [
        "c, by seed", "b&lt;i&gt;, by seed", "b&lt;i&gt;, mean", "a, by seed", "a, mean"
    ]  # fmt: skip
    assert drawn["layout"]["yaxis"]["ticktext"] == ["c", "b&lt;i&gt;", "a"]  # the first on top
    assert traces["c, by seed"]["x"] == [0.09]
    assert traces["a, mean"]["x"] == [0.07]
    bars = traces["b&lt;i&gt;, mean"]["error_x"]
    assert (bars["array"], bars["arrayminus"]) == ([pytest.approx(0.02)], [pytest.approx(0.01)])
    curves = figure(page, "The recommended recipe of each run, one line")
    of_run = {trace["name"]: trace["line"]["color"] for trace in curves["data"]}
    assert {name: traces[f"{name}, by seed"]["marker"]["color"] for name in of_run} == of_run
    text = " ".join(text_of(page).split())
    assert "No mean, because a seed has no value: c." in text
    assert "a 0.07 [0.06, 0.08] over 2 fresh seeds 0.065 0.075 - b<i>" in text


def test_runs_of_several_objectives_have_no_picture_of_their_means(make_run: Callable[..., Path]) -> None:
    for name in ("loss", "accuracy"):
        make_run(name, make_result() | {"objective": {"name": name, "direction": "minimize"}})
    assert command(["report", "loss", "accuracy", "--to", "both.html", "--open", "never"]) == 0
    assert "a dot for each fresh seed" not in Path("both.html").read_text()


@pytest.mark.parametrize(
    ("options", "terminal", "screen", "opens"),
    [
        ([], True, True, True),
        ([], False, True, False),
        ([], True, False, False),
        (["--json"], True, True, False),
        (["--open", "never"], True, True, False),
        (["--open", "always"], False, False, True),
        (["--open", "always", "--json"], False, True, True),
    ],
)
def test_a_browser_is_opened_only_where_one_can_be_seen(
    options: list[str], terminal: bool, screen: bool, opens: bool, make_run: Callable[..., Path], opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = make_run("mine")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    if not screen:
        monkeypatch.delenv("DISPLAY")
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert command(["report", "mine", *options]) == 0
    assert opened == ([(run / rundir.REPORT).resolve().as_uri()] if opens else [])


def test_no_browser_to_be_had_is_told(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("mine")
    monkeypatch.setattr(browser.webbrowser, "open", lambda address: False)
    assert command(["report", "mine", "--open", "always"]) == 0
    assert "no browser could be started" in capsys.readouterr().err


def test_what_no_sweep_has_written_is_refused(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("mine")
    (run / rundir.TRIALS).write_text("no,table\n1\n2,3,4,5\n")
    assert command(["report", "mine"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("adamtune: the files of mine are not as a sweep writes them (")
    assert said.count("\n") == 1
    assert command(["report", "gone"]) == 2
    assert capsys.readouterr().err == "adamtune: gone does not exist\n"


def test_a_link_for_the_report_is_replaced_and_not_followed(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run("mine")
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run / rundir.REPORT).symlink_to(precious)
    assert command(["report", "mine", "--open", "never"]) == 0
    assert precious.read_text() == "mine"
    assert not (run / rundir.REPORT).is_symlink()
