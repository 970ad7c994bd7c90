"""The lines of a plot as a table, for those who cannot see it."""

from __future__ import annotations

from collections.abc import Sequence

from adamtune.report.figures import Line
from adamtune.report.page import table
from adamtune.report.wording import number

_MOST_ROWS = 40


def lines_table(x: str, lines: Sequence[Line]) -> str:
    """A row for each x (evenly thinned to forty), a column for each line; empty where a line has no point."""
    known = [dict(zip(line.xs, line.ys, strict=True)) for line in lines]
    xs = sorted(set().union(*known))
    every = -(-len(xs) // _MOST_ROWS) or 1
    head = [x, *(", ".join(filter(None, (line.name, line.of))) for line in lines)]
    rows = [[f"{at:g}", *(number(line[at]) if at in line else "" for line in known)] for at in xs[::every]]
    return table(head, rows, "The lines of the plot")
