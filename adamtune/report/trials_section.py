"""The report's section on all that was tried: every recipe's knobs against what it measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from adamtune.report.coordinates import Bundle, coordinates_figure
from adamtune.report.figures import BLUE, GREY, ORANGE, RED
from adamtune.report.page import Section, paragraph, picture, table
from adamtune.report.wording import number
from adamtune.run_tables import recommended_trials
from adamtune.rundir import FINAL

_NO_KNOB = {"stage", "study", "trial", "seed", "horizon", "outcome", "steps", "seconds", "value", "message"}

_MOST_LINES = 150
"""Of a bundle with more recipes so many are drawn: more lines show no more, and the page stays small."""

_LISTED = 50


def trials_section(trials: pd.DataFrame, horizon: int, objective: str, direction: str) -> Section | None:
    """Recipes that were trained to the horizon, by knob and objective. None where there are not two of them."""
    if trials.empty or not {"value", "outcome", "horizon", "stage", "seed", "trial", "steps"} <= set(trials.columns):
        return None
    counted = ", ".join(f"{count:,} {outcome}" for outcome, count in trials["outcome"].value_counts().items())
    told = f"{len(trials):,} trials ({counted}), {int(trials['steps'].sum()):,} training steps."
    recipes, knobs = _recipes(trials, horizon, direction)
    if len(recipes) < 2 or not knobs:
        return Section("All trials", paragraph(told), "trials")
    caption = (
        f"A line is a recipe trained over {horizon:,} steps, through its knobs to its mean {objective} over all its "
        "seeds. Most are search seeds, so the best looks better here than it is. Knobs that never varied are left out."
    )
    bundles = _bundles(recipes)
    lines = sum(len(bundle.rows) for bundle in bundles)
    if lines < len(recipes):
        caption += f" Drawn are {lines} of {len(recipes):,}, evenly spread by rank."
    drawn = coordinates_figure(recipes, knobs, objective, bundles)
    data = _table(recipes, knobs, objective)
    return Section("All trials", "\n".join([paragraph(told), picture(drawn, caption, data)]), "trials")


def _recipes(trials: pd.DataFrame, horizon: int, direction: str) -> tuple[pd.DataFrame, list[str]]:
    """One row a recipe, the best first, those without a value last; and the knobs in which they differ."""
    ended = trials["outcome"].isin(["completed", "diverged"]) & (trials["horizon"] == horizon)
    whole = trials[ended].copy()
    columns = [name for name in whole.columns if name not in _NO_KNOB]
    columns = [name for name in columns if whole[name].notna().any()]
    if whole.empty or not columns:
        return whole, []
    whole["value"] = pd.to_numeric(whole["value"], errors="coerce").where(whole["outcome"] == "completed")
    last = whole[whole["stage"] == FINAL]
    recommended = set(recommended_trials(last).values())
    whole["recommended"] = (whole["stage"] == FINAL) & whole["trial"].isin(recommended)
    whole["default"] = (whole["stage"] == FINAL) & ~whole["recommended"]
    grouped = whole.groupby(columns, dropna=False, sort=False)
    recipes = grouped.agg(
        value=("value", _mean_if_all),
        seeds=("seed", "nunique"),
        diverged=("outcome", _any_diverged),
        recommended=("recommended", "any"),
        default=("default", "any"),
    ).reset_index()
    recipes = recipes.sort_values("value", ascending=direction == "minimize", kind="stable", ignore_index=True)
    return recipes, [name for name in columns if recipes[name].nunique(dropna=False) > 1]


def _mean_if_all(values: pd.Series[Any]) -> float:
    return float(values.mean(skipna=False))


def _any_diverged(outcomes: pd.Series[Any]) -> bool:
    return bool((outcomes == "diverged").any())


def _bundles(recipes: pd.DataFrame) -> list[Bundle]:
    """The best tenth stands out, and the default and the recommended recipe by themselves."""
    special = recipes["recommended"] | recipes["default"]
    unmeasured = recipes["value"].isna() & ~recipes["diverged"]
    ranked = [int(row) for row in recipes.index[recipes["value"].notna() & ~special]]
    tenth, half = -(-len(ranked) // 10), -(-len(ranked) // 2)
    bundles = [
        Bundle("the worse half", ranked[half:], {"color": GREY, "width": 1}, 0.45),
        Bundle("the better half", ranked[tenth:half], {"color": "#1a9aa0", "width": 1.2}, 0.6),
        Bundle("diverged", _rows(recipes["diverged"] & ~special), {"color": RED, "width": 1.5, "dash": "dot"}),
        Bundle("not finite", _rows(unmeasured & ~special), {"color": RED, "width": 1, "dash": "dashdot"}),
        Bundle("the best tenth", ranked[:tenth], {"color": BLUE, "width": 2}),
        Bundle("default", _rows(recipes["default"]), {"color": GREY, "width": 4, "dash": "dash"}),
        Bundle("recommended", _rows(recipes["recommended"]), {"color": ORANGE, "width": 4}),
    ]
    return [dataclasses.replace(bundle, rows=_thinned(bundle.rows)) for bundle in bundles if bundle.rows]


def _thinned(rows: Sequence[int]) -> Sequence[int]:
    return rows[:: -(-len(rows) // _MOST_LINES)]


def _rows(chosen: pd.Series[Any]) -> list[int]:
    return [int(row) for row in chosen.index[chosen]]


def _table(recipes: pd.DataFrame, knobs: Sequence[str], objective: str) -> str:
    """The recipes as rows, the best first."""
    rows = []
    for recipe in recipes.head(_LISTED).to_dict("records"):
        role = " and ".join(name for name in ("recommended", "default") if recipe[name])
        value = "not finite" if pd.isna(recipe["value"]) else number(recipe["value"])
        value = "diverged" if recipe["diverged"] else value
        cells = ["" if pd.isna(recipe[knob]) else number(recipe[knob]) for knob in knobs]
        rows.append([value, str(recipe["seeds"]), role, *cells])
    name = f"The best {len(rows)} of {len(recipes)} recipes; trials.csv has every trial"
    return paragraph(f"{name}.") + table([f"mean {objective}", "seeds", "", *knobs], rows, name)
