"""Ask and tell over knobs, on Optuna. Proposes and compares; never trains.

Every training run is a trial of an Optuna study in one storage, one study a stage, so that Optuna's own tools read a
sweep. What is asked is drawn before it runs, seeds are a trial's own, and results are told in order of asking: the
search is the same whatever trains it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage, JournalStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from adamtune.errors import InputError
from adamtune.evidence import Direction
from adamtune.knobs import Choice, Knob, Scale, Value
from adamtune.search.journal import BufferedJournal
from adamtune.trial import Outcome, TrialResult

optuna.logging.set_verbosity(optuna.logging.ERROR)  # it prints a line a trial; ours is the only voice in the terminal

_POINT = "point"


class JournalFile(JournalStorage):
    """Optuna's journal storage in a file of one writer; `close` writes what waits to be."""

    def __init__(self, path: Path) -> None:
        """Go on with the journal at `path`, or begin it."""
        self._file = BufferedJournal(str(path))
        super().__init__(self._file)

    def close(self) -> None:
        """Leave the file complete; the storage can be used on."""
        self._file.flush()


def open_storage(url: str | None, journal: Path) -> BaseStorage:
    """The storage of a sweep: an Optuna URL, or by default a journal file. To be closed by `close_storage`.

    Raises `InputError` when the URL cannot be opened.
    """
    if url is None:
        return JournalFile(journal)
    try:
        return optuna.storages.get_storage(url)
    except Exception as problem:  # SQLAlchemy's, the driver's or Optuna's own: all mean that the URL is no use
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise InputError(f"the storage cannot be opened: {reason}; leave `storage` out for a file") from problem


def close_storage(storage: BaseStorage) -> None:
    """Write what waits to be written; after it the file, or database, is complete."""
    if isinstance(storage, JournalFile):
        storage.close()
    storage.remove_session()


def refuse_known_run(storage: BaseStorage, name: str) -> None:
    """Raise `InputError` when the storage holds studies of a run called `name`: two runs must not mix their trials."""
    if any(study.study_name.startswith(f"{name}/") for study in storage.get_all_studies()):
        what = f"the storage already holds studies of a run called '{name}'; name another run with --run-dir"
        raise InputError(what)


class RungPruner(BasePruner):
    """Keeps the best points at every rung: one round of successive halving (Jamieson & Talwalkar 2016), run in step.

    A point is one setting of the knobs, tried on several seeds; its value at a rung is the mean over them, and its
    trials stay or go together. To be asked after all trials of the round have reported the rung.
    """

    def __init__(self, keep: float = 0.5) -> None:
        """Keep the share `keep` of the points, rounded up, and never fewer than two."""
        self.keep = keep
        self._staying: dict[int, frozenset[int]] = {}
        self._values: dict[int, dict[int, list[float]]] = {}

    def reported(self, step: int, point: int, value: float) -> None:
        """Take what a trial of `point` has reported at `step`: read from the study, it would take longer with every
        trial that is in there.
        """
        self._values.setdefault(step, {}).setdefault(point, []).append(value)
        self._staying.pop(step, None)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether `trial`'s point is outside the share that stays."""
        step = trial.last_step
        if step not in self._values:
            return False
        if step not in self._staying:
            self._staying[step] = self._best(self._values[step], study.direction)
        return trial.user_attrs[_POINT] not in self._staying[step]

    def _best(self, values: Mapping[int, Sequence[float]], direction: StudyDirection) -> frozenset[int]:
        sign = 1.0 if direction == StudyDirection.MINIMIZE else -1.0
        # Ties go to the point asked first, so that the choice does not hang on the order of a dict.
        ranked = sorted(values, key=lambda point: (sign * sum(values[point]) / len(values[point]), point))
        return frozenset(ranked[: max(2, math.ceil(self.keep * len(ranked)))])


@dataclass(frozen=True)
class Asked:
    """A trial that was asked for: its number in the study, its knobs and its seed."""

    number: int
    values: Mapping[str, Value]
    seed: int


class KnobStudy:
    """One Optuna study over some knobs (none, where fixed recipes are measured)."""

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        knobs: Iterable[Knob | Choice],
        direction: Direction,
        sampler_seed: int,
        keep: float = 0.5,
    ) -> None:
        """Create the study `name`, or go on with it where it exists. `keep`: see `RungPruner`."""
        self._knobs = {knob.name: knob for knob in knobs}
        self._pruner = RungPruner(keep)
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=direction,
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=sampler_seed),
            pruner=self._pruner,
        )
        self._trials: dict[int, optuna.Trial] = {}
        self._points = 0

    @property
    def name(self) -> str:
        """As Optuna's tools list it."""
        return self._study.study_name

    def ask(self, values: Mapping[str, Value] | None, seeds: Sequence[int], **attrs: Any) -> list[Asked]:
        """Ask for one point on several seeds: the `values` given, or what the sampler proposes when None.

        `attrs` are kept with the trials as user attributes.
        """
        point, self._points = self._points, self._points + 1
        asked = []
        for seed in seeds:
            if values is not None:
                self._study.enqueue_trial(dict(_as_parameter(self._knobs[name], v) for name, v in values.items()))
            trial = self._study.ask(self._distributions(values))
            values = {
                name: _from_parameter(knob, trial.params[_parameter(knob)])
                for name, knob in self._knobs.items()
                if _parameter(knob) in trial.params
            }
            for key, attr in {_POINT: point, "seed": seed, **attrs}.items():
                trial.set_user_attr(key, attr)
            self._trials[trial.number] = trial
            asked.append(Asked(trial.number, values, seed))
        return asked

    def report(self, asked: Asked, step: int, value: float) -> None:
        """Tell what a trial measured at a rung; a value that is not finite counts as the worst there is."""
        worst = math.inf if self._study.direction == StudyDirection.MINIMIZE else -math.inf
        value, trial = value if math.isfinite(value) else worst, self._trials[asked.number]
        trial.report(value, step)
        self._pruner.reported(step, trial.user_attrs[_POINT], value)

    def should_prune(self, asked: Asked) -> bool:
        """Whether to stop a trial at the rung it has just reported; ask once all have reported it."""
        return self._trials[asked.number].should_prune()

    def tell(self, asked: Asked, result: TrialResult, value: float) -> None:
        """Close a trial. `value` counts only when it completed."""
        trial = self._trials.pop(asked.number)
        for key, attr in (("outcome", result.outcome), ("steps", result.steps), ("horizon", result.request.horizon)):
            trial.set_user_attr(key, attr)
        if result.outcome is Outcome.COMPLETED and math.isfinite(value):
            self._study.tell(trial, value, state=TrialState.COMPLETE)
        else:
            # Optuna knows no divergence. PRUNED makes samplers hold the point for bad; FAIL would make them forget it.
            self._study.tell(trial, state=TrialState.FAIL if result.outcome is Outcome.FAILED else TrialState.PRUNED)

    def _distributions(self, values: Mapping[str, Value] | None) -> dict[str, BaseDistribution]:
        """Wide enough for what is asked: an incumbent may lie outside the range that is searched."""
        distributions: dict[str, BaseDistribution] = {}
        for name, knob in self._knobs.items():
            if values is not None and name not in values:
                continue
            if isinstance(knob, Choice):
                distributions[name] = CategoricalDistribution(knob.values)
                continue
            ends = [knob.to_parameter(knob.low), knob.to_parameter(knob.high)]
            if values is not None:
                ends.append(knob.to_parameter(float(values[name])))
            log = knob.scale is not Scale.LINEAR
            distributions[knob.parameter] = FloatDistribution(min(ends), max(ends), log=log)
        return distributions


def _parameter(knob: Knob | Choice) -> str:
    return knob.name if isinstance(knob, Choice) else knob.parameter


def _as_parameter(knob: Knob | Choice, value: Value) -> tuple[str, Value]:
    """The study's parameter and its value there."""
    return _parameter(knob), value if isinstance(knob, Choice) else knob.to_parameter(float(value))


def _from_parameter(knob: Knob | Choice, value: Value) -> Value:
    return value if isinstance(knob, Choice) else knob.from_parameter(float(value))
