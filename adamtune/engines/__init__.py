"""Who trains a batch of trials. Every engine gives the same result for the same request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from optuna.storages import BaseStorage

from adamtune import rundir
from adamtune.engines.batch import Engine as Engine
from adamtune.engines.batch import TrialBatch as TrialBatch
from adamtune.engines.finished import FinishedTrials as FinishedTrials
from adamtune.engines.local_workers import LocalWorkers, worker_count
from adamtune.engines.population import MEMORY as MEMORY
from adamtune.engines.population import PopulationEngine
from adamtune.engines.ray_workplace import RayWorkplace
from adamtune.engines.resumable import ResumableBatch as ResumableBatch
from adamtune.engines.resumable import ResumableEngine as ResumableEngine
from adamtune.engines.resumable import TrialWatch as TrialWatch
from adamtune.engines.sequential import SequentialEngine
from adamtune.engines.spread import SpreadEngine
from adamtune.engines.work_queue import WorkQueue
from adamtune.errors import InputError
from adamtune.rundir import RunDir
from adamtune.spec import Spec
from adamtune.task import Task

ENGINES = ("auto", "sequential", "population")


def pick_device(wanted: str) -> torch.device:
    """The device a spec means: `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises `InputError` when it is not there.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0].rstrip(".")
        raise InputError(f"the device '{wanted}' cannot be used: {reason}; use device: auto or cpu") from problem
    return device


def make_engine(
    name: str,
    task: Task,
    device: torch.device,
    on_steps: Callable[[int], None] = lambda steps: None,
    on_note: Callable[[str], None] = lambda note: None,
    memory: float = MEMORY,
    processes: int | None = None,
    timeout: float | None = None,
    known: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine a spec names that trains on this machine; `auto` is whatever trains the task fastest here.

    `on_steps` hears of steps trained, `on_note` one line on how trials are trained. `memory` is the share of the free
    memory that trials trained side by side may take; `processes`, how many train, one a core by default;
    `timeout`, the seconds that a trial may take to its next rung; `known`, the `facts` of an earlier sitting's engine.
    Raises `InputError` for an engine or a share there is not.
    """
    if not 0 < memory <= 1:
        raise InputError(f"memory must be a share of the free memory, above 0 and at most 1, not {memory:g}")
    if name not in ENGINES:
        raise InputError(f"there is no engine '{name}'; the engines are: {', '.join(ENGINES)}")
    if name == "sequential":
        return SequentialEngine(task, device, on_steps, timeout)
    always = name == "population"
    return PopulationEngine(
        task, device, on_steps, on_note, always=always, memory=memory, processes=processes, timeout=timeout, known=known
    )


def make_workers(
    spec: Spec,
    task: Task,
    device: torch.device,
    storage: BaseStorage,
    url: str,
    run: RunDir,
    on_steps: Callable[[int], None],
    on_note: Callable[[str], None],
) -> SpreadEngine:
    """The engine of `engine: workers`: jobs in the `storage` at `url`, for the workers that this machine starts and any
    that are started elsewhere.
    """
    count = worker_count(spec.workers, device)
    name = run.name
    local = LocalWorkers(count, url, name, spec.task.ref, device, run.file(rundir.WORKERS_LOG)) if count else None
    told = {"ref": spec.task.ref, "args": spec.task.args, "name": task.name}
    if count == 0:
        on_note(f"workers train: adamtune worker --storage URL --study {name} starts one")
    queue = WorkQueue(storage, name, told, local)
    return SpreadEngine("workers", queue, on_steps, on_note, spec.trial_timeout)


def make_ray(
    spec: Spec, device: torch.device, on_steps: Callable[[int], None], on_note: Callable[[str], None]
) -> SpreadEngine:
    """The engine of `engine: ray`. Raises `InputError` where there is no Ray."""
    place = RayWorkplace(spec.task.ref, spec.task.args, device, spec.ray.address, spec.workers)
    return SpreadEngine("ray", place, on_steps, on_note, spec.trial_timeout)
