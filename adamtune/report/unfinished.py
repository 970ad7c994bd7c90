"""report.html of a run that has not finished: what its files tell so far."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from adamtune import rundir, yaml_text
from adamtune.errors import SpecError
from adamtune.report.figures import Line, lines_figure
from adamtune.report.line_table import lines_table
from adamtune.report.page import Section, page, paragraph, picture, table, verbatim
from adamtune.report.probe_section import probe_section
from adamtune.report.reproduce import file_text, reproduce_section
from adamtune.report.trials_section import trials_section
from adamtune.report.wording import number
from adamtune.run_tables import all_rows

_VERDICT = re.compile(r"^\S+ (\w+): (changed|kept|measured|unasked): (.*)$")
_OF_A_TRIAL = re.compile(r"^\S+ \w+: trial ")

_BEST = 6
"""So many trials are drawn: each is a line of the plot."""

_LAST_LINES = 200


def unfinished_html(run: Path) -> str:
    """The page of a run that has a spec and no result: how far it came, by its tables and its log.

    Raises `RunDirError` where one of the files leads out of the run's directory, `SpecError` where its spec is no YAML.
    """
    spec = yaml_text.parse(file_text(run, rundir.SPEC), str(run / rundir.SPEC), SpecError)
    horizon, objective = int(spec.get("horizon") or 0), spec.get("objective") or {}
    name, direction = str(objective.get("name", "loss")), str(objective.get("direction", "minimize"))
    log = file_text(run, rundir.LOG).splitlines()
    trials = all_rows(run, rundir.TRIALS)
    best = _best(trials, horizon, direction)
    probed = _probed(run, best).head(1)
    sections = [
        _stages(trials, log, direction),
        trials_section(trials, horizon, name, direction),
        _curves(run, best, name),
        probe_section(run, probed, name, "the best trial so far that was probed"),
        _log(log),
        reproduce_section(run, unfinished=True),
    ]
    ref = (spec.get("task") or {}).get("ref", run.name)
    return page(f"adamtune: {ref}", _lead(run, trials), [section for section in sections if section])


def _lead(run: Path, trials: pd.DataFrame) -> str:
    told = "No figure here has been confirmed on fresh seeds."
    if trials.empty:
        told += f" It has no {rundir.TRIALS}, which is first written when a stage ends."
    else:
        told += f" It came to {len(trials):,} trials and {int(trials['steps'].sum()):,} training steps."
    goes_on = '<p>The <a href="#reproduce">command at the end of the page</a> goes on with it.</p>'
    return paragraph("This run has not finished: there is no recipe yet.", "answer") + paragraph(told) + goes_on


def _stages(trials: pd.DataFrame, log: list[str], direction: str) -> Section | None:
    verdicts = {found[1]: (found[2], found[3]) for line in log if (found := _VERDICT.match(line))}
    rows = [[stage, *_counted(trials, stage, direction), *told] for stage, told in verdicts.items()]
    under_way = [stage for stage in dict.fromkeys(trials.get("stage", ())) if stage not in verdicts]
    rows += [[str(stage), *_counted(trials, stage, direction), "under way", ""] for stage in under_way]
    head = ["stage", "trials", "steps", "best value", "verdict", "why"]
    return Section("How far it came", table(head, rows, "Every stage so far"), "stages") if rows else None


def _counted(trials: pd.DataFrame, stage: str, direction: str) -> list[str]:
    if trials.empty:
        return ["-", "-", "-"]
    own = trials[trials["stage"] == stage]
    best = own["value"].min() if direction == "minimize" else own["value"].max()
    return [str(len(own)), f"{int(own['steps'].sum()):,}", number(float(best)) if pd.notna(best) else "-"]


def _best(trials: pd.DataFrame, horizon: int, direction: str) -> pd.DataFrame:
    if trials.empty:
        return trials
    whole = trials[(trials["outcome"] == "completed") & (trials["horizon"] == horizon)]
    return whole.sort_values("value", ascending=direction == "minimize", kind="stable")


def _probed(run: Path, trials: pd.DataFrame) -> pd.DataFrame:
    probe = all_rows(run, rundir.PROBE)
    if trials.empty or probe.empty:
        return trials.head(0)
    known = set(zip(probe["study"], probe["trial"], strict=True))
    return trials[[each in known for each in zip(trials["study"], trials["trial"], strict=True)]]


def _curves(run: Path, best: pd.DataFrame, objective: str) -> Section | None:
    curves = all_rows(run, rundir.CURVES)
    if best.empty or curves.empty or objective not in curves:
        return None
    curves = curves.dropna(subset=[objective])
    lines = []
    for colour, trial in enumerate(best.head(_BEST).to_dict("records"), start=1):
        rows = curves[(curves["study"] == trial["study"]) & (curves["trial"] == trial["trial"])]
        told = f"{trial['stage']}, trial {trial['trial']}, seed {trial['seed']} ({number(trial['value'])})"
        lines.append(Line(told, rows["step"].tolist(), rows[objective].tolist(), colour))
    drawn = lines_figure("step", f"validation {objective}", lines)
    caption = f"The best {len(lines)} trials so far; the best of many noisy trials looks better than it is."
    return Section("Learning curves", picture(drawn, caption, lines_table("step", lines)), "curves")


def _log(lines: list[str]) -> Section | None:
    told = [line for line in lines if not _OF_A_TRIAL.match(line)][-_LAST_LINES:]
    text = verbatim("\n".join(told), rundir.LOG)
    return Section("Log, without its lines on trials", text, "log") if told else None


def is_unfinished(run: Path, result: Mapping[str, Any] | None) -> bool:
    """Whether there is a run, and no result of it."""
    return result is None and rundir.is_run(run) and not (run / rundir.RESULT).exists()
