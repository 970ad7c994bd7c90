"""The plots of the report and of `lr-find --plot`: plain data in, plotly figures out."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from typing import Any

import plotly.graph_objects as go

# Each stands out from white and from near black by three to one at least; the page's script colours text and grid.
GREY, _TEAL, _BROWN = "#808890", "#1a9aa0", "#b0793f"
BLUE, ORANGE, _GREEN, RED, _PURPLE = "#4481ee", "#dd7416", "#369c56", "#d6455d", "#a066d3"
_PALETTE = (GREY, ORANGE, BLUE, _GREEN, _PURPLE, RED, _TEAL, _BROWN)
_RULE_COLOURS = {"steepest": _GREEN, "valley": _PURPLE, "minimum/10": RED, "lowest": BLUE, "adamtune": ORANGE}

_ENDINGS = {"pruned": (GREY, "triangle-down"), "diverged": (RED, "x"), "failed": (_BROWN, "square-open")}
"""Outcomes that leave no value, and how each is marked."""

_WIDE = 5.0
"""Values that span more than this factor are drawn on a log axis."""

DEPTH = 1e6
"""Percentiles of Adam's state are shown down to this far below the largest; some fall without end."""

_NAMED = 8
"""So many lines of a figure are named where it is described in words."""

_SHORT_NAME, _LONGEST_LINE = 9, 20
"""Letters of a name that stands beside others on an x axis; of a line of a longer one."""

_FEW_DECADES, _SHORT_TO_WRITE = 2.2, 1e-3


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int = 0
    """Number of its colour; 0 is grey."""
    dash: str = "solid"
    of: str = ""
    """What tells it from others of its name, such as `seed 3`."""
    group: str = ""
    """Lines of one group share an entry in the legend, that of the first; by default those of one name."""
    width: float = 1.5


def figure(x: str, y: str) -> go.Figure:
    """An empty figure in the house style: transparent, legend below; text and grid are coloured by the page."""
    made = go.Figure()
    made.update_layout(
        template="none",  # plotly's own would put seven kilobytes into each figure
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 20, "t": 30, "b": 50},
        height=400,
        legend={"orientation": "h", "traceorder": "normal", "yref": "container", "y": 0, "yanchor": "bottom"},
        # plotly's button to upload the chart to its cloud has no place in a page that works offline.
        modebar={"remove": ["sendChartToCloud", "select2d", "lasso2d"]},
        hovermode="closest",
    )
    made.update_xaxes(title=literal(x), zeroline=False, automargin=True)
    made.update_yaxes(title=literal(y), zeroline=False, automargin=True)
    return made


def described(drawn: go.Figure) -> str:
    """What a figure shows, in a sentence for those who cannot see it."""
    axes = [unescape(axis.title.text or "") for axis in (drawn.layout.yaxis, drawn.layout.xaxis)]
    names = dict.fromkeys(unescape(trace.name) for trace in drawn.data if trace.name and trace.showlegend is not False)
    shown = ", ".join(list(names)[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    told = (drawn.layout.meta or {}).get("of") or " against ".join(filter(None, axes))
    return f"Plot of {told}" + (f": {shown}" if shown else "")


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
    made.add_scatter(x=lrs, y=list(curve["losses"]), mode="lines", line={"color": BLUE}, name="median of the seeds")
    if band:
        made.add_vrect(x0=band[0], x1=band[1], fillcolor="rgba(58,163,91,0.15)", line_width=0)
    points = _measured(response["lrs"], response["scores"]) if response else []
    bottom, top = _loss_range(curve, [score for _, score in points])
    made.update_yaxes(range=[bottom, top])
    for rule, lr in suggestions.items():
        made.add_scatter(
            x=[lr, lr], y=[bottom, top], mode="lines", name=f"{literal(rule)} {lr:.2g}",
            line={"dash": "dot", "color": _RULE_COLOURS.get(rule, GREY)},
        )  # fmt: skip
    if response:
        made.add_scatter(
            x=[x for x, _ in points], y=[y for _, y in points], mode="markers+lines",
            line={"color": ORANGE, "dash": "dash"}, name=f"validation loss after {response['horizon']} steps",
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


def response_figure(responses: Sequence[Mapping[str, Any]], objective: str, minimize: bool = True) -> go.Figure:
    """Mean objective over lr, one line a horizon; lrs without a score stand at the worse edge by their outcome."""
    lines = [(_measured(each["lrs"], each["scores"]), f"{each['horizon']} steps") for each in responses]
    made = figure("learning rate", f"mean {objective}")
    ends = [end for each in responses for end in _ends(each["lrs"], each["scores"], each.get("outcomes"))]
    made.update_xaxes(_log_axis([*(x for points, _ in lines for x, _ in points), *(lr for lr, _ in ends)]))
    _log_if_wide(made, [y for points, _ in lines for _, y in points])
    for number, (points, name) in enumerate(lines):
        made.add_scatter(
            x=[x for x, _ in points], y=[y for _, y in points], mode="markers+lines", name=name, showlegend=True,
            line={"color": _PALETTE[(2 - number) % len(_PALETTE)]},
        )  # fmt: skip
    _mark_ends(made, ends, "x", "y", minimize)
    return made


def _ends(
    places: Sequence[Any], scores: Sequence[float | None], outcomes: Sequence[str] | None
) -> list[tuple[Any, str]]:
    """Of what has no score, where and how it ended. Runs of earlier versions do not tell."""
    told = outcomes or [""] * len(scores)
    return [(at, how) for at, score, how in zip(places, scores, told, strict=True) if not _finite([score])]


def _mark_ends(made: go.Figure, ends: Sequence[tuple[Any, str]], categories: str, values: str, minimize: bool) -> None:
    """Marks for `_ends` at the worse edge of the axis of `values`, on an axis of their own: no value places them."""
    worse = 0.97 if minimize else 0.03
    for outcome, (colour, symbol) in _ENDINGS.items():
        places = [place for place, how in ends if how == outcome]
        if places:
            made.add_scatter(
                **{categories: places, values: [worse] * len(places), f"{values}axis": f"{values}2"}, mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 10}, name=outcome, showlegend=True,
                hovertemplate=f"%{{{categories}}}: {outcome}<extra></extra>",
            )  # fmt: skip
            own = {"overlaying": values, "range": [0, 1], "visible": False, "fixedrange": True}
            made.update_layout({f"{values}axis2": own})


def values_figure(
    knob: str,
    objective: str,
    scores: Mapping[str, float | None],
    own: tuple[str, float | None],
    outcomes: Sequence[str] | None = None,
    minimize: bool = True,
) -> go.Figure:
    """Mean objective by the values of a knob, evenly spaced; `own` is the incumbent's name and score, as a line.

    A value without a score stands at the worse edge by its outcome; `outcomes` are those of the values, in turn.
    Values of many letters stand one below the other, with the objective along the x axis.
    """
    told = [_folded(value) for value in scores]
    lying = max(map(len, scores), default=0) > _SHORT_NAME
    made = figure(f"mean {objective}", "") if lying else figure(knob, f"mean {objective}")
    values, categories = ("x", "y") if lying else ("y", "x")
    if _is_wide(heights := _finite([*scores.values(), own[1]])):
        made.update_layout({f"{values}axis": _log_axis(heights)})
    # As categories: the values of one knob may include 0 or crowd towards 1, so that no axis of numbers suits all.
    ends = [len(told) - 0.5, -0.5] if lying else [-0.5, len(told) - 0.5]
    named = {"type": "category", "categoryorder": "array", "categoryarray": told, "range": ends}
    made.update_layout({f"{categories}axis": named}, meta={"of": f"mean {objective} against {knob}"})
    points = [(value, score) for value, score in zip(told, scores.values(), strict=True) if _finite([score])]
    made.add_scatter(
        **{categories: [value for value, _ in points], values: [score for _, score in points]}, mode="markers",
        marker={"color": BLUE, "size": 10}, name="tried", showlegend=True,
    )  # fmt: skip
    if own[1] is not None:
        made.add_scatter(
            **{categories: told, values: [own[1]] * len(told)}, mode="lines", name=literal(own[0]), showlegend=True,
            line={"color": ORANGE, "dash": "dash"},
        )  # fmt: skip
    _mark_ends(made, _ends(told, list(scores.values()), outcomes), categories, values, minimize)
    return made


def _folded(text: str) -> str:
    """In lines of some words each."""
    return "<br>".join(literal(line) for line in textwrap.wrap(text, _LONGEST_LINE)) or literal(text)


def difference_figure(
    objective: str, differences: Sequence[float], mean: float, interval: Sequence[float | None]
) -> go.Figure:
    """Challenger minus incumbent: each seed as a dot, their mean with its interval, and where zero is."""
    made = figure(f"challenger minus incumbent, {objective}", "")
    rows = ["by seed", "mean, 95%"]
    made.add_scatter(
        x=list(differences), y=rows[:1] * len(differences), mode="markers", marker={"color": GREY, "size": 8}
    )
    made.add_scatter(
        x=[mean], y=rows[1:], mode="markers", marker={"color": BLUE, "size": 10}, error_x=_bars(mean, interval)
    )
    made.add_vline(x=0, line={"color": RED, "dash": "dot"})
    made.update_layout(height=200, showlegend=False)
    made.update_yaxes(type="category", range=[-0.6, 1.6], showgrid=False)
    return made


def ends_figure(objective: str, measured: Mapping[str, Mapping[str, Any]], colours: Sequence[int]) -> go.Figure:
    """What last comparisons measured: each seed as a dot beside the mean with its interval.

    A row an entry of `measured`, the first on top; `colours` are numbers as those of a `Line`.
    """
    made = figure(objective, "")
    rows = list(measured)[::-1]
    for height, (row, number) in enumerate(zip(rows, list(colours)[::-1], strict=True)):
        values, name, colour = _finite(measured[row]["values"]), literal(row), _PALETTE[number % len(_PALETTE)]
        made.add_scatter(
            x=values, y=[height - 0.18] * len(values), mode="markers", hoverinfo="x", name=f"{name}, by seed",
            marker={"color": colour, "size": 9, "opacity": 0.6},
        )  # fmt: skip
        mean = measured[row]["mean"]
        if mean is not None:
            made.add_scatter(
                x=[mean], y=[height + 0.18], mode="markers", hoverinfo="x", name=f"{name}, mean",
                error_x=_bars(mean, measured[row]["ci95"]), marker={"color": colour, "size": 11, "symbol": "diamond"},
            )  # fmt: skip
    made.update_layout(height=70 * (1 + len(rows)), showlegend=False)
    made.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=list(map(_folded, rows)),
        range=[-0.6, len(rows) - 0.4],
        showgrid=False,
    )
    return made


def _bars(mean: float, interval: Sequence[float | None]) -> dict[str, Any] | None:
    low, high = interval
    if low is None or high is None:
        return None
    return {"type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low]}


def percentiles_figure(statistic: str, lines: Sequence[Line], losses: Sequence[Line] = ()) -> go.Figure:
    """Positive values over steps, on a log axis cut `DEPTH` below the largest; above them the trial's losses."""
    made = lines_figure("step", statistic, lines, log_if_wide=False)
    values = [value for line in lines for value in line.ys]
    top, bottom = max(values), max(min(values), max(values) / DEPTH)
    made.update_yaxes(_log_axis([bottom, top]), range=[math.log10(bottom) - 0.1, math.log10(top) + 0.1])
    if losses:
        above: dict[str, Any] = {"domain": [0.74, 1], "anchor": "x", "title": "loss", "zeroline": False}
        if _is_wide(heights := _finite(value for line in losses for value in line.ys)):
            above |= _log_axis(heights)
        made.update_layout(height=540, yaxis={"domain": [0, 0.66]}, yaxis2={**above, "automargin": True})
        for line in losses:
            made.add_scatter(
                x=list(line.xs), y=list(line.ys), mode="lines", name=literal(line.name), yaxis="y2",
                line={"color": _PALETTE[line.colour % len(_PALETTE)], "width": 2, "dash": line.dash},
            )  # fmt: skip
    return made


def lines_figure(x: str, y: str, lines: Sequence[Line], log_if_wide: bool = True) -> go.Figure:
    """Thin lines; each name stands in the legend once."""
    made = figure(x, y)
    if log_if_wide:
        _log_if_wide(made, _finite(value for line in lines for value in line.ys))
    shown: set[str] = set()
    for line in lines:
        name, group = literal(line.name), literal(line.group or line.name)
        made.add_scatter(
            x=list(line.xs), y=list(line.ys), mode="lines", name=name, legendgroup=group, showlegend=group not in shown,
            line={"color": _PALETTE[line.colour % len(_PALETTE)], "width": line.width, "dash": line.dash},
            hovertemplate=f"{name} {literal(line.of)}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
        shown.add(group)
    return made


def _log_if_wide(made: go.Figure, values: Sequence[float]) -> None:
    """Make the y axis a log one where that suits the values: all positive, and wide apart."""
    if _is_wide(values):
        made.update_yaxes(_log_axis(values))


def _is_wide(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > _WIDE * min(values)


def literal(text: str) -> str:
    """Text that plotly shows as it is; plotly reads a few HTML tags and entities in names and titles."""
    return escape(text, quote=False)


def _measured(xs: Sequence[float], ys: Sequence[float | None]) -> list[tuple[float, float]]:
    """The points that have a value; pruned and diverged ones have none."""
    return [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None and math.isfinite(y)]


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
