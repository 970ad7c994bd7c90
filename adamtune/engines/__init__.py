"""Who trains a batch of trials. Every engine gives the same result for the same request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from adamtune.engines.population import MEMORY as MEMORY
from adamtune.engines.population import PopulationEngine
from adamtune.engines.sequential import SequentialEngine
from adamtune.errors import InputError
from adamtune.history import RungReport, TrialRequest, TrialResult
from adamtune.task import Task

ENGINES = ("auto", "sequential", "population")


class TrialBatch(Protocol):
    """Trials that train side by side and meet at rungs; whoever opened it decides who goes on."""

    def advance(self, to_step: int, evaluate: bool = True) -> list[RungReport | None]:
        """Train every trial that still runs to `to_step`; one report each, None for those that have ended."""
        ...

    def prune(self, index: int) -> None:
        """End trial `index` of the batch."""
        ...

    def results(self) -> list[TrialResult]:
        """How the trials ended, in the order they were asked for; those still running count as pruned."""
        ...


class Engine(Protocol):
    """Trains batches of trials of one task."""

    name: str

    def open(self, requests: Sequence[TrialRequest]) -> TrialBatch:
        """Start the trials, untrained."""
        ...

    def facts(self) -> dict[str, Any]:
        """How trials are trained and what was measured to choose it, as plain data."""
        ...

    def close(self) -> None:
        """End what the engine keeps running; no batch of it can be used any more."""
        ...


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
) -> Engine:
    """The engine a spec names; `auto` is whatever trains the task fastest here.

    `on_steps` hears of steps trained, `on_note` one line on how trials are trained. `memory` is the share of the free
    memory that trials trained side by side may take. Raises `InputError` for an engine or a share there is not.
    """
    if not 0 < memory <= 1:
        raise InputError(f"memory must be a share of the free memory, above 0 and at most 1, not {memory:g}")
    if name not in ENGINES:
        raise InputError(f"there is no engine '{name}'; the engines are: {', '.join(ENGINES)}")
    if name == "sequential":
        return SequentialEngine(task, device, on_steps)
    return PopulationEngine(task, device, on_steps, on_note, always=name == "population", memory=memory)
