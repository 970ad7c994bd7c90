"""A sweep under way as a screen of lines: as many as fit, none wider than it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

from rich.text import Text

from adamtune.diagnosis import Severity
from adamtune.evidence import Verdict
from adamtune.plain_text import plain
from adamtune.report.so_far import Running, SoFar, changes, spent_told, standing_told
from adamtune.report.sparkline import ASCII, BLOCKS, binned, sparkline
from adamtune.report.wording import number
from adamtune.rundir import FINAL

_MARKS = {Verdict.CHANGED: "✓", Verdict.KEPT: "=", Verdict.MEASURED: "≈", Verdict.UNASKED: "-"}
_STYLES = {str(Severity.WARNING): "yellow"}
_NOW, _TO_COME = "▸", "·"
_IN_ASCII = str.maketrans({"✓": "+", "≈": "~", "▸": ">", "·": ".", "━": "#", "─": "-"})

_TWO_COLUMNS = 76
"""A terminal so wide has the plan in two columns where one does not fit."""
_SAID = 3
"""Findings and notes shown at most where trials need the room."""
_SAID_AT_ALL = 20
_LEAST_TRIALS = 3


def screen_lines(so_far: SoFar, width: int, height: int, ascii_only: bool = False) -> list[Text]:
    """The screen: budget and incumbent at the top, then plan, trials under way, findings and notes.

    What does not fit is left out from below, and a plan too long is shown around the stage under way.
    """
    top = [
        Text(f"adamtune sweep: {so_far.run_dir}", "bold"),
        _bar(so_far, width),
        *map(Text, _flow(spent_told(so_far), width)),
        *(Text(line, "bold") for line in _flow(standing_told(so_far), width)),
        *[Text("  " + line) for line in _flow(changes(so_far.base, so_far.incumbent), width - 2)][:2],
    ]
    said = _said(so_far)
    trials = so_far.running
    room = height - len(top)
    for_said = min(len(said), _SAID, max(0, room - 3))
    for_trials = min(len(trials), _LEAST_TRIALS) + 1
    plan = _plan(so_far, width, max(room - for_said - for_trials, min(3, room - for_said - 1)))
    shown = _trials(so_far, trials, width, room - len(plan) - for_said, BLOCKS if not ascii_only else ASCII)
    room -= len(plan) + len(shown)
    whole = [part for line in said for part in _wrapped(line, width)]
    said = whole if len(whole) <= room else said[max(0, len(said) - room) :]
    lines = [*top, *plan, *shown, *said][:height]
    return [_cut(line, width, ascii_only) for line in lines]


def _cut(line: Text, width: int, ascii_only: bool) -> Text:
    """A line as wide as the screen at most, on which no character is a command."""
    text = plain(line.plain)
    cut = Text(text.translate(_IN_ASCII) if ascii_only else text, line.style, no_wrap=True)
    cut.truncate(width, overflow="crop" if ascii_only else "ellipsis")
    return cut


def _flow(pieces: Iterable[str], width: int) -> list[str]:
    """Pieces joined by commas, in as many lines as it takes."""
    lines: list[str] = []
    for piece in pieces:
        if lines and len(lines[-1]) + len(piece) + 2 <= width:
            lines[-1] += f", {piece}"
        else:
            lines.append(piece)
    return lines


def _bar(so_far: SoFar, width: int) -> Text:
    share = min(1.0, so_far.spent / so_far.expected) if so_far.expected else 0.0
    cells = max(0, width - 5)
    full = int(share * cells)
    return Text("━" * full + "─" * (cells - full) + f" {int(100 * share):3d}%")


def _plan(so_far: SoFar, width: int, room: int) -> list[Text]:
    """One entry a stage; `room`: lines there are for it."""
    if so_far.plan is None or room < 1:
        return []
    names = [*(stage.name for stage in so_far.plan.stages), FINAL]
    entries = [_entry(so_far, name) for name in names]
    current = names.index(so_far.stage) if so_far.stage in names else 0
    if len(entries) > room and width >= _TWO_COLUMNS:
        half, column = math.ceil(len(entries) / 2), (width - 2) // 2
        rows = []
        for left in range(half):
            row = _cut(entries[left], column, False)
            row.pad_right(column + 2 - row.cell_len)
            rows.append(row.plain + (entries[left + half].plain if left + half < len(entries) else ""))
        entries, current = list(map(Text, rows)), current % half
    start = max(0, min(current - room // 2, len(entries) - room))
    return entries[start : start + room]


def _entry(so_far: SoFar, name: str) -> Text:
    answer = so_far.answers.get(name)
    if answer is not None:
        change = f" {number(answer.before)} -> {number(answer.after)}" if answer.before != answer.after else ""
        style = "green" if answer.verdict is Verdict.CHANGED else ""
        return Text(f"{_MARKS[answer.verdict]} {name:12} {answer.verdict}{change}", style)
    if name == so_far.stage:
        return Text(f"{_NOW} {name:12} under way", "bold")
    return Text(f"{_TO_COME} {name}", "dim")


def _trials(so_far: SoFar, trials: Sequence[Running], width: int, room: int, blocks: str) -> list[Text]:
    """The question asked, and the trials that fit, each with its curves."""
    if room < 1 or not so_far.stage:
        return []
    count = f"{len(trials)} trial{'s' if len(trials) != 1 else ''}"
    heading = Text(f"{so_far.stage}, {count} under way, {so_far.trials:,} ended: {so_far.question}", "bold")
    shown = trials[: room - 1]
    if not shown:
        return [heading]
    lines = max(8, (width - 46) // 2) if width >= 60 else 0  # a narrow screen has no room for the training loss
    for_validation = min(8, max(4, width // 8))
    rows = [_label(so_far, each) for each in shown]
    spare = width - lines - for_validation - 20 - (2 if lines else 1)
    label_width = max(1, min(max(map(len, rows)), spare))
    train = [binned(each.train, lines) for each in shown]
    validation = [each.validation[-for_validation:] for each in shown]
    both = [_scale(curves) for curves in (train, validation)]
    found = [heading]
    for label, each, losses, measured in zip(rows, shown, train, validation, strict=True):
        cells = [label[:label_width].ljust(label_width)]
        if lines:
            cells.append(sparkline(losses, *both[0], blocks).ljust(lines))
        cells.append(sparkline(measured, *both[1], blocks).ljust(for_validation))
        value = number(each.value) if math.isfinite(each.value) else "-"
        cells.append(f"{value:>9} {each.step:,}/{each.request.horizon:,}")
        found.append(Text(" ".join(cells)))
    return found


def _scale(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """One scale for the curves of all trials: from their lowest value to the highest at which one begins."""
    values = [value for curve in curves for value in curve if math.isfinite(value)]
    firsts = [curve[0] for curve in curves if curve and math.isfinite(curve[0])]
    return (min(values), max(firsts)) if firsts else (0.0, 0.0)


def _label(so_far: SoFar, trial: Running) -> str:
    """A trial's seed, and what tells it from the incumbent's."""
    request = trial.request
    if not trial.label and request.ramp is not None:
        trial.label = f"seed {request.seed} lr {request.ramp.start:g} to {request.ramp.end:.2g}"
    elif not trial.label:
        changed = [f"{name} {number(now)}" for name, (_, now) in so_far.incumbent.diff(request.recipe).items()]
        trial.label = " ".join([f"seed {request.seed}", ", ".join(changed) or "incumbent"])
    return trial.label


def _said(so_far: SoFar) -> list[Text]:
    """Notes and findings; what came last is the last to be left out."""
    return [Text(text, _STYLES.get(text.split(":")[0], "")) for text in so_far.said[-_SAID_AT_ALL:]]


def _wrapped(line: Text, width: int) -> list[Text]:
    return [Text(part, line.style) for part in textwrap.wrap(line.plain, width, subsequent_indent="  ")]
