"""Whether sweeps tell the truth: many small ones, and what their recommended recipes do on other seeds.

python -m benchmarks.honesty [--tasks CASE ...] [--sweeps 20] [--budget 20] [--json FILE]

Each sweep has a seed and a budget in horizons. Its recommended recipe and the default are then trained on ten seeds
that no sweep sees. Told, by task: in how many sweeps the stated 95% interval holds the mean over those ten, for either
recipe; in how many the recommended recipe is worse there than the default by evidence (paired, 95%); and the median of
its loss over the best known (256 random trials over six knobs, the ten best measured again on the same ten seeds).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

import adamtune
from adamtune.engines import make_engine
from adamtune.errors import AdamtuneError
from adamtune.evidence import interval
from adamtune.spec import Budget, Spec, TaskSpec
from adamtune.task import load_task
from benchmarks.lr_tasks import CASES
from benchmarks.search_race import Judge, best_known

TASKS = ("digits-mlp", "digits-raw-pixels", "breast-cancer")
FRESH = range(10**9, 10**9 + 10)  # no sweep's
RANDOM_TRIALS = 256


def honesty(case: str, sweeps: int, budget: int) -> dict[str, Any]:
    """Counts over the sweeps of one task."""
    horizon = CASES[case]().horizon
    ref = TaskSpec(ref="benchmarks.lr_tasks:task", args={"case": case})
    task = load_task(ref.ref, ref.args)
    told: dict[str, Any] = {"task": case, "sweeps": 0, "held": 0, "held_default": 0, "worse": 0, "changed": 0}
    over, steps = [], []
    with closing(make_engine("auto", task, torch.device("cpu"))) as engine:
        judge = Judge(engine, horizon, FRESH, {})
        best, _ = best_known(engine, judge, horizon, RANDOM_TRIALS)
        for seed in range(sweeps):
            spec = Spec(task=ref, horizon=horizon, budget=Budget(trials=budget), seed=seed, device="cpu")
            with tempfile.TemporaryDirectory(prefix="bench-honesty-") as folder:
                try:
                    result = adamtune.sweep(spec, Path(folder) / "run")
                except AdamtuneError as refusal:
                    told["refused"] = " ".join(str(refusal).split())
                    continue
            stated, mean = result.conclusion.recommended.summary, judge.mean(result.recipe)
            base, base_mean = result.conclusion.default.summary, judge.mean(spec.base)
            pairs = zip(judge.losses(spec.base), judge.losses(result.recipe), strict=True)
            told["sweeps"] += 1
            told["held"] += stated.low <= mean <= stated.high
            told["held_default"] += base.low <= base_mean <= base.high
            told["worse"] += interval([b - a for a, b in pairs]).low > 0
            told["changed"] += bool(spec.base.diff(result.recipe))
            over.append(mean / best)
            steps.append(result.steps_used / horizon)
    if over:
        told |= {"over_best_known": statistics.median(over), "horizons": statistics.median(steps)}
    return told | {"best_known": best, "default": judge.mean(Spec(task=ref, horizon=1).base)}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.honesty")
    parser.add_argument("--tasks", nargs="+", choices=CASES, default=list(TASKS))
    parser.add_argument("--sweeps", type=int, default=20, help="sweeps a task")
    parser.add_argument("--budget", type=int, default=20, help="of each, in horizons")
    parser.add_argument("--json", type=Path, help="also write the counts there")
    options = parser.parse_args()
    rows = []
    for case in options.tasks:
        rows.append(honesty(case, options.sweeps, options.budget))
        sys.stdout.write(f"{rows[-1]}\n")
        sys.stdout.flush()
    total = {key: sum(row[key] for row in rows) for key in ("sweeps", "held", "held_default", "worse", "changed")}
    sys.stdout.write(f"in all: {total}\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
