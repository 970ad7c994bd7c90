"""Jobs as Ray tasks: actors on the cluster that the user has, each with one trial under way. See `Workplace`."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from adamtune.engines.answers import Answer, answer_of, answer_to
from adamtune.engines.jobs import HeldTrials, Job
from adamtune.engines.time_limit import too_long
from adamtune.errors import InputError
from adamtune.task import load_task

_WAIT = 0.25
"""Seconds to wait for an answer before timeouts are looked at."""


class TrialActor:
    """What runs on the cluster: it makes the task from its reference and trains."""

    def __init__(self, ref: str, args: Mapping[str, Any], device: str) -> None:
        """Nothing is imported yet, so that what fails there is an answer."""
        self._ref, self._args, self._device = ref, args, device

    @cached_property
    def _held(self) -> HeldTrials:
        return HeldTrials(load_task(self._ref, self._args), torch.device(self._device))

    def do(self, job: dict[str, Any], keep: Collection[int]) -> str:
        """Do a job, having let go of all trials but those to `keep`; what became of it, see `answer_to`."""

        def held() -> HeldTrials:
            self._held.keep(keep)
            return self._held

        return answer_to(job, held)


@dataclass(eq=False)
class _Actor:
    handle: Any
    job: Job | None = None
    since: float = 0.0
    holds: set[int] = field(default_factory=set)


class RayWorkplace:
    """Gives jobs to actors, one at a time each; one that holds the trial, or any that is free."""

    def __init__(
        self, ref: str, args: Mapping[str, Any], device: torch.device, address: str | None, count: int | None
    ) -> None:
        """Join the Ray cluster at `address` (`auto`: the one this machine is part of; None: one of its own, here).

        `count` actors; None: one a GPU of the cluster or, on a CPU, one a core. Raises `InputError` where Ray is not
        installed or no cluster answers.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns that this will be its default
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError:
            raise InputError("engine: ray needs Ray; install it by: pip install 'adamtune[ray]'") from None
        self._ray, self._mine = ray, not ray.is_initialized()
        if self._mine:
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (ConnectionError, RuntimeError, ValueError) as problem:
                reason = str(problem).splitlines()[0]
                raise InputError(
                    f"no Ray cluster answers at {address}: {reason}; start one by: ray start --head"
                ) from problem
        gpus = 1 if device.type == "cuda" else 0
        there = ray.cluster_resources().get("GPU" if gpus else "CPU", 1)
        self._make = ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus)(TrialActor)
        self._given = ref, dict(args), str(device)
        self._actors = [self._start() for _ in range(max(1, count or int(there)))]
        self._waiting: deque[Job] = deque()
        self._under_way: dict[Any, _Actor] = {}
        self._keep: set[int] = set()

    def submit(self, job: Job) -> None:
        """See `Workplace.submit`."""
        self._keep.add(job.trial)
        self._waiting.append(job)

    def answers(self) -> Iterator[Answer]:
        """See `Workplace.answers`."""
        self._give_out()
        if not self._under_way:
            return
        ready, _ = self._ray.wait(list(self._under_way), num_returns=1, timeout=_WAIT)
        for ref in ready:
            actor = self._under_way.pop(ref)
            job, actor.job = actor.job, None
            assert job is not None
            try:
                answer = answer_of(self._ray.get(ref), job)
            except self._ray.exceptions.RayError:
                self._replace(actor)
                answer = Answer(job.trial, lost="the Ray actor died")
            if answer.done is not None and answer.done.runs:
                actor.holds.add(job.trial)
            yield answer
        now = time.monotonic()
        for ref, actor in list(self._under_way.items()):
            job = actor.job
            if job is not None and job.timeout is not None and now - actor.since > job.timeout:
                del self._under_way[ref]
                self._ray.kill(actor.handle)
                self._replace(actor)
                yield Answer(job.trial, lost=too_long(job.timeout), again=False)

    def keep(self, trials: Collection[int]) -> None:
        """See `Workplace.keep`. Actors hear of it with their next job."""
        self._keep = set(trials)
        self._waiting = deque(job for job in self._waiting if job.trial in self._keep)
        for actor in self._actors:
            actor.holds &= self._keep

    def facts(self) -> dict[str, Any]:
        """See `Workplace.facts`."""
        return {"actors": len(self._actors), "nodes": len(self._ray.nodes())}

    def close(self) -> None:
        """See `Workplace.close`."""
        for actor in self._actors:
            self._ray.kill(actor.handle)
        if self._mine:
            self._ray.shutdown()

    def _start(self) -> _Actor:
        return _Actor(self._make.remote(*self._given))

    def _replace(self, actor: _Actor) -> None:
        actor.handle, actor.job, actor.holds = self._make.remote(*self._given), None, set()

    def _give_out(self) -> None:
        """Jobs whose trial a busy actor holds wait for it."""
        later: list[Job] = []
        for job in self._waiting:
            holder = next((actor for actor in self._actors if job.trial in actor.holds), None)
            free = [holder] if holder else self._actors
            # whoever holds the fewest: each actor goes on with its own, so that those are its work to come
            able = sorted((each for each in free if each.job is None), key=lambda each: len(each.holds))
            if not able:
                later.append(job)
                continue
            actor = able[0]
            actor.job, actor.since = job, time.monotonic()
            actor.holds.discard(job.trial)
            self._under_way[actor.handle.do.remote(job.to_dict(), sorted(self._keep))] = actor
        self._waiting = deque(later)
