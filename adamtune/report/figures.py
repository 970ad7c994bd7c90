"""The plots of the report and of `lr-find --plot`: plain data in, plotly figures out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

_GREY = "#888888"  # for text and grid lines: readable on white and on black
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE = "#4c8bf5", "#e8852c", "#3aa35b", "#d6455d", "#a066d3"
_PALETTE = (_GREY, _ORANGE, _BLUE, _GREEN, _RED, _PURPLE)
_RULE_COLOURS = {"steepest": _GREEN, "valley": _PURPLE, "minimum/10": _RED, "lowest": _BLUE, "adamtune": _ORANGE}

_WIDE = 5.0
"""Values that span more than this factor are drawn on a log axis."""

DEPTH = 1e6
"""Percentiles of Adam's state are shown down to this far below the largest; some fall without end."""

_FEW_DECADES, _SHORT_TO_WRITE = 2.2, 1e-3


@dataclass(frozen=True)
class Line:
    """One line of a plot; lines of one name share an entry in the legend."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int = 0
    """Number of its colour; 0 is grey."""
    dash: str = "solid"


def figure(x: str, y: str) -> go.Figure:
    """An empty figure in the house style: transparent, grey on whatever lies behind, legend below."""
    made = go.Figure()
    made.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": _GREY},
        margin={"l": 60, "r": 20, "t": 30, "b": 50},
        height=400,
        legend={"orientation": "h", "traceorder": "normal", "yref": "container", "y": 0, "yanchor": "bottom"},
        # plotly's button to upload the chart to its cloud has no place in a page that works offline.
        modebar={
            "bgcolor": "rgba(0,0,0,0)",
            "color": _GREY,
            "activecolor": _BLUE,
            "remove": ["sendChartToCloud", "select2d", "lasso2d"],
        },
    )
    grid = {"gridcolor": "rgba(136,136,136,0.25)", "zeroline": False, "linecolor": _GREY}
    made.update_xaxes(title=_literal(x), **grid)
    made.update_yaxes(title=_literal(y), **grid)
    return made


def _log_axis(values: Sequence[float]) -> dict[str, Any]:
    """A log axis for positive values: ticks at every decade, and at 2 and 5 where there are few."""
    few = bool(values) and math.log10(max(values) / min(values)) < _FEW_DECADES
    short = few and min(values) >= _SHORT_TO_WRITE
    # Without a format plotly labels what lies between decades by its first digit alone. In d3's language: 0.01, 1e-2.
    return {"type": "log", "dtick": "D2" if few else 1, "tickformat": "~g" if short else "~e"}


def range_figure(
    curve: Mapping[str, Sequence[float | None]],
    band: Sequence[float] | None,
    suggestions: Mapping[str, float],
    response: Mapping[str, Any] | None = None,
) -> go.Figure:
    """A range test: the loss over lr with its spread, the band shaded, each rule's suggestion, the short trials."""
    made = figure("learning rate", "smoothed training loss")
    lrs = _finite(curve["lrs"])
    made.update_xaxes(_log_axis(lrs))
    low, high = list(curve["low"]), list(curve["high"])
    if low != high:  # more than one seed
        made.add_scatter(x=lrs, y=high, mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
        made.add_scatter(
            x=lrs, y=low, mode="lines", line={"width": 0}, fill="tonexty", fillcolor="rgba(76,139,245,0.2)",
            name="spread over seeds", hoverinfo="skip",
        )  # fmt: skip
    made.add_scatter(x=lrs, y=list(curve["losses"]), mode="lines", line={"color": _BLUE}, name="median of the seeds")
    if band:
        made.add_vrect(x0=band[0], x1=band[1], fillcolor="rgba(58,163,91,0.15)", line_width=0)
    points = _measured(response["lrs"], response["scores"]) if response else []
    bottom, top = _loss_range(curve, [score for _, score in points])
    made.update_yaxes(range=[bottom, top])
    for rule, lr in suggestions.items():
        made.add_scatter(
            x=[lr, lr], y=[bottom, top], mode="lines", name=f"{_literal(rule)} {lr:.2g}",
            line={"dash": "dot", "color": _RULE_COLOURS.get(rule, _GREY)},
        )  # fmt: skip
    if response:
        made.add_scatter(
            x=[x for x, _ in points], y=[y for _, y in points], mode="markers+lines",
            line={"color": _ORANGE, "dash": "dash"}, name=f"validation loss after {response['horizon']} steps",
        )  # fmt: skip
    return made


def _loss_range(curve: Mapping[str, Sequence[float | None]], scores: Sequence[float]) -> tuple[float, float]:
    """From the lowest loss to a little above where the ramp starts: how high a diverging loss ends says nothing."""
    finite = _finite([*curve["low"], *curve["losses"], *scores])
    start = _finite(curve["high"][: len(curve["high"]) // 10 + 1])
    if not finite or not start:
        return 0.0, 1.0
    bottom, top = min(finite), max(start)
    margin = 0.1 * (top - bottom) or 1.0
    return bottom - margin / 2, top + margin


def response_figure(responses: Sequence[Mapping[str, Any]], objective: str) -> go.Figure:
    """Mean objective over lr, one line a horizon; lrs without a score have no point."""
    lines = [(_measured(each["lrs"], each["scores"]), f"{each['horizon']} steps") for each in responses]
    made = figure("learning rate", f"mean {objective}")
    made.update_xaxes(_log_axis([x for points, _ in lines for x, _ in points]))
    _log_if_wide(made, [y for points, _ in lines for _, y in points])
    for number, (points, name) in enumerate(lines):
        made.add_scatter(
            x=[x for x, _ in points], y=[y for _, y in points], mode="markers+lines", name=name, showlegend=True,
            line={"color": _PALETTE[(2 - number) % len(_PALETTE)]},
        )  # fmt: skip
    return made


def values_figure(
    knob: str, objective: str, scores: Mapping[str, float | None], own: tuple[str, float | None]
) -> go.Figure:
    """Mean objective by the values of a knob, evenly spaced; `own` is the incumbent's value and score, as a line."""
    made = figure(knob, f"mean {objective}")
    _log_if_wide(made, _finite([*scores.values(), own[1]]))
    # As categories: the values of one knob may include 0 or crowd towards 1, so that no axis of numbers suits all.
    shown = [_literal(value) for value in scores]
    made.update_xaxes(type="category", categoryorder="array", categoryarray=shown, range=[-0.5, len(shown) - 0.5])
    points = [(value, score) for value, score in zip(shown, scores.values(), strict=True) if _finite([score])]
    made.add_scatter(
        x=[value for value, _ in points], y=[score for _, score in points], mode="markers",
        marker={"color": _BLUE, "size": 10}, name="tried", showlegend=True,
    )  # fmt: skip
    if own[1] is not None:
        made.add_scatter(
            x=shown, y=[own[1]] * len(shown), mode="lines", line={"color": _ORANGE, "dash": "dash"},
            name=f"incumbent, {_literal(own[0])}", showlegend=True,
        )  # fmt: skip
    return made


def difference_figure(
    objective: str, differences: Sequence[float], mean: float, interval: Sequence[float | None]
) -> go.Figure:
    """Challenger minus incumbent: each seed as a dot, their mean with its interval, and where zero is."""
    made = figure(f"challenger minus incumbent, {objective}", "")
    rows = ["by seed", "mean, 95%"]
    made.add_scatter(
        x=list(differences), y=rows[:1] * len(differences), mode="markers", marker={"color": _GREY, "size": 8}
    )
    low, high = interval
    bars = None
    if low is not None and high is not None:
        bars = {"type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low]}
    made.add_scatter(x=[mean], y=rows[1:], mode="markers", marker={"color": _BLUE, "size": 10}, error_x=bars)
    made.add_vline(x=0, line={"color": _RED, "dash": "dot"})
    made.update_layout(height=190, showlegend=False, margin={"l": 90})
    made.update_yaxes(type="category", range=[-0.6, 1.6], showgrid=False)
    return made


def percentiles_figure(statistic: str, lines: Sequence[Line]) -> go.Figure:
    """Positive values over steps, on a log axis cut `DEPTH` below the largest."""
    made = lines_figure("step", statistic, lines)
    values = [value for line in lines for value in line.ys]
    top, bottom = max(values), max(min(values), max(values) / DEPTH)
    made.update_yaxes(_log_axis([bottom, top]), range=[math.log10(bottom) - 0.1, math.log10(top) + 0.1])
    return made


def lines_figure(x: str, y: str, lines: Sequence[Line]) -> go.Figure:
    """Thin lines; each name stands in the legend once."""
    made = figure(x, y)
    _log_if_wide(made, _finite(value for line in lines for value in line.ys))
    shown: set[str] = set()
    for line in lines:
        name = _literal(line.name)
        made.add_scatter(
            x=list(line.xs), y=list(line.ys), mode="lines", name=name, legendgroup=name, showlegend=name not in shown,
            line={"color": _PALETTE[line.colour % len(_PALETTE)], "width": 1.5, "dash": line.dash},
        )  # fmt: skip
        shown.add(name)
    return made


def _log_if_wide(made: go.Figure, values: Sequence[float]) -> None:
    """Make the y axis a log one where that suits the values: all positive, and wide apart."""
    if values and min(values) > 0 and max(values) > _WIDE * min(values):
        made.update_yaxes(_log_axis(values))


def _literal(text: str) -> str:
    """Text that plotly shows as it is; plotly reads a few HTML tags and entities in names and titles."""
    return escape(text, quote=False)


def _measured(xs: Sequence[float], ys: Sequence[float | None]) -> list[tuple[float, float]]:
    """The points that have a value; pruned and diverged ones have none."""
    return [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None and math.isfinite(y)]


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
