from __future__ import annotations

import csv
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from adamtune.errors import RunDirError
from adamtune.lr_finder import LRFindResult, LRFindStatus
from adamtune.report.figures import Line
from adamtune.report.html import report_html
from adamtune.report.line_table import lines_table
from adamtune.report.lr_plot import lr_html_plot, lr_terminal_plot
from adamtune.report.terminal import print_lr_find, print_result
from adamtune.stages.lr_curve import RangeCurve, read_curve
from adamtune.stages.lr_response import Response

HOSTILE = "</script><script>hacked()</script><img src=x onerror=hacked()>"
LRS = [1e-6 * 10 ** (k / 10) for k in range(51)]
FALL = [2.3 - 2 / (1 + (3e-3 / lr) ** 2) for lr in LRS]


def stage(name: str, verdict: str = "kept", **more: Any) -> dict[str, Any]:
    blank: dict[str, Any] = {"before": None, "after": None, "evidence": None, "details": {}}
    return {"stage": name, "question": f"{name}?", "verdict": verdict, "reason": f"because of {name}", **blank, **more}


def make_result() -> dict[str, Any]:
    evidence = {
        "seeds": [100, 101],
        "incumbent": [0.5, None],
        "challenger": [0.25, 0.3],
        "difference": {"mean": -0.25, "ci95": [None, None]},
    }
    curve = {"lrs": LRS, "losses": FALL, "low": [x - 0.1 for x in FALL], "high": [x + 0.1 for x in FALL]}
    rules = {"steepest": 3e-3, "valley": 2e-3, "minimum/10": 1e-3}
    coarse = {"horizon": 60, "lrs": [0.001, 0.01, 0.1], "scores": [0.4, 0.2, None]}
    values = {"candidates": ["0.9", "0.99"], "scores": [0.375, None], "incumbent_score": 0.3125}
    return {
        "version": 1,
        "task": {"ref": "my_task.py:task", "args": {}},
        "horizon": 300,
        "objective": {"name": "loss", "direction": "minimize"},
        "steps_used": 26830,
        "wall_seconds": 24.479,
        "default": {"mean": 0.28, "ci95": [0.27, 0.29], "seeds": 2, "values": [0.28, 0.28], "diverged": 0},
        "recommended": {"mean": 0.07, "ci95": [0.06, 0.08], "seeds": 2, "values": [0.07, 0.07], "diverged": 0},
        "difference": {"mean": -0.21, "ci95": [-0.23, -0.19]},
        "changed": {"lr": {"default": 0.001, "recommended": 0.0123}},
        "stages": [
            stage(
                "lr_range", "measured", details={**curve, "status": "ok", "band": [5e-4, 2e-2], "suggestions": rules}
            ),
            stage("lr", "changed", before=0.001, after=0.0123, evidence=evidence, details={"responses": [coarse]}),
            stage("beta2", before=0.999, after=0.999, details=values),
            stage("warmup", "unasked"),
        ],
        "recipe": {},
    }


def make_tables() -> dict[str, list[dict[str, Any]]]:
    """The last comparison: two seeds, the default first; and a trial of another stage, which no picture shows."""
    trials, curves, probe = [], [], []
    runs = [("lr", 0, 7, 0.5), ("final", 0, 20, 0.001), ("final", 1, 21, 0.001)]
    runs += [("final", 2, 20, 0.0123), ("final", 3, 21, 0.0123)]
    for name, trial, seed, lr in runs:
        key = {"stage": name, "study": f"s/{name}", "trial": trial, "seed": seed}
        trials.append({**key, "horizon": 300, "outcome": "completed", "steps": 300, "lr": lr, "message": ""})
        for step in (150, 300):
            curves.append({**key, "step": step, "train_loss": 9.0, "loss": lr + 1 / step})
            for statistic in ("grad_norm", "r", "lr_r"):
                for percentile in [""] if statistic == "grad_norm" else ["p10", "p50", "p90"]:
                    value = 0.0 if percentile == "p10" else (trial + 1) / step
                    row = {"step": step, "group": "NA", "statistic": statistic, "percentile": percentile}
                    probe.append({**key, **row, "value": value})
    return {"trials.csv": trials, "curves.csv": curves, "probe.csv": probe}


@pytest.fixture
def result() -> dict[str, Any]:
    return make_result()


@pytest.fixture
def tables() -> dict[str, list[dict[str, Any]]]:
    return make_tables()


@pytest.fixture
def page_of(
    tmp_path: Path, result: dict[str, Any], tables: dict[str, list[dict[str, Any]]]
) -> Callable[[], str]:  # fmt: skip
    """The page of `result` and `tables`, as they are when it is called."""

    def make() -> str:
        write_run(tmp_path, result, tables)
        return report_html(tmp_path)

    return make


def write_run(folder: Path, result: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "spec.yaml").write_text("horizon: 300  # <b>\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text("lr: 0.0123  # <i>\n", encoding="utf-8")
    environment = {"command": ["adamtune", "sweep"], "packages": {"torch": "2.13.0"}, "cuda": None}
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    for name, rows in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def without_bundle(page: str) -> str:
    return page.replace(get_plotlyjs(), "")


def figures(page: str) -> dict[str, dict[str, Any]]:
    """What each picture is told to plotly, by caption: `data` and `layout`."""
    drawn = {}
    whole = r'<script type="application/json">(.*?)</script><figcaption>(.*?)</figcaption>'
    for plot, caption in re.findall(whole, without_bundle(page), re.DOTALL):
        drawn[unescape(caption)] = json.loads(plot)
    return drawn


def figure(page: str, caption: str) -> dict[str, Any]:
    """The one picture whose caption begins so."""
    (found,) = [drawn for told, drawn in figures(page).items() if told.startswith(caption)]
    return found


def points(drawn: Mapping[str, Any], name: str) -> list[tuple[Any, Any]]:
    (trace,) = [trace for trace in drawn["data"] if trace.get("name") == name]
    return list(zip(trace["x"], trace["y"], strict=True))


def text_of(page: str) -> str:
    """What a person reads."""
    shown = re.sub(r"<(script|style)\b.*?</\1>", "", without_bundle(page), flags=re.DOTALL)
    return unescape(re.sub(r"<[^>]*>", " ", shown))


def tags(page: str) -> list[str]:
    """Every element a browser would open."""
    found = []

    class Collector(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append(tag)

    Collector().feed(without_bundle(page))
    return found


def loads_from_elsewhere(page: str) -> list[str]:
    """Whatever would make a browser ask the network; plotly's own text is left out, it names sites in unused code."""
    return re.findall(r"""(?i)\bsrc\s*=|\bhref\s*=(?!"#)|@import|<link|<iframe|url\(|fetch\(""", without_bundle(page))


def test_the_answer_stands_before_the_stages(page_of: Callable[[], str]) -> None:
    text = text_of(page_of())
    answer = text[text.index("Change lr from 0.001 to 0.0123.") : text.index("A knob changes where")]
    for told in (
        r"Recommended\s+loss 0\.07\s+\[0\.06, 0\.08\] over 2 fresh seeds",
        r"Default\s+loss 0\.28\s+\[0\.27, 0\.29\] over 2 fresh seeds",
        r"75% lower\s+difference by seed: -0\.21 \[-0\.23, -0\.19\]; ratio: 0\.250",
        r"26,830 steps\s+as many as 89 whole runs; 24 seconds",
        "lower is better",
        "lr: 0\\.0123  # <i>",
    ):
        assert re.search(told, answer), told
    assert re.search(r"lr\s+0\.001\s+0\.0123", answer)
    assert "To loss" not in text


def test_the_time_to_a_target_belongs_to_the_answer(page_of: Callable[[], str], result: dict[str, Any]) -> None:
    result["objective"] |= {"name": "accuracy", "direction": "maximize", "time_to": 0.9}
    result["default"]["median_steps_to"] = None
    result["recommended"]["median_steps_to"] = 1800
    text = text_of(page_of())
    assert "To accuracy 0.9: never by default, 1,800 steps recommended." in text
    assert "is above zero by evidence" in text


def test_the_rows_of_what_was_changed_stand_out(page_of: Callable[[], str]) -> None:
    page = page_of()
    assert re.findall(r'<tr class="marked"><td>([^<]*)</td><td>([^<]*)</td>', page) == [("lr", "changed")]
    assert ".marked td {" in page


def test_every_stage_tells_question_verdict_and_reason(page_of: Callable[[], str]) -> None:
    text = text_of(page_of())
    for name, verdict in (("lr_range", "measured"), ("lr", "changed"), ("beta2", "kept")):
        assert f"{name}: {verdict}" in text
        assert f"{name}?" in text
        assert f"because of {name}" in text
    assert re.search(r"Not asked\s+stage\s+why not\s+warmup\s+because of warmup", text)
    assert re.search(r"lr\s+changed\s+0\.001\s+0\.0123\s+-0\.25 \[-, -\]\s+2\s", text)  # among all, in the table


def test_nothing_changed(page_of: Callable[[], str], result: dict[str, Any]) -> None:
    result["changed"] = {}
    assert "No knob was changed" in text_of(page_of())


def test_a_default_that_diverged_has_no_mean_and_no_ratio(page_of: Callable[[], str], result: dict[str, Any]) -> None:
    result["default"] |= {"mean": None, "ci95": [None, None], "diverged": 1}
    result["difference"] = {"mean": None, "ci95": [None, None]}
    text = text_of(page_of())
    assert re.search(r"Default\s+diverged\s+on 1 of 2 fresh seeds", text)
    assert "ratio" not in text


def test_a_default_whose_metric_is_not_finite_is_not_said_to_have_diverged(
    page_of: Callable[[], str], result: dict[str, Any]
) -> None:
    result["default"] |= {"mean": None, "ci95": [None, None], "values": [None, 0.5], "diverged": 0}
    assert re.search(r"Default\s+not finite\s+on 1 of 2 fresh seeds", text_of(page_of()))
    result["default"] |= {"values": [None, None], "diverged": 1}
    assert re.search(r"Default\s+diverged\s+on 1 and not finite on 1 of 2 fresh seeds", text_of(page_of()))


def test_values_below_zero_have_a_difference_but_no_ratio(page_of: Callable[[], str], result: dict[str, Any]) -> None:
    result["default"] |= {"mean": -0.28}
    text = text_of(page_of())
    assert "difference by seed: -0.21" in text
    assert "ratio" not in text


def test_the_page_is_one_file_that_loads_nothing(page_of: Callable[[], str]) -> None:
    page = page_of()
    assert page.count(get_plotlyjs()) == 1
    assert page.count("* plotly.js v") == 1
    assert len(page.encode()) < 6_000_000
    assert loads_from_elsewhere(page) == []
    # plotly offers to upload a chart to its cloud unless told not to
    for drawn in figures(page).values():
        assert "sendChartToCloud" in drawn["layout"]["modebar"]["remove"]


def test_the_page_is_fit_for_phones_dark_rooms_and_screen_readers(page_of: Callable[[], str]) -> None:
    page = page_of()
    assert '<html lang="en">' in page
    assert 'name="viewport"' in page
    assert "color-scheme: light dark" in page
    body = without_bundle(page)
    for landmark in ("header", "nav", "main"):
        assert body.count(f"<{landmark}") == 1
    levels = [int(level) for level in re.findall(r"<h([1-6])", body)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    links = re.findall(r'href="#([^"]+)"', body)
    assert links[0] == "content"  # past the contents, for the keyboard
    assert len(links) == len(set(links))
    for name in links:
        assert len(re.findall(f'id="{name}"', body)) == 1, name
    drawn = figures(page)
    for each in drawn.values():
        assert each["layout"]["paper_bgcolor"] == each["layout"]["plot_bgcolor"] == "rgba(0,0,0,0)"
    described = re.findall(r'role="img" aria-label="Plot of ([^"]+)"', body)
    assert len(described) == len(drawn)
    assert "validation loss against step: default (lr 0.001), recommended (lr 0.0123)" in described
    assert len(re.findall(r"</figcaption><details><summary>.*?<table>.*?</details></figure>", body)) == len(drawn)


def test_a_browser_is_told_to_load_nothing(page_of: Callable[[], str]) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page_of())
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*|'self'", policy)


def test_figures_stand_in_tables_too(page_of: Callable[[], str]) -> None:
    text = text_of(page_of())
    assert re.search(r"valley\s+0\.002\s", text)
    assert re.search(
        r"0\.001\s+60\s+0\.4\s+0\.01\s+60\s+0\.2\s+0\.1\s+60\s+pruned or diverged", text
    )  # lr, steps, loss
    assert re.search(r"step\s+default \(lr 0\.001\), seed 20\s+recommended \(lr 0\.0123\), seed 20", text)
    assert re.search(r"150\s+0\.007667\s+0\.01897\s", text)


def test_a_long_curve_is_thinned_in_its_table() -> None:
    long = lines_table("step", [Line("a", list(range(1000)), [1.0] * 1000)])
    assert 30 < long.count("<tr>") < 45


def test_what_comes_from_outside_opens_no_element(
    page_of: Callable[[], str], result: dict[str, Any], tables: dict[str, list[dict[str, Any]]]
) -> None:
    harmless = tags(page_of())
    result["task"]["ref"] = result["objective"]["name"] = HOSTILE
    result["changed"] = {HOSTILE: {"default": HOSTILE, "recommended": HOSTILE}}
    for asked in result["stages"]:
        verdict = "unasked" if asked["verdict"] == "unasked" else HOSTILE  # those stand in a table of their own
        asked |= {"question": HOSTILE, "reason": HOSTILE, "verdict": verdict}
    result["stages"][0]["details"]["suggestions"] = {f"{HOSTILE}{rule}": 1e-3 for rule in range(3)}
    result["stages"][2]["stage"] = HOSTILE
    for row in tables["curves.csv"]:
        row[HOSTILE] = row.pop("loss")
    for row in tables["probe.csv"]:
        row["group"] = HOSTILE
    for row in tables["trials.csv"]:
        row["message"] = HOSTILE
    page = page_of()
    assert tags(page) == harmless
    assert HOSTILE in text_of(page)  # told as it is, not swallowed
    # plotly itself reads HTML in names and titles
    assert all("<" not in str(trace.get("name")) for drawn in figures(page).values() for trace in drawn["data"])


def test_the_range_picture_shows_band_and_rules_and_leaves_a_divergence_aside(
    page_of: Callable[[], str], result: dict[str, Any]
) -> None:
    details = result["stages"][0]["details"]
    for losses in ("losses", "high"):
        details[losses] = [*FALL[:-1], 1e6]
    drawn = figure(page_of(), "Training loss while lr rises")
    assert points(drawn, "median of the seeds") == list(zip(LRS, details["losses"], strict=True))
    (band,) = drawn["layout"]["shapes"]
    assert [band["x0"], band["x1"]] == [5e-4, 2e-2]
    assert {x for x, _ in points(drawn, "valley 0.002")} == {2e-3}
    assert {trace.get("name") for trace in drawn["data"]} >= {"steepest 0.003", "minimum/10 0.001", "spread over seeds"}
    bottom, top = drawn["layout"]["yaxis"]["range"]
    assert bottom < min(FALL)
    assert FALL[0] < top < 3


def test_a_range_test_without_a_band_is_drawn_without(page_of: Callable[[], str], result: dict[str, Any]) -> None:
    result["stages"][0]["details"] |= {"band": None, "suggestions": {}, "losses": [None, *FALL[1:]]}
    page = page_of()
    assert "shapes" not in figure(page, "Training loss while lr rises")["layout"]
    assert "shaded" not in text_of(page)


def test_learning_rates_without_a_score_have_no_point_and_are_named(page_of: Callable[[], str]) -> None:
    page = page_of()
    drawn = figure(page, "Mean validation loss by lr")
    assert points(drawn, "60 steps") == [(0.001, 0.4), (0.01, 0.2)]
    assert "Without a value: 0.1 over 60 steps (pruned or diverged)." in text_of(page)  # a run of an older version


def test_values_are_drawn_beside_the_incumbents_score(page_of: Callable[[], str]) -> None:
    page = page_of()
    drawn = figure(page, "Mean validation loss by beta2")
    assert points(drawn, "tried") == [("0.9", 0.375)]
    assert points(drawn, "incumbent, 0.999") == [("0.9", 0.3125), ("0.99", 0.3125)]
    assert "Without a value: 0.99 (pruned or diverged)." in text_of(page)


@pytest.mark.parametrize(("direction", "edge"), [("minimize", 0.97), ("maximize", 0.03)])
def test_what_was_pruned_is_told_from_what_diverged(
    direction: str, edge: float, page_of: Callable[[], str], result: dict[str, Any]
) -> None:
    result["objective"]["direction"] = direction
    outcomes = ["completed", "pruned", "diverged", "failed", "completed"]
    names, scores = ["0.9", "0.95", "0.98", "0.99", "0.995"], [0.375, None, None, None, None]
    result["stages"][2]["details"] = {
        "candidates": names, "scores": scores, "outcomes": outcomes,
        "incumbent_score": None, "incumbent_outcome": "diverged",
    }  # fmt: skip
    lrs = [0.001, 0.003, 0.01, 0.03, 0.1]
    response = {"horizon": 60, "lrs": lrs, "scores": scores, "outcomes": outcomes}
    result["stages"][1]["details"]["responses"] = [response]
    page = page_of()
    told = text_of(page)
    assert (
        "Without a value: 0.95 (pruned); 0.98 (diverged); 0.99 (failed); 0.995 (not finite); "
        "incumbent, 0.999 (diverged)." in told
    )
    assert "Without a value: 0.003 over 60 steps (pruned); 0.01 over 60 steps (diverged); " in told
    assert re.search(r"0\.95\s+pruned\s+0\.98\s+diverged\s+0\.99\s+failed\s+0\.995\s+not finite", told)
    assert re.search(r"0\.003\s+60\s+pruned\s+0\.01\s+60\s+diverged\s+0\.03\s+60\s+failed", told)
    for caption, places in (("Mean validation loss by beta2", names), ("Mean validation loss by lr", lrs)):
        drawn = figure(page, caption)
        for outcome, place in (("pruned", 1), ("diverged", 2), ("failed", 3)):
            assert points(drawn, outcome) == [(places[place], edge)]
        looks = {trace["name"]: trace["marker"] for trace in drawn["data"] if trace["name"] in outcomes}
        assert len({marker["color"] for marker in looks.values()}) == 3
        assert len({marker["symbol"] for marker in looks.values()}) == 3
        assert {trace["yaxis"] for trace in drawn["data"] if trace["name"] in outcomes} == {"y2"}


def test_values_of_many_letters_have_their_marks_at_the_right(
    page_of: Callable[[], str], result: dict[str, Any]
) -> None:
    names = ["a recipe of many letters", "another recipe"]
    result["stages"][2]["details"] |= {"candidates": names, "outcomes": ["completed", "diverged"]}
    (diverged,) = [
        trace for trace in figure(page_of(), "Mean validation loss by beta2")["data"] if trace["name"] == "diverged"
    ]
    assert (diverged["x"], diverged["y"], diverged["xaxis"]) == ([0.97], ["another recipe"], "x2")


def test_a_stage_tells_where_lr_was_re_centred_and_what_its_candidates_come_from(
    page_of: Callable[[], str], result: dict[str, Any]
) -> None:
    assert "best lr" not in text_of(page_of())
    result["objective"] = {"name": "accuracy", "direction": "maximize"}
    result["stages"][2] |= {"stage": "warmup", "before": 0.05, "after": {"steps": 500}}
    result["stages"][2]["details"] |= {
        "recentred": [
            {
                "candidate": "0.9",
                "lrs": [0.005, 0.01, 0.02],
                "scores": [-0.5, -0.75, None],
                "outcomes": ["completed", "completed", "diverged"],
                "lr": 0.0123,
            }
        ],
        "gradient_rms": 0.00125,
        "gradient_norm": {"p50": 0.4, "p90": 1.5, "records": 64},
        "seconds_a_step": {"fp32": 0.002, "bf16": 0.004, "fp16": None},
        "late_to_middle": {"m_hat": 0.25, "sqrt_v_hat": None},
        "gaps": {"none": {"training": 0.5, "validation": 0.75, "gap": 0.25}},
        "factorial": [
            {"changes": {}, "score": -0.5},
            {"changes": {"beta1": 0.8}, "score": None},
            {"changes": {"beta1": 0.8, "weight_decay": 0.1}, "score": -0.75},
        ],
    }
    text = text_of(page_of())
    assert "0.05 before, 500 steps after." in text
    assert re.search(r"0\.9\s+0\.5 at 0\.005, 0\.75 at 0\.01, diverged at 0\.02\s+0\.0123", text)
    assert "RMS of a typical weight's gradient, by the probe: 0.00125." in text
    assert "by 64 records of the probe: median 0.4, 90th percentile 1.5." in text
    assert "Milliseconds a step, trained alone: fp32 2, bf16 4." in text
    assert "medians of Adam's state by the probe: m_hat 0.25, sqrt_v_hat -." in text
    assert re.search(r"beta1 0\.8, weight_decay 0\.1\s+0\.75\s+nothing\s+0\.5\s+beta1 0\.8\s+pruned or diverged", text)
    assert re.search(r"training loss at the end\s+validation loss\s+gap\s+none\s+0\.5\s+0\.75\s+0\.25", text)


def test_a_stage_that_brings_in_what_was_not_there_shows_it(page_of: Callable[[], str], result: dict[str, Any]) -> None:
    after = {"to": "sgd", "at": 0.8, "lr": 0.05, "momentum": 0.9}
    result["stages"][2] |= {"stage": "switch", "before": None, "after": after}
    assert "- before, to sgd, at 0.8, lr 0.05, momentum 0.9 after." in text_of(page_of())


def test_the_terminal_shows_it_too(
    result: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    after = {"to": "sgd", "at": 0.8, "lr": 0.05, "momentum": 0.9}
    result["stages"] = [stage("switch", "changed", before=None, after=after), stage("clip"), stage("warmup", "unasked")]
    print_result(result, Path("here"))
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r" switch +changed +- +to sgd, at 0\.8, lr 0\.05, momentum 0\.9 +because of switch", lines[1])
    assert re.match(r" clip +kept +because of clip", lines[2])


def test_no_score_at_all(page_of: Callable[[], str], result: dict[str, Any]) -> None:
    result["stages"][2]["details"] |= {"scores": [None, None], "incumbent_score": None}
    result["stages"][1]["details"]["responses"][0]["scores"] = [None, None, None]
    page = page_of()
    assert points(figure(page, "Mean validation loss by lr"), "60 steps") == []
    ended = ("0.9", "0.99", "incumbent, 0.999")
    assert "; ".join(f"{each} (pruned or diverged)" for each in ended) in text_of(page)


def test_an_objective_to_maximise_is_shown_in_its_own_sign(page_of: Callable[[], str], result: dict[str, Any]) -> None:
    result["objective"] = {"name": "accuracy", "direction": "maximize"}
    result["stages"][1]["details"]["responses"][0]["scores"] = [-0.5, -0.75, None]
    page = page_of()
    assert points(figure(page, "Mean validation accuracy by lr"), "60 steps") == [(0.001, 0.5), (0.01, 0.75)]
    assert "higher is better" in text_of(page)
    assert "right of zero the challenger is better" in text_of(page)


def test_evidence_is_told_by_seed_and_in_sum(page_of: Callable[[], str]) -> None:
    page = page_of()
    text = text_of(page)
    assert "Paired difference -0.25 [-, -] over 1 confirmation seeds; left of zero the challenger is better." in text
    assert re.search(r"100\s+0\.5\s+0\.25\s+-0\.25", text)
    assert re.search(r"101\s+-\s+0\.3\s+-", text)  # the incumbent diverged on this seed
    by_seed, mean = figure(page, "Paired difference")["data"]
    assert by_seed["x"] == [-0.25]
    assert "error_x" not in mean


def test_an_interval_is_drawn_as_bars(page_of: Callable[[], str], result: dict[str, Any]) -> None:
    result["stages"][1]["evidence"]["difference"]["ci95"] = [-0.5, 0.25]
    _, mean = figure(page_of(), "Paired difference")["data"]
    assert mean["error_x"]["arrayminus"] == [0.25]
    assert mean["error_x"]["array"] == [0.5]


def test_learning_curves_of_the_last_comparison(page_of: Callable[[], str]) -> None:
    drawn = figure(page_of(), "The last comparison")
    lines = {(trace["name"], trace["y"][-1]) for trace in drawn["data"]}
    assert lines == {("default (lr 0.001)", 0.001 + 1 / 300), ("recommended (lr 0.0123)", 0.0123 + 1 / 300)}
    assert len(drawn["data"]) == 4
    assert sum(trace["showlegend"] for trace in drawn["data"]) == 2


def test_a_default_that_is_also_recommended_was_trained_once(
    page_of: Callable[[], str], tables: dict[str, list[dict[str, Any]]]
) -> None:
    for name, rows in tables.items():
        tables[name] = [row for row in rows if row["trial"] < 2]
    drawn = figure(page_of(), "The last comparison")
    assert {trace["name"] for trace in drawn["data"]} == {"default, which is also recommended (lr 0.001)"}


def test_a_diverged_line_ends_where_it_diverged(
    page_of: Callable[[], str], tables: dict[str, list[dict[str, Any]]]
) -> None:
    tables["trials.csv"][1]["outcome"] = "diverged"
    tables["curves.csv"][3]["loss"] = ""
    page = page_of()
    assert "1 of 4 diverged" in text_of(page)
    assert sorted(len(trace["y"]) for trace in figure(page, "The last comparison")["data"]) == [1, 2, 2, 2]


def test_the_probe_of_the_last_recommended_trial(page_of: Callable[[], str]) -> None:
    page = page_of()
    assert points(figure(page, "r = "), "NA p50") == [(150, 4 / 150), (300, 4 / 300)]
    assert points(figure(page, "lr * r"), "NA p90") == [(150, 4 / 150), (300, 4 / 300)]
    assert "on seed 21" in text_of(page)
    assert "Zero, which a log axis cannot show: NA p10 (2 of 2 points)." in text_of(page)


def test_percentiles_that_fall_without_end_do_not_flatten_the_rest(
    page_of: Callable[[], str], tables: dict[str, list[dict[str, Any]]]
) -> None:
    for row in tables["probe.csv"]:
        row["value"] = 1e-30 if row["percentile"] == "p10" else 0.5
    page = page_of()
    bottom, top = figure(page, "r = ")["layout"]["yaxis"]["range"]
    assert top - bottom < 7
    assert "falls to 1e-30" in text_of(page)


def test_a_step_where_all_is_zero_is_told_once(
    page_of: Callable[[], str], tables: dict[str, list[dict[str, Any]]]
) -> None:
    for row in tables["probe.csv"]:
        row["value"] = 0.0 if row["step"] == 300 else 0.5
    assert "All are 0 at step 300." in text_of(page_of())
    assert "cannot show" not in text_of(page_of())


def test_what_a_run_has_not_is_left_out(
    tmp_path: Path, page_of: Callable[[], str], result: dict[str, Any], tables: dict[str, list[dict[str, Any]]]
) -> None:
    whole = text_of(page_of())
    result["stages"] = []
    for name in ("curves.csv", "probe.csv", "environment.json", "recipe.yaml"):
        (tmp_path / name).unlink()
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    page = report_html(tmp_path)
    assert [caption[:35] for caption in figures(page)] == ["Where the last comparison ended: a "]
    for heading in ("Learning curves", "Adam's state", "lr_range: measured", "torch 2.13.0"):
        assert heading in whole
        assert heading not in text_of(page)
    assert re.search(r"Recommended\s+loss 0\.07", text_of(page))


def test_a_table_with_a_heading_alone(tmp_path: Path, page_of: Callable[[], str]) -> None:
    page_of()
    (tmp_path / "probe.csv").write_text("stage,study,trial,seed,step,group,statistic,percentile,value\n")
    assert "Adam's state" not in text_of(report_html(tmp_path))


def test_how_to_reproduce(tmp_path: Path, page_of: Callable[[], str]) -> None:
    text = text_of(page_of())
    assert f"adamtune sweep {tmp_path / 'spec.yaml'} --run-dir" in text
    assert "horizon: 300  # <b>" in text
    assert "torch 2.13.0" in text


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no run directory"):
        report_html(tmp_path)


def test_a_report_needs_no_torch_and_the_plot_module_loads_nothing_heavy(
    tmp_path: Path, page_of: Callable[[], str]
) -> None:
    page_of()
    code = (
        "import sys, pathlib, adamtune.report.lr_plot\n"
        "print([name for name in ('torch', 'pandas', 'plotly', 'plotext') if name in sys.modules])\n"
        "from adamtune.report.html import report_html\n"
        "report_html(pathlib.Path(sys.argv[1]))\n"
        "print([name for name in ('torch', 'optuna', 'adamtune.task') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def found(curve: RangeCurve, suggestion: float | None = 0.0219, response: Response | None = None) -> LRFindResult:
    return LRFindResult(
        task="</script><b>task",
        status=LRFindStatus.OK if suggestion else LRFindStatus(curve.status),
        reason="the reason",
        stopped="the ramp ended at lr 0.1",
        group=None,
        suggestion=suggestion,
        interval=(0.01, 0.04) if suggestion else None,
        horizon=300,
        seeds=2,
        steps_used=1980,
        seconds=2.0,
        curve=curve,
        response=response,
    )


@pytest.fixture
def curve() -> RangeCurve:
    return read_curve(LRS, [FALL, [loss + 0.01 for loss in FALL]], window=2.0)


@pytest.mark.parametrize("width", [80, 60, 40])
def test_the_terminal_plot_keeps_its_width_and_names_band_and_suggestion(curve: RangeCurve, width: int) -> None:
    plot = lr_terminal_plot(found(curve), width)
    lines = plot.split("\n")
    assert max(map(len, lines)) <= width
    assert "\x1b" not in plot
    assert "! suggestion 0.0219" in plot
    assert curve.band is not None
    assert "│ band {:.2g} to {:.2g}".format(*curve.band) in plot
    (ticks,) = [line for line in lines if "1e-6" in line]
    assert ticks.split() == ["1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1"]


def test_the_suggestion_stands_at_its_place_in_the_terminal(curve: RangeCurve) -> None:
    lines = lr_terminal_plot(found(curve, suggestion=1e-3), 80).split("\n")
    (ticks,) = [line for line in lines if "1e-6" in line]
    column = lines[3].index("!")
    assert abs(column - (ticks.index("1e-3") + 1)) <= 2


def test_a_suggestion_outside_the_band_is_explained(curve: RangeCurve, capfd: pytest.CaptureFixture[str]) -> None:
    assert curve.band is not None
    print_lr_find(found(curve, suggestion=curve.band[1] * 3), "")
    assert "\nnote:        the suggestion lies outside the band" in capfd.readouterr().out
    print_lr_find(found(curve, suggestion=curve.band[0]), "")
    assert "note:" not in capfd.readouterr().out


def test_the_terminal_plot_grows_down_to_its_height(curve: RangeCurve) -> None:
    assert lr_terminal_plot(found(curve), 80, height=12).count("\n") < lr_terminal_plot(found(curve), 80).count("\n")


def test_a_divergence_does_not_flatten_the_terminal_plot() -> None:
    diverging = read_curve(LRS, [[*FALL[:-1], 1e9]], window=1.0)
    plot = lr_terminal_plot(found(diverging), 80)
    assert len([line for line in plot.split("\n") if set(line) & set("▖▗▘▝▄▀▌▐")]) > 5


def test_the_few_points_of_a_short_ramp_are_joined() -> None:
    short = read_curve(LRS[::5], [FALL[::5]], window=1.0)
    body = "".join(lr_terminal_plot(found(short), 80).split("\n")[:-2])
    assert sum(mark in "▖▗▘▝▄▀▌▐▚▞▙▛▜▟█" for mark in body) > 40
    (drawn,) = figures(lr_html_plot(found(short))).values()
    assert "spread over seeds" not in {trace.get("name") for trace in drawn["data"]}


def test_two_plots_in_a_row_do_not_mix(curve: RangeCurve) -> None:
    alone = lr_terminal_plot(found(curve), 80)
    lr_terminal_plot(found(curve, suggestion=1e-5), 80)
    assert lr_terminal_plot(found(curve), 80) == alone


def test_a_curve_without_a_band_is_drawn_without_marks() -> None:
    flat = read_curve(LRS, [[2.0 + 0.1 * math.sin(9 * k) for k in range(len(LRS))]], window=2.0)
    assert flat.band is None
    plot = lr_terminal_plot(found(flat, suggestion=None), 80)
    assert "band" not in plot
    assert "!" not in plot
    assert "none (noisy: the reason)" in text_of(lr_html_plot(found(flat, suggestion=None)))


def test_no_curve_no_plot() -> None:
    nothing = read_curve(LRS, [[math.nan]], window=2.0)
    assert lr_terminal_plot(found(nothing, suggestion=None), 80) == ""
    assert "none (diverging: the reason)" in text_of(lr_html_plot(found(nothing, suggestion=None)))


def test_the_lr_page_shows_curve_rules_and_short_trials(curve: RangeCurve) -> None:
    response = Response(60, (1e-3, 1e-2, 1e-1), (0.75, 0.25, math.inf))
    page = lr_html_plot(found(curve, response=response))
    drawn = figure(page, "Range test over 2 seeds")
    assert points(drawn, "median of the seeds") == list(zip(LRS, curve.losses, strict=True))
    assert points(drawn, "validation loss after 60 steps") == [(1e-3, 0.75), (1e-2, 0.25)]
    assert {x for x, _ in points(drawn, "adamtune 0.022")} == {0.0219}
    for rule, lr in curve.suggestions.items():
        assert {x for x, _ in points(drawn, f"{rule} {lr:.2g}")} == {lr}
    assert "suggestion for 300 steps: 0.0219" in text_of(page)
    assert "between 0.01 and 0.04" in text_of(page)
    assert "1 diverged or were pruned" in text_of(page)


def test_the_lr_page_is_one_file_and_lets_no_task_name_out(curve: RangeCurve) -> None:
    page = lr_html_plot(found(curve))
    assert page.count(get_plotlyjs()) == 1
    assert len(page.encode()) < 6_000_000
    assert loads_from_elsewhere(page) == []
    assert "b" not in tags(page)
    assert "</script><b>task" in text_of(page)
