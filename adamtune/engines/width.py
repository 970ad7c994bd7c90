"""How many members a stack should have, found by timing a few steps of this task on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from adamtune.engines.sequential import cpu_threads
from adamtune.engines.sharing import kind, largest_group
from adamtune.errors import AdamtuneError
from adamtune.history import History, TrialRequest
from adamtune.population import NotVectorisable
from adamtune.population.check import check
from adamtune.population.feed import Feed
from adamtune.population.stack import Stack
from adamtune.population.state import Member, stacking
from adamtune.randomness import RandomState
from adamtune.task import Task
from adamtune.trial import Trial

WIDTHS = (2, 4, 8, 16, 32, 64, 128)

_GAIN = 0.97
"""A stack must need at most this share of the time that its trials need one by one."""
_CLEARLY = 0.6
"""The share at which there is no doubt, however much trials side by side hinder each other."""
_STILL_FALLING = 0.95
"""Stacks wider than those measured may gain where a member's time fell below this share of that at the width before."""
_SETTLED = 0.95
"""A trial alone is timed again until a measurement is no less than this share of the quickest so far."""
_RISING = 1.1
"""Wider stacks are tried until a member needs so much more than in the best before them: the times scatter by 5%."""
_TIMED, _TIMED_SLOW = 10, 2
"""Steps timed at each width, after one to warm up; the quickest counts. And those of a model so slow that so many take
more than `_SHARE` of the time there is: then fewer widths would be tried."""
_SHARE = 0.02
_TIMED_ALONE, _TIMES_ALONE = 5, 6
"""Steps of each measurement of a trial alone (what a rung costs beside its steps must not weigh), and how many at
most: in a process that was just forked, steps take up to three times as long at first.
"""
_OVERHEAD = 1.5
"""Memory a stack takes beside what is counted: results of operations under way, and the allocator's slack."""


@dataclass(frozen=True)
class StepTimes:
    """What was measured: seconds of a training step, alone and in stacks of several widths."""

    alone: float
    stacked: tuple[tuple[int, float], ...]
    """Width and seconds of one step of the whole stack; empty where trials cannot be stacked."""
    noisy: bool
    note: str
    """Why trials cannot be stacked; empty where they can."""
    fits: float = math.inf
    """Members for whose training there is memory now; not part of what is kept."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "width": self.width,
            "noisy": self.noisy,
            "seconds_alone": self.alone if math.isfinite(self.alone) else None,
            "seconds_by_width": {str(width): seconds for width, seconds in self.stacked},
            "one_by_one_because": self.note,
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> StepTimes:
        """What `to_dict` gave. Raises `KeyError`, `TypeError`, `AttributeError`, `ValueError` or `OverflowError` where
        it cannot be.
        """
        alone = float(data["seconds_alone"])
        stacked = tuple((int(width), float(seconds)) for width, seconds in data["seconds_by_width"].items())
        times = [alone, *(seconds for _, seconds in stacked)]
        widths = [width for width, _ in stacked]
        if (widths and widths != _widths(widths[-1])) or not all(0 < each < math.inf for each in times):
            raise ValueError("no times")
        return cls(alone, stacked, bool(data["noisy"]), str(data["one_by_one_because"]))

    @property
    def width(self) -> int:
        """The width at which a member's step costs least; 1 where none beats training alone."""
        best = min(self.stacked, key=lambda timed: timed[1] / timed[0], default=(1, math.inf))
        return best[0] if best[1] / best[0] < _GAIN * self.alone else 1

    @property
    def still_falling(self) -> bool:
        """Whether a member's share was clearly less at the widest than at the width before, or only one was timed."""
        each = [seconds / width for width, seconds in self.stacked]
        return bool(each) and (len(each) < 2 or each[-1] < _STILL_FALLING * each[-2])

    def seconds(self, count: int) -> float:
        """Of one step of `count` members in stacks of at most `width`, interpolated; inf where that is 1."""
        if self.width < 2:
            return math.inf
        stacks = math.ceil(count / self.width)
        each = count / stacks
        if each < 2:
            return math.inf
        for (low, before), (high, after) in zip(self.stacked, self.stacked[1:], strict=False):
            if low <= each <= high:
                return stacks * (before + (after - before) * (each - low) / (high - low))
        return stacks * self.stacked[-1][1] * each / self.stacked[-1][0]

    def pays(self, counts: Sequence[int]) -> bool:
        """Whether stacks train groups of so many members faster than one by one."""
        together = sum(min(self.seconds(count), count * self.alone) for count in counts)
        return together < _GAIN * self.alone * sum(counts)


def together(times: Sequence[StepTimes]) -> StepTimes:
    """What several processes measured side by side as one: means, over the widths that all have tried."""
    told = next((one for one in times if one.note), None)
    if told is not None:
        return told
    by_width = [dict(one.stacked) for one in times]
    tried = [width for width, _ in times[0].stacked if all(width in seconds for seconds in by_width)]
    stacked = tuple((width, fmean(seconds[width] for seconds in by_width)) for width in tried)
    fits = min(one.fits for one in times)
    return StepTimes(fmean(one.alone for one in times), stacked, any(one.noisy for one in times), "", fits)


def time_alone(task: Task, request: TrialRequest, device: torch.device) -> float:
    """Seconds of a training step of one trial; inf where its first raises, as it will again when it trains."""
    timed: list[float] = []
    rungs = [1 + _TIMED_ALONE * times for times in range(1 + _TIMES_ALONE)]  # to the first it warms up
    with cpu_threads():
        horizon = max(request.horizon, rungs[-1])
        try:
            trial = Trial(task, replace(request, probe=False, horizon=horizon), device)
            for rung in rungs:
                _wait(device)
                before, began = trial.step, time.perf_counter()
                trial.advance(rung, evaluate=False)
                _wait(device)
                if trial.step > before:  # else it has diverged
                    timed.append((time.perf_counter() - began) / (trial.step - before))
                if len(timed) > 2 and timed[-1] > _SETTLED * min(timed[1:-1]):
                    break
        except AdamtuneError:
            pass
    return min(timed[1:] or timed, default=math.inf)


def time_steps(
    task: Task,
    requests: Sequence[TrialRequest],
    device: torch.device,
    memory: float,
    most_seconds: float,
    alone: float,
    processes: int = 1,
) -> StepTimes:
    """Time steps at growing widths, until a member's share rises, within `memory` bytes and about `most_seconds`.

    Those of the first request's kind are timed; `processes` share all, and no width is more than can come together in
    one of them. `alone`: what `time_alone` has found while nothing else trained. It is measured anew only where stacks
    are not so much quicker that it cannot matter.
    """
    began = time.perf_counter()
    alike = [request for request in requests if kind(request) == kind(requests[0])]
    with cpu_threads():
        try:
            facts = check(task, alike, device)
        except NotVectorisable as reason:
            return StepTimes(alone, (), False, str(reason))
        stacked: list[tuple[int, float]] = []
        each = _OVERHEAD * (facts.state + facts.activations)
        for width in _widths(largest_group(requests, processes, facts.noisy)):
            if width > WIDTHS[0] and width * each > memory:
                break
            before = time.perf_counter()
            try:
                with RandomState(0).active(device):
                    seconds = _time_stack(task, alike, device, width, facts.noisy, _SHARE * most_seconds)
            except Exception as problem:  # memory that ends, or what only shows after the first step
                if stacked:
                    break
                return StepTimes(alone, (), False, f"{problem}".split("\n")[0] or type(problem).__name__)
            rising = bool(stacked) and seconds / width > _RISING * min(time / wide for wide, time in stacked)
            stacked.append((width, seconds))
            now = time.perf_counter()
            if rising or now - began + 2 * (now - before) > most_seconds:
                break
    if min(seconds / width for width, seconds in stacked) > _CLEARLY * alone:
        again = time_alone(task, requests[0], device)
        alone = max(alone, again) if math.isfinite(again) else alone
    return StepTimes(alone, tuple(stacked), facts.noisy, "", memory / each)


def _widths(largest: int) -> list[int]:
    """The widths to try where so many trials are the most that can share a stack; they are split evenly, so that one
    stack of 17 is tried and none of 16.
    """
    widest = max(WIDTHS[0], min(largest, WIDTHS[-1]))
    return [*(width for width in WIDTHS if 4 * width <= 3 * widest), widest]


def checked(
    times: StepTimes, task: Task, requests: Sequence[TrialRequest], device: torch.device, memory: float
) -> StepTimes:
    """`times` of an earlier sitting as they hold now: the task, or what it imports, may have changed since, and less
    memory may be free.
    """
    with cpu_threads():
        try:
            facts = check(task, requests, device)
        except NotVectorisable as reason:
            return StepTimes(times.alone, (), False, str(reason))
    each = _OVERHEAD * (facts.state + facts.activations)
    fitting = tuple(timed for timed in times.stacked if timed[0] == WIDTHS[0] or timed[0] * each <= memory)
    return StepTimes(times.alone, fitting, facts.noisy, "", memory / each)


def _time_stack(
    task: Task, requests: Sequence[TrialRequest], device: torch.device, width: int, noisy: bool, most_seconds: float
) -> float:
    chosen = [requests[place % len(requests)] for place in range(width)]
    if noisy:
        chosen = [replace(request, seed=requests[0].seed) for request in chosen]
    members = [Member(index, request, History(request)) for index, request in enumerate(chosen)]
    seeds = dict.fromkeys(request.seed for request in chosen)
    with stacking(device):
        feeds = {seed: Feed(task, seed, device) for seed in seeds}
        steps = min(1 + _TIMED, chosen[0].horizon)
        drawn = {
            seed: feed.draw(0, steps, chosen[0].recipe.accumulate, chosen[0].horizon, noisy)
            for seed, feed in feeds.items()
        }
        stack = Stack.start(task, members, feeds, noisy, device)
        quickest, first = math.inf, time.perf_counter()
        for step in range(min(map(len, drawn.values()))):  # where batches end, training will tell
            _wait(device)
            began = time.perf_counter()
            if step > _TIMED_SLOW and began - first > most_seconds:
                break
            stack.step({seed: batches[step] for seed, batches in drawn.items()}, step)
            _wait(device)
            quickest = min(quickest, time.perf_counter() - began)
    return quickest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
