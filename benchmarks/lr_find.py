"""How near the best learning rate lr-find comes, and what that costs in final loss.

python -m benchmarks.lr_find [CASE ...] [--budget 1.0]

Regret: the mean validation loss of the full run at the suggestion over that at the best learning rate, both read off a
curve through a dense grid (quarter decades, five seeds that lr-find never sees). The grid is trained once and kept in
runs/bench-lr-find/ (about a quarter of an hour for all cases on one core). The rules beside adamtune are read off one
300-step ramp of ours: they are the rules of torch-lr-finder (steepest), fastai (valley) and folklore (minimum/10), not
those programs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from adamtune.engines import make_engine
from adamtune.lr_finder import lr_find
from adamtune.recipe import Recipe
from adamtune.trial import TrialRequest
from benchmarks.lr_tasks import CASES, Case

SEEDS = range(20_000, 20_012)
FEW = 5
"""Seeds of the whole grid; the points around the best get all of `SEEDS`, so that noise does not flatter the grid."""
AROUND = 3
"""Quarter decades on either side of the best."""
LOWEST, HIGHEST = -4.5, -0.5  # log10 of the grid's ends, before a case's own shift
SHIFTS = {"moved-to-1e-5": -3.18, "moved-to-1e-4": -2.18, "moved-to-0.3": 1.3, "moved-to-1": 1.8}

Losses = dict[float, list[float]]


def grid(name: str, case: Case) -> Losses:
    """Final validation losses of the full run by lr, one a seed; NaN where it diverged."""
    kept = Path("runs/bench-lr-find") / f"{name}.json"
    losses: Losses = {}
    if kept.exists():
        losses = {float(lr): values for lr, values in json.loads(kept.read_text()).items()}
    for place in range(round((HIGHEST - LOWEST) * 4) + 1):
        losses.setdefault(10 ** (LOWEST + place / 4 + SHIFTS.get(name, 0.0)), [])
    before = sum(map(len, losses.values()))
    _train(case, losses, list(losses), FEW)
    lrs = sorted(losses)
    best = min(range(len(lrs)), key=lambda place: _mean(losses[lrs[place]][:FEW]))
    _train(case, losses, lrs[max(0, best - AROUND) : best + AROUND + 1], len(SEEDS))
    if sum(map(len, losses.values())) > before:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(losses))
    return losses


def _train(case: Case, losses: Losses, lrs: list[float], seeds: int) -> None:
    engine = make_engine("auto", case.task, torch.device("cpu"))
    for lr in lrs:
        recipe = Recipe.default().with_knob("lr", lr)
        batch = engine.open([TrialRequest(recipe, seed, case.horizon) for seed in SEEDS[len(losses[lr]) : seeds]])
        batch.advance(case.horizon)
        losses[lr] += [result.final() for result in batch.results()]


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if np.isfinite(values).all() else math.inf


class Truth:
    """The full run's loss by lr: near the best a cubic in log lr through the log loss of the best seven points, since
    loss rises faster above the best lr than below it; a smooth curve through the grid elsewhere.
    """

    def __init__(self, losses: Losses) -> None:
        means = {math.log10(lr): _mean(values) for lr, values in losses.items()}
        self.x = np.array(sorted(x for x in means if math.isfinite(means[x])))
        self.y = np.log([means[x] for x in self.x])
        low = max(0, int(self.y.argmin()) - AROUND)
        self.near = self.x[low : low + 2 * AROUND + 1]
        self.fit = np.polynomial.Polynomial.fit(self.near, self.y[low : low + 2 * AROUND + 1], 3)
        fine = np.linspace(self.near[0], self.near[-1], 2001)
        self.best = float(fine[self.fit(fine).argmin()])
        self.curve = PchipInterpolator(self.x, self.y)

    def regret(self, lr: float) -> float:
        x = float(np.clip(math.log10(lr), self.x[0], self.x[-1]))  # past the grid: at least as bad as its end
        inside = self.near[0] <= x <= self.near[-1]
        return math.exp(max(0.0, float((self.fit if inside else self.curve)(x) - self.fit(self.best))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--budget", type=float, default=1.0, help="in horizons")
    options = parser.parse_args()
    regrets: dict[str, list[float]] = {}
    print(f"{'case':<18} {'best lr':>9} {'found':>9} {'regret':>7} {'horizons':>8}  in interval  rules at 300 steps")
    for name in options.cases:
        case = CASES[name]()
        truth = Truth(grid(name, case))
        found = lr_find(case.task, horizon=case.horizon, budget=max(60, round(options.budget * case.horizon)))
        ramp = lr_find(case.task, horizon=case.horizon, steps=300, seeds=1, refine=False)
        suggestions = {"adamtune": found.suggestion, **ramp.curve.suggestions}
        own = {rule: truth.regret(lr) if lr else math.nan for rule, lr in suggestions.items()}
        for rule, regret in own.items():
            regrets.setdefault(rule, []).append(regret)
        holds = found.interval is not None and found.interval[0] <= 10**truth.best <= found.interval[1]
        others = ", ".join(f"{rule} {regret:.3f}" for rule, regret in own.items() if rule != "adamtune")
        print(
            f"{name:<18} {10**truth.best:9.2g} {found.suggestion or math.nan:9.2g} {own['adamtune']:7.3f} "
            f"{found.steps_used / case.horizon:8.2f}  {'yes' if holds else 'no':<11}  {others}",
            flush=True,
        )
    for rule, values in regrets.items():
        print(f"{rule:<12} median regret {statistics.median(values):.3f}, worst {max(values):.3f}")


if __name__ == "__main__":
    main()
