"""The report's section on what the rules found, and what of Adam's state goes with the objective."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from adamtune import rundir
from adamtune.report.page import Section, paragraph, table
from adamtune.report.wording import number
from adamtune.run_tables import all_rows

_LEAST_TRIALS = 10
"""Fewer trials say nothing about what goes with what: of ten unrelated ones every twentieth has |rho| above 0.65."""

_SHOWN = 8


def findings_section(run: Path, result: Mapping[str, Any]) -> Section | None:
    """Findings on the recommended recipe, and the statistics that rank trials as the objective does."""
    parts = []
    found = result.get("findings")
    if found is not None:
        parts.append(_table(found) if found else paragraph("Nothing was found in the recommended recipe's trials."))
    related = related_statistics(run, result["horizon"])
    if not related.empty:
        rows = [[str(row.statistic), f"{row.rho:+.2f}"] for row in related.head(_SHOWN).itertuples()]
        name = result["objective"]["name"]
        count = int(related["trials"].iloc[0])
        told = f"Over the {count} trials to the horizon: what the probe measured a rung before it, beside their {name}."
        parts += ["<h3>What goes with the objective</h3>", paragraph(told)]
        parts.append(table(["statistic", "rank correlation"], rows))
    return Section("Findings", "\n".join(parts), "findings") if parts else None


def _table(found: list[dict[str, Any]]) -> str:
    rows = []
    for each in found:
        seeds = each.get("seeds")
        remedy = ", ".join(f"{knob} {number(value)}" for knob, value in each["remedy"].items())
        rows.append(
            [
                each["severity"],
                each["rule"],
                f"{seeds['raised']} of {seeds['of']}" if seeds else "1",
                each["told"],
                each["advice"],
                remedy,
            ]
        )
    return table(["severity", "rule", "seeds", "what was seen", "what to do", "as a recipe change"], rows)


def related_statistics(run: Path, horizon: int) -> pd.DataFrame:
    """Spearman's rank correlation of every statistic with the objective over the trials that completed `horizon` steps:
    columns statistic, rho, trials, the strongest first. Empty where there are too few trials.
    """
    nothing = pd.DataFrame(columns=["statistic", "rho", "trials"])
    trials, probe = all_rows(run, rundir.TRIALS), all_rows(run, rundir.PROBE)
    if trials.empty or probe.empty or "value" not in trials:
        return nothing
    whole = trials[(trials["outcome"] == "completed") & (trials["horizon"] == horizon)]
    keys = ["study", "trial"]
    # What is measured at the end itself says little: a schedule that decays to zero makes every lr * r zero there.
    before = probe[probe["step"] < horizon]
    late = before[before["step"] == before.groupby(keys)["step"].transform("max")].copy()
    place = late["percentile"].map(lambda each: f" {each}" if isinstance(each, str) else "").astype(str)
    late["name"] = late["group"].astype(str) + " " + late["statistic"].astype(str) + place
    wide = late.pivot_table(index=keys, columns="name", values="value")
    joined = whole.set_index(keys)[["value"]].join(wide, how="inner")
    if len(joined) < _LEAST_TRIALS:
        return nothing
    varying = [name for name in wide.columns if joined[name].nunique() > 1]
    if not varying:
        return nothing
    ranks = joined.rank()
    rho = ranks[varying].corrwith(ranks["value"]).dropna()
    table = pd.DataFrame({"statistic": rho.index, "rho": rho.to_numpy(), "trials": len(joined)})
    return table.sort_values("rho", key=lambda column: -column.abs(), kind="stable", ignore_index=True)
