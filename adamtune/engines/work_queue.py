"""Jobs in an Optuna storage: a sweep puts them there, and workers on any machine that reaches it take them.

Each job is a trial of a study of its own, `RUN/work`, because Optuna's storages know how one of many processes takes a
waiting trial and no other does. A job's life is that trial's state: WAITING, RUNNING once a worker has taken it,
COMPLETE with its answer, FAIL when its worker was given up: what such a worker writes later is refused by the storage,
so that it cannot answer twice. Everything in there is JSON.

A worker is alive as long as the number that it counts up, its beat, moves; how long it has stood still is measured by
the reader's own steady clock, so that clocks may differ and jump.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from adamtune.engines.answers import Answer, answer_of
from adamtune.engines.jobs import Job
from adamtune.engines.local_workers import LocalWorkers

BEAT = 2.0
"""Seconds between beats."""
LEASE = 30.0
"""Seconds after which a worker whose beat stands still is given up."""
_CLAIMING = 10.0
"""Seconds within which a worker that has taken a job puts its name to it."""
_LOOK, _REST = 0.01, 0.25
"""Seconds between looks at the storage: at first, and when nothing has come for long."""


def work_study(run: str) -> str:
    """The name of the study that the jobs of a run are in."""
    return f"{run}/work"


class Beats:
    """When each of some counters was last seen to move."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._seen: dict[str, tuple[Any, float]] = {}

    def see(self, counters: Mapping[str, Any]) -> None:
        """Take down where they stand."""
        now = self._clock()
        for name, count in counters.items():
            if name not in self._seen or self._seen[name][0] != count:
                self._seen[name] = count, now

    def still(self, name: str) -> float:
        """Seconds since it moved; it moves when it is first asked for."""
        return self._clock() - self._seen.setdefault(name, (None, self._clock()))[1]


@dataclass
class _Given:
    """A job that was given out."""

    job: Job
    taken: float | None = None
    """When it was first seen to be taken."""


class WorkQueue:
    """The sweep's side of a run's jobs: a `Workplace`."""

    def __init__(
        self,
        storage: BaseStorage,
        run: str,
        task: Mapping[str, Any],
        local: LocalWorkers | None = None,
        lease: float = LEASE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with an empty queue; jobs that an earlier sitting of the run has left are thrown away.

        `task`: the `ref` and `args` that workers make it from. `local`: workers of this process.
        `clock` counts seconds.
        """
        self._storage, self._local, self._lease, self._clock = storage, local, lease, clock
        self._sitting = uuid.uuid4().hex
        name = work_study(run)
        for study in storage.get_all_studies():
            if study.study_name == name:
                storage.delete_study(study._study_id)
        self._study = storage.create_new_study([StudyDirection.MINIMIZE], name)
        told = {**task, "sitting": self._sitting, "adamtune": version("adamtune"), "torch": version("torch")}
        storage.set_study_user_attr(self._study, "task", told)
        self._given: dict[int, _Given] = {}
        """By the job's trial id in the storage."""
        self._holder: dict[int, str] = {}
        """By the trial's number: the worker that has it in memory."""
        self._beats, self._beaten, self._beat = Beats(clock), clock() - BEAT, 0
        self._workers: set[str] = set()
        self._left: set[str] = set()
        self._kept: list[int] | None = None
        """What workers have not been told yet to keep."""
        self._wait = _LOOK
        if local is not None:
            local.start()

    def submit(self, job: Job) -> None:
        """See `Workplace.submit`."""
        self._say_kept()  # before a worker can take the job, and let go of its trial
        attrs = {"job": job.to_dict(), "holder": self._holder.get(job.trial, "")}
        waiting = create_trial(state=TrialState.WAITING, user_attrs=attrs)
        self._given[self._storage.create_new_trial(self._study, waiting)] = _Given(job)
        self._wait = _LOOK

    def answers(self) -> Iterator[Answer]:
        """See `Workplace.answers`."""
        self._look_after_workers()
        self._say_kept()
        came = False
        for trial in self._storage.get_all_trials(self._study, deepcopy=False):
            given = self._given.get(trial._trial_id)
            if given is None:
                continue
            answer = self._answer(trial, given)
            if answer is not None:
                came = True
                del self._given[trial._trial_id]
                yield answer
        self._wait = _LOOK if came else min(_REST, 1.2 * self._wait)
        if not came:
            time.sleep(self._wait)

    def keep(self, trials: Collection[int]) -> None:
        """See `Workplace.keep`."""
        self._kept = sorted(trials)
        for trial_id, given in list(self._given.items()):
            if given.job.trial not in trials:
                self._withdraw(trial_id)
        self._holder = {trial: worker for trial, worker in self._holder.items() if trial in trials}

    def facts(self) -> dict[str, Any]:
        """See `Workplace.facts`."""
        return {"workers": sorted(self._workers)}

    def close(self) -> None:
        """See `Workplace.close`. Without the study, workers know that there is an end; where the storage has failed,
        by a beat that stands still.
        """
        if self._local is not None:
            self._local.close()
        with suppress(StorageInternalError, KeyError):  # the latter where it has gone, as by a call made again
            self._storage.delete_study(self._study)

    def _say_kept(self) -> None:
        if self._kept is not None:
            self._storage.set_study_user_attr(self._study, "keep", self._kept)
            self._kept = None

    def _answer(self, trial: FrozenTrial, given: _Given) -> Answer | None:
        number = given.job.trial
        if trial.state is TrialState.COMPLETE:
            sitting, text = trial.user_attrs.get("answer", ("", ""))
            if sitting != self._sitting:
                return Answer(number, lost="a worker of an earlier sitting took it for a job of its own")
            worker = trial.user_attrs["worker"]
            self._workers.add(worker)
            if self._local is not None:
                self._local.answered()
            answer = answer_of(text, given.job)
            if answer.done is not None and answer.done.runs:
                self._holder[number] = worker
            return answer
        if trial.state is TrialState.RUNNING:
            if given.taken is None:
                given.taken = self._clock()
            worker, seconds = trial.user_attrs.get("worker", ""), self._clock() - given.taken
            if worker and self._local is not None and self._local.starts(worker):
                self._end_hanging(worker, given.job, seconds)
            if self._gone(worker) if worker else seconds > _CLAIMING:
                return self._give_up(trial._trial_id, number, worker)
        holder = trial.user_attrs["holder"]
        if trial.state is TrialState.WAITING and holder and self._gone(holder):
            self._holder.pop(number, None)
            with suppress(UpdateFinishedTrialError):  # it has taken it since we looked, and answered before it went
                self._storage.set_trial_user_attr(trial._trial_id, "holder", "")
        return None

    def _give_up(self, trial_id: int, number: int, worker: str) -> Answer | None:
        self._holder.pop(number, None)
        if not self._withdraw(trial_id):  # it has just been answered
            return None
        if self._local is not None and self._local.starts(worker):
            return Answer(number, lost=f"the worker {worker} died: {self._local.last_words(worker)}")
        return Answer(number, lost=f"the worker {worker or 'that took it'} died, or was cut off")

    def _withdraw(self, trial_id: int) -> bool:
        try:
            return self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return False

    def _end_hanging(self, worker: str, job: Job, seconds: float) -> None:
        """End one of this machine's workers that should have ended its job, or itself, long ago: code that holds
        Python's lock lets no thread of it count.
        """
        if job.timeout is not None and seconds > job.timeout + self._lease and self._local is not None:
            self._local.end(worker)

    def _gone(self, worker: str) -> bool:
        if worker in self._left:
            return True
        if self._local is not None and self._local.starts(worker):  # a beat may stand still, a process runs or not
            return self._local.dead(worker)
        return self._beats.still(worker) > self._lease

    def _look_after_workers(self) -> None:
        now = self._clock()
        if now - self._beaten < BEAT:
            return
        self._beaten, self._beat = now, self._beat + 1
        self._storage.set_study_user_attr(self._study, "beat", self._beat)
        attrs = self._storage.get_study_user_attrs(self._study)
        beats = {name.removeprefix("worker/"): beat for name, beat in attrs.items() if name.startswith("worker/")}
        self._beats.see(beats)
        self._left = {name for name, beat in beats.items() if beat is None}
        if self._local is not None:
            self._local.replace()
