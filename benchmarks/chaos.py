"""What a sweep survives: kill -9 at random moments, and going on each time. `make chaos` prints survived of total."""

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
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return _kills(Path(folder), options.kills, random.Random(options.seed))


def _kills(folder: Path, wanted: int, chance: random.Random) -> int:
    began = time.monotonic()
    _start(folder, "unbroken").wait()
    seconds, unbroken = time.monotonic() - began, _told(folder / "unbroken")
    print(f"a sweep without interruption: {len(unbroken['trials'])} trials, {seconds:.1f} s", flush=True)
    kills = runs = same = 0
    while kills < wanted:
        run = folder / f"run-{runs}"
        runs += 1
        while not (run / rundir.RESULT).exists():
            child = _start(folder, run.name)
            try:
                child.wait(timeout=chance.uniform(0.5, 1.2) * seconds if kills < wanted else None)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                kills += 1
        told = _told(run)
        same += told == unbroken
        for part in unbroken:
            if told[part] != unbroken[part]:
                print(f"{run.name} differs in its {part}", flush=True)
    print(f"kill -9: {kills} kills over {runs} sweeps; ended as without interruption: {same}/{runs}")
    return 0 if same == runs else 1


def _start(folder: Path, run: str) -> subprocess.Popen[bytes]:
    (folder / "spec.yaml").write_text(SPEC)
    command = [sys.executable, "-m", "adamtune", "sweep", "spec.yaml", "--run-dir", run]
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
