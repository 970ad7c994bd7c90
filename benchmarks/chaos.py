"""What a sweep survives: kill -9 at random moments, and going on each time; and workers that die on SQLite, PostgreSQL
and Ray. `make chaos` prints survived of total for each.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from optuna import get_all_study_names, load_study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from adamtune import load_recipe, rundir
from benchmarks.chaos_workers import postgres_url, ray_workers, storage_workers

PARTS = ["kills", "sqlite", "postgres", "ray"]

SPEC = """
task: {ref: "adamtune.tasks.digits:task", args: {hidden: 16}}
horizon: 60
budget: {trials: 45}
seeds: 2
stages: [lr_range, lr, portfolio, beta2]
engine: sequential
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--trials", type=int, default=2_000, help="short trials by workers on each storage")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--every", type=float, default=5.0, help="seconds from one killed worker to the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    by = options.trials, options.workers, options.every
    survived = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in options.parts:
            (folder / part).mkdir()
            match part:
                case "kills":
                    ok = _kills(folder / part, options.kills, random.Random(options.seed))
                case "sqlite":
                    ok = storage_workers(part, f"sqlite:///{folder / part / 'jobs.db'}", folder / part, *by)
                case "postgres":
                    ok = storage_workers(part, postgres_url(folder / part / "server"), folder / part, *by)
                case _:
                    ok = ray_workers(_start, _told, folder / part)
            survived.append(ok)
    print(f"survived: {sum(survived)}/{len(survived)}")
    return 0 if all(survived) else 1


def _kills(folder: Path, wanted: int, chance: random.Random) -> bool:
    began = time.monotonic()
    _start(folder, "unbroken").wait()
    seconds, unbroken = time.monotonic() - began, _told(folder / "unbroken")
    print(f"a sweep without interruption: {len(unbroken['trials'])} trials, {seconds:.1f} s", flush=True)
    kills = runs = same = 0
    while kills < wanted:
        run = folder / f"run-{runs}"
        runs += 1
        before = kills
        while not (run / rundir.RESULT).exists():
            began, child = time.monotonic(), _start(folder, run.name)
            try:
                child.wait(timeout=chance.uniform(0.5, 1.2) * seconds if kills < wanted else None)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                kills += 1
            else:
                if kills == before:  # on a machine less busy by now, moments drawn from the first one's time come late
                    seconds = time.monotonic() - began
        told = _told(run)
        same += told == unbroken
        for part in unbroken:
            if told[part] != unbroken[part]:
                print(f"{run.name} differs in its {part}", flush=True)
    print(f"kill -9: {kills} kills over {runs} sweeps; ended as without interruption: {same}/{runs}")
    return same == runs


def _start(folder: Path, run: str, *options: str) -> subprocess.Popen[bytes]:
    (folder / "spec.yaml").write_text(SPEC)
    command = [sys.executable, "-m", "adamtune", "sweep", "spec.yaml", "--run-dir", run, *options]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _told(run: Path) -> dict[str, Any]:
    """Recipe, figures, tables and studies of a run, without times and names."""
    result = json.loads((run / rundir.RESULT).read_text())
    figures = {key: result[key] for key in ("default", "recommended", "difference", "steps_used", "stages")}
    trials = pd.read_csv(run / rundir.TRIALS).drop(columns=["seconds", "study"])
    storage = JournalStorage(JournalFileBackend(str(run / rundir.JOURNAL)))
    studies = {
        name.partition("/")[2]: [
            (str(t.state), t.params, t.values) for t in load_study(study_name=name, storage=storage).trials
        ]
        for name in sorted(get_all_study_names(storage))
    }
    places = [
        (json.loads(line)["key"], json.loads(line)["time"]) for line in (run / rundir.FINISHED).read_text().splitlines()
    ]
    return {
        "recipe": load_recipe(run / rundir.RECIPE).training_key(),
        "figures": figures,
        "trials": trials.to_csv().splitlines(),
        "studies": studies,
        "kept trials": (len(places), len(set(places))),
    }


if __name__ == "__main__":
    sys.exit(main())
