"""The report's section on Adam's state over a trial, beside its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from adamtune import rundir
from adamtune.report.figures import DEPTH, Line, percentiles_figure
from adamtune.report.line_table import lines_table
from adamtune.report.page import Section, paragraph, picture
from adamtune.run_tables import all_rows

_PERCENTILES = {"p50": ("solid", 2.2), "p10": ("dot", 1.1), "p90": ("dash", 1.1)}
_PROBED = {
    "r": "r = |m_hat| / (sqrt(v_hat) + eps), the step of a parameter before lr",
    "lr_r": "lr * r, the step a parameter makes",
}


def probe_section(run: Path, trials: pd.DataFrame, objective: str, of: str) -> Section | None:
    """Adam's state over one trial, the last of `trials` that completed; `of` says what recipe that is."""
    completed = trials[trials["outcome"] == "completed"] if not trials.empty else trials
    if completed.empty:
        return None
    last = completed.sort_values("trial").iloc[-1]
    probe, curve = (_rows_of(last, all_rows(run, name)) for name in (rundir.PROBE, rundir.CURVES))
    losses = []
    shown = (("training loss", "train_loss", "solid"), (f"validation {objective}", objective, "dash"))
    for name, column, dash in shown:
        if column in curve and curve[column].notna().any():
            known = curve.dropna(subset=[column])
            losses.append(Line(name, known["step"].tolist(), known[column].tolist(), dash=dash))
    pictures = [_probe_picture(probe, statistic, losses) for statistic in _PROBED]
    if not any(pictures):
        return None
    told = f"Percentiles of Adam's state by param group, beside the loss: {of} on seed {last['seed']}."
    if "default" in set(probe["group"]):
        told += " The group called default is that of the parameters which no rule of the recipe names."
    return Section("Adam's state", "\n".join([paragraph(told), *pictures]), "state")


def _rows_of(trial: pd.Series[Any], table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        return table
    own: pd.DataFrame = table[(table["study"] == trial["study"]) & (table["trial"] == trial["trial"])]
    return own


def _probe_picture(probe: pd.DataFrame, statistic: str, losses: list[Line]) -> str:
    if probe.empty:
        return ""
    probe = probe[(probe["statistic"] == statistic) & probe["percentile"].isin(list(_PERCENTILES))]
    positive = probe[probe["value"] > 0]
    if positive.empty:
        return ""
    lines = []
    for colour, (group, own) in enumerate(positive.groupby("group"), start=1):
        for percentile, (dash, width) in _PERCENTILES.items():
            rows = own[own["percentile"] == percentile]
            if not rows.empty:
                name = f"{group} {percentile}"
                xs, ys = rows["step"].tolist(), rows["value"].tolist()
                lines.append(Line(name, xs, ys, colour, dash, group=str(group), width=width))
    caption = f"{_PROBED[statistic]}: median (solid), 10th (dotted) and 90th percentile (dashed).{_unseen(probe)}"
    return picture(percentiles_figure(statistic, lines, losses), caption, lines_table("step", [*losses, *lines]))


def _unseen(probe: pd.DataFrame) -> str:
    """What a log axis cannot show, in words."""
    told = ""
    largest = probe.groupby("step")["value"].max()
    silent = largest[largest == 0].index.tolist()
    if silent:
        told += f" All are 0 at step {', '.join(map(str, silent))}."
    rest = probe[~probe["step"].isin(silent)]
    zeros = [
        f"{group} {percentile} ({int((rows['value'] == 0).sum())} of {len(rows)} points)"
        for (group, percentile), rows in rest.groupby(["group", "percentile"])
        if (rows["value"] == 0).any()
    ]
    if zeros:
        told += f" Zero, which a log axis cannot show: {', '.join(zeros)}."
    lowest = rest["value"][rest["value"] > 0].min()
    if lowest < largest.max() / DEPTH:
        told += f" What leaves the plot below falls to {lowest:.2g}."
    return told
