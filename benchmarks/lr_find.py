"""How near the best learning rate the finders come, and what that costs in final loss.

python -m benchmarks.lr_find [CASE ...] [--repeats 3]

Regret: the mean validation loss of the full run at the suggestion over that at the best learning rate, both read off a
curve through a dense grid (quarter decades, five to twelve seeds that no finder sees). The grid is trained once and
kept in runs/bench-lr-find/ (half an hour for all cases on two cores). Every finder is run with the same seeds: the
same initial weights and batches. The finders beside adamtune are those of `benchmarks.lr_peers`, and a plain ladder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from adamtune.engines import make_engine
from adamtune.lr_finder import LRFindResult, lr_find
from adamtune.recipe import Recipe
from adamtune.stages.lr_response import Response, optimum
from adamtune.trial import TrialRequest
from benchmarks.lr_peers import STEPS, Answer, answers, installed
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
    missing = [(lr, seed) for lr in lrs for seed in SEEDS[len(losses[lr]) : seeds]]
    for (lr, _), final in zip(missing, _finals(case, missing, case.horizon), strict=True):
        losses[lr].append(final)


def _finals(case: Case, pairs: Sequence[tuple[float, int]], horizon: int) -> list[float]:
    """Final validation losses of runs by (lr, seed)."""
    with contextlib.closing(make_engine("auto", case.task, torch.device("cpu"))) as engine:
        batch = engine.open([TrialRequest(Recipe.default().with_knob("lr", lr), seed, horizon) for lr, seed in pairs])
        batch.advance(horizon)
        return [result.final() for result in batch.results()]


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


def own(case: Case, seed: int) -> Iterator[tuple[Answer, LRFindResult]]:
    """Ours as it comes, with about a third or less of those steps, and with one ramp of the peers' length."""
    less = 0.3 if case.horizon <= 2000 else 0.15  # by itself it spends one horizon, and 0.3 of one above 2,000 steps
    for finder, options in {
        "adamtune": {},
        "adamtune, small budget": {"budget": max(60, round(less * case.horizon))},
        "adamtune --no-refine": {"steps": STEPS, "seeds": 1, "refine": False},
    }.items():
        found = lr_find(case.task, horizon=case.horizon, seed=seed, **options)  # type: ignore[arg-type]
        yield Answer(finder, found.suggestion, found.steps_used, found.seconds), found


def plain_ladder(case: Case, seed: int) -> Answer:
    """Seven learning rates, told where to look: each the whole schedule squeezed into 15% of the horizon, one seed, and
    a parabola through the best three.
    """
    began = time.perf_counter()
    lrs = [10 ** (-3.5 + place / 2) for place in range(7)]
    short = round(0.15 * case.horizon)
    scores = [loss if math.isfinite(loss) else math.inf for loss in _finals(case, [(lr, seed) for lr in lrs], short)]
    lr = optimum(Response(short, tuple(lrs), tuple(scores)))
    return Answer("plain ladder", lr, len(lrs) * short, time.perf_counter() - began)


def compare(name: str, repeats: int) -> dict[str, float]:
    """Every finder's mean regret on one case; prints a line a finder."""
    case = CASES[name]()
    truth = Truth(grid(name, case))
    given: dict[str, list[Answer]] = {}
    held = []
    for seed in range(repeats):
        for answer, found in own(case, seed):
            given.setdefault(answer.finder, []).append(answer)
            if answer.finder == "adamtune":
                low, high = found.interval or (math.inf, 0.0)
                held.append(low <= 10**truth.best <= high)
        start = seed * 30_000  # the seed that our own trials start from
        for answer in (plain_ladder(case, start), *answers(case.task, start)):
            given.setdefault(answer.finder, []).append(answer)
    print(f"\n{name}: {case.horizon} steps, best lr {10**truth.best:.2g}, in adamtune's interval {sum(held)}/{repeats}")
    means = {}
    for finder, got in given.items():
        regrets = [truth.regret(answer.lr) if answer.lr else math.inf for answer in got]
        means[finder] = statistics.fmean(regrets)
        lrs = ", ".join(f"{answer.lr:.2g}" if answer.lr else "none" for answer in got)
        steps, seconds = (statistics.fmean(values) for values in zip(*((a.steps, a.seconds) for a in got), strict=True))
        print(
            f"  {finder:<22} regret {means[finder]:7.3f}   {steps:6.0f} steps {seconds:6.1f} s   lr {lrs}", flush=True
        )
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3, help="seeds each finder is run with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"peers installed: {', '.join(installed()) or 'none'}")
    found = {name: compare(name, options.repeats) for name in options.cases}
    print(f"\n{'finder':<22} median regret    worst, over {len(found)} cases")
    for finder in next(iter(found.values())):
        regrets = [means.get(finder, math.inf) for means in found.values()]
        print(f"{finder:<22} {statistics.median(regrets):13.3f} {max(regrets):8.3f}")


if __name__ == "__main__":
    main()
