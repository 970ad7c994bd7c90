"""One page over several runs: what each measured, decided and recommends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from adamtune import rundir
from adamtune.comparison import compare
from adamtune.report.figures import Line, ends_figure, lines_figure
from adamtune.report.line_table import lines_table
from adamtune.report.page import Section, page, paragraph, picture, table
from adamtune.report.wording import number, with_bounds, with_interval
from adamtune.run_tables import final_rows, recommended_trials

Results = Mapping[str, Mapping[str, Any]]


def several_html(runs: Sequence[Path]) -> str:
    """The page of two finished runs or more, in the order given.

    Raises `RunDirError` for one that has not finished; `RecipeError` where the recipe of one of two cannot be read.
    """
    results = {name: rundir.read_result(run) for name, run in zip(_names(runs), runs, strict=True)}
    sections = [
        Section("What each decided", _verdicts(results), "verdicts"),
        Section("What each changed", _changes(results), "changes"),
        _curves(runs, results),
    ]
    lead = (_paired(runs, list(results)) if len(runs) == 2 else "") + _measured(results) + _means(results)
    return page(f"adamtune: {len(runs)} runs", lead, [section for section in sections if section])


def _names(runs: Sequence[Path]) -> list[str]:
    """Names of the folders, or whole paths where two of those are the same."""
    short = [run.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def _measured(results: Results) -> str:
    columns = [_figures(result) for result in results.values()]
    rows = [[what, *(each[what] for each in columns)] for what in columns[0]]
    return table(["measured", *results], rows, "What each run measured") + paragraph("Intervals are 95%.")


def _means(results: Results) -> str:
    """The recommended recipes side by side, where all runs have one objective and one of them has a value."""
    measured = {name: result["recommended"] for name, result in results.items()}
    values = [value for of in measured.values() for value in of["values"]]
    objective = _one_objective(results)
    if objective is None or all(value is None for value in values):
        return ""
    most = max(len(of["values"]) for of in measured.values())
    rows = [
        [name, with_interval(of), *map(number, of["values"]), *["-"] * (most - len(of["values"]))]
        for name, of in measured.items()
    ]
    data = table(["run", "mean, 95%", *(f"seed {place}" for place in range(1, most + 1))], rows, f"{objective} by run")
    without = [name for name, of in measured.items() if of["mean"] is None]
    caption = "The recommended recipe of each run: a dot for each fresh seed, and the mean with its 95% interval."
    if without:
        caption += f" No mean, because a seed has no value: {', '.join(without)}."
    return picture(ends_figure(objective, measured, range(1, len(measured) + 1)), caption, data)


def _one_objective(results: Results) -> str | None:
    """The objective's name where it is that of all runs; None where they have several."""
    names = {result["objective"]["name"] for result in results.values()}
    return names.pop() if len(names) == 1 else None


def _figures(result: Mapping[str, Any]) -> dict[str, str]:
    objective, difference = result["objective"], result.get("difference")
    return {
        "task": result["task"]["ref"],
        "horizon": f"{result['horizon']:,}",
        "objective": f"{objective['name']}, {objective['direction']}",
        "default": with_interval(result["default"]),
        "recommended": with_interval(result["recommended"]),
        "difference by seed": with_bounds(difference) if difference and difference["mean"] is not None else "-",
        "steps used": f"{result['steps_used']:,}",
        "wall seconds": f"{result['wall_seconds']:,.0f}",
    }


def _paired(runs: Sequence[Path], names: Sequence[str]) -> str:
    """The recommended recipes of two runs on the seeds they share."""
    compared = compare(*runs).runs
    if compared is None:
        return ""
    if compared.paired is None:
        return paragraph(f"Not paired: {compared.unpaired}.")
    (one, other), paired = names, compared.paired
    better = {"a": one, "b": other}.get(paired.better or "", "neither")
    bounds = with_bounds({"mean": paired.difference.mean, "ci95": (paired.difference.low, paired.difference.high)})
    over = f"{paired.difference.count} of {len(paired.seeds)} shared seeds"
    told = f"Recommended, {other} minus {one}: {bounds} over {over}."
    return paragraph(f"Better by evidence: {better}.", "answer") + paragraph(told)


def _verdicts(results: Results) -> str:
    asked = {name: {stage["stage"]: stage["verdict"] for stage in result["stages"]} for name, result in results.items()}
    stages = dict.fromkeys(stage for verdicts in asked.values() for stage in verdicts)
    return table(["stage", *asked], [[stage, *(each.get(stage, "-") for each in asked.values())] for stage in stages])


def _changes(results: Results) -> str:
    changed = {name: result["changed"] for name, result in results.items()}
    knobs = dict.fromkeys(knob for knobs in changed.values() for knob in knobs)
    if not knobs:
        return paragraph("No run changed a knob of its default.")
    rows = []
    for knob in knobs:
        cells = [f"{number(each[knob]['default'])} to {number(each[knob]['recommended'])}" if knob in each else "kept"
                 for each in changed.values()]  # fmt: skip
        rows.append([knob, *cells])
    return table(["knob", *changed], rows, "Knobs that a run changed")


def _curves(runs: Sequence[Path], results: Results) -> Section | None:
    """The recommended recipes' learning curves, where all runs have one objective."""
    objective = _one_objective(results)
    if objective is None:
        return None
    lines = []
    for colour, (name, run) in enumerate(zip(results, runs, strict=True), start=1):
        curves = final_rows(run, rundir.CURVES)
        for seed, trial in recommended_trials(final_rows(run, rundir.TRIALS)).items():
            lines.append(_line(name, seed, curves[curves["trial"] == trial], objective, colour))
    if not any(line.xs for line in lines):
        return None
    drawn = lines_figure("step", f"validation {objective}", lines)
    caption = "The recommended recipe of each run, one line for each fresh seed."
    return Section("Learning curves", picture(drawn, caption, lines_table("step", lines)), "curves")


def _line(name: str, seed: int, rows: pd.DataFrame, objective: str, colour: int) -> Line:
    known = rows.dropna(subset=[objective])
    return Line(name, known["step"].tolist(), known[objective].tolist(), colour, of=f"seed {seed}")
