"""A diagnosis in the terminal: what was measured, a row a statistic, then what the rules found."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from adamtune.diagnosis import Diagnosis, Severity, Told
from adamtune.report.console import PlainConsole
from adamtune.report.wording import number

_NAMES = {"below_eps": "share below eps", "never_updated": "share never updated", "nonfinite": "share not finite"}
_NAMES |= {"flips": "share of sign flips", "update_to_weight": "update to weight", "lr_r": "lr * r"}
_NAMES |= {"grad_norm": "gradient norm", "momentum_norm": "momentum norm"}


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """The answer at the end, where the eye is when the command returns; no line is wider than the terminal."""
    out = PlainConsole()
    out.print(_heading(diagnosis))
    if diagnosis.record:
        out.print()
        out.print(_measured(diagnosis.groups))
    for note in diagnosis.notes:
        out.print(note)
    out.print()
    if not diagnosis.findings:
        out.print("no findings")
    for told in diagnosis.findings:
        _print_finding(out, told)


def _heading(diagnosis: Diagnosis) -> str:
    step = "an unknown step" if diagnosis.step is None else f"step {diagnosis.step:,}"
    match diagnosis.kind:
        case "run":
            seeds = f"{diagnosis.seeds} fresh seeds, medians over them" if diagnosis.seeds > 1 else "one fresh seed"
            return f"{diagnosis.target}: the recommended recipe at {step}, on {seeds}"
        case "checkpoint":
            return f"{diagnosis.target}: optimizer state at {step}"
        case "training":
            return f"training at {step}"


def _measured(groups: Mapping[str, Mapping[str, float]]) -> Table:
    """Percentiles get a column each; a statistic without percentiles has its value under `value`."""
    ranks = sorted({key.partition("/p")[2] for record in groups.values() for key in record if "/p" in key}, key=float)
    scalars = any("/p" not in key for record in groups.values() for key in record)
    table = Table(box=None)
    table.add_column("group", overflow="fold")
    table.add_column("statistic")
    for heading in (*(f"p{rank}" for rank in ranks), *(["value"] if scalars else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for group, record in groups.items():
        shown = group
        for statistic in dict.fromkeys(key.partition("/p")[0] for key in record):
            cells = [number(record[key]) if (key := f"{statistic}/p{rank}") in record else "" for rank in ranks]
            cells += [number(record[statistic]) if statistic in record else ""] if scalars else []
            table.add_row(shown, _NAMES.get(statistic, statistic), *cells)
            shown = ""
    return table


def _print_finding(out: Console, told: Told) -> None:
    finding = told.finding
    where = f" in {finding.group}" if finding.group else ""
    seeds = f", on {told.seeds} of {told.of} seeds" if told.of > 1 else ""
    heading = f"{finding.severity}: {finding.rule}{where}{seeds}"
    out.print(heading, style="bold" if finding.severity is Severity.WARNING else None)
    told_below = [finding.told, finding.advice]
    if finding.remedy:
        told_below.append("remedy: " + ", ".join(f"{knob} = {number(value)}" for knob, value in finding.remedy.items()))
    for text in told_below:
        out.print(textwrap.fill(text, out.width, initial_indent="  ", subsequent_indent="  "))
