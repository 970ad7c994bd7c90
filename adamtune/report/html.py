"""report.html: a run to look at, in one file, built from the files of its run directory alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from adamtune import rundir
from adamtune.report.figures import Line, ends_figure, lines_figure
from adamtune.report.findings import findings_section
from adamtune.report.line_table import lines_table
from adamtune.report.page import Section, cards, page, paragraph, picture, table, verbatim
from adamtune.report.probe_section import probe_section
from adamtune.report.reproduce import file_text, reproduce_section
from adamtune.report.stage_section import stage_section
from adamtune.report.trials_section import trials_section
from adamtune.report.unfinished import is_unfinished, unfinished_html
from adamtune.report.wording import number, steps_to, with_bounds, with_interval, without_mean
from adamtune.run_tables import all_rows, final_rows

Result = Mapping[str, Any]


def report_html(run_dir: Path, result: Result | None = None) -> str:
    """The page of a run, of an unfinished one as far as it came. What it did not ask or measure has no section.

    `result` stands for its result.json where that is not written yet. Raises `RunDirError` when the folder is no run.
    """
    if is_unfinished(run_dir, result):
        return unfinished_html(run_dir)
    result = rundir.read_result(run_dir) if result is None else result
    objective, trials = result["objective"], all_rows(run_dir, rundir.TRIALS)
    final = trials if trials.empty else trials[trials["stage"] == rundir.FINAL]
    sections = [
        _recipe(run_dir, result),
        stage_section(result["stages"], objective),
        trials_section(trials, result["horizon"], objective["name"], objective["direction"]),
        _learning_curves(run_dir, result, final),
        probe_section(run_dir, final, objective["name"], "the recommended recipe"),
        findings_section(run_dir, result),
        reproduce_section(run_dir),
    ]
    return page(f"adamtune: {result['task']['ref']}", _answer(result), [section for section in sections if section])


def _answer(result: Result) -> str:
    default, recommended, name = result["default"], result["recommended"], result["objective"]["name"]
    better = "lower" if result["objective"]["direction"] == "minimize" else "higher"
    horizons = result["steps_used"] / result["horizon"] if result["horizon"] > 0 else 0.0
    gain, told = _gain(result)
    parts = [
        paragraph(_in_short(result["changed"]), "answer"),
        cards(
            [
                ("Recommended", *_measured(name, recommended)),
                ("Default", *_measured(name, default)),
                ("Gain over the default", gain, told),
                (
                    "Cost of the sweep",
                    f"{result['steps_used']:,} steps",
                    f"as many as {horizons:,.0f} whole runs; {result['wall_seconds']:,.0f} seconds",
                ),
            ]
        ),
        paragraph(
            f"After {result['horizon']:,} steps, on fresh seeds that no stage has seen; {better} is better. The 95% "
            "interval of a recipe is for the mean over ten seeds of your own."
        ),
    ]
    if result["objective"].get("time_to") is not None:
        parts.append(paragraph(_time_to(result)))
    measured = {role: result[role] for role in ("recommended", "default")}
    if any(each is not None for of in measured.values() for each in of["values"]):
        rows = [[role, *map(number, of["values"])] for role, of in measured.items()]
        most = max(map(len, rows)) - 1
        data = table(["recipe", *(f"seed {place}" for place in range(1, most + 1))], rows, f"{name} by fresh seed")
        caption = "Where the last comparison ended: a dot for each fresh seed, and the mean with its interval."
        parts.append(picture(ends_figure(name, measured, (1, 0)), caption, data))
    return "\n".join(parts)


def _in_short(changed: Mapping[str, Mapping[str, Any]]) -> str:
    """The recipe as what differs from the default."""
    if not changed:
        return "Keep the default recipe: nothing did better by evidence."
    pairs = (
        f"{knob} from {number(pair['default'])} to {number(pair['recommended'])}" for knob, pair in changed.items()
    )
    return f"Change {'; '.join(pairs)}."


def _time_to(result: Result) -> str:
    default, recommended = (steps_to(result[role]) for role in ("default", "recommended"))
    objective = result["objective"]
    return f"To {objective['name']} {number(objective['time_to'])}: {default} by default, {recommended} recommended."


def _measured(objective: str, measured: Mapping[str, Any]) -> tuple[str, str]:
    if measured["mean"] is None:
        how, _, where = without_mean(measured).partition(" on ")
        return how, f"on {where}"
    told = with_interval(measured)
    return f"{objective} {number(measured['mean'])}", told[told.index("[") :]


def _gain(result: Result) -> tuple[str, str]:
    """In a few words, and by which figures."""
    default, recommended = result["default"]["mean"], result["recommended"]["mean"]
    difference, told = result.get("difference"), []
    if difference and difference["mean"] is not None:
        told.append(f"difference by seed: {with_bounds(difference)}")
    ratio = None
    if default is not None and recommended is not None and default > 0 and recommended > 0:
        ratio = recommended / default
        told.append(f"ratio: {ratio:.3f}")
    if not result["changed"]:
        much = "none"
    elif difference and _spans_zero(difference["ci95"]):
        much = "within noise"
    elif ratio is not None:
        much = f"{100 * abs(1 - ratio):.0f}% {'lower' if ratio < 1 else 'higher'}"
    elif difference and difference["mean"] is not None:
        much = number(abs(difference["mean"]))
    else:
        much = "-"
    return much, "; ".join(told)


def _spans_zero(interval: list[float | None]) -> bool:
    low, high = interval
    return low is not None and high is not None and low <= 0 <= high


def _recipe(run: Path, result: Result) -> Section:
    changed, parts = result["changed"], []
    if changed:
        rows = [[knob, number(pair["default"]), number(pair["recommended"])] for knob, pair in changed.items()]
        parts.append(table(["changed knob", "default", "recommended"], rows))
    else:
        parts.append(paragraph("No knob was changed: nothing did better than the default by evidence."))
    knobs, mark, provenance = file_text(run, rundir.RECIPE).partition("\nprovenance:")
    parts.append(verbatim(knobs, rundir.RECIPE))
    if mark:
        whole = verbatim(mark.lstrip() + provenance, f"provenance in {rundir.RECIPE}")
        parts.append(f"<details><summary>Where each value comes from</summary>{whole}</details>")
    command = f"adamtune export {shlex.quote(str(run))} --format python --to optim_recipe.py"
    parts += [paragraph("To use it in your training script:"), verbatim(command, "Command to export the recipe")]
    return Section("Recipe", "\n".join(parts), "recipe")


def _learning_curves(run: Path, result: Result, final: pd.DataFrame) -> Section | None:
    """Validation curves of the last comparison, default against recommended."""
    curves = final_rows(run, rundir.CURVES)
    objective = result["objective"]["name"]
    if final.empty or curves.empty or objective not in curves:
        return None
    curves = curves.dropna(subset=[objective])
    lines = []
    for trial, (name, seed) in _names_of_final(final).items():
        rows = curves[curves["trial"] == trial]
        colour = int(name.startswith("recommended"))
        lines.append(Line(name, rows["step"].tolist(), rows[objective].tolist(), colour, of=f"seed {seed}"))
    drawn = lines_figure("step", f"validation {objective}", lines)
    diverged = int((final["outcome"] == "diverged").sum())
    ends = f" {diverged} of {len(final)} diverged; their lines end there." if diverged else ""
    caption = f"The last comparison, one line for each fresh seed.{ends}"
    return Section("Learning curves", picture(drawn, caption, lines_table("step", lines)), "curves")


def _names_of_final(final: pd.DataFrame) -> dict[int, tuple[str, str]]:
    """Which recipe each trial of the last comparison trained, and its seed: on every seed the default came first."""
    names = {}
    for seed, rows in final.sort_values("trial").groupby("seed"):
        roles = ["default", "recommended"] if len(rows) > 1 else ["default, which is also recommended"]
        for role, trial, lr in zip(roles, rows["trial"], rows["lr"], strict=False):
            names[int(trial)] = f"{role} (lr {lr:g})", str(seed)
    return names
