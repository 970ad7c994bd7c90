"""Trials in stacks, over the cores there are: whatever trains this task fastest here, found by measuring."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from adamtune.blas import numpy_is_quicker
from adamtune.engines.local import LocalBatch
from adamtune.engines.memory import free_memory
from adamtune.engines.processes import SharedBatch, Workers, process_count
from adamtune.engines.sharing import groups, kind, largest_group, shares
from adamtune.engines.width import WIDTHS, StepTimes, checked, time_alone, time_steps
from adamtune.history import TrialRequest
from adamtune.task import Task

MEMORY = 0.6
"""Share of the free memory that stacks may take."""

_WORTH_MEASURING = 1.0
"""Seconds of training below which a batch is trained one by one in this process: looking for better costs more."""
_MEASURING_SHARE = 0.05
"""Of the time that a batch would take one by one."""

_CONDITIONS = ("device", "processes", "threads", "torch", "products_by")
"""What step times of an earlier sitting hang on, as `facts` tells it."""
_ALIKE = 2.0
"""And they hold where those of a trial alone differ by less than this factor: the processor may be another, or the
machine was busy then.
"""


class PopulationEngine:
    """Trains batches in stacks where that is possible and pays, spread over processes on a CPU.

    Which it is, is measured when the first batch is opened that takes a second or more, and told to `on_note`.
    """

    name = "population"

    def __init__(
        self,
        task: Task,
        device: torch.device,
        on_steps: Callable[[int], None] = lambda steps: None,
        on_note: Callable[[str], None] = lambda note: None,
        *,
        always: bool = False,
        memory: float = MEMORY,
        processes: int | None = None,
        timeout: float | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        """Train `task` on `device`. `always`: in stacks also where that does not pay, or is not worth measuring.

        `memory` is the share of the free memory that may be taken. `processes` is by default one a core.
        `timeout`: seconds that a trial may take to its next rung. `known`: the `facts` of an earlier sitting, whose
        step times need not be measured again where it trained as this one does.
        """
        self._timeout = timeout
        self._task, self._device, self._on_steps, self._on_note = task, device, on_steps, on_note
        self._always, self._memory = always, memory
        self._processes = processes or process_count(device)
        self._workers: Workers | None = None
        self._alone: dict[tuple[str, int], float] = {}
        self._times: dict[tuple[str, int], StepTimes] = {}
        self._measured_for: dict[tuple[str, int], int] = {}
        """How many trials the largest group had when widths were measured."""
        self._known: dict[tuple[str, int], StepTimes] = {}
        if known:
            self._known = _step_times(known, self.facts())

    def open(self, requests: Sequence[TrialRequest]) -> LocalBatch | SharedBatch:
        """See `Engine.open`."""
        if not requests or (len(requests) < 2 and not self._always):
            return self._local(requests, 1)
        seconds = self._seconds(requests)
        if math.isinf(seconds) or (not self._always and seconds < _WORTH_MEASURING):  # inf: it will tell what is wrong
            return self._local(requests, 1)
        times = self._measured(requests)
        parts = shares(requests, self._processes, times.noisy)
        width = times.width
        if self._always:
            width = max([2, *(width for width, _ in times.stacked)]) if times.stacked else 1
        elif width > 1 and not times.pays(groups(requests, parts, times.noisy)):
            width = 1
        if len(parts) < 2:
            return self._local(requests, width, times.noisy, times.fits)
        return self._crew().open(
            parts, requests, width, times.noisy, self._on_steps, self._on_note, self._timeout, times.fits
        )

    def facts(self) -> dict[str, Any]:
        """See `Engine.facts`."""
        return {
            "engine": self.name,
            "device": str(self._device),
            "processes": self._processes,
            "threads": torch.get_num_threads() if self._processes < 2 else 1,
            "torch": torch.__version__,
            "products_by": "numpy" if self._device.type == "cpu" and numpy_is_quicker() else "torch",
            "measured": [
                {"precision": precision, "accumulate": accumulate} | times.to_dict()
                for (precision, accumulate), times in (self._known | self._times).items()
            ],
        }

    def close(self) -> None:
        """See `Engine.close`: the worker processes. They also end with this one."""
        if self._workers is not None:
            self._workers.close()
        self._workers = None

    def _crew(self) -> Workers:
        if self._workers is None:
            self._workers = Workers(self._task, self._device, self._processes)
        return self._workers

    def _local(
        self, requests: Sequence[TrialRequest], width: int, noisy: bool = False, fits: float = math.inf
    ) -> LocalBatch:
        on_steps, on_note = self._on_steps, self._on_note
        return LocalBatch(self._task, requests, self._device, width, noisy, on_steps, on_note, self._timeout, fits)

    def _seconds(self, requests: Sequence[TrialRequest]) -> float:
        """What the batch takes one by one, about; inf where its first step raises."""
        key = kind(requests[0])
        if key not in self._alone:
            self._alone[key] = time_alone(self._task, requests[0], self._device)
        return self._alone[key] * sum(request.horizon for request in requests)

    def _measured(self, requests: Sequence[TrialRequest]) -> StepTimes:
        """Step times of the first request's kind, for which `_seconds` has timed a trial alone."""
        key = kind(requests[0])
        if key in self._times and not self._falls_further(key, requests):
            return self._times[key]
        alike, alone = [request for request in requests if kind(request) == key], self._alone[key]
        memory = self._memory * free_memory(self._device) / self._processes
        known = self._known.pop(key, None)
        if known is not None and 1 / _ALIKE < known.alone / alone < _ALIKE:
            self._times[key] = checked(known, self._task, alike, self._device, memory)
            self._measured_for[key] = known.stacked[-1][0]
        if key not in self._times or self._falls_further(key, requests):
            seconds = max(0.5, _MEASURING_SHARE * self._seconds(alike))
            if self._processes > 1:
                times = self._crew().measure(requests, memory, seconds, alone)
            else:
                times = time_steps(self._task, requests, self._device, memory, seconds, alone)
            self._times[key] = times
            self._measured_for[key] = largest_group(requests, self._processes, times.noisy)
        self._on_note(_told(self._times[key], self._processes))
        return self._times[key]

    def _falls_further(self, key: tuple[str, int], requests: Sequence[TrialRequest]) -> bool:
        """Whether groups have come that are much larger than those for which widths were measured, and might gain."""
        times, before = self._times[key], self._measured_for[key]
        if before >= WIDTHS[-1] or not times.still_falling:
            return False
        return largest_group(requests, self._processes, times.noisy) >= 2 * before


def _step_times(known: Mapping[str, Any], now: Mapping[str, Any]) -> dict[tuple[str, int], StepTimes]:
    """Those of stacks in facts of an earlier sitting, where it trained as `now`; none where they are damaged."""
    try:
        if any(known[name] != now[name] for name in _CONDITIONS):
            return {}
        found = [(str(one["precision"]), int(one["accumulate"]), StepTimes.of(one)) for one in known["measured"]]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return {}
    return {(precision, accumulate): times for precision, accumulate, times in found if times.stacked}


def _told(times: StepTimes, processes: int) -> str:
    spread = f", {processes} processes" if processes > 1 else ""
    if times.note:
        return f"trials train one by one{spread}: {times.note}"
    if times.width < 2:
        return f"trials train one by one{spread}: stacks of this model are no faster"
    best = dict(times.stacked)[times.width] / times.width
    return (
        f"trials train in stacks of up to {times.width}{spread}: "
        f"{1e3 * best:.3g} ms a step and trial, alone {1e3 * times.alone:.3g} ms"
    )
