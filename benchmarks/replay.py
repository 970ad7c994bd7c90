"""How soon a search finds what is good, on recorded learning curves: nothing is trained.

    python -m benchmarks.replay --data DIR [--knowledge DIR] [--seeds 10] [--methods ...] [--json]

DIR holds one table a task in TaskSet's format (Metz et al. 2020; `.json` or `.json.gz`): a list of configurations, each
with `hp` (eight knobs) and `valid.loss` before training and after each epoch. A method asks for points of the space;
each is snapped to the nearest configuration of the table that it has not had yet, and trained one epoch at a time. An
epoch of one configuration costs 1.

Regret after n epochs is (lowest validation loss seen - lowest in the table) / (median before training - lowest in the
table), losses that are not finite counting as the median before training; the mean over tasks and seeds is printed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray

from adamtune.knobs import KNOBS, Knob, Scale
from adamtune.search.freeze_thaw import BREADTH, TRUSTED_BREADTH, FreezeThaw
from adamtune.search.knowledge import KnownTask, ordered
from adamtune.search.prior import ADAM, Belief, Prior

BUDGETS = (100, 200, 500, 1000)

_NAMES = {"learning_rate": "lr", "beta1": "beta1", "beta2": "beta2", "epsilon": "eps"}
"""TaskSet's names for knobs of ours; it has four more."""

# Searched over these ranges by every method; they are the corners of TaskSet's Adam8p space, not of one table.
_SPACE = {
    "learning_rate": Knob("lr", 1e-8, 10.0, Scale.LOG),
    "beta1": KNOBS["beta1"].narrowed(0.0, 0.9999),
    "beta2": KNOBS["beta2"].narrowed(0.0, 0.999999),
    "epsilon": KNOBS["eps"].narrowed(1e-10, 1e3),
    "l1": Knob("l1", 1e-8, 10.0, Scale.LOG),
    "l2": Knob("l2", 1e-8, 10.0, Scale.LOG),
    "linear_decay": Knob("linear_decay", 1e-7, 1e-4, Scale.LOG),
    "exponential_decay": Knob("exponential_decay", 1e-6, 1e-3, Scale.LOG),
}

PRIOR = Prior(
    (
        *ADAM,
        # Penalties added to the loss: "little decay". Below a millionth nothing changes.
        Belief(_SPACE["l1"], 1e-6, 1.0, harmless_below=True),
        Belief(_SPACE["l2"], 1e-6, 1.0, harmless_below=True),
        # How lr falls over TaskSet's 10,000 steps: the middle of the space, since no publication says.
        Belief(_SPACE["linear_decay"], 3e-6, 1.0),
        Belief(_SPACE["exponential_decay"], 3e-5, 1.0),
    )
)

_SHAKE = 0.3
"""Random numbers of this scale (Gumbel's distribution) are added to the prior's log density, so that ten seeds are ten
searches."""

Point = dict[str, float]
"""Knob values by our names, where we have one."""


@dataclass(frozen=True)
class Table:
    """The recorded curves of one task."""

    name: str
    points: list[Point]
    losses: NDArray[np.float64]
    """By configuration and epoch, the first before training; what was not finite is the median before training."""

    @property
    def untrained(self) -> float:
        """Median loss before training."""
        return float(np.median(self.losses[:, 0]))

    @property
    def lowest(self) -> float:
        """The lowest loss there is."""
        return float(self.losses.min())

    @property
    def epochs(self) -> int:
        """Length of every curve."""
        return int(self.losses.shape[1]) - 1

    def known(self) -> KnownTask:
        """What a search that has tried everything would know."""
        return KnownTask(self.points, list((self.losses.min(axis=1) - self.lowest) / (self.untrained - self.lowest)))


def read_table(path: Path) -> Table:
    """Read one task. Raises `SystemExit` with one line where the file is not in TaskSet's format."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = json.loads(raw)
        points = [{_NAMES.get(key, key): float(row["hp"][key]) for key in _SPACE} for row in rows]
        losses = np.array([row["valid"]["loss"] for row in rows], dtype=float)
        if losses.ndim != 2 or losses.shape[1] < 2:
            raise ValueError("its curves are not of one length")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise SystemExit(f"{path}: not a table in TaskSet's format ({type(problem).__name__}: {problem})") from problem
    losses[~np.isfinite(losses)] = np.nan
    start = float(np.nanmedian(losses[:, 0]))
    return Table(path.name.removesuffix(".gz").removesuffix(".json"), points, np.nan_to_num(losses, nan=start))


def read_folder(folder: Path) -> list[Table]:
    """Every table of a folder, by name."""
    paths = sorted([*folder.glob("*.json"), *folder.glob("*.json.gz")])
    if not paths:
        raise SystemExit(f"{folder}: holds no .json or .json.gz file")
    return [read_table(path) for path in paths]


class Replay:
    """A table under search: snaps points, trains, counts."""

    def __init__(self, table: Table) -> None:
        """Nothing trained yet."""
        self.table = table
        self.seen: list[float] = []
        """Lowest loss seen, by epochs spent."""
        self._trained = [0] * len(table.points)
        self._free = np.ones(len(table.points), bool)
        self._places = np.array([_position(point) for point in table.points])

    def snap(self, point: Point) -> int:
        """The nearest configuration not had yet, on the knobs' scales, each by its range."""
        squares = ((self._places - _position(point)) ** 2).sum(axis=1)
        nearest = int(np.argmin(np.where(self._free, squares, np.inf)))
        self._free[nearest] = False
        return nearest

    def train(self, configuration: int) -> float:
        """One more epoch; its validation loss."""
        self._trained[configuration] += 1
        loss = float(self.table.losses[configuration, self._trained[configuration]])
        self.seen.append(min(loss, self.seen[-1]) if self.seen else loss)
        return loss

    def regret(self, epochs: int) -> float:
        """After so many; a search that ended before keeps what it had."""
        seen = self.seen[min(epochs, len(self.seen)) - 1]
        return (seen - self.table.lowest) / (self.table.untrained - self.table.lowest)


def _position(point: Point) -> NDArray[np.float64]:
    place = []
    for knob in _SPACE.values():
        low, high = knob.to_unit(knob.low), knob.to_unit(knob.high)
        # Where a beta rounds to 0 or 1 it lies at the end of its range.
        value = point[knob.name]
        place.append((knob.to_unit(min(max(value, knob.low), knob.high)) - low) / (high - low))
    return np.array(place)


Method = Callable[[Replay, Sequence[KnownTask], int], Iterator[None]]
"""Searches a table given what is known of other tasks and a seed; yields after every epoch it has trained."""


def adamtune(replay: Replay, known: Sequence[KnownTask], seed: int) -> Iterator[None]:
    """Freeze-thaw in the prior's order: always the best-believed configuration not had yet is the next to start.

    In the table that is what asking for the prior's mode snaps to, distances being counted in standard deviations.
    """
    shaken = np.random.default_rng(seed).gumbel(scale=_SHAKE, size=len(replay.table.points))
    belief = np.array([PRIOR.log_density(point) for point in replay.table.points]) + shaken
    return _thaw(replay, [int(place) for place in np.argsort(-belief, kind="stable")], BREADTH)


def adamtune_with_knowledge(replay: Replay, known: Sequence[KnownTask], seed: int) -> Iterator[None]:
    """Freeze-thaw in the order in which points did well on the other tasks; without any, as `adamtune`.

    What is known leaves no choice to a seed.
    """
    proposals = ordered(known, PRIOR)[: len(replay.table.points)]
    if not proposals:
        return adamtune(replay, known, seed)
    return _thaw(replay, [replay.snap(dict(point)) for point in proposals], TRUSTED_BREADTH)


def _thaw(replay: Replay, configurations: Sequence[int], breadth: float) -> Iterator[None]:
    search = FreezeThaw(len(configurations), replay.table.epochs, breadth)
    while (proposal := search.next()) is not None:
        configuration = configurations[proposal]
        search.tell(proposal, replay.train(configuration), float(replay.table.losses[configuration, 0]))
        yield


def random(replay: Replay, known: Sequence[KnownTask], seed: int) -> Iterator[None]:
    """Configurations of the table at random, each to the end."""
    for configuration in np.random.default_rng(seed).permutation(len(replay.table.points)):
        for _ in range(replay.table.epochs):
            replay.train(int(configuration))
            yield


def tpe(replay: Replay, known: Sequence[KnownTask], seed: int) -> Iterator[None]:
    """Optuna's TPE, each trial to the end; a trial's value is the lowest loss of its curve."""
    yield from _optuna(replay, seed, optuna.pruners.NopPruner())


def tpe_hyperband(replay: Replay, known: Sequence[KnownTask], seed: int) -> Iterator[None]:
    """Optuna's TPE with its Hyperband pruner asked after every epoch."""
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=replay.table.epochs, reduction_factor=3)
    yield from _optuna(replay, seed, pruner)


def _optuna(replay: Replay, seed: int, pruner: optuna.pruners.BasePruner) -> Iterator[None]:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner)
    for _ in replay.table.points:
        trial = study.ask()
        point = {}
        for knob in _SPACE.values():
            ends = sorted((knob.to_parameter(knob.low), knob.to_parameter(knob.high)))
            point[knob.name] = knob.from_parameter(trial.suggest_float(knob.parameter, *ends, log=True))
        configuration = replay.snap(point)
        lowest = math.inf
        for epoch in range(1, replay.table.epochs + 1):
            loss = replay.train(configuration)
            lowest = min(lowest, loss)
            trial.report(loss, epoch)
            yield
            if epoch < replay.table.epochs and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, lowest)


METHODS: dict[str, Method] = {
    "adamtune": adamtune,
    "adamtune+knowledge": adamtune_with_knowledge,
    "random": random,
    "tpe": tpe,
    "tpe+hyperband": tpe_hyperband,
}


def searched(method: Method, table: Table, known: Sequence[KnownTask], seed: int) -> Replay:
    """One search over the largest budget."""
    replay = Replay(table)
    for _ in method(replay, known, seed):
        if len(replay.seen) >= BUDGETS[-1]:
            break
    return replay


def regrets(
    method: Method, tables: Sequence[Table], knowledge: Sequence[Table], seeds: int
) -> dict[str, dict[int, float]]:
    """By task: regret by budget, the mean over seeds. A task never knows itself."""
    found = {}
    for table in tables:
        known = [other.known() for other in knowledge if other.name != table.name]
        runs = [searched(method, table, known, seed) for seed in range(seeds)]
        found[table.name] = {n: float(np.mean([run.regret(n) for run in runs])) for n in BUDGETS}
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True, help="folder of tables in TaskSet's format")
    parser.add_argument("--knowledge", type=Path, help="folder of former tasks; by default the other tasks of --data")
    parser.add_argument("--seeds", type=int, default=10, help="searches a task")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--json", action="store_true", help="print the means as JSON")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tables = read_folder(options.data)
    knowledge = tables if options.knowledge is None else read_folder(options.knowledge)
    means: dict[str, dict[str, float]] = {}
    for name in options.methods:
        found = regrets(METHODS[name], tables, knowledge, options.seeds)
        means[name] = {str(n): float(np.mean([own[n] for own in found.values()])) for n in BUDGETS}
        if not options.json:
            _print(name, means[name], found)
    if options.json:
        json.dump({"methods": means}, sys.stdout)
        sys.stdout.write("\n")


def _print(name: str, means: Mapping[str, float], found: Mapping[str, Mapping[int, float]]) -> None:
    cells = "  ".join(f"{n:>5}: {mean:.4f}" for n, mean in means.items())
    worst = max(found, key=lambda task: found[task][200])
    sys.stdout.write(f"{name:<20} {cells}   worst at 200: {found[worst][200]:.3f} ({worst})\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
