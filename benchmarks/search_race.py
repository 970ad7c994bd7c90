"""Trains what the tuners ask for, judges their answers on fresh seeds, and tells when each reached the target."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler

from adamtune.engines import Engine
from adamtune.history import TrialRequest, TrialResult
from adamtune.recipe import Recipe
from benchmarks.search_peers import Answer, Peer, distributions, recipe_of, rungs

AT_ONCE = 64
"""Trials opened side by side, for the memory they take."""
STAYS = 10
"""Horizons for which the answers of a search must stay within the target: a lucky one may give way to a worse."""
REMEASURED = 10
"""How many of the random trials behind the best known are measured again on the fresh seeds."""
TRUTH_SEED = 4_000_000
"""Of those random trials; no tuner's."""


class Kept:
    """What was measured before under the same settings, in a file; under other settings it starts empty."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._data: dict[str, Any] = {"settings": settings}
        if path.exists() and (found := json.loads(path.read_text()))["settings"] == settings:
            self._data = found

    def part(self, name: str) -> dict[str, Any]:
        """One table of it; what is put there is kept with the next `save`."""
        part: dict[str, Any] = self._data.setdefault(name, {})
        return part

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(self._data))
        beside.replace(self._path)


def train(engine: Engine, requests: Sequence[TrialRequest]) -> list[TrialResult]:
    """Trials of one horizon, trained to it."""
    found: list[TrialResult] = []
    for start in range(0, len(requests), AT_ONCE):
        some = requests[start : start + AT_ONCE]
        batch = engine.open(some)
        batch.advance(some[0].horizon)
        found += batch.results()
    return found


class Judge:
    """Recipes' losses on seeds that no tuner sees, each trained there once. None of its steps count."""

    def __init__(self, engine: Engine, horizon: int, seeds: Sequence[int], known: dict[str, list[float]]) -> None:
        self._engine, self._horizon, self._seeds, self._known = engine, horizon, seeds, known

    def measure(self, recipes: Iterable[Recipe]) -> None:
        """Train those not known yet, side by side."""
        new = {recipe.training_key(): recipe for recipe in recipes}
        new = {key: recipe for key, recipe in new.items() if key not in self._known}
        results = train(
            self._engine, [TrialRequest(r, seed, self._horizon) for r in new.values() for seed in self._seeds]
        )
        for place, key in enumerate(new):
            own = results[place * len(self._seeds) : (place + 1) * len(self._seeds)]
            self._known[key] = [result.final() for result in own]

    def losses(self, recipe: Recipe) -> list[float]:
        """By seed; NaN where it diverged."""
        self.measure([recipe])
        return self._known[recipe.training_key()]

    def mean(self, recipe: Recipe) -> float:
        """Over the seeds; inf where it diverged on any."""
        losses = self.losses(recipe)
        return statistics.fmean(losses) if all(map(math.isfinite, losses)) else math.inf


def best_known(engine: Engine, judge: Judge, horizon: int, count: int) -> tuple[float, Recipe]:
    """The lowest mean on the fresh seeds among the best of `count` random trials, and its recipe."""
    study = optuna.create_study(sampler=RandomSampler(seed=TRUTH_SEED))
    recipes = [recipe_of(study.ask(distributions()).params) for _ in range(count)]
    results = train(engine, [TrialRequest(recipe, TRUTH_SEED, horizon) for recipe in recipes])
    finals = [result.final() if math.isfinite(result.final()) else math.inf for result in results]
    shown = sorted(range(count), key=finals.__getitem__)[:REMEASURED]
    judge.measure(recipes[place] for place in shown)
    best = min(shown, key=lambda place: judge.mean(recipes[place]))
    return judge.mean(recipes[best]), recipes[best]


@dataclass
class Runner:
    """A peer in the race."""

    name: str
    seed: int
    peer: Peer
    trial_seed: int
    """Of all its trials."""
    cap: int
    """Training steps it may spend."""
    stays: int
    """Steps for which its answers must stay within the target."""
    asked: list[Recipe] = field(default_factory=list)


def reached(answers: Sequence[tuple[int, float]], spent: int, target: float, stays: int) -> tuple[int | None, bool]:
    """The steps from which a tuner's answer is within `target` and remains so for `stays` steps, and whether that is
    settled with what it has spent; None where it has not come to that.

    `answers`: steps and fresh-seed loss of each, in order; one holds until the next.
    """
    for place, (steps, loss) in enumerate(answers):
        soon = [later for at, later in answers[place + 1 :] if at <= steps + stays]
        if loss <= target and all(later <= target for later in soon):
            return steps, spent >= steps + stays
    return None, False


def race(
    engine: Engine, judge: Judge, runners: Sequence[Runner], horizon: int, target: float, least: int
) -> Iterator[Runner]:
    """Run every runner until its answer has settled within `target` (but for `least` steps), its cap or its end; gives
    each as it ends.

    Each asks in turn and all that is asked is trained side by side. A trial counts for the steps it was trained.
    """
    active = list(runners)
    while active:
        for runner in active:
            runner.asked = runner.peer.ask()
        asking = [runner for runner in active if runner.asked]
        if asking:
            _wave(engine, asking, horizon)
        judge.measure(runner.peer.answers[-1].recipe for runner in asking if runner.peer.answers)
        for runner in active:
            spent = runner.peer.spent
            _, settled = reached(judged(judge, runner.peer.answers), spent, target, runner.stays)
            if not runner.asked or spent >= runner.cap or (settled and spent >= least):
                yield runner
                active = [other for other in active if other is not runner]


def _wave(engine: Engine, active: Sequence[Runner], horizon: int) -> None:
    """Train what was asked for, dropping at the rungs what its runner drops, and tell the results."""
    requests = [TrialRequest(recipe, runner.trial_seed, horizon) for runner in active for recipe in runner.asked]
    places: dict[int, range] = {}  # a runner's trials in the batch
    for index, runner in enumerate(active):
        start = places[index - 1].stop if index else 0
        places[index] = range(start, start + len(runner.asked))
    batch = engine.open(requests)
    watched = {place for index, own in places.items() if active[index].peer.stops_early for place in own}
    for rung, step in enumerate(rungs(horizon)[:-1], start=1):
        if not watched:
            break
        reports = batch.advance(step)
        watched -= {place for place, report in enumerate(reports) if report is None}
        for index, own in places.items():
            if active[index].peer.stops_early:
                losses = [report.values["loss"] if (report := reports[place]) else math.nan for place in own]
                dropped = watched & {own[place] for place in active[index].peer.drop(rung, losses)}
                watched -= dropped
                for place in dropped:
                    batch.prune(place)
    batch.advance(horizon)
    results = batch.results()
    for index, own in places.items():
        active[index].peer.tell([results[place] for place in own])


def judged(judge: Judge, answers: Iterable[Answer]) -> list[tuple[int, float]]:
    """Steps and fresh-seed mean loss of every answer."""
    return [(answer.steps, judge.mean(answer.recipe)) for answer in answers]
