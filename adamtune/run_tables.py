"""The tables of a finished run, read: trials.csv, curves.csv and probe.csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from adamtune import rundir


def all_rows(run: Path, name: str) -> pd.DataFrame:
    """A table; without rows and columns when the run has no such table. Raises `RunDirError` as `rundir.run_file`."""
    path = rundir.run_file(run, name)
    if not path.exists():
        return pd.DataFrame()
    # Only an empty cell is missing: a param group may be called "NA".
    return pd.read_csv(path, keep_default_na=False, na_values=[""], low_memory=False)


def final_rows(run: Path, name: str) -> pd.DataFrame:
    """The rows of a table that belong to the last comparison."""
    rows = all_rows(run, name)
    return rows if rows.empty else rows[rows["stage"] == rundir.FINAL]


def recommended_trials(final: pd.DataFrame) -> dict[int, int]:
    """Seed -> the trial of the recommended recipe. On every seed the default came first; alone it is both."""
    if final.empty:
        return {}
    last = final.sort_values("trial").groupby("seed")["trial"].last()
    return {int(seed): int(trial) for seed, trial in last.items()}  # type: ignore[call-overload]
