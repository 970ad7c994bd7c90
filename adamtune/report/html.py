"""report.html: a run to look at, in one file, built from the files of its run directory alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from adamtune import rundir
from adamtune.report.figures import (
    DEPTH,
    Line,
    difference_figure,
    lines_figure,
    percentiles_figure,
    range_figure,
    response_figure,
    values_figure,
)
from adamtune.report.findings import findings_section
from adamtune.report.page import page, paragraph, picture, table
from adamtune.report.wording import number, with_bounds, with_interval
from adamtune.run_tables import final_rows

Result = Mapping[str, Any]

_PERCENTILES = {"p10": "dot", "p50": "solid", "p90": "dash"}
_PROBED = {
    "r": "r = |m_hat| / (sqrt(v_hat) + eps), the step of a parameter before lr",
    "lr_r": "lr * r, the step a parameter makes",
}


def report_html(run_dir: Path, result: Result | None = None) -> str:
    """The page of a finished run. What the run did not ask or measure has no section.

    `result` stands for its result.json where that is not written yet. Raises `RunDirError` when there is neither.
    """
    result = rundir.read_result(run_dir) if result is None else result
    final = final_rows(run_dir, rundir.TRIALS)
    sections = [
        _answer(run_dir, result),
        *[_stage(stage, result["objective"]) for stage in result["stages"]],
        _learning_curves(run_dir, result, final),
        _probe(run_dir, final),
        findings_section(run_dir, result),
        _reproduce(run_dir),
    ]
    return page(f"adamtune: {result['task']['ref']}", [section for section in sections if section])


def _answer(run: Path, result: Result) -> str:
    default, recommended, name = result["default"], result["recommended"], result["objective"]["name"]
    better = "lower" if result["objective"]["direction"] == "minimize" else "higher"
    parts = [
        paragraph(f"recommended: {name} {with_interval(recommended)}", "answer"),
        paragraph(f"default: {name} {with_interval(default)}"),
        paragraph(_comparison(result)),
        paragraph(
            f"After {result['horizon']:,} steps, on fresh seeds that no stage has seen; {better} is better, intervals "
            f"are 95%. The sweep cost {result['steps_used']:,} training steps and {result['wall_seconds']:.0f} seconds."
        ),
    ]
    changed = result["changed"]
    if changed:
        rows = [[knob, number(pair["default"]), number(pair["recommended"])] for knob, pair in changed.items()]
        parts.append(table(["changed knob", "default", "recommended"], rows))
    else:
        parts.append(paragraph("No knob was changed: nothing did better than the default by evidence."))
    return "\n".join([*parts, "<h3>Recipe</h3>", _file(run, rundir.RECIPE)])


def _comparison(result: Result) -> str:
    default, recommended = result["default"]["mean"], result["recommended"]["mean"]
    told = []
    if default is not None and recommended is not None and default > 0 and recommended > 0:
        told.append(f"ratio: {recommended / default:.3f}")
    difference = result.get("difference")
    if difference and difference["mean"] is not None:
        told.append(f"difference by seed: {with_bounds(difference)}")
    return "; ".join(told)


def _stage(stage: Mapping[str, Any], objective: Mapping[str, str]) -> str:
    details, evidence = stage["details"], stage["evidence"]
    parts = [f"<h2>{escape(stage['stage'])}: {escape(stage['verdict'])}</h2>"]
    parts += [paragraph(stage["question"]), paragraph(stage["reason"])]
    before, after = number(stage["before"]), number(stage["after"])
    if stage["before"] is not None or stage["after"] is not None:
        parts.append(paragraph(f"{before}, unchanged." if before == after else f"{before} before, {after} after."))
    if details.get("lrs"):
        parts.append(_range_picture(details))
    if details.get("responses"):
        parts.append(_response_picture(details["responses"], objective))
    if details.get("candidates"):
        parts.append(_candidates_picture(stage, objective))
    if details.get("recentred"):
        parts.append(_recentred(details["recentred"], objective))
    if details.get("gaps"):
        parts.append(_gaps(details["gaps"]))
    parts += _measured_facts(details)
    if evidence:
        parts.append(_evidence(evidence, objective))
    return "\n".join(parts)


def _range_picture(details: Mapping[str, Any]) -> str:
    drawn = range_figure(details, details["band"], details["suggestions"])
    shaded = "; shaded green: the band where it falls; dotted: what each rule suggests" if details["band"] else ""
    return picture(drawn, f"Training loss while lr rises, over all search seeds{shaded}.")


def _response_picture(responses: Sequence[Mapping[str, Any]], objective: Mapping[str, str]) -> str:
    shown = [dict(each, scores=_as_measured(each["scores"], objective)) for each in responses]
    missing = [
        f"{number(lr)} ({each['horizon']} steps)"
        for each in shown
        for lr, score in zip(each["lrs"], each["scores"], strict=True)
        if score is None
    ]
    caption = f"Mean validation {objective['name']} by lr, on the search seeds."
    return picture(response_figure(shown, objective["name"]), caption + _without_score(missing))


def _candidates_picture(stage: Mapping[str, Any], objective: Mapping[str, str]) -> str:
    details, knob = stage["details"], stage["stage"]
    scores = dict(zip(details["candidates"], _as_measured(details["scores"], objective), strict=True))
    (own,) = _as_measured([details.get("incumbent_score")], objective)
    drawn = values_figure(knob, objective["name"], scores, (number(stage["before"]), own))
    missing = [value for value, score in scores.items() if score is None]
    if own is None:
        missing.append(f"{number(stage['before'])}, the incumbent's")
    caption = f"Mean validation {objective['name']} by {knob}, on the search seeds."
    return picture(drawn, caption + _without_score(missing))


def _recentred(recentred: Sequence[Mapping[str, Any]], objective: Mapping[str, str]) -> str:
    """The best candidates at other learning rates, and the lr that follows for each."""
    rows = []
    for each in recentred:
        scores = _as_measured(each["scores"], objective)
        tried = ", ".join(f"{number(score)} at {number(lr)}" for lr, score in zip(each["lrs"], scores, strict=True))
        rows.append([each["candidate"], tried, number(each["lr"])])
    return table(["candidate", f"mean {objective['name']} at lr", "best lr"], rows)


def _gaps(gaps: Mapping[str, Mapping[str, float | None]]) -> str:
    """Training and validation loss at the end of the runs, by candidate."""
    columns = ["training", "validation", "gap"]
    rows = [[name, *(number(each[column]) for column in columns)] for name, each in gaps.items()]
    return table(["candidate", "training loss at the end", "validation loss", "gap"], rows)


def _measured_facts(details: Mapping[str, Any]) -> list[str]:
    """Where the candidates of a stage come from, or what they were judged by beside the objective."""
    told = []
    if details.get("gradient_rms"):
        told.append(f"RMS of a typical weight's gradient, by the probe: {number(details['gradient_rms'])}.")
    if details.get("gradient_norm"):
        norm = details["gradient_norm"]
        told.append(
            f"Gradient norm of the incumbent, by {norm['records']} records of the probe: median {number(norm['p50'])}, "
            f"90th percentile {number(norm['p90'])}."
        )
    if details.get("seconds_a_step"):
        times = ", ".join(f"{name} {number(1e3 * each)}" for name, each in details["seconds_a_step"].items() if each)
        told.append(f"Milliseconds a step, trained alone: {times}.")
    if details.get("late_to_middle"):
        changes = ", ".join(f"{name} {number(each)}" for name, each in details["late_to_middle"].items())
        told.append(f"Late in the run over midway, medians of Adam's state by the probe: {changes}.")
    return [paragraph(line) for line in told]


def _as_measured(scores: Sequence[float | None], objective: Mapping[str, str]) -> list[float | None]:
    """Scores are written as losses, lower is better; here, in the objective's own sign."""
    sign = 1.0 if objective["direction"] == "minimize" else -1.0
    return [None if score is None else sign * score for score in scores]


def _without_score(missing: Sequence[str]) -> str:
    return f" No point, because pruned or diverged: {', '.join(missing)}." if missing else ""


def _evidence(evidence: Mapping[str, Any], objective: Mapping[str, str]) -> str:
    """The incumbent against the best candidate, on seeds that chose neither."""
    rows, differences = [], []
    for seed, here, there in zip(evidence["seeds"], evidence["incumbent"], evidence["challenger"], strict=True):
        difference = None if here is None or there is None else there - here
        rows.append([str(seed), number(here), number(there), number(difference)])
        differences += [] if difference is None else [difference]
    parts = []
    mean = evidence["difference"]["mean"]
    if mean is not None:
        better = "left" if objective["direction"] == "minimize" else "right"
        caption = (
            f"Paired difference {with_bounds(evidence['difference'])} over {len(differences)} confirmation seeds; "
            f"{better} of zero the challenger is better."
        )
        drawn = difference_figure(objective["name"], differences, mean, evidence["difference"]["ci95"])
        parts.append(picture(drawn, caption))
    parts.append(table(["seed", "incumbent", "challenger", "difference"], rows))
    return "\n".join(parts)


def _learning_curves(run: Path, result: Result, final: pd.DataFrame) -> str:
    """Validation curves of the last comparison, default against recommended."""
    curves = final_rows(run, rundir.CURVES)
    objective = result["objective"]["name"]
    if final.empty or curves.empty or objective not in curves:
        return ""
    curves = curves.dropna(subset=[objective])
    lines = []
    for trial, name in _names_of_final(final).items():
        rows = curves[curves["trial"] == trial]
        lines.append(Line(name, rows["step"].tolist(), rows[objective].tolist(), int(name.startswith("recommended"))))
    drawn = lines_figure("step", f"validation {objective}", lines)
    diverged = int((final["outcome"] == "diverged").sum())
    ends = f" {diverged} of {len(final)} diverged; their lines end there." if diverged else ""
    return "<h2>Learning curves</h2>\n" + picture(drawn, f"The last comparison, one line for each fresh seed.{ends}")


def _names_of_final(final: pd.DataFrame) -> dict[int, str]:
    """Which recipe each trial of the last comparison trained: on every seed the default came first."""
    names = {}
    for _, rows in final.sort_values("trial").groupby("seed"):
        roles = ["default", "recommended"] if len(rows) > 1 else ["default, which is also recommended"]
        for role, trial, lr in zip(roles, rows["trial"], rows["lr"], strict=False):
            names[int(trial)] = f"{role} (lr {lr:g})"
    return names


def _probe(run: Path, final: pd.DataFrame) -> str:
    """Adam's state over one trial of the recommended recipe, the last of the last comparison that completed."""
    probe = final_rows(run, rundir.PROBE)
    completed = final[final["outcome"] == "completed"] if not final.empty else final
    if probe.empty or completed.empty:
        return ""
    seed = completed.sort_values("trial").iloc[-1]
    probe = probe[probe["trial"] == seed["trial"]]
    pictures = [_probe_picture(probe, statistic) for statistic in _PROBED]
    if not any(pictures):
        return ""
    told = paragraph(f"Percentiles of Adam's state by param group, over the recommended run on seed {seed['seed']}.")
    return "\n".join(["<h2>Adam's state</h2>", told, *pictures])


def _probe_picture(probe: pd.DataFrame, statistic: str) -> str:
    probe = probe[(probe["statistic"] == statistic) & probe["percentile"].isin(list(_PERCENTILES))]
    positive = probe[probe["value"] > 0]
    if positive.empty:
        return ""
    lines = []
    for colour, (group, own) in enumerate(positive.groupby("group"), start=1):
        for percentile, rows in own.groupby("percentile"):
            name, dash = f"{group} {percentile}", _PERCENTILES[str(percentile)]
            lines.append(Line(name, rows["step"].tolist(), rows["value"].tolist(), colour, dash))
    caption = f"{_PROBED[statistic]}: 10th, 50th and 90th percentile.{_unseen(probe)}"
    return picture(percentiles_figure(statistic, lines), caption)


def _unseen(probe: pd.DataFrame) -> str:
    """What a log axis cannot show, in words."""
    told = ""
    largest = probe.groupby("step")["value"].max()
    silent = largest[largest == 0].index.tolist()
    if silent:
        told += f" All are 0 at step {', '.join(map(str, silent))}."
    rest = probe[~probe["step"].isin(silent)]
    zeros = [
        f"{group} {percentile} ({int((rows['value'] == 0).sum())} of {len(rows)} points)"
        for (group, percentile), rows in rest.groupby(["group", "percentile"])
        if (rows["value"] == 0).any()
    ]
    if zeros:
        told += f" Zero, which a log axis cannot show: {', '.join(zeros)}."
    lowest = rest["value"][rest["value"] > 0].min()
    if lowest < largest.max() / DEPTH:
        told += f" What leaves the plot below falls to {lowest:.2g}."
    return told


def _reproduce(run: Path) -> str:
    parts = ["<h2>Environment and how to reproduce</h2>"]
    command = f"adamtune sweep {shlex.quote(str(run / rundir.SPEC))} --run-dir a-new-folder"
    parts += [f"<pre>{escape(command)}</pre>", f"<h3>{rundir.SPEC}</h3>", _file(run, rundir.SPEC)]
    rows = [[key, _in_words(value)] for key, value in _environment(run).items() if value not in (None, "")]
    if rows:
        parts.append(table(["environment", "value"], rows))
    return "\n".join(parts)


def _environment(run: Path) -> dict[str, Any]:
    """An earlier sitting wrote it, or whoever gave us the run; a report need not fail for it."""
    try:
        data = rundir.read_json(run, rundir.ENVIRONMENT)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _in_words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _file(run: Path, name: str) -> str:
    path = rundir.run_file(run, name)
    return f"<pre>{escape(path.read_text(encoding='utf-8', errors='replace'))}</pre>" if path.exists() else ""
