"""The trials of a sweep as tables: trials.csv, curves.csv and probe.csv."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from adamtune.recipe import WarmupSteps
from adamtune.report.wording import number
from adamtune.stages.context import TrialRecord

_TABLE_KNOBS = (
    *("optimizer", "lr", "beta1", "beta2", "eps", "momentum", "weight_decay"),
    *("warmup", "schedule", "clip_norm", "precision", "switch"),
)


_AT_A_TIME = 250
"""Trials whose rows are in memory at once: those of ten thousand take hundreds of megabytes."""


def table_lines(
    table: Callable[[Sequence[TrialRecord]], pd.DataFrame], records: Sequence[TrialRecord]
) -> Iterator[str]:
    """A table of these trials as CSV, in parts."""
    columns: dict[str, None] = {}
    parts = range(0, max(1, len(records)), _AT_A_TIME)
    for start in parts:
        columns |= dict.fromkeys(table(records[start : start + _AT_A_TIME]).columns)
    for start in parts:
        part = table(records[start : start + _AT_A_TIME]).reindex(columns=list(columns))
        yield part.to_csv(index=False, header=start == 0)


def trials_table(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row a trial."""
    rows = []
    for record in records:
        result, request = record.result, record.result.request
        knobs = {name: request.recipe.knob(name) for name in _TABLE_KNOBS}
        knobs["groups"] = request.recipe.groups_told()
        unused = ("beta1", "beta2", "eps") if request.recipe.optimizer == "sgd" else ("momentum",)
        knobs |= dict.fromkeys(unused, math.nan)
        knobs["switch"] = number(knobs["switch"]) if knobs["switch"] else ""
        if isinstance(request.recipe.schedule.warmup, WarmupSteps):
            knobs["warmup"] = number(knobs["warmup"])
        if request.ramp is not None:
            knobs |= {"lr": math.nan, "schedule": f"ramp {request.ramp.start:g}..{request.ramp.end:g}"}
        rows.append(
            {
                "stage": record.stage,
                "study": record.study,
                "trial": record.number,
                "seed": request.seed,
                "horizon": request.horizon,
                "outcome": str(result.outcome),
                "steps": result.steps,
                "seconds": round(result.seconds, 4),
                "value": record.value,
                **knobs,
                "message": result.message,
            }
        )
    columns = ["stage", "study", "trial", "seed", "horizon", "outcome", "steps", "seconds", "value", *_TABLE_KNOBS]
    return pd.DataFrame(rows, columns=[*columns, "groups", "message"])


def curves_table(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row a rung."""
    rows = []
    for record in records:
        for rung in record.result.rungs:
            finite = [loss for loss in rung.train_losses if math.isfinite(loss)]
            rows.append(
                {
                    "stage": record.stage,
                    "study": record.study,
                    "trial": record.number,
                    "seed": record.result.request.seed,
                    "step": rung.step,
                    "train_loss": math.fsum(finite) / len(finite) if finite else math.nan,
                    **rung.values,
                }
            )
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["stage", "study", "trial", "seed", "step"])


def probe_table(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row a statistic of a probe record."""
    rows = [
        (record.stage, record.study, record.number, record.result.request.seed, rung.step, *_probe_key(key), value)
        for record in records
        for rung in record.result.rungs
        for key, value in rung.probe.items()
    ]
    columns = ["stage", "study", "trial", "seed", "step", "group", "statistic", "percentile", "value"]
    return pd.DataFrame(rows, columns=columns)


def _probe_key(key: str) -> tuple[str, str, str]:
    group, statistic, *percentile = key.split("/")
    return group, statistic, percentile[0] if percentile else ""
