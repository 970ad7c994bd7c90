"""A worker: takes jobs of a run from an Optuna storage, trains them here, and answers. `adamtune worker` is one."""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from adamtune.engines.answers import answer_to, timed_out
from adamtune.engines.jobs import HeldTrials
from adamtune.engines.local_workers import NAME
from adamtune.engines.work_queue import BEAT, Beats, work_study
from adamtune.errors import InputError
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
        storage: BaseStorage,
        run: str,
        load: Callable[[dict[str, Any]], Task],
        device: torch.device,
        idle: float,
        on_note: Callable[[str], None],
        states: Path | None = None,
    ) -> None:
        """`load` makes the task from its `ref` and `args` as the run has them, or refuses. `idle`: seconds to wait for
        a run to begin, or to be heard of again. `states`: the run's folder of the states of trials under way.
        """
        self._states = states
        self._storage, self._run, self._load, self._device = storage, run, load, device
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
        task: tuple[dict[str, Any], Task] | None = None
        while study is not None:
            try:
                told = self._storage.get_study_user_attrs(study)["task"]
                if task is None or task[0] != told:
                    task = told, self._load(told)
                self._on_note(f"worker {self.name} trains for {self._run} on {self._device}")
                held = HeldTrials(task[1], self._device, self._states)
                return _Sitting(self._storage, study, self.name, held, self._random).work(self._idle)
            except KeyError:  # the run's jobs have vanished: it has ended, or begins again
                study = self._find(_AGAIN)
        return f"{self._run} has ended"

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

    def __init__(self, storage: BaseStorage, study: int, name: str, held: HeldTrials, chance: random.Random) -> None:
        self._storage, self._study, self._name, self._held, self._random = storage, study, name, held, chance
        self._job: tuple[int, float | None, float] | None = None
        """The job under way: its trial's id in the storage, the seconds it may take, and when it was begun."""
        self._over = threading.Event()

    def work(self, idle: float) -> str:
        """Take jobs until the sweep has been silent for `idle` seconds. Raises `KeyError` once the study has gone."""
        heart = threading.Thread(target=self._live, daemon=True)
        heart.start()
        sweep, wait = Beats(), _LOOK
        try:
            while sweep.still("beat") < idle:
                attrs = self._storage.get_study_user_attrs(self._study)
                sweep.see({"beat": attrs.get("beat")})
                self._held.keep(attrs.get("keep", ()))
                if self._take_one():
                    wait = _LOOK
                else:
                    wait = min(_REST, 1.2 * wait)
                    time.sleep(wait)
            return f"the sweep has not been heard of for {idle:g} s"
        finally:
            self._over.set()
            heart.join(timeout=2 * BEAT)
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
        self._storage.set_trial_user_attr(trial_id, "answer", answer)
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
            if not self._say(beat):
                return
            trial_id, timeout, began = self._job or (0, None, 0.0)
            if timeout is not None and time.monotonic() - began > timeout:
                self._leave(trial_id, timed_out(timeout))

    def _leave(self, trial_id: int, answer: str) -> None:
        with suppress(UpdateFinishedTrialError, KeyError):
            self._answer(trial_id, answer)
        self._say(None)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # the same worker, anew

    def _say(self, beat: int | None) -> bool:
        """Write the beat, None at the end; whether there is somebody to read it."""
        try:
            self._storage.set_study_user_attr(self._study, f"worker/{self._name}", beat)
        except KeyError:
            return False
        return True
