"""Two recipes side by side, and what their runs measured: `adamtune compare`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamtune.evidence import Interval, Verdict, weigh
from adamtune.export import recipe_of
from adamtune.recipe import Recipe
from adamtune.rundir import read_result

COMPARISON_VERSION = 1


@dataclass(frozen=True)
class Paired:
    """The recommended recipes of both runs on the fresh seeds the runs share."""

    seeds: tuple[int, ...]
    difference: Interval
    """B minus A, in units of the objective, over the seeds where both completed."""
    better: str | None
    """`a` or `b`, by evidence; None where the seeds do not tell."""


@dataclass(frozen=True)
class RunsCompared:
    """What two runs measured. Each is its result.json."""

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    paired: Paired | None
    unpaired: str | None
    """Why the losses were not paired; None where they were."""

    @property
    def verdicts(self) -> dict[str, tuple[str | None, str | None]]:
        """By stage, in A and in B; None where the run did not ask it."""
        mine, theirs = ({stage["stage"]: stage["verdict"] for stage in run["stages"]} for run in (self.a, self.b))
        return {name: (mine.get(name), theirs.get(name)) for name in mine | theirs}


@dataclass(frozen=True)
class Comparison:
    """What differs between the recipes of A and B."""

    a: Path
    b: Path
    knobs: Mapping[str, tuple[Any, Any]]
    """Those that differ: name -> (in A, in B). Empty only where both recipes train alike."""
    runs: RunsCompared | None
    """None unless both are runs."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, versioned."""
        return {
            "version": COMPARISON_VERSION,
            "a": str(self.a),
            "b": str(self.b),
            "knobs": _sides(self.knobs),
            "runs": self.runs and _runs_dict(self.runs),
        }


def compare(a: Path, b: Path) -> Comparison:
    """Compare two finished runs, two recipes (files, or names of shipped ones), or one of each.

    Raises `RunDirError` for a folder that is no finished run, `RecipeError` for a file that is no recipe.
    """
    results = [read_result(source) if source.is_dir() else None for source in (a, b)]
    mine, theirs = results
    runs = None if mine is None or theirs is None else _compare_runs(mine, theirs)
    return Comparison(a, b, differences(recipe_of(a), recipe_of(b)), runs)


def differences(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """The knobs that differ, and what decides which parameters a group takes: the groups' order and their `match`."""
    found = a.diff(b)
    mine, theirs = _matches(a), _matches(b)
    if list(mine) != list(theirs):
        found["groups"] = (list(mine), list(theirs))
    for name in mine | theirs:
        if mine.get(name) != theirs.get(name):
            found[f"groups.{name}.match"] = (mine.get(name), theirs.get(name))
    return found


def _matches(recipe: Recipe) -> dict[str, dict[str, Any]]:
    return {rule.name: rule.match.model_dump(mode="json", exclude_none=True) for rule in recipe.groups}


def _compare_runs(a: Mapping[str, Any], b: Mapping[str, Any]) -> RunsCompared:
    """Pair the losses where both runs measured the same thing on the same seeds."""
    seeds, others = _fresh_seeds(a), _fresh_seeds(b)
    differ = [what for what in ("task", "horizon", "objective") if a[what] != b[what]]
    differ += ["fresh seeds"] if seeds != others else []
    if differ:
        return RunsCompared(a, b, None, f"the runs differ in {', '.join(differ)}")
    if not seeds or any(len(_values(run)) != len(seeds) for run in (a, b)):
        return RunsCompared(a, b, None, "the runs do not say on which fresh seeds they ended")
    mine, theirs = _values(a), _values(b)
    direction = a["objective"]["direction"]
    evidence = weigh(seeds, mine, theirs, direction)
    better = "b" if evidence.verdict is Verdict.CHANGED else None
    if weigh(seeds, theirs, mine, direction).verdict is Verdict.CHANGED:
        better = "a"
    return RunsCompared(a, b, Paired(evidence.seeds, evidence.difference, better), None)


def _fresh_seeds(result: Mapping[str, Any]) -> list[int]:
    seeds: list[int] = result.get("recipe", {}).get("provenance", {}).get("fresh_seeds", [])
    return seeds


def _values(result: Mapping[str, Any]) -> list[float]:
    """By fresh seed; NaN where the trial diverged, which JSON says as null."""
    return [math.nan if value is None else value for value in result["recommended"]["values"]]


def _sides(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {name: {"a": mine, "b": theirs} for name, (mine, theirs) in pairs.items()}


def _runs_dict(runs: RunsCompared) -> dict[str, Any]:
    paired = runs.paired
    return {
        "a": _figures(runs.a),
        "b": _figures(runs.b),
        "verdicts": _sides(runs.verdicts),
        "paired": paired
        and {
            "seeds": list(paired.seeds),
            "difference": {
                "mean": paired.difference.mean,
                "ci95": [paired.difference.low, paired.difference.high],
                "seeds": paired.difference.count,
            },
            "better": paired.better,
        },
        "unpaired": runs.unpaired,
    }


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    measured = {
        name: {key: result[name][key] for key in ("mean", "ci95", "seeds", "diverged")}
        for name in ("default", "recommended")
    }
    kept = ("task", "horizon", "objective", "steps_used", "wall_seconds")
    return {key: result[key] for key in kept} | measured
