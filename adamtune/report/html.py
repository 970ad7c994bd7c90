"""report.html: a run to look at, in one file, built from the files of its run directory alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from adamtune import rundir
from adamtune.plan import FINAL
from adamtune.report.figures import lines_figure, range_figure, response_figure
from adamtune.report.page import page, paragraph, picture, table
from adamtune.report.terminal import number, with_interval

Result = Mapping[str, Any]

_LINEAR_KNOBS = ("warmup",)


def report_html(run: Path) -> str:
    """The page of a finished run.

    Raises `RunDirError` when the run has no result.
    """
    result = rundir.read_result(run)
    sections = [_answer(run, result)]
    sections += [_stage(stage) for stage in result["stages"]]
    trials = pd.read_csv(run / rundir.TRIALS)
    final = trials[trials["stage"] == FINAL]
    sections += [_curves(run, result, final), _probe(run, result, final), _reproduce(run)]
    return page(f"adamtune: {result['task']['ref']}", sections)


def _answer(run: Path, result: Result) -> str:
    default, recommended = result["default"], result["recommended"]
    objective = result["objective"]["name"]
    parts = [
        paragraph(f"recommended: {objective} {with_interval(recommended)}", "answer"),
        paragraph(f"default: {objective} {with_interval(default)}"),
    ]
    if default["mean"] and recommended["mean"]:
        parts.append(paragraph(f"Ratio {recommended['mean'] / default['mean']:.3f}."))
    cost = f"It cost {result['steps_used']:,} training steps and {result['wall_seconds']:.0f} seconds."
    parts.append(paragraph(f"{cost} Both were measured on fresh seeds that no stage has seen; intervals are 95%."))
    changed = result["changed"]
    if changed:
        rows = [[name, number(pair["default"]), number(pair["recommended"])] for name, pair in changed.items()]
        parts.append(table(["knob", "default", "recommended"], rows))
    else:
        parts.append(paragraph("No knob was changed: nothing did better than the default by evidence."))
    parts.append(f"<pre>{escape((run / rundir.RECIPE).read_text(encoding='utf-8'))}</pre>")
    return "\n".join(parts)


def _stage(stage: Mapping[str, Any]) -> str:
    name, details = stage["stage"], stage["details"]
    parts = [f"<h2>{escape(name)}: {escape(stage['verdict'])}</h2>", paragraph(stage["question"])]
    parts.append(paragraph(stage["reason"]))
    if stage["before"] is not None:
        parts.append(paragraph(f"{number(stage['before'])} before, {number(stage['after'])} after."))
    if "lrs" in details:
        drawn = range_figure(details, details["band"], details["suggestions"])
        parts.append(picture(drawn, "Training loss while lr rises; shaded green: the band where it falls."))
    if "responses" in details:
        drawn = response_figure(details["responses"], "learning rate", log_x=True)
        parts.append(picture(drawn, "Mean validation result by lr; pruned and diverged ones have no point."))
    if "values" in details:
        response = {"lrs": details["values"], "scores": details["scores"], "horizon": "full-length trials, horizon"}
        drawn = response_figure([response], name, name not in _LINEAR_KNOBS, details["incumbent_score"])
        parts.append(picture(drawn, f"Mean result by {name} on the search seeds; pruned ones have no point."))
    if stage["evidence"]:
        evidence = stage["evidence"]
        rows = [
            [str(seed), number(here), number(there)]
            for seed, here, there in zip(
                evidence["seeds"], evidence["incumbent"], evidence["challenger"], strict=True
            )
        ]  # fmt: skip
        parts.append(table(["confirmation seed", "incumbent", "challenger"], rows))
    return "\n".join(parts)


def _curves(run: Path, result: Result, final: pd.DataFrame) -> str:
    """Validation curves of the last comparison, default against recommended."""
    curves = pd.read_csv(run / rundir.CURVES)
    curves = curves[curves["stage"] == FINAL]
    objective = result["objective"]["name"]
    if final.empty or objective not in curves:
        return ""
    default_trials = _trials_of(result, "default", final)
    lines = []
    for trial, rows in curves.groupby("trial"):
        is_default = trial in default_trials
        name = "default" if is_default else "recommended"
        lines.append((name, int(not is_default), rows["step"].tolist(), rows[objective].tolist()))
    lines.sort(key=lambda line: line[1])
    drawn = lines_figure("step", f"validation {objective}", lines, log_y=bool((curves[objective].dropna() > 0).all()))
    return "<h2>Learning curves</h2>" + picture(drawn, "The last comparison, one line a fresh seed.")


def _trials_of(result: Result, which: str, final: pd.DataFrame) -> set[int]:
    """The final trials of the default recipe come first; those of another recommended one follow."""
    ordered = final.sort_values("trial")["trial"].tolist()
    count = result["default"]["seeds"]
    return set(ordered[:count] if which == "default" else ordered[-count:])


def _probe(run: Path, result: Result, final: pd.DataFrame) -> str:
    """Adam's state over one final trial of the recommended recipe."""
    probe = pd.read_csv(run / rundir.PROBE)
    probe = probe[probe["stage"] == FINAL]
    if final.empty or probe.empty:
        return ""
    probe = probe[probe["trial"] == max(_trials_of(result, "recommended", final))]
    parts = ["<h2>What Adam does inside</h2>"]
    captions = {
        "r": "r = |m_hat| / (sqrt(v_hat) + eps), the step before lr: 10th, 50th and 90th percentile by param group.",
        "lr_r": "lr * r, the effective step of a parameter: the same percentiles.",
    }
    for statistic, caption in captions.items():
        rows = probe[(probe["statistic"] == statistic) & (probe["value"] > 0)]
        lines = [
            (f"{group} {percentile}", number_of, part["step"].tolist(), part["value"].tolist())
            for number_of, ((group, percentile), part) in enumerate(rows.groupby(["group", "percentile"]))
        ]
        if lines:
            parts.append(picture(lines_figure("step", statistic, lines, log_y=True), caption))
    return "\n".join(parts)


def _reproduce(run: Path) -> str:
    environment = json.loads((run / rundir.ENVIRONMENT).read_text(encoding="utf-8"))
    packages = ", ".join(f"{name} {version}" for name, version in environment.pop("packages", {}).items())
    rows = [[key, " ".join(value) if isinstance(value, list) else str(value)] for key, value in environment.items()]
    spec = (run / rundir.SPEC).read_text(encoding="utf-8")
    return "\n".join(
        [
            "<h2>Environment and how to reproduce</h2>",
            paragraph(f"adamtune sweep {run / rundir.SPEC} --run-dir a-new-folder"),
            f"<pre>{escape(spec)}</pre>",
            table(["", ""], [*rows, ["packages", packages]]),
        ]
    )
