"""Ask and tell over knobs, on Optuna. Proposes and compares; never trains.

Every training run is a trial of an Optuna study in one storage, one study a stage, so that Optuna's own tools read a
sweep. What is asked is drawn before it runs, seeds are a trial's own, and results are told in order of asking: the
search is the same whatever trains it.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from adamtune.errors import AdamtuneError, InputError, StorageError
from adamtune.evidence import Direction
from adamtune.knobs import Choice, Knob, Scale, Value
from adamtune.passwords import has_password, without_passwords, without_those_of
from adamtune.plain_text import plain
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

    def settle(self) -> None:
        """See `BufferedJournal.settle`."""
        self._file.settle()

    def close(self) -> None:
        """Leave the file complete; the storage can be used on."""
        self._file.flush()


def open_storage(url: str | None, journal: Path, on_note: Callable[[str], None] = lambda note: None) -> BaseStorage:
    """The storage of a sweep: an Optuna URL, or by default a journal file. To be closed by `close_storage`.

    `on_note` hears when a database goes away and comes back. Raises `InputError` when the URL cannot be opened.
    """
    if url is None:
        try:
            return JournalFile(journal)
        except AdamtuneError:
            raise
        except Exception as problem:  # whole lines that make no sense to Optuna
            what = f"{journal} cannot be read as Optuna's journal ({type(problem).__name__}: {plain(problem)[:100]})"
            raise InputError(f"{what}; delete it: the sweep tells its trials again") from problem
    if url.startswith("redis"):  # in the snapshots of its journal, that is: code for whoever reads them
        raise InputError(
            f"the storage {without_passwords(url)} cannot be used: Optuna unpickles what it finds in a Redis; name a "
            "PostgreSQL, MySQL or SQLite database, or leave `storage` out for a file"
        )
    try:
        if "://" not in url:
            return optuna.storages.get_storage(url)
        from adamtune.search.patient import opened  # SQLAlchemy takes a fifth of a second to import

        return optuna.storages.get_storage(opened(url, on_note))
    except Exception as problem:  # SQLAlchemy's, the driver's or Optuna's own: all mean that the URL is no use
        told = without_those_of(url, _first_line(problem))
        if isinstance(problem, ImportError) and url.startswith("postgres"):
            told += " (pip install 'adamtune[postgres]')"
        # A traceback (--debug) would quote the driver, and with it perhaps the password.
        cause = None if has_password(url) else problem
        raise InputError(f"the storage cannot be opened: {told}; leave `storage` out for a file") from cause


def sqlite_url(path: Path) -> str:
    """The URL of the SQLite database at `path`, whatever stands in its name."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(path.resolve())).render_as_string(hide_password=False)


def whole_url(url: str | None) -> str | None:
    """The URL of the same storage in another working directory: SQLite's files may be named from this one."""
    if url is None or not url.startswith("sqlite"):
        return url
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        named = make_url(url)
    except ArgumentError:  # told where it is opened
        return url
    file = named.database or ":memory:"
    if file == ":memory:" or file.startswith("file:"):
        return url
    return named.set(database=str(Path(file).resolve())).render_as_string(hide_password=False)


@contextmanager
def storage_faults_told(url: str | None) -> Iterator[None]:
    """Raise `StorageError` in place of what Optuna raises where the database at `url` fails while it is in use."""
    try:
        yield
    except StorageInternalError as problem:
        told = without_those_of(url or "", _first_line(problem.__cause__ or problem))
        cause = None if has_password(url or "") else problem
        named = without_passwords(url) if url else "in the run directory"
        raise StorageError(f"the storage {named} failed: {told}; mend that") from cause


def _first_line(problem: BaseException) -> str:
    return str(problem).splitlines()[0] if str(problem) else type(problem).__name__


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


class RungPruner:
    """Keeps the best points at every rung: one round of successive halving (Jamieson & Talwalkar 2016), run in step.

    A point is one setting of the knobs, tried on several seeds; its value at a rung is the mean over them, and its
    trials stay or go together. To be asked after all trials of the round have reported the rung. It is told values and
    reads none from Optuna's trials, as Optuna's own pruners do: that takes longer with every trial a study has.
    """

    def __init__(self, keep: float, direction: Direction) -> None:
        """Keep the share `keep` of the points, rounded up, and never fewer than two."""
        self._keep, self._sign = keep, 1.0 if direction == "minimize" else -1.0
        self._values: dict[int, dict[int, list[float]]] = {}
        self._staying: dict[int, frozenset[int]] = {}

    def report(self, step: int, point: int, value: float) -> None:
        """Take what a trial of `point` measured at the rung `step`."""
        self._values.setdefault(step, {}).setdefault(point, []).append(value)
        self._staying.pop(step, None)

    def stays(self, step: int, point: int) -> bool:
        """Whether `point` is in the share that goes on beyond the rung `step`."""
        if step not in self._staying:  # once a rung
            values = self._values[step]
            means = {each: sum(found) / len(found) for each, found in values.items()}
            # Ties go to the point asked first, so that the choice does not hang on the order of a dict.
            ranked = sorted(means, key=lambda each: (self._sign * means[each], each))
            self._staying[step] = frozenset(ranked[: max(2, math.ceil(self._keep * len(ranked)))])
        return point in self._staying[step]


@dataclass(frozen=True)
class Asked:
    """A trial that was asked for: its number in the study, its knobs and its seed."""

    number: int
    values: Mapping[str, Value]
    seed: int


@dataclass
class _Running:
    """A trial that was asked for and has not been closed."""

    trial: optuna.Trial | None
    """None for one that was closed in an earlier sitting, and is only asked for again."""
    point: int
    reported: set[int]
    """Rungs that Optuna knows its values at."""
    last: int | None = None
    """The rung it reported last."""


class KnobStudy:
    """One Optuna study over some knobs (none, where fixed recipes are measured).

    A study that exists is gone through again from its first trial: what is asked for is taken to be the trial that was
    asked for at this place before, as long as seed, knobs and attributes agree. That is how a sweep resumes.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        knobs: Iterable[Knob | Choice],
        direction: Direction,
        sampler_seed: int,
        keep: float = 0.5,
    ) -> None:
        """Create the study `name`, or go through it again where it exists. `keep`: see `RungPruner`."""
        self._knobs = {knob.name: knob for knob in knobs}
        self._settle = storage.settle if isinstance(storage, JournalFile) else _nothing
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=direction,
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=sampler_seed % 2**32),  # numpy takes no larger one
            pruner=optuna.pruners.NopPruner(),  # trials meet at rungs, and are compared there by ours
        )
        self._pruner = RungPruner(keep, direction)
        self._worst = math.inf if direction == "minimize" else -math.inf
        self._former = deque(self._study.get_trials(deepcopy=False))
        self._running: dict[int, _Running] = {}
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
            kept = {_POINT: point, "seed": seed, **attrs}
            former = self._again(values, kept)
            if former is None:
                trial = self._new(values, kept)
                number, params = trial.number, trial.params
                self._running[number] = _Running(trial, point, set())
            else:
                number, params = former.number, former.params
                again = None if former.state.is_finished() else optuna.Trial(self._study, former._trial_id)
                self._running[number] = _Running(again, point, set(former.intermediate_values))
            values = {
                name: _from_parameter(knob, params[_parameter(knob)])
                for name, knob in self._knobs.items()
                if _parameter(knob) in params
            }
            asked.append(Asked(number, values, seed))
        self._settle()
        return asked

    def _new(self, values: Mapping[str, Value] | None, attrs: Mapping[str, Any]) -> optuna.Trial:
        distributions = self._distributions(values)
        if values is None:
            trial = self._study.ask(distributions)
            for key, attr in attrs.items():
                trial.set_user_attr(key, attr)
            return trial
        whole = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=self._as_parameters(values),
            distributions=distributions,
            user_attrs=dict(attrs),
        )  # written in one piece, so that whoever is killed has asked for all of it or for nothing
        return optuna.Trial(self._study, self._study._storage.create_new_trial(self._study._study_id, whole))

    def _as_parameters(self, values: Mapping[str, Value]) -> dict[str, Value]:
        return dict(_as_parameter(self._knobs[name], value) for name, value in values.items())

    def _again(self, values: Mapping[str, Value] | None, attrs: Mapping[str, Any]) -> FrozenTrial | None:
        """The trial that an earlier sitting asked for at this place; None where it asked for none, or for another."""
        if not self._former:
            return None
        former = self._former.popleft()
        same = all(former.user_attrs.get(key) == json.loads(json.dumps(attr)) for key, attr in attrs.items())
        if same and (values is None or former.params == self._as_parameters(values)):
            return former
        for stale in (former, *self._former):  # rounding has led elsewhere, and these are not asked for any more
            if not stale.state.is_finished():
                self._study._storage.set_trial_state_values(
                    stale._trial_id, TrialState.FAIL
                )  # also where it only waits
        self._former.clear()
        return None

    def report(self, asked: Asked, step: int, value: float) -> None:
        """Tell what a trial measured at a rung; a value that is not finite counts as the worst there is."""
        running = self._running[asked.number]
        value = value if math.isfinite(value) else self._worst
        if running.trial is not None and step not in running.reported:
            running.trial.report(value, step)
        running.last = step
        self._pruner.report(step, running.point, value)
        self._settle()

    def should_prune(self, asked: Asked) -> bool:
        """Whether to stop a trial at the rung it has just reported; ask once all have reported it."""
        running = self._running[asked.number]
        return running.last is not None and not self._pruner.stays(running.last, running.point)

    def tell(self, asked: Asked, result: TrialResult, value: float) -> None:
        """Close a trial. `value` counts only when it completed."""
        trial = self._running.pop(asked.number).trial
        if trial is None:
            return
        for key, attr in (("outcome", result.outcome), ("steps", result.steps), ("horizon", result.request.horizon)):
            trial.set_user_attr(key, attr)
        if result.outcome is Outcome.COMPLETED and math.isfinite(value):
            self._study.tell(trial, value, state=TrialState.COMPLETE)
        else:
            # Optuna knows no divergence. PRUNED makes samplers hold the point for bad; FAIL would make them forget it.
            self._study.tell(trial, state=TrialState.FAIL if result.outcome is Outcome.FAILED else TrialState.PRUNED)
        self._settle()

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


def _nothing() -> None:
    """Other storages write at once."""


def _parameter(knob: Knob | Choice) -> str:
    return knob.name if isinstance(knob, Choice) else knob.parameter


def _as_parameter(knob: Knob | Choice, value: Value) -> tuple[str, Value]:
    """The study's parameter and its value there."""
    return _parameter(knob), value if isinstance(knob, Choice) else knob.to_parameter(float(value))


def _from_parameter(knob: Knob | Choice, value: Value) -> Value:
    return value if isinstance(knob, Choice) else knob.from_parameter(float(value))
