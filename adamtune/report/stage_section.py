"""The report's section on the evidence: every knob in one table, then each stage by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from adamtune.report.figures import difference_figure, range_figure, response_figure, values_figure
from adamtune.report.page import Section, paragraph, picture, table
from adamtune.report.wording import number, with_bounds

_MOST_ROWS = 40
"""Of a long curve, so many points evenly spread stand in the table beside its picture."""


def stage_section(stages: Sequence[Mapping[str, Any]], objective: Mapping[str, str]) -> Section | None:
    """Every verdict in a table; then question, evidence and pictures of each stage that was asked."""
    if not stages:
        return None
    asked = [stage for stage in stages if stage["verdict"] != "unasked"]
    named = [(f"stage-{place}", _heading(stage)) for place, stage in enumerate(asked, start=1)]
    side = "below" if objective["direction"] == "minimize" else "above"
    parts = [
        paragraph(
            f"A knob changes where the paired difference, challenger minus incumbent, is {side} zero by evidence; the "
            "precision where it is not worse, and faster."
        ),
        _overview(stages),
    ]
    for (name, title), stage in zip(named, asked, strict=True):
        parts.append(f'<h3 id="{name}">{escape(title)}</h3>\n{_stage(stage, objective)}')
    unasked = [[stage["stage"], stage["reason"]] for stage in stages if stage["verdict"] == "unasked"]
    if unasked:
        named.append(("unasked", "Not asked"))
        parts.append(f'<h3 id="unasked">Not asked</h3>\n{table(["stage", "why not"], unasked)}')
    return Section("Evidence, stage by stage", "\n".join(parts), "stages", named)


def _heading(stage: Mapping[str, Any]) -> str:
    return f"{stage['stage']}: {stage['verdict']}"


def _overview(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for stage in stages:
        evidence = stage["evidence"]
        told = evidence and evidence["difference"]["mean"] is not None
        difference = with_bounds(evidence["difference"]) if told else "-"
        seeds = str(len(evidence["seeds"])) if evidence else "-"
        rows.append(
            [stage["stage"], stage["verdict"], number(stage["before"]), number(stage["after"]), difference, seeds]
        )
    head = ["stage", "verdict", "before", "after", "paired difference, 95%", "seeds"]
    changed = [place for place, stage in enumerate(stages) if stage["verdict"] == "changed"]
    return table(head, rows, "Every stage's verdict", changed)


def _stage(stage: Mapping[str, Any], objective: Mapping[str, str]) -> str:
    details, evidence = stage["details"], stage["evidence"]
    parts = [paragraph(stage["question"]), paragraph(stage["reason"])]
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
    if details.get("factorial"):
        parts.append(_factorial(details["factorial"], objective))
    if details.get("gaps"):
        parts.append(_gaps(details["gaps"]))
    parts += _measured_facts(details)
    if evidence:
        parts.append(_evidence(evidence, objective))
    return "\n".join(parts)


def _range_picture(details: Mapping[str, Any]) -> str:
    band, suggestions = details["band"], details["suggestions"]
    drawn = range_figure(details, band, suggestions)
    shaded = "; shaded green: the band where it falls; dotted: what each rule suggests" if band else ""
    named = [["band", f"{number(band[0])} to {number(band[1])}"]] if band else []
    named += [[rule, number(lr)] for rule, lr in suggestions.items()]
    columns = [details[name] for name in ("lrs", "losses", "low", "high")]
    every = -(-len(columns[0]) // _MOST_ROWS)
    rows = [[number(cell) for cell in row] for row in list(zip(*columns, strict=True))[::every]]
    data = table(["rule", "learning rate"], named, "What each rule suggests") if named else ""
    data += table(["learning rate", "median loss", "lowest", "highest"], rows, "The curve, thinned")
    return picture(drawn, f"Training loss while lr rises, over all search seeds{shaded}.", data)


def _response_picture(responses: Sequence[Mapping[str, Any]], objective: Mapping[str, str]) -> str:
    shown = [dict(each, scores=_as_measured(each["scores"], objective)) for each in responses]
    rows, missing = [], []
    for each in shown:
        for lr, score, how in zip(each["lrs"], each["scores"], _outcomes(each), strict=True):
            rows.append([number(lr), str(each["horizon"]), _score(score, how)])
            missing += [] if score is not None else [f"{number(lr)} over {each['horizon']} steps ({_ending(how)})"]
    caption = f"Mean validation {objective['name']} by lr, on the search seeds." + _without_score(missing)
    data = table(["learning rate", "steps", f"mean {objective['name']}"], rows)
    return picture(response_figure(shown, objective["name"], objective["direction"] == "minimize"), caption, data)


def _candidates_picture(stage: Mapping[str, Any], objective: Mapping[str, str]) -> str:
    details, knob = stage["details"], stage["stage"]
    names, outcomes = details["candidates"], _outcomes(details)
    scores = dict(zip(names, _as_measured(details["scores"], objective), strict=True))
    (own,) = _as_measured([details.get("incumbent_score")], objective)
    incumbent = "incumbent" if stage["before"] is None else f"incumbent, {number(stage['before'])}"
    minimize = objective["direction"] == "minimize"
    drawn = values_figure(knob, objective["name"], scores, (incumbent, own), outcomes, minimize)
    ended = [*zip(scores.items(), outcomes, strict=True), ((incumbent, own), details.get("incumbent_outcome", ""))]
    missing = [f"{name} ({_ending(how)})" for (name, score), how in ended if score is None]
    caption = f"Mean validation {objective['name']} by {knob}, on the search seeds." + _without_score(missing)
    rows = [[name, _score(score, how)] for (name, score), how in ended]
    return picture(drawn, caption, table([knob, f"mean {objective['name']}"], rows))


def _recentred(recentred: Sequence[Mapping[str, Any]], objective: Mapping[str, str]) -> str:
    """The best candidates at other learning rates, and the lr that follows for each."""
    rows = []
    for each in recentred:
        points = zip(each["lrs"], _as_measured(each["scores"], objective), _outcomes(each), strict=True)
        tried = ", ".join(f"{_score(score, how)} at {number(lr)}" for lr, score, how in points)
        rows.append([each["candidate"], tried, number(each["lr"])])
    return table(["candidate", f"mean {objective['name']} at lr", "best lr"], rows)


def _factorial(cells: Sequence[Mapping[str, Any]], objective: Mapping[str, str]) -> str:
    """The short trials of other knobs together with lr, each knob moved in half of them; the best first."""
    ranked = sorted(cells, key=lambda cell: math.inf if cell["score"] is None else cell["score"])
    moved = [", ".join(f"{name} {number(value)}" for name, value in cell["changes"].items()) for cell in ranked]
    scores = _as_measured([cell["score"] for cell in ranked], objective)
    rows = [[names or "nothing", _score(score, "")] for names, score in zip(moved, scores, strict=True)]
    return table(["moved in a short trial", objective["name"]], rows)


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


def _outcomes(details: Mapping[str, Any]) -> Sequence[str]:
    """How the trials behind `scores` ended, one by one; empty texts for a run of before this was kept."""
    return details.get("outcomes") or [""] * len(details["scores"])


def _score(score: float | None, outcome: str) -> str:
    """A score as a cell of a table; where there is none, why."""
    return number(score) if score is not None else _ending(outcome)


def _ending(outcome: str) -> str:
    """Why there is no score. A trial may complete and its metric be NaN."""
    return {"": "pruned or diverged", "completed": "not finite"}.get(outcome, outcome)


def _without_score(missing: Sequence[str]) -> str:
    return f" Without a value: {'; '.join(missing)}." if missing else ""


def _evidence(evidence: Mapping[str, Any], objective: Mapping[str, str]) -> str:
    """The incumbent against the best candidate, on seeds that chose neither."""
    rows, differences = [], []
    for seed, here, there in zip(evidence["seeds"], evidence["incumbent"], evidence["challenger"], strict=True):
        difference = None if here is None or there is None else there - here
        rows.append([str(seed), number(here), number(there), number(difference)])
        differences += [] if difference is None else [difference]
    mean, by_seed = evidence["difference"]["mean"], table(["seed", "incumbent", "challenger", "difference"], rows)
    if mean is None:
        return by_seed
    better = "left" if objective["direction"] == "minimize" else "right"
    caption = (
        f"Paired difference {with_bounds(evidence['difference'])} over {len(differences)} confirmation seeds; "
        f"{better} of zero the challenger is better."
    )
    drawn = difference_figure(objective["name"], differences, mean, evidence["difference"]["ci95"])
    return picture(drawn, caption, by_seed)
