"""What former sweeps of this user measured, as starting points for a new one. Data is read, nothing is run."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamtune.errors import AdamtuneError, InputError
from adamtune.rundir import RESULT, TRIALS, read_result, run_file
from adamtune.search.knowledge import NEAR, KnownTask, ordered
from adamtune.search.portfolio import Start
from adamtune.search.prior import ADAM, Prior

_VERSION = 1
"""Of result.json, whose keys are read here."""

_MOST_STARTS = 8
"""As many as the portfolio has of its own."""

_MOST_BYTES = 100_000_000

_KNOBS = ("lr", "beta1", "beta2", "eps", "weight_decay", "warmup")
"""What is learned: knobs of numbers. Schedule, groups and clipping stay those of the new sweep."""


_OTHERS = ("optimizer", "schedule", "clip_norm", "precision", "switch", "groups")


@dataclass(frozen=True)
class _FormerRun:
    name: str
    known: KnownTask


def learned_starts(folders: Sequence[Path], own: Path, on_note: Callable[[str], None]) -> list[Start]:
    """Recipes that did well in the runs below `folders`, in the order in which to try them.

    A folder may be a run itself. Only trials over a run's whole horizon count, by their mean over seeds. A run that is
    broken, unfinished or of another version is passed over, and `on_note` told why in one line; `own` is the run being
    written. Raises `InputError` where a folder is none.
    """
    runs: list[_FormerRun] = []
    for path in _run_paths(folders):
        if path.resolve() == own.resolve():
            continue
        try:
            runs.append(_read(path))
        except (AdamtuneError, OSError, ValueError, TypeError, KeyError, csv.Error) as problem:
            told = str(problem) if isinstance(problem, AdamtuneError) else f"{path}: {_told(problem)}"
            on_note(f"not learned from: {' '.join(told.split())[:200]}")
    if not runs:
        return []
    on_note(f"learned from {len(runs)} former run{'s' if len(runs) > 1 else ''}: {', '.join(run.name for run in runs)}")
    prior = Prior(ADAM)
    points: list[Mapping[str, float]] = []
    for point in ordered([run.known for run in runs], prior):
        if len(points) < _MOST_STARTS and all(prior.apart(point, other) >= NEAR for other in points):
            points.append(point)
    return [Start(f"learned {place}", _source(point, runs), dict(point)) for place, point in enumerate(points, start=1)]


def _run_paths(folders: Sequence[Path]) -> Iterator[Path]:
    """Run directories, by name: whatever holds a result."""
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--learn-from: {folder} is no folder; name one that holds runs, or a run")
        inside = sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
        for path in [folder] if (folder / RESULT).exists() else inside:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                yield path


def _read(path: Path) -> _FormerRun:
    trials = run_file(path, TRIALS)
    if trials.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{TRIALS} is too large to be one of ours")
    result = read_result(path)
    if result.get("version") != _VERSION:
        raise ValueError(f"its result is of version {result.get('version')!r}, this adamtune reads {_VERSION}")
    sign = 1.0 if result["objective"]["direction"] == "minimize" else -1.0
    losses: dict[tuple[tuple[str, float], ...], float] = {}
    for (point, _), values in _measured(trials, int(result["horizon"])).items():
        loss = sign * math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.inf
        losses[point] = min(loss, losses.get(point, math.inf))  # of recipes that differ in what is not learned
    best = min(losses.values(), default=math.inf)
    default = result["default"]["mean"]
    start = max(filter(math.isfinite, losses.values()), default=math.nan) if default is None else sign * float(default)
    if not (math.isfinite(best) and start > best):
        raise ValueError("no trial over its whole horizon did better than its default")
    regrets = [min(1.0, (loss - best) / (start - best)) for loss in losses.values()]
    return _FormerRun(path.name, KnownTask([dict(point) for point in losses], regrets))


_Key = tuple[tuple[tuple[str, float], ...], tuple[str | None, ...]]
"""The knobs that are learned, and the others by which recipes may differ."""


def _measured(path: Path, horizon: int) -> dict[_Key, list[float]]:
    """By recipe: the objective of every trial over the whole horizon; NaN where it diverged."""
    found: dict[_Key, list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if int(row["horizon"]) != horizon or row["outcome"] not in ("completed", "diverged"):
                continue
            point = _point(row)
            if point is not None:
                value = float(row["value"]) if row["outcome"] == "completed" else math.nan
                others = tuple(row.get(name) for name in _OTHERS)
                found.setdefault((tuple(point.items()), others), []).append(value)
    return found


def _point(row: Mapping[str, Any]) -> dict[str, float] | None:
    """The knobs of a trial; None for a range test, or where they are not Adam's."""
    try:
        point = {name: float(row[name]) for name in _KNOBS}
    except (TypeError, ValueError):  # an empty cell, or a warmup in steps
        return None
    inside = all(0.0 <= point[name] < 1.0 for name in ("beta1", "beta2", "warmup"))
    positive = all(0.0 < point[name] < math.inf for name in ("lr", "eps")) and 0.0 <= point["weight_decay"] < math.inf
    return point if inside and positive else None


def _source(point: Mapping[str, float], runs: Sequence[_FormerRun]) -> str:
    """The run that tried it and found it best."""
    tried = [(run.known.regrets[run.known.points.index(point)], run.name) for run in runs if point in run.known.points]
    return f"your run {min(tried)[1]}"


def _told(problem: Exception) -> str:
    if isinstance(problem, KeyError):
        return f"it lacks {problem}"
    if isinstance(problem, json.JSONDecodeError | UnicodeDecodeError):
        return "it is no text of ours"
    return getattr(problem, "strerror", None) or str(problem)
