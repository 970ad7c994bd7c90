"""A stack: members that train in step, as one model.

One forward pass by `torch.vmap` and one backward pass over the sum of the losses serve all of them: a member's loss
does not depend on another's parameters, so neither does its gradient. The update is torch's own fused kernel, once for
each run of neighbours with the same recipe: one pass over memory instead of the dozen that an update of tensor
operations takes, which would cost as much as the training itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adamtune.groups import ParamGroup, param_groups
from adamtune.history import TrialRequest
from adamtune.optim import moves, optimizer_for
from adamtune.population.evaluation import evaluate
from adamtune.population.feed import Drawn, Feed
from adamtune.population.joined import joined
from adamtune.population.stacked_model import Measure, StackedModel
from adamtune.population.state import Member, NotVectorisable
from adamtune.probe import AdamProbe
from adamtune.recipe import Recipe
from adamtune.task import Batch, Task, batch_rows
from adamtune.task_calls import check_loss
from adamtune.trial import HUGE, autocast


@dataclass(frozen=True)
class _Part:
    """What one call of a kernel updates: one row of one parameter, or several, in lists of the same length."""

    own: list[tuple[int, int]]
    """Place of the parameter, and row."""
    params: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    """Empty where an update has no second moments; `first` alike."""
    steps: list[Tensor]

    def having(self, gradients: Mapping[int, object]) -> _Part:
        """Of the parameters at these places only."""
        if all(place in gradients for place, _ in self.own):
            return self
        kept = [number for number, (place, _) in enumerate(self.own) if place in gradients]
        lists = (getattr(self, field.name) for field in dataclasses.fields(self))
        return _Part(*([items[number] for number in kept] if items else [] for items in lists))


@dataclass(frozen=True)
class _GroupUpdate:
    """How the parameters of one param group are updated."""

    places: list[int]
    """Of its parameters, in the order of the model's."""
    settings: ParamGroup
    move: Callable[[int], float]
    """The multiplier of its lr, by step."""
    part: _Part

    def lr(self, step: int) -> float:
        """Its lr at `step`."""
        return self.settings.lr * self.move(step)


@dataclass(frozen=True)
class _Run:
    """Neighbouring rows that share a recipe, and with it one update."""

    rows: range
    recipe: Recipe
    groups: list[_GroupUpdate]
    until: int | None = None
    """The step from which `then`, of the same rows, is in its place: its recipe has a switch."""
    then: _Run | None = None

    def at(self, step: int) -> _Run:
        """What updates these rows at `step`."""
        return self.then if self.then is not None and self.until is not None and step >= self.until else self


class Stack:
    """Members that train in step. They agree in horizon, precision and accumulation."""

    def __init__(
        self, task: Task, members: Sequence[Member], model: StackedModel, noisy: bool, device: torch.device
    ) -> None:
        """Use `start`."""
        self._task, self.members, self.model = task, list(members), model
        self._noisy, self._device = noisy, device
        self._rows = 0
        """Of a member's largest training batch."""
        self._settle()

    @classmethod
    def start(
        cls, task: Task, members: Sequence[Member], feeds: Mapping[int, Feed], noisy: bool, device: torch.device
    ) -> Stack:
        """Stack the untrained models of `members`, whose seeds' models are in `feeds`.

        `noisy` says that the loss draws random numbers; its members must then share one seed. Raises `NotVectorisable`.
        """
        seeds = [member.request.seed for member in members]
        if members[0].request.recipe.precision == "fp16":
            raise NotVectorisable("fp16 scales each trial's loss by itself")
        if noisy and len(set(seeds)) > 1:
            raise NotVectorisable("its noise differs by seed")
        models = {seed: feeds[seed].model for seed in seeds}
        by_adam = any(member.request.recipe.optimizer != "sgd" for member in members)
        return cls(task, members, StackedModel.start(models, seeds, by_adam, device), noisy, device)

    @property
    def width(self) -> int:
        """How many members."""
        return len(self.members)

    @property
    def repeatable(self) -> bool:
        """Whether a step that raised may be taken again: no buffer can have been changed on the way."""
        return next(self.model.module.buffers(), None) is None

    def step(self, drawn: Mapping[int, Drawn], step: int) -> Tensor:
        """Train every member one step, `step` from 0, on what its seed has drawn; the losses (width,), on the device.

        Where it raises, no parameter has been updated.
        """
        try:
            losses = self.backward(drawn, step)
        except BaseException:
            self._forget_gradients()
            raise
        self._clip()
        self._update(step)
        return losses

    def watched(self) -> AbstractContextManager[list[str]]:
        """See `StackedModel.watched`."""
        return self.model.watched()

    def gradients(self, row: int) -> dict[str, Tensor | None]:
        """The gradients of one member, by parameter name, from its last step."""
        return {
            name: None if param.grad is None else param.grad[row]
            for name, param in zip(self.model.names, self.model.state.params, strict=True)
        }

    def buffers(self, row: int) -> dict[str, Tensor]:
        """The buffers of one member, by name."""
        return self.model.buffers(row)

    def evaluate(self, fits: float = math.inf) -> list[dict[str, float]]:
        """See `evaluation.evaluate`. `fits`: so many members could train within the memory that there is; to be
        evaluated, so many rows need no more of it than to be trained on.
        """
        most = fits * self._rows if self._rows else math.inf
        return evaluate(self._task, self.members, self.model, self._device, most)

    def probe(self, row: int, step: int) -> dict[str, float]:
        """What `AdamProbe` records of one member after the update of `step`."""
        state = self.model.state
        params = []
        for param in state.params:
            own = nn.Parameter(param.detach()[row])
            own.grad = None if param.grad is None else param.grad[row]
            params.append(own)
        run = next(run for run in self._runs if row in run.rows).at(step)
        groups = [
            dataclasses.replace(
                group.settings, params=tuple(params[place] for place in group.places), lr=group.lr(step)
            )
            for group in run.groups
        ]
        optimizer = optimizer_for(run.recipe, groups)
        for place, own in enumerate(params):
            if state.steps[place] == 0:
                continue
            if run.recipe.optimizer == "sgd":
                optimizer.state[own] = {"momentum_buffer": state.first[place][row]} if run.recipe.momentum else {}
            else:
                moments = {"exp_avg": state.first[place][row], "exp_avg_sq": state.second[place][row]}
                optimizer.state[own] = {"step": state.steps[place], **moments}
        return AdamProbe(optimizer).record()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        if len(rows) < self.width:
            self.model.keep(rows)
            self.members = [self.members[row] for row in rows]
            self._settle()

    def halves(self) -> tuple[Stack, Stack]:
        """Two stacks in place of this one."""
        middle = self.width // 2
        other = Stack(self._task, self.members, self.model.another(), self._noisy, self._device)
        other._rows = self._rows
        other.keep(range(middle, self.width))
        self.keep(range(middle))
        return self, other

    def sound(self) -> list[bool]:
        """By member: whether no parameter is NaN, infinite or huge; see `adamtune.trial`."""
        fine = [(param.detach().abs() < HUGE).reshape(self.width, -1).all(1) for param in self.model.state.params]
        return [bool(value) for value in torch.stack(fine).all(0).tolist()]

    def _settle(self) -> None:
        """Find again what depends on who is in the stack: runs, and the views of each row that are updated."""
        state = self.model.state
        self._views = [
            [tensor.detach().unbind() for tensor in tensors] for tensors in (state.params, state.first, state.second)
        ]
        self._runs = self._find_runs()

    def _find_runs(self) -> list[_Run]:
        runs: list[_Run] = []
        start = 0
        for end in range(1, self.width + 1):
            request = self.members[start].request
            if end < self.width and _same_update(self.members[end].request, request):
                continue
            run = self._run(range(start, end), request, request.recipe)
            if request.switch_at is not None and request.recipe.after_switch is not None:
                then = self._run(run.rows, request, request.recipe.after_switch)
                run = dataclasses.replace(run, until=request.switch_at, then=then)
            runs.append(run)
            start = end
        return runs

    def _run(self, rows: range, request: TrialRequest, recipe: Recipe) -> _Run:
        places = {name: place for place, name in enumerate(self.model.names)}
        groups = param_groups(recipe, self.model.module)
        curves = moves(groups, request.multiplier, request.ramped)
        found = []
        for group, move in zip(groups, curves, strict=True):
            mine = [places[name] for name in group.names]
            found.append(_GroupUpdate(mine, group, move, self._part(recipe, mine, rows)))
        return _Run(rows, recipe, found)

    def _part(self, recipe: Recipe, places: Sequence[int], rows: range) -> _Part:
        # Row by row, so that an element's arithmetic does not depend on the rows beside it: a kernel treats the last
        # few elements of a tensor apart.
        own = [(place, row) for place in places for row in rows]
        params, first, second = ([views[place][row] for place, row in own] if views else [] for views in self._views)
        if recipe.optimizer == "sgd":
            first, second = first if recipe.momentum else [], []
        return _Part(own, params, first, second, [self.model.state.steps[place] for place, _ in own])

    def backward(self, drawn: Mapping[int, Drawn], step: int) -> Tensor:
        """Losses and gradients of a step, without the update."""
        recipe = self.members[0].request.recipe
        self._forget_gradients()
        seeds = [member.request.seed for member in self.members]
        chance = drawn[seeds[0]].chance
        if self._noisy and chance is not None:
            chance.restore()
        total = torch.zeros((), device=self._device)
        for turn in range(recipe.accumulate):
            self._rows = max(self._rows, batch_rows(drawn[seeds[0]].batches[turn]))
            if len(set(seeds)) == 1:
                batch, dims = drawn[seeds[0]].batches[turn], None
            else:
                batch, dims = joined([drawn[seed].batches[turn] for seed in seeds])
            with autocast(recipe.precision, self._device):
                losses = self.model.call_all(self._loss_at(step), batch, dims, "same" if self._noisy else "error")
            check_loss(self._task, losses.sum(), step)
            shares = losses / recipe.accumulate
            shares.sum().backward()  # type: ignore[no-untyped-call]
            total = total + shares.detach()
        return total

    def _loss_at(self, step: int) -> Measure:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            value = self._task.loss(model, batch)
            if not isinstance(value, Tensor) or value.numel() != 1:
                check_loss(self._task, value, step)
            return value.reshape(())

        return loss

    def _clip(self) -> None:
        limits = [member.request.recipe.clip_norm for member in self.members]
        gradients = [param.grad for param in self.model.state.params if param.grad is not None]
        if not gradients or all(limit is None for limit in limits):
            return
        # As torch.nn.utils.clip_grad_norm_: the norm of the tensors' norms, and a coefficient of at most one.
        norms = torch.stack(
            [torch.linalg.vector_norm(gradient.reshape(self.width, -1), dim=1) for gradient in gradients]
        )
        total = torch.linalg.vector_norm(norms, dim=0)
        most = torch.tensor(
            [math.inf if limit is None else limit for limit in limits], dtype=total.dtype, device=self._device
        )
        free = torch.tensor([limit is None for limit in limits], device=self._device)
        share = torch.where(free, torch.ones_like(total), (most / (total + 1e-6)).clamp(max=1.0))
        for gradient in gradients:
            gradient.mul_(share.view(-1, *[1] * (gradient.ndim - 1)).to(gradient.dtype))

    @torch.no_grad()
    def _update(self, step: int) -> None:
        state = self.model.state
        gradients = {place: param.grad.unbind() for place, param in enumerate(state.params) if param.grad is not None}
        if not gradients:
            return
        torch._foreach_add_([state.steps[place] for place in gradients], 1)
        for run in self._runs:
            if step == run.until:
                torch._foreach_zero_([row for rows in self._views[1] for row in rows[run.rows.start : run.rows.stop]])
            run = run.at(step)
            for group in run.groups:
                part = group.part.having(gradients)
                if part.own:
                    own = [gradients[place][row] for place, row in part.own]
                    _update(run.recipe, group.settings, group.lr(step), part, own)

    def _forget_gradients(self) -> None:
        for param in self.model.state.params:
            param.grad = None


def _update(recipe: Recipe, group: ParamGroup, lr: float, part: _Part, gradients: list[Tensor]) -> None:
    """What `torch.optim.AdamW(fused=True)` and its like call. Their step() would look the same things up anew for every
    member and group at every step, which costs more than the update of a small model.
    """
    if recipe.optimizer == "sgd":
        torch._fused_sgd_(
            part.params, gradients, part.first, weight_decay=group.weight_decay, momentum=recipe.momentum, lr=lr,
            dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip
        return
    kernel = torch._fused_adamw_ if recipe.optimizer == "adamw" else torch._fused_adam_
    kernel(
        part.params, gradients, part.first, part.second, [], part.steps, lr=lr, beta1=group.betas[0],
        beta2=group.betas[1], weight_decay=group.weight_decay, eps=group.eps, amsgrad=False, maximize=False,
    )  # fmt: skip


def _same_update(one: TrialRequest, other: TrialRequest) -> bool:
    return one.ramp == other.ramp and one.recipe.training_key() == other.recipe.training_key()
