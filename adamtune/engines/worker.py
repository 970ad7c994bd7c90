"""A worker: takes jobs of a run from an Optuna storage, trains them here, and answers. `adamtune worker` is one."""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from adamtune.engines.answers import answer_to, timed_out
from adamtune.engines.jobs import HeldTrials
from adamtune.engines.local_workers import NAME
from adamtune.engines.work_queue import BEAT, Beats, work_study
from adamtune.errors import ExitCode, InputError
from adamtune.task import Task, load_task

_LOOK, _REST = 0.01, 0.5
"""Seconds between looks for work: at first, and when none has come for long."""
_AGAIN = 3.0
"""Seconds after which a run whose jobs have vanished is taken to have ended, and not to be resumed just now."""


def worker_name() -> str:
    """A name no other worker has; one that a sweep has started begins with what the sweep calls it."""
    given = os.environ.get(NAME, f"{socket.gethostname()}-{os.getpid()}")
    return f"{given}/{uuid.uuid4().hex[:8]}"


class Worker:
    """Serves one run at a time."""

    def __init__(
        self,
        reach: Callable[[], BaseStorage],
        run: str,
        load: Callable[[dict[str, Any]], Task],
        device: torch.device,
        idle: float,
        on_note: Callable[[str], None],
        states: Path | None = None,
    ) -> None:
        """`reach` opens the storage. `load` makes the task from its `ref` and `args` as the run has them, or refuses.
        `idle`: seconds to wait for a run to begin, or to be heard of again. `states`: the run's folder of the states of
        trials under way.
        """
        self._states = states
        self._reach, self._storage = reach, reach()
        self._run, self._load, self._device = run, load, device
        self._idle, self._on_note = idle, on_note
        self.name = worker_name()
        self._random = random.Random(self.name)

    def serve(self) -> str:
        """Train until there is an end; why it ended. Raises `InputError` where no such run begins in time."""
        study = self._find(self._idle)
        if study is None:
            raise InputError(
                f"no sweep called '{self._run}' gives out work in this storage; start it by adamtune sweep SPEC "
                f"--engine workers --storage URL --run-dir .../{self._run}, or see --study"
            )
        while study is not None:
            try:
                told = self._storage.get_study_user_attrs(study)["task"]
                self._same_versions(told)
                held = HeldTrials(self._load(told), self._device, self._states)
                self._on_note(f"worker {self.name} trains for {self._run} on {self._device}")
                return _Sitting(self._storage, study, told, self.name, held, self._random).work(self._idle)
            except KeyError:  # the run's jobs have vanished: it has ended, or begins again
                self._storage = self._reach()  # SQLite gives ids a second time, which Optuna's cache would take for old
                study = self._find(_AGAIN)
        return f"{self._run} has ended"

    def _same_versions(self, told: Mapping[str, Any]) -> None:
        """Raise `InputError` where the sweep is of another adamtune, whose jobs and numbers may be others."""
        mine = version("adamtune")
        if told.get("adamtune") != mine:
            theirs = told.get("adamtune", "an older one")
            raise InputError(f"the sweep runs adamtune {theirs}, and this worker {mine}; install the same for both")
        if told["torch"] != version("torch"):
            self._on_note(f"the sweep has torch {told['torch']}, this worker {version('torch')}: numbers may differ")

    def _find(self, seconds: float) -> int | None:
        until = time.monotonic() + seconds
        while True:
            for study in self._storage.get_all_studies():
                if study.study_name == work_study(self._run) and "task" in study.user_attrs:
                    return study._study_id
            if time.monotonic() > until:
                return None
            time.sleep(_REST)


def task_loader(named: str | None) -> Callable[[dict[str, Any]], Task]:
    """What makes the task a run asks for. Whoever can write to the storage could name any function there; so what is
    imported is what the person at this machine has `named`, or one of adamtune's own.

    Raises `InputError` where that is not the run's task.
    """

    def load(asked: dict[str, Any]) -> Task:
        ref = asked["ref"]
        if named is None and not ref.startswith("adamtune.tasks."):
            raise InputError(f"the sweep trains {ref}; if you trust it to run here, say --task {ref}, or where it lies")
        task = load_task(named or ref, asked["args"])
        if task.name != asked["name"]:
            raise InputError(f"--task {named} makes the task '{task.name}', but the sweep trains '{asked['name']}'")
        return task

    return load


class _Sitting:
    """A worker at one study of jobs."""

    def __init__(
        self,
        storage: BaseStorage,
        study: int,
        told: Mapping[str, Any],
        name: str,
        held: HeldTrials,
        chance: random.Random,
    ) -> None:
        self._storage, self._study, self._told, self._name = storage, study, told, name
        self._held, self._random = held, chance
        self._parent = os.getppid() if NAME in os.environ else None
        """The sweep, where one has started this worker."""
        self._job: tuple[int, float | None, float] | None = None
        """The job under way: its trial's id in the storage, the seconds it may take, and when it was begun."""
        self._over = threading.Event()

    def work(self, idle: float) -> str:
        """Take jobs until the sweep has been silent for `idle` seconds. Raises `KeyError` once the study has gone, or
        is that of a later sitting.
        """
        heart = threading.Thread(target=self._live, daemon=True)
        heart.start()
        sweep, wait, gone = Beats(), _LOOK, False
        try:
            while sweep.still("beat") < idle:
                attrs = self._storage.get_study_user_attrs(self._study)
                if attrs["task"] != self._told:
                    raise KeyError("another sitting")
                sweep.see({"beat": attrs.get("beat")})
                self._held.keep(attrs.get("keep", ()))
                if self._take_one():
                    wait = _LOOK
                else:
                    wait = min(_REST, 1.2 * wait)
                    time.sleep(wait)
            return f"the sweep has not been heard of for {idle:g} s"
        except KeyError:
            gone = True
            raise
        finally:
            self._over.set()
            heart.join(timeout=2 * BEAT)
            if not gone:  # a later sitting, whose study may have the same id, would think that this worker leaves it
                self._say(None)

    def _take_one(self) -> bool:
        """Do a job, where there is one for this worker."""
        waiting = self._storage.get_all_trials(self._study, deepcopy=False, states=(TrialState.WAITING,))
        mine = [trial for trial in waiting if trial.user_attrs["holder"] == self._name]
        free = [trial for trial in waiting if not trial.user_attrs["holder"]]
        for trial in mine or self._in_some_order(free):
            try:
                if self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    self._do(trial)
                    return True
            except UpdateFinishedTrialError:  # withdrawn meanwhile, or we were given up for dead
                pass
        return False

    def _do(self, trial: FrozenTrial) -> None:
        self._storage.set_trial_user_attr(trial._trial_id, "worker", self._name)
        job = trial.user_attrs["job"]
        self._job = trial._trial_id, job["timeout"], time.monotonic()
        answer = answer_to(job, lambda: self._held)
        self._job = None
        self._answer(trial._trial_id, answer)

    def _answer(self, trial_id: int, answer: str) -> None:
        self._storage.set_trial_user_attr(trial_id, "answer", [self._told["sitting"], answer])
        self._storage.set_trial_state_values(trial_id, TrialState.COMPLETE)

    def _in_some_order(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """From the oldest on, but not all workers at the same."""
        start = self._random.randrange(min(len(trials), 8)) if trials else 0
        return trials[start:] + trials[:start]

    def _live(self) -> None:
        """Beat, and end this process where a job hangs: nothing else ends a hanging training step."""
        beat = 0
        while not self._over.wait(BEAT if beat else 0):
            beat += 1
            if self._parent is not None and os.getppid() != self._parent:
                os._exit(ExitCode.FAILED)  # the sweep was killed: who goes on with it needs the cores, or the GPU
            if not self._say(beat):
                return
            trial_id, timeout, began = self._job or (0, None, 0.0)
            if timeout is not None and time.monotonic() - began > timeout:
                self._leave(trial_id, timed_out(timeout))

    def _leave(self, trial_id: int, answer: str) -> None:
        try:
            self._answer(trial_id, answer)
        except (UpdateFinishedTrialError, KeyError):
            pass
        except StorageInternalError:  # nobody has heard: end, so that the sweep sees it
            os._exit(ExitCode.FAILED)
        self._say(None)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # the same worker, anew

    def _say(self, beat: int | None) -> bool:
        """Write the beat, None at the end; whether there is somebody to read it."""
        with suppress(StorageInternalError):  # the next beat may get there; who does the jobs tells what is wrong
            try:
                self._storage.set_study_user_attr(self._study, f"worker/{self._name}", beat)
            except KeyError:
                return False
        return True
