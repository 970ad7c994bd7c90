"""The plots of the report and of `lr-find --plot`: plain data in, plotly figures out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

_GREY = "#888888"  # for text and grid lines: readable on white and on black
_BLUE, _ORANGE, _GREEN, _RED = "#4c8bf5", "#e8852c", "#3aa35b", "#d6455d"
_RULE_COLOURS = {"steepest": _GREEN, "valley": "#a066d3", "minimum/10": _RED, "lowest": _BLUE, "adamtune": _ORANGE}


def figure(x: str, y: str, log_x: bool = False, log_y: bool = False) -> go.Figure:
    """An empty figure in the house style: transparent, grey on whatever lies behind, legend below."""
    made = go.Figure()
    made.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": _GREY},
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        height=360,
        legend={"orientation": "h", "y": -0.25},
    )
    grid = {"gridcolor": "rgba(136,136,136,0.25)", "zeroline": False, "linecolor": _GREY}
    made.update_xaxes(title=x, type="log" if log_x else "linear", exponentformat="power", **grid)
    made.update_yaxes(title=y, type="log" if log_y else "linear", **grid)
    return made


def range_figure(
    curve: Mapping[str, Sequence[float]],
    band: Sequence[float] | None,
    suggestions: Mapping[str, float],
    response: Mapping[str, Any] | None = None,
) -> go.Figure:
    """A range test: the loss over lr with its spread, the band shaded, each rule's suggestion, the short trials."""
    made = figure("learning rate", "smoothed training loss", log_x=True)
    lrs = list(curve["lrs"])
    made.add_scatter(x=lrs, y=list(curve["high"]), mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
    made.add_scatter(
        x=lrs, y=list(curve["low"]), mode="lines", line={"width": 0}, fill="tonexty",
        fillcolor="rgba(76,139,245,0.2)", name="spread over seeds", hoverinfo="skip",
    )  # fmt: skip
    made.add_scatter(x=lrs, y=list(curve["losses"]), mode="lines", line={"color": _BLUE}, name="median of the seeds")
    if band:
        made.add_vrect(x0=band[0], x1=band[1], fillcolor="rgba(58,163,91,0.15)", line_width=0)
    finite = [loss for loss in (*curve["low"], *curve["high"]) if loss is not None and math.isfinite(loss)]
    ends = [min(finite), 1.2 * max(finite[: len(lrs) // 10 + 1])] if finite else [0.0, 1.0]
    made.update_yaxes(range=ends)  # from the start down: how high a diverging loss ends says nothing
    for rule, lr in suggestions.items():
        made.add_scatter(
            x=[lr, lr], y=ends, mode="lines", line={"dash": "dot", "color": _RULE_COLOURS.get(rule, _GREY)},
            name=f"{rule} {lr:.2g}",
        )  # fmt: skip
    if response:
        points = _measured(response["lrs"], response["scores"])
        made.add_scatter(
            x=[x for x, _ in points], y=[y for _, y in points], mode="markers+lines",
            line={"color": _ORANGE, "dash": "dash"}, name=f"validation loss after {response['horizon']} steps",
        )  # fmt: skip
    return made


def response_figure(
    responses: Sequence[Mapping[str, Any]], knob: str, log_x: bool, level: float | None = None
) -> go.Figure:
    """Mean objective by a knob's value, one line a horizon; `level` is the incumbent's."""
    made = figure(knob, "mean objective", log_x=log_x)
    for response, colour in zip(responses, (_BLUE, _ORANGE, _GREEN), strict=False):
        points = _measured(response["lrs"], response["scores"])
        made.add_scatter(
            x=[x for x, _ in points], y=[y for _, y in points], mode="markers+lines", line={"color": colour},
            name=f"{response['horizon']} steps",
        )  # fmt: skip
    if level is not None:
        made.add_hline(y=level, line={"dash": "dash", "color": _GREY}, annotation_text="incumbent")
    return made


def lines_figure(
    x: str, y: str, lines: Sequence[tuple[str, int, Sequence[float], Sequence[float]]], log_y: bool
) -> go.Figure:
    """Thin lines in groups: (group, number of its colour, xs, ys); each group stands in the legend once."""
    made = figure(x, y, log_y=log_y)
    palette = (_GREY, _ORANGE, _BLUE, _GREEN, _RED, "#a066d3")
    shown: set[str] = set()
    for group, colour, xs, ys in lines:
        made.add_scatter(
            x=list(xs), y=list(ys), mode="lines", line={"color": palette[colour % len(palette)], "width": 1.5},
            name=group, legendgroup=group, showlegend=group not in shown,
        )  # fmt: skip
        shown.add(group)
    return made


def _measured(xs: Sequence[float], ys: Sequence[float | None]) -> list[tuple[float, float]]:
    """The points that have a value; pruned and diverged ones have none."""
    return [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None and math.isfinite(y)]
