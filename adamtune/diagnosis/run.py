"""A run directory as the rules look at it: the trials of its recommended recipe in the last comparison, by seed.

Only files are read. The task is not imported: to look at a run must not run anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from adamtune import rundir
from adamtune.diagnosis.finding import Observed
from adamtune.errors import RunDirError
from adamtune.recipe import Kind, Recipe, load_recipe
from adamtune.run_tables import final_rows, recommended_trials

_LONGEST = 10**8
"""Steps of a trial; a number of them stands in memory for each."""


@dataclass(frozen=True)
class ObservedRun:
    """What a finished run tells of its recommended recipe."""

    seeds: Mapping[int, Observed]
    """By fresh seed."""
    horizon: int
    verdicts: Mapping[str, str]
    """What each stage of the sweep decided, by its name."""


def read_run(run: Path) -> ObservedRun:
    """Read a finished run. Of the training loss it keeps the mean over each rung, which every step of it is given here:
    what happens within a rung cannot be seen.

    Raises `RunDirError` where the run has not finished, kept no trials of the last comparison, or its tables cannot be
    read; `RecipeError` for its recipe.
    """
    result = rundir.read_result(run)
    recipe = load_recipe(rundir.run_file(run, rundir.RECIPE))
    try:
        horizon = int(result["horizon"])
        if horizon > _LONGEST:
            raise ValueError(f"{horizon} steps are too many to look at one by one")
        trials = recommended_trials(final_rows(run, rundir.TRIALS))
        curves, probe = final_rows(run, rundir.CURVES), final_rows(run, rundir.PROBE)
        seeds = {
            seed: _observed(recipe, horizon, _of_trial(curves, trial), _of_trial(probe, trial))
            for seed, trial in trials.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise RunDirError(f"the tables of {run} cannot be read: {problem}; sweep again, or restore them") from problem
    if not seeds:
        raise RunDirError(f"{run} has no trials of its recommended recipe in {rundir.TRIALS}; sweep again")
    return ObservedRun(seeds, horizon, {stage["stage"]: stage["verdict"] for stage in result["stages"]})


def _of_trial(table: pd.DataFrame, trial: int) -> pd.DataFrame:
    return table if table.empty else table[table["trial"] == trial].sort_values("step", kind="stable")


def _observed(recipe: Recipe, horizon: int, curves: pd.DataFrame, probe: pd.DataFrame) -> Observed:
    train_losses: list[float] = []
    validation = []
    for row in curves.to_dict("records"):
        step = int(row["step"])
        if step > horizon:
            raise ValueError(f"{rundir.CURVES} has a step {step} beyond the horizon of {horizon}")
        train_losses += [float(row["train_loss"])] * (step - len(train_losses))
        if math.isfinite(loss := float(row.get("loss", math.nan))):
            validation.append((step, loss))
    return Observed(
        records=_records(probe),
        recipe=recipe,
        horizon=horizon,
        train_losses=tuple(train_losses),
        validation=tuple(validation),
        kinds=_kinds(recipe),
    )


def _records(probe: pd.DataFrame) -> tuple[tuple[int, Mapping[str, float]], ...]:
    records: dict[int, dict[str, float]] = {}
    for row in probe.to_dict("records"):
        names = [str(row["group"]), str(row["statistic"])]
        if isinstance(percentile := row["percentile"], str):
            names.append(percentile)
        if any("/" in name for name in names) or not re.fullmatch(r"p\d+", names[2] if names[2:] else "p50"):
            raise ValueError(f"{rundir.PROBE} has a statistic that no probe records: {' '.join(names)[:100]}")
        key = "/".join(names)
        records.setdefault(int(row["step"]), {})[key] = float(row["value"])
    return tuple(records.items())


def _kinds(recipe: Recipe) -> dict[str, tuple[Kind, ...]]:
    """By the rules that go by kind alone; which kinds the other groups have, only the model could tell."""
    return {rule.name: rule.match.kind for rule in recipe.groups if rule.match.kind and not rule.match.params}
