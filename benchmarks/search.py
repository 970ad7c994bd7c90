"""How many training steps a tuner needs: adamtune's whole sweep against general tuners on the same space.

python -m benchmarks.search [--tasks CASE ...] [--methods NAME ...] [--seeds 3] [--horizons 200] [--json FILE] [--quick]

Six knobs (lr, both betas, eps, weight decay, warmup) under cosine decay; tasks, space, seeds and what a recipe means
are the same for all. A method is judged by its answer's mean loss over ten fresh seeds, which is measured outside the
count. The target: within 5% of the best known, which is the best mean among the ten best of 256 random trials. Steps to
it are those spent when the answer is first within, if it stays so for ten horizons more or to the end of the search; of
what is given a budget (constant epoch, adamtune), those of the smallest budget whose answer is within. All steps count,
in horizons: every seed, every trial, those that were stopped or diverged, and adamtune's confirmations and last
comparison.

random           trials of one horizon on one seed, the same for all trials of a run; the answer is the best one shown
quasi-random x2  a scrambled Sobol sequence, with twice the budget
constant epoch   all stopped after an eighth of the horizon, the best three trained on; for budgets of 5, 10, 20, ...
TPE, GP          Optuna's samplers as they come
TPE+Hyperband    with Optuna's HyperbandPruner, reports at eight rungs
Ray ASHA         Ray Tune's scheduler with its own random search, where ray is installed (`pip install -e '.[ray]'`)
AlgoPerf's five  the fixed points of AlgoPerf's baseline, in their order
adamtune         one whole sweep for each of --budgets (in horizons), from the least, until one reaches the target

A task whose default recipe is within the target already tells nothing of steps, since many a first trial is too;
it is left out of the ratios' goals, and stays in those that compare with the default.

What methods wait for is trained side by side by adamtune's engines: steps are compared here, not seconds. The best
known, the fresh-seed losses and the peers' runs are kept in runs/bench-search/ and measured again where their settings
differ; adamtune is always run. Delete that folder where training itself has changed. All of it takes some hours on two
slow cores.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import adamtune
from adamtune import rundir
from adamtune.engines import make_engine
from adamtune.errors import AdamtuneError
from adamtune.evidence import Interval, interval
from adamtune.recipe import Recipe
from adamtune.spec import Bounds, Budget, Space, Spec, TaskSpec
from adamtune.task import load_task
from benchmarks import search_peers
from benchmarks.lr_tasks import CASES
from benchmarks.search_peers import PEERS, SPACE, TWICE, Answer, recipe_of
from benchmarks.search_race import STAYS, Judge, Kept, Runner, best_known, judged, race, reached

TASKS = ("digits-mlp", "digits-cnn", "diabetes", "breast-cancer", "name-embeddings", "char-gpt")
OURS, ASHA = "adamtune", "Ray ASHA"
METHODS = (OURS, *PEERS, ASHA)
WITHIN = 1.05
SMALL = 20
"""Horizons of the budget that every method is also compared at."""
FRESH_FROM = 5_000_000  # no tuner's seeds
SEEDS_APART = 30_000
"""A sweep of adamtune with seed n takes its seeds from 30,000 n on; the peers' trials of run n have the first."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """One task to compare on, and how thoroughly."""

    name: str
    task: TaskSpec
    horizon: int
    seeds: tuple[int, ...]
    methods: tuple[str, ...] = METHODS
    cap: int = 200
    """Horizons that a method may spend."""
    budgets: tuple[int, ...] = (20, 40, 80, 160)
    """Adamtune's, in horizons."""
    random_trials: int = 256
    fresh: int = 10

    @classmethod
    def of(cls, case: str, **options: Any) -> Job:
        """One of the learning rate finders' cases."""
        return cls(
            case, TaskSpec(ref="benchmarks.lr_tasks:task", args={"case": case}), CASES[case]().horizon, **options
        )


@dataclass(frozen=True)
class Run:
    """One method on one task with one seed."""

    curve: tuple[tuple[int, float], ...]
    """Steps spent and the fresh-seed mean loss of the answer held from there on."""
    spent: int
    reached: int | None
    """Steps to the target."""

    def at(self, steps: int) -> float:
        """Fresh-seed loss of the answer after so many steps; inf before the first."""
        return next((loss for spent, loss in reversed(self.curve) if spent <= steps), math.inf)


@dataclass(frozen=True)
class Swept:
    """One sweep of adamtune."""

    budget: int
    """In horizons."""
    steps: int
    loss: float
    """The recommended recipe's mean over the fresh seeds."""
    against_default: Interval
    """Recommended minus default, paired over the fresh seeds."""
    told: str = ""
    """Why there is none, in adamtune's words."""


@dataclass(frozen=True)
class Found:
    """All that was measured on one task."""

    job: Job
    best: float
    best_recipe: Recipe
    default: float
    runs: dict[str, list[Run]]
    """By method, one a seed; a method that could not be run is left out."""
    sweeps: dict[int, list[Swept]]
    """By seed, from the smallest budget."""

    def horizons(self, method: str) -> list[float]:
        """Steps to the target in horizons, one a seed; inf where it was not reached."""
        return [math.inf if run.reached is None else run.reached / self.job.horizon for run in self.runs[method]]

    def median(self, method: str) -> float:
        return statistics.median_high(self.horizons(method)) if method in self.runs else math.inf


def compare(job: Job, folder: Path) -> Found:
    """Run every method on one task. Keeps in `folder` what does not depend on adamtune's search."""
    fresh = range(FRESH_FROM, FRESH_FROM + job.fresh)
    settings = {
        "task": job.task.model_dump(),
        "horizon": job.horizon,
        "fresh": list(fresh),
        "torch": torch.__version__,
        "space": [[knob.name, knob.low, knob.high] for knob in SPACE],
    }
    kept = Kept(folder / f"{job.name}.json", settings)
    with contextlib.closing(make_engine("auto", load_task(job.task.ref, job.task.args), CPU)) as engine:
        judge = Judge(engine, job.horizon, fresh, kept.part("fresh"))
        best = kept.part("best")
        if (name := f"of {job.random_trials}") not in best:
            best[name] = best_known(engine, judge, job.horizon, job.random_trials)[1].to_dict()
            kept.save()
        best_recipe = Recipe.model_validate(best[name])
        target = WITHIN * judge.mean(best_recipe)
        runs = {name: [] for name in job.methods} | _peers(job, engine, judge, target, kept)
        if ASHA in job.methods:
            runs[ASHA] = _asha(job, judge, target, kept)
        sweeps: dict[int, list[Swept]] = {}
        if OURS in job.methods:
            for seed in job.seeds:
                sweeps[seed] = swept = sweep_budgets(job, judge, target, seed)
                curve = tuple((one.steps, one.loss) for one in swept if not one.told)
                spent = curve[-1][0] if curve else 0
                runs[OURS].append(Run(curve, spent, reached(curve, spent, target, stays=0)[0]))
        found = Found(
            job, judge.mean(best_recipe), best_recipe, judge.mean(Recipe.default()),
            {name: got for name, got in runs.items() if got}, sweeps,
        )  # fmt: skip
        kept.save()
    return found


def _peers(job: Job, engine: Any, judge: Judge, target: float, kept: Kept) -> dict[str, list[Run]]:
    """The peers that ask and are told, all of them and all seeds in one race; those kept are not run again."""
    before, runners = _runs_before(job, kept), []
    for name in job.methods:
        for seed in job.seeds if name in PEERS else ():
            if f"{name}, seed {seed}" not in before:
                cap = job.cap * (2 if name == TWICE else 1)
                peer = PEERS[name](seed, job.horizon, cap)
                stays = 0 if peer.budgeted else STAYS * job.horizon
                runners.append(Runner(name, seed, peer, seed * SEEDS_APART, cap * job.horizon, stays))
    for runner in race(engine, judge, runners, job.horizon, target, SMALL * job.horizon):
        before[f"{runner.name}, seed {runner.seed}"] = {
            "spent": runner.peer.spent,
            "curve": (curve := judged(judge, runner.peer.answers)),
            "reached": reached(curve, runner.peer.spent, target, runner.stays)[0],
        }
        kept.save()
    asked = [name for name in job.methods if name in PEERS]
    return {name: [_run(before[f"{name}, seed {seed}"]) for seed in job.seeds] for name in asked}


def _asha(job: Job, judge: Judge, target: float, kept: Kept) -> list[Run]:
    if not importlib.util.find_spec("ray"):
        return []
    before = _runs_before(job, kept)
    for seed in job.seeds:
        if (name := f"{ASHA}, seed {seed}") in before:
            continue
        asked = {"horizon": job.horizon, "seed": seed, "trial_seed": seed * SEEDS_APART, "cap": job.cap * job.horizon}
        command = [sys.executable, "-m", "benchmarks.search_ray", json.dumps(job.task.model_dump() | asked)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{ASHA} failed on {job.name}:\n{done.stderr}")
        run = json.loads(done.stdout.splitlines()[-1])
        answers = [Answer(steps, recipe_of(params)) for steps, params in run["answers"]]
        judge.measure(answer.recipe for answer in answers)
        before[name] = {
            "spent": run["spent"],
            "curve": (curve := judged(judge, answers)),
            "reached": reached(curve, run["spent"], target, STAYS * job.horizon)[0],
        }
        kept.save()
    return [_run(before[f"{ASHA}, seed {seed}"]) for seed in job.seeds]


def _runs_before(job: Job, kept: Kept) -> dict[str, Any]:
    """Peers' runs that are kept: for this target and cap, by this code and these libraries."""
    sources = sorted(Path(search_peers.__file__).parent.glob("search_*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    ray = version("ray") if importlib.util.find_spec("ray") else None
    key = [job.cap, job.random_trials, WITHIN, STAYS, SMALL, code.hexdigest(), version("optuna"), ray]
    return kept.part(f"runs {json.dumps(key)}")


def _run(kept: dict[str, Any]) -> Run:
    return Run(tuple((steps, loss) for steps, loss in kept["curve"]), kept["spent"], kept["reached"])


def sweep_budgets(job: Job, judge: Judge, target: float, seed: int) -> list[Swept]:
    """Sweeps of growing budget until one's recommended recipe is within `target`; `SMALL` is always one of them."""
    space = Space(**{knob.name: Bounds(low=knob.low, high=knob.high) for knob in SPACE})
    found: list[Swept] = []
    for budget in sorted({SMALL, *job.budgets}):
        spec = Spec(
            task=job.task, horizon=job.horizon, budget=Budget(trials=budget), space=space, seed=seed, device="cpu"
        )
        with tempfile.TemporaryDirectory(prefix="bench-search-") as folder:
            try:
                swept = adamtune.sweep(spec, Path(folder) / "run")
            except AdamtuneError as refusal:
                found.append(Swept(budget, 0, math.inf, interval([]), " ".join(str(refusal).split())))
                continue
        default, own = judge.losses(spec.base), judge.losses(swept.recipe)
        difference = interval([b - a for a, b in zip(default, own, strict=True)])
        found.append(Swept(budget, swept.steps_used, judge.mean(swept.recipe), difference))
        if found[-1].loss <= target and budget >= SMALL:
            break
    return found


def table(found: Found) -> str:
    """One task as a table, and adamtune's sweeps line by line."""
    job, best = found.job, found.best
    changed = ", ".join(f"{knob.name} {found.best_recipe.knob(knob.name):.4g}" for knob in SPACE)
    lines = [
        f"\n{job.name}: {job.horizon} steps, best known {best:.4g} ({changed})",
        f"  the default is at {found.default / best:.3f} of it"
        + (", within the target: nothing to tune" if found.default <= WITHIN * best else ""),
        f"  {'':<17}{'horizons to within 5%':<34}{'median':>8}   over best known at {SMALL:<6}at the end",
    ]
    for name in job.methods:
        if name not in found.runs:
            lines.append(f"  {name:<17}not installed")
            continue
        runs = found.runs[name]
        each = ", ".join(
            f"not in {run.spent / job.horizon:.3g}" if run.reached is None else f"{run.reached / job.horizon:.3g}"
            for run in runs
        )
        early = statistics.median_high(run.at(SMALL * job.horizon) for run in runs) / best
        end = statistics.median_high(run.at(run.spent) for run in runs) / best
        lines.append(f"  {name:<17}{each:<34}{number(found.median(name)):>8}{early:>24.3f}{end:>14.3f}")
    for seed, sweeps in found.sweeps.items():
        for one in sweeps:
            start = f"  {OURS}, seed {seed}, budget {one.budget}: "
            if one.told:
                lines.append(f"{start}{one.told}")
                continue
            gain = one.against_default
            lines.append(
                f"{start}{one.steps / job.horizon:.3g} horizons, {one.loss / best:.3f} of best known, against default "
                f"{gain.mean:+.3g} [{gain.low:+.2g}, {gain.high:+.2g}]{', WORSE' if worse(one) else ''}"
            )
    return "\n".join(lines)


def number(value: float) -> str:
    """Horizons to the target; none where it was not reached."""
    return f"{value:.3g}" if math.isfinite(value) else "none"


def worse(one: Swept) -> bool:
    """Whether a recommended recipe is worse than the default by evidence: the whole interval, or it diverged."""
    return not one.told and (one.against_default.low > 0 or not math.isfinite(one.loss))


def ratio(found: Found, peers: Sequence[str]) -> tuple[str, float, bool]:
    """The quickest of `peers`, adamtune's median steps over its own, and whether that is only an upper bound: the peer
    did not get there within its cap. NaN where adamtune did not.
    """
    there = [name for name in peers if name in found.runs]
    if not there:
        return "-", math.nan, False
    name = min(there, key=found.median)
    ours, theirs = found.median(OURS), found.median(name)
    if not math.isfinite(ours):
        return name, math.nan, False
    bound = not math.isfinite(theirs)
    return name, ours / (found.job.cap if bound else theirs), bound


def summary(all_found: Sequence[Found]) -> str:
    """Steps against the best peer and TPE, task by task, and what became of the goals."""
    lines = [f"\n{'median of seeds':<18}{OURS:>10}{'best peer':>24}{'ratio':>9}{'TPE':>9}{'ratio':>9}"]
    ratios: dict[str, list[float]] = {"best": [], "TPE": []}
    for found in all_found:
        row = f"{found.job.name:<18}{number(found.median(OURS)):>10}"
        for key, peers, width in (("best", [*PEERS, ASHA], 24), ("TPE", ["TPE"], 9)):
            name, value, bound = ratio(found, peers)
            steps = number(found.median(name)) if name in found.runs else "-"
            row += f"{f'{name} {steps}' if key == 'best' else steps:>{width}}"
            row += f"{'-' if math.isnan(value) else ('<' if bound else '') + f'{value:.2f}':>9}"
            ratios[key].append(math.inf if math.isnan(value) else value)
        lines.append(row)
    to_tune = [place for place, found in enumerate(all_found) if found.default > WITHIN * found.best]
    for key, goal, what in (("best", 1 / 5, "the best peer's"), ("TPE", 1 / 10, "plain TPE's")):
        met = sum(ratios[key][place] <= goal for place in to_tune)
        lines.append(
            f"steps at most {goal:g} of {what}: on {met} of {len(to_tune)} tasks whose default misses the target"
        )
    small = [one for found in all_found for sweeps in found.sweeps.values() for one in sweeps if one.budget == SMALL]
    if refused := [one for one in small if one.told]:
        lines.append(
            f"a budget of {SMALL} horizons was refused or ended without a recipe in "
            f"{len(refused)} of {len(small)} sweeps"
        )
    if done := [one for one in small if not one.told]:
        over = statistics.median(_small_ratio(found) for found in all_found if math.isfinite(_small_ratio(found)))
        lines.append(
            f"at {SMALL} horizons: worse than the default in {sum(map(worse, done))} of {len(done)} sweeps (goal: 0), "
            f"{over:.3f} of best known on the median task (goal: 1.02)"
        )
    return "\n".join(lines)


def _small_ratio(found: Found) -> float:
    """Median over seeds of the loss over best known with the small budget; inf where it gave no recipe."""
    losses = [one.loss for sweeps in found.sweeps.values() for one in sweeps if one.budget == SMALL]
    return statistics.median_high(losses) / found.best if losses else math.inf


def plain(found: Found) -> dict[str, Any]:
    """One task as plain data; None for what is not finite."""
    job = found.job
    data = {
        "task": job.name,
        "horizon": job.horizon,
        "cap": job.cap,
        "best_known": found.best,
        "best_recipe": found.best_recipe.to_dict(),
        "default": found.default,
        "runs": {name: [dataclasses.asdict(run) for run in runs] for name, runs in found.runs.items()},
        "sweeps": {seed: [dataclasses.asdict(one) for one in sweeps] for seed, sweeps in found.sweeps.items()},
    }
    jsonable: dict[str, Any] = rundir.jsonable(data)
    return jsonable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", metavar="CASE", choices=CASES, help=f"default: {' '.join(TASKS)}")
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", choices=METHODS, default=METHODS, help=", ".join(METHODS)
    )
    parser.add_argument("--seeds", type=int, help="runs of every method, default 3")
    parser.add_argument("--horizons", type=int, help="what a peer may spend, default 200")
    parser.add_argument("--budgets", type=int, nargs="+", help="adamtune's, in horizons, default 20 40 80 160")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--quick", action="store_true", help="two tasks, one seed, 40 horizons, a coarser best known")
    options = parser.parse_args()
    torch.set_num_threads(1)  # before anything is forked
    quick = options.quick
    chosen = {
        "seeds": tuple(range(1, 1 + (options.seeds or (1 if quick else 3)))),
        "methods": tuple(options.methods),
        "cap": options.horizons or (40 if quick else 200),
    }
    budgets = options.budgets or [budget for budget in (20, 40, 80, 160) if budget <= chosen["cap"]]
    chosen |= {"budgets": tuple(budgets)} | ({"random_trials": 64, "fresh": 5} if quick else {})
    all_found = []
    for case in options.tasks or (TASKS[::2][:2] if quick else TASKS):
        all_found.append(compare(Job.of(case, **chosen), Path("runs/bench-search")))
        print(table(all_found[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps([plain(found) for found in all_found], indent=1))
    if OURS in options.methods:
        print(summary(all_found))


if __name__ == "__main__":
    main()
