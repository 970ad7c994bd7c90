"""Parallel coordinates: every recipe that was tried as a line through its knobs to what it measured.

Drawn as plain lines. Plotly's own kind needs WebGL, which not every browser has, and knows neither a missing value nor
a knob of words.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from adamtune.report.figures import figure, literal
from adamtune.report.wording import number

_MOST_STEPS = 7
"""A knob with at most so many values has them evenly spaced, each labelled."""

_APART = 0.11
"""Labels of an axis stand at least this share of its length apart."""

_LONGEST_LABEL, _LONGEST_HEADING = 15, 10
_WIDE = 5.0
_NEAR_ONE = {"beta1", "beta2", "momentum"}
"""These are told apart by how far they are from one."""


@dataclass(frozen=True)
class Bundle:
    """Recipes drawn alike, under one entry of the legend."""

    name: str
    rows: Sequence[int]
    """Places in the table."""
    line: Mapping[str, Any]
    """Plotly's `line`."""
    opacity: float = 1.0


@dataclass(frozen=True)
class _Axis:
    name: str
    places: Sequence[float | None]
    """Of each recipe, from 0 to 1; None where its line ends."""
    ticks: Sequence[tuple[float, str]]


def coordinates_figure(
    recipes: pd.DataFrame, knobs: Sequence[str], objective: str, bundles: Sequence[Bundle]
) -> go.Figure:
    """A line for each row of `recipes`, which has the columns `knobs` and `value`; later bundles lie on top."""
    axes = [*(_axis(knob, recipes[knob]) for knob in knobs), _continuous(objective, recipes["value"])]
    made = figure("", "")
    for bundle in bundles:
        xs: list[float | None] = []
        ys: list[float | None] = []
        for row in bundle.rows:
            xs += [*range(len(axes)), None]
            ys += [*(axis.places[row] for axis in axes), None]
        made.add_scatter(
            x=xs, y=ys, mode="lines", name=literal(bundle.name), line=dict(bundle.line), opacity=bundle.opacity,
            hoverinfo="skip", showlegend=True,
        )  # fmt: skip
    for place, axis in enumerate(axes):
        made.add_vline(x=place, line={"width": 1.5}, layer="below")
        for height, text in axis.ticks:
            made.add_annotation(
                x=place, y=height, text=literal(text), showarrow=False, xanchor="left", xshift=3, font={"size": 11},
                opacity=0.85, borderpad=1,
            )  # fmt: skip
    told = f"{', '.join(knobs)} and {objective} in parallel coordinates"
    made.update_layout(
        height=460, margin={"l": 40, "r": 10, "t": 55, "b": 30}, dragmode=False,
        meta={"least_width": 80 * len(axes), "of": told},
    )  # fmt: skip
    made.update_xaxes(
        tickvals=list(range(len(axes))), ticktext=[f"<b>{_heading(axis.name)}</b>" for axis in axes], side="top",
        range=[-0.15, len(axes) - 0.25], showgrid=False, fixedrange=True,
    )  # fmt: skip
    made.update_yaxes(visible=False, range=[-0.06, 1.06], fixedrange=True)
    return made


def _heading(name: str) -> str:
    """Broken where it is long, so that axes may stand close together."""
    lines = textwrap.wrap(name.replace("_", "_ "), _LONGEST_HEADING)
    return "<br>".join(literal(line.replace("_ ", "_")) for line in lines) or literal(name)


def _axis(knob: str, values: pd.Series[Any]) -> _Axis:
    numbers = pd.to_numeric(values, errors="coerce")
    words = values.notna() & numbers.isna()
    if values.dropna().nunique() > _MOST_STEPS and not words.any():
        return _continuous(knob, numbers)
    known = sorted(set(values.dropna()), key=lambda each: (isinstance(each, str), each))
    steps: list[Any] = [*([None] if values.isna().any() else []), *known]
    height = {each: place / max(1, len(steps) - 1) for place, each in enumerate(steps)}
    places = [height[None if pd.isna(value) else value] for value in values]
    texts = [each for each in known if isinstance(each, str)] if len(known) > 1 else []
    shared = os.path.commonprefix(texts).rfind(" ") + 1  # noqa: RUF071 - its letters are what we compare
    labels = [(height[each], "none" if each is None else _label(each, shared)) for each in steps]
    return _Axis(knob, places, _spaced(labels))


def _continuous(name: str, values: pd.Series[Any]) -> _Axis:
    """By size, or by its logarithm; below it, a place for recipes without the knob."""
    finite = values[values.map(lambda each: math.isfinite(each))]
    scaled = {value: _scale(name, value, finite) for value in finite.unique()}
    low, high = min(scaled.values(), default=0.0), max(scaled.values(), default=1.0)
    absent = 0.0 if name in _NEAR_ONE and len(finite) < len(values) else None
    bottom = 0.0 if absent is None else 0.14

    def place(at: float) -> float:
        return bottom + (1 - bottom) * ((at - low) / (high - low) if high > low else 0.5)

    height = {value: place(at) for value, at in scaled.items()}
    ticks = [(at, _label(float(value))) for value, at in height.items()]
    if absent is not None:
        ticks.append((absent, "none"))
    return _Axis(name, [height.get(value, absent) for value in values], _spaced(ticks))


def _scale(name: str, value: float, values: pd.Series[Any]) -> float:
    if name in _NEAR_ONE and values.between(0, 1, inclusive="left").all():
        return -math.log(1 - value)
    wide = values.min() > 0 and values.max() > _WIDE * values.min()
    return math.log(value) if wide else float(value)


def _spaced(labels: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """The lowest and the highest label, and between them those that have room."""
    if not labels:
        return []
    ordered = sorted(labels)
    kept, top = [ordered[0]], ordered[-1]
    for each in ordered[1:-1]:
        if each[0] - kept[-1][0] >= _APART and top[0] - each[0] >= _APART:
            kept.append(each)
    return kept if len(ordered) == 1 else [*kept, top]


def _label(value: object, shared: int = 0) -> str:
    """In a few letters. Where it is a text, the first `shared` are those of all: a long one says how it differs."""
    text = f"{value:.3g}" if isinstance(value, float) else number(value)
    if len(text) > _LONGEST_LABEL and shared > 1:
        text = "…" + text[shared:]
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
