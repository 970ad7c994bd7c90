"""A sweep of ten thousand trials: the memory it takes as it grows, and what is left to look at. `python -m
benchmarks.many_trials` prints megabytes by trials, and the time of `show` and the size of the report at the end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from adamtune import rundir
from adamtune.plan import Progress
from adamtune.spec import Spec
from adamtune.stages.context import TrialRecord
from adamtune.sweeps import sweep
from benchmarks.fuzz_texts import TASK


def megabytes() -> float:
    """What this process has in memory now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024


class _Watch(Progress):
    def __init__(self, every: int) -> None:
        self.trials, self.every, self.began = 0, every, time.monotonic()
        self.memory: list[tuple[int, float]] = []

    def on_trial(self, record: TrialRecord) -> None:
        self.trials += 1
        if self.trials % self.every == 0:
            self.memory.append((self.trials, megabytes()))
            print(f"{self.trials:6} trials {megabytes():7.0f} MB {time.monotonic() - self.began:6.0f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=250, help="search seeds; trials grow with them")
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--run-dir", type=Path, help="keep the run here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.run_dir or Path(folder) / "run"
        watch = _Watch(every=1000)
        sweep(many(options.seeds, options.horizon), run, watch)
        print(f"{watch.trials} trials in {time.monotonic() - watch.began:.0f} s, {megabytes():.0f} MB at the end")
        for entry in sorted(run.iterdir()):
            print(f"{entry.stat().st_size / 1e6:8.2f} MB {entry.name}")
        for command in (["show", str(run)], ["diagnose", str(run)]):
            began = time.monotonic()
            subprocess.run([sys.executable, "-m", "adamtune", *command], check=True, stdout=subprocess.DEVNULL)
            print(f"adamtune {command[0]}: {time.monotonic() - began:.2f} s")
        print(f"report: {(run / rundir.REPORT).stat().st_size / 1e6:.2f} MB")
    return 0


def many(seeds: int, horizon: int) -> Spec:
    """A sweep over so many seeds that every question takes hundreds of trials."""
    spec = {"task": {"ref": TASK}, "horizon": horizon, "budget": {"trials": 10**6}, "seeds": seeds}
    stages = ["lr_range", "lr", "beta1", "eps", "beta2", "weight_decay", "warmup", "schedule", "clip"]
    return Spec.model_validate(spec | {"stages": stages, "engine": "sequential"})


if __name__ == "__main__":
    sys.exit(main())
