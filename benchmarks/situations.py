"""The README's table of `configs/`: what each sweep found out and cost, from its run directory.

    python -m benchmarks.situations RUN ... [--recipes recipes/measured]

With `--recipes` each run's recipe is also copied there, under the run's name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from adamtune import load_recipe, rundir
from adamtune.rundir import read_result
from adamtune.task import load_task

HEAD = "| spec | parameters | objective | default | recommended | steps | seconds | knobs changed |"


def row(run: Path) -> str:
    """A line of the table."""
    told = read_result(run)
    model = load_task(told["task"]["ref"], told["task"]["args"]).make_model()
    parameters = sum(param.numel() for param in model.parameters() if param.requires_grad)
    changed = ", ".join(f"{name} {_value(now['recommended'])}" for name, now in told["changed"].items()) or "none"
    cells = [f"`{run.name}`", f"{parameters:,}", told["objective"]["name"], _measured(told["default"])]
    cells += [_measured(told["recommended"]), f"{told['steps_used']:,}", f"{told['wall_seconds']:.0f}", changed]
    return f"| {' | '.join(cells)} |"


def _measured(told: dict[str, Any]) -> str:
    low, high = told["ci95"]
    return f"{told['mean']:.4g} [{low:.4g}, {high:.4g}]"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.situations")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--recipes", type=Path, help="also copy the recipes there")
    options = parser.parse_args()
    sys.stdout.write(f"{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}\n")
    for run in options.runs:
        sys.stdout.write(f"{row(run)}\n")
        if options.recipes:
            recipe = load_recipe(run / rundir.RECIPE)
            (options.recipes / f"{run.name}.yaml").write_text(recipe.to_yaml())


if __name__ == "__main__":
    main()
