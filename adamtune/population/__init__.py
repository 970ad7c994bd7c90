"""Train K recipes at once: their models stacked into one, each with its own lr, betas, eps, decay, schedule and seed.

A trial has here the numbers it has alone, but for rounding: its seed's initial weights, batches and noise are drawn as
`adamtune.trial` draws them. Members with one seed share them. Members of several seeds are stacked where the loss draws
no random numbers; where it does, each seed has stacks of its own, in which one draw serves all.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamtune.errors import AdamtuneError
from adamtune.history import INSPECT_EVERY, History, RungReport, TrialRequest, TrialResult
from adamtune.population.feed import Drawn, Feed, same_numpy
from adamtune.population.joined import Uneven, joined
from adamtune.population.saved import put_back, row_of, saved_together
from adamtune.population.stack import Stack
from adamtune.population.state import Member, NotVectorisable, stacking
from adamtune.task import Task
from adamtune.trial_state import SYNC, WORTH, batch_digest, expected_seconds, unsaved, write_state

__all__ = ["NotVectorisable", "Population"]


class Population:
    """A batch of trials (see `engines.TrialBatch`) that agree in horizon, precision and accumulation."""

    def __init__(
        self,
        task: Task,
        requests: Sequence[TrialRequest],
        device: torch.device,
        width: int,
        noisy: bool,
        on_steps: Callable[[int], None] = lambda steps: None,
        fits: float = math.inf,
    ) -> None:
        """Stacks of at most `width` members. `noisy`: the loss draws random numbers. `fits`: members for whose training
        there is memory, which bounds how many are evaluated at once.

        Raises `NotVectorisable`, here and from `advance`: the trials must then be trained another way, from the start.
        """
        self._task, self._requests, self._device, self._on_steps = task, requests, device, on_steps
        self._width, self._noisy, self._fits = width, noisy, fits
        self._accumulate = requests[0].recipe.accumulate
        self._horizon = requests[0].horizon
        states = saved_together(requests)
        try:
            self._begin(states)
        except Exception:  # perhaps since what was saved does not fit
            if not states:
                raise
            self._begin([])
        self._seconds = self._kept_at = 0.0
        self._writing = sum(expected_seconds(stack.model.module) * stack.width for stack in self._stacks)

    def _begin(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Members untrained, or as they were in these `states`, of all of them at one step."""
        self._histories = [History(request) for request in self._requests]
        if states:
            pairs = zip(self._requests, states, strict=True)
            self._histories = [History.of(request, state["history"]) for request, state in pairs]
        self._told = deque(zip(*(history.reports for history in self._histories), strict=True))
        self._members = [
            Member(index, request, history)
            for index, (request, history) in enumerate(zip(self._requests, self._histories, strict=True))
        ]
        seeds = dict.fromkeys(request.seed for request in self._requests)
        self._feeds = {seed: Feed(self._task, seed, self._device) for seed in seeds}
        self._ahead: dict[int, list[Drawn]] = {seed: [] for seed in self._feeds}
        self._last: dict[int, Drawn] = {}
        self._step = 0
        if states:
            self._draw_again(self._histories[0].step)
            for member, state in zip(self._members, states, strict=True):
                if self._drawn(member.request.seed) != state["drawn"]:
                    raise ValueError("other batches")
        first = self._draw(min(INSPECT_EVERY, self._horizon - self._step))
        apart = self._noisy or _uneven(first)
        self._stacks = [
            Stack.start(self._task, members, self._feeds, self._noisy, self._device)
            for members in _portions(self._members, self._width, apart)
        ]
        self._unsaved = unsaved(self._stacks[0].model.module) if self._requests[0].checkpoint else None
        if states:
            for stack in self._stacks:
                put_back(stack, [states[member.index]["stacked"] for member in stack.members])
        for feed in self._feeds.values():
            feed.forget_model()

    def keep(self) -> None:
        """Save where every running member stands to its request's `checkpoint`, where there is one: once they have
        trained so long since they were saved last that writing costs little beside.
        """
        if self._unsaved is None or self._told or self._seconds - self._kept_at < WORTH * self._writing:
            return
        self._kept_at, self._writing = self._seconds, 0.0
        for stack in self._stacks:
            if unsaved(stack.model.module) != self._unsaved:
                continue
            for row, member in enumerate(stack.members):
                drawn = self._drawn(member.request.seed)
                if drawn is not None:
                    parts = {"stacked": row_of(stack, row), "drawn": drawn}
                    self._writing += max(SYNC, write_state(member.request, member.history, parts))

    def _drawn(self, seed: int) -> int | None:
        return batch_digest(self._last[seed].batches) if seed in self._last else 0

    def _draw_again(self, to_step: int) -> None:
        """Draw what was trained on up to that step."""
        while self._step < to_step:
            count = min(INSPECT_EVERY, to_step - self._step)
            self._pass(self._draw(count), count)

    def _pass(self, window: Mapping[int, Sequence[Drawn]], count: int) -> None:
        """The next `count` steps are done."""
        self._last = {seed: drawn[count - 1] for seed, drawn in window.items()}
        self._step += count
        for store in self._ahead.values():
            del store[:count]

    def close(self) -> None:
        """Let go of models, optimizer states and batches; what still runs counts as pruned."""
        for history in self._histories:
            history.prune()
        self._stacks, self._feeds, self._ahead = [], {}, {}

    def advance(self, to_step: int, evaluate: bool = True) -> list[RungReport | None]:
        """See `TrialBatch.advance`."""
        if self._told:
            return list(self._told.popleft())
        began = time.perf_counter()
        running = [member for member in self._members if member.history.outcome is None]
        with stacking(self._device):
            probed = self._train(min(to_step, self._horizon))
            values = self._evaluate() if evaluate else {}
        reports: list[RungReport | None] = [None] * len(self._members)
        for member in running:
            member.history.seconds += (time.perf_counter() - began) / len(running)
            measured, recorded = values.get(member.index, {}), probed.get(member.index, {})
            reports[member.index] = member.history.rung(measured, recorded)
        self._drop_ended()
        self._seconds += time.perf_counter() - began
        return reports

    def runs(self, index: int) -> bool:
        """Whether trial `index` has not ended."""
        return self._histories[index].outcome is None

    def prune(self, index: int) -> None:
        """See `TrialBatch.prune`."""
        self._histories[index].prune()

    def results(self) -> list[TrialResult]:
        """See `TrialBatch.results`."""
        self.close()
        return [history.result() for history in self._histories]

    def _draw(self, count: int) -> dict[int, list[Drawn]]:
        """By seed, what the next `count` steps train on; it stays in store until those steps are done.

        Shorter for a seed whose batches end or raise before.
        """
        for seed, store in self._ahead.items():
            missing = count - len(store)
            if missing > 0:
                first = self._step + len(store)
                store += self._feeds[seed].draw(first, missing, self._accumulate, self._horizon, self._noisy)
        window = {seed: store[:count] for seed, store in self._ahead.items()}
        if self._noisy and self._accumulate > 1 and any(d.consumed for drawn in window.values() for d in drawn):
            raise NotVectorisable("its batches and its loss draw from one random stream in turn")
        return window

    def _train(self, to_step: int) -> dict[int, dict[str, float]]:
        """Every running member to `to_step`; what the probe recorded there, by index."""
        probed: dict[int, dict[str, float]] = {}
        self._drop_ended()
        while self._step < to_step and self._stacks:
            wanted = min(INSPECT_EVERY, to_step - self._step)
            window = self._draw(wanted)
            count = min(map(len, window.values()))
            if count:
                self._train_all(window, count)
            if self._step == to_step:
                for stack in self._stacks:
                    for row, member in enumerate(stack.members):
                        if member.request.probe and member.history.outcome is None:
                            probed[member.index] = stack.probe(row, self._step - 1)
            self._drop_ended()
            if count < wanted:
                self._fail({seed: self._feeds[seed] for seed, drawn in window.items() if len(drawn) == count})
        return probed

    def _train_all(self, window: dict[int, list[Drawn]], count: int) -> None:
        """Every stack through the next `count` steps."""
        python, numpy = random.getstate(), np.random.get_state()
        versions = [drawn.versions() for seed in window for drawn in window[seed]]
        self._stacks = [done for stack in self._stacks for done in self._train_window(stack, window, count)]
        if versions != [drawn.versions() for seed in window for drawn in window[seed]]:
            raise NotVectorisable("its loss changes its batch in place")
        if random.getstate() != python or not same_numpy(np.random.get_state(), numpy):
            random.setstate(python)
            np.random.set_state(numpy)
            raise NotVectorisable("its loss draws from Python's or NumPy's random numbers")
        self._pass(window, count)

    def _fail(self, feeds: dict[int, Feed]) -> None:
        """Raise what came instead of these seeds' next batches, unless that is how their members' divergence shows."""
        for stack in self._stacks:
            self._lose_unsound(stack, [seed for seed, feed in feeds.items() if feed.task_raised])
        self._drop_ended()
        for seed, feed in feeds.items():
            if feed.failure is not None and (seed in self._ahead or not feed.task_raised):
                raise feed.failure

    def _train_window(self, stack: Stack, window: dict[int, list[Drawn]], count: int) -> list[Stack]:
        """One stack through the next `count` steps; it comes back in two where memory did not hold it in one."""
        first, done = self._step, []
        pending: list[tuple[Stack, int, list[Tensor]]] = [(stack, first, [])]
        while pending:
            stack, step, losses = pending.pop()
            failure: Exception | None = None
            try:
                while step < first + count:
                    losses.append(stack.step({seed: drawn[step - first] for seed, drawn in window.items()}, step))
                    step += 1
            except Exception as problem:
                failure = problem.with_traceback(None)  # its frames hold the memory that the step has taken
            except BaseException:
                self._settle(stack, step, losses)
                raise
            if failure is not None:
                if _out_of_memory(failure) and stack.width > 1 and stack.repeatable:
                    try:
                        one, other = stack.halves()
                    except Exception as problem:
                        self._settle(stack, step, losses)
                        raise NotVectorisable(
                            f"memory ends at training step {step + 1}, and its stack cannot be halved"
                        ) from problem
                    mine = [values[: one.width] for values in losses]
                    theirs = [values[one.width :] for values in losses]
                    pending += [(one, step, mine), (other, step, theirs)]
                    continue
                self._settle(stack, step, losses)
                if self._lose_unsound(stack) and (stack.repeatable or not stack.width):
                    if stack.width:
                        pending.append((stack, step, []))
                    continue
                if isinstance(failure, AdamtuneError | NotVectorisable):
                    raise failure
                raise NotVectorisable(f"{type(failure).__name__} at training step {step + 1}") from failure
            self._settle(stack, step, losses)
            done.append(stack)
        return done

    def _settle(self, stack: Stack, step: int, losses: list[Tensor]) -> None:
        """Write down the losses of a stack that has come to `step`."""
        trained = 0
        columns = torch.stack(losses).double().t().tolist() if losses else [[] for _ in stack.members]
        for member, column in zip(stack.members, columns, strict=True):
            trained += step - member.history.step
            member.history.step = step
            if member.history.outcome is None:
                member.history.read(column)
        self._on_steps(trained)

    def _lose_unsound(self, stack: Stack, seeds: Container[int] | None = None) -> bool:
        """Let go of the members that have diverged or whose parameters show it; whether there were any.

        `seeds`: of the members whose parameters show it, only these seeds'.
        """
        for member, sound in zip(stack.members, stack.sound(), strict=True):
            asked = seeds is None or member.request.seed in seeds
            if member.history.outcome is None and asked and not sound:
                member.history.diverge(max(0, member.history.step - 1))
        return _drop_ended(stack)

    def _evaluate(self) -> dict[int, dict[str, float]]:
        values: dict[int, dict[str, float]] = {}
        for stack in self._stacks:
            while stack.width:
                try:
                    found = stack.evaluate(self._fits)
                except (AdamtuneError, NotVectorisable):
                    raise
                except Exception as problem:
                    if self._lose_unsound(stack):
                        continue
                    name = type(problem).__name__  # if the task is at fault, it will raise it again
                    raise NotVectorisable(f"{name} at the evaluation after training step {self._step}") from problem
                values |= {member.index: value for member, value in zip(stack.members, found, strict=True)}
                break
        return values

    def _drop_ended(self) -> None:
        for stack in self._stacks:
            _drop_ended(stack)
        self._stacks = [stack for stack in self._stacks if stack.width]
        alive = {member.request.seed for stack in self._stacks for member in stack.members}
        self._ahead = {seed: store for seed, store in self._ahead.items() if seed in alive}


def _drop_ended(stack: Stack) -> bool:
    alive = [row for row, member in enumerate(stack.members) if member.history.outcome is None]
    ended = len(alive) < stack.width
    stack.keep(alive)
    return ended


def _portions(members: Sequence[Member], width: int, apart: bool) -> list[list[Member]]:
    """Members by stack: even portions of at most `width`; where `apart`, of one seed each.

    Equal recipes lie side by side, so that they share an update.
    """
    order: dict[str, int] = {}
    for member in members:
        order.setdefault(member.request.recipe.training_key(), len(order))
    pools: dict[int, list[Member]] = {}
    for member in sorted(members, key=lambda member: order[member.request.recipe.training_key()]):
        pools.setdefault(member.request.seed if apart else 0, []).append(member)
    portions = []
    for pool in pools.values():
        parts = math.ceil(len(pool) / max(1, width))
        ends = [round(len(pool) * part / parts) for part in range(parts + 1)]
        portions += [pool[start:end] for start, end in itertools.pairwise(ends)]
    return portions


def _uneven(window: dict[int, list[Drawn]]) -> bool:
    """Whether the seeds' batches cannot be stacked."""
    try:
        for drawn in zip(*window.values(), strict=False):
            for batches in zip(*(one.batches for one in drawn), strict=True):
                joined(batches)
    except Uneven:
        return True
    return False


def _out_of_memory(problem: Exception) -> bool:
    return isinstance(problem, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(problem)
