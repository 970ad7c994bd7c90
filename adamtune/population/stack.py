"""A stack: the models of many members as one model, each parameter with a leading dimension that counts members.

One forward pass by `torch.vmap` and one backward pass over the sum of the losses serve all of them: a member's loss
does not depend on another's parameters, so neither does its gradient. The update is torch's own fused kernel, once for
each run of neighbours with the same recipe: one pass over memory instead of the dozen that an update of tensor
operations takes, which would cost as much as the training itself.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from adamtune.groups import ParamGroup, param_groups
from adamtune.history import TrialRequest
from adamtune.optim import moves, optimizer_for
from adamtune.population.fast_ops import FastOps
from adamtune.population.feed import Drawn, Feed
from adamtune.population.joined import joined
from adamtune.population.state import PREFIX, Member, NotVectorisable, State, stacked
from adamtune.probe import AdamProbe
from adamtune.randomness import RandomState, Stream, derive_seed, seed_torch
from adamtune.recipe import Recipe
from adamtune.task import Batch, Task, batch_rows, batch_to
from adamtune.task_calls import check_loss, no_validation
from adamtune.trial import HUGE, autocast

Measure = Callable[[nn.Module, Batch], Tensor]


class _Call(nn.Module):
    """Calls `function(model, batch)` as a forward pass, so that `functional_call` lends the model its parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Measure, batch: Batch) -> Any:
        return function(self.model, batch)


@dataclass(frozen=True)
class _Run:
    """Neighbouring rows that share a recipe, and with it one update."""

    rows: range
    recipe: Recipe
    groups: list[tuple[list[int], ParamGroup, Callable[[int], float]]]
    """Places of the group's parameters, its settings, and its lr's multiplier by step."""
    until: int | None = None
    """The step from which `then`, of the same rows, is in its place: its recipe has a switch."""
    then: _Run | None = None

    def at(self, step: int) -> _Run:
        """What updates these rows at `step`."""
        return self.then if self.then is not None and self.until is not None and step >= self.until else self


class Stack:
    """Members that train in step. They agree in horizon, precision and accumulation."""

    def __init__(
        self,
        task: Task,
        members: Sequence[Member],
        call: _Call,
        names: list[str],
        state: State,
        shared: dict[str, Tensor],
        noisy: bool,
        device: torch.device,
    ) -> None:
        """Use `start`."""
        self._task, self.members, self._call, self._names = task, list(members), call, names
        self._state, self._shared, self._noisy, self._device = state, shared, noisy, device
        call.train()
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
        state, shared, names = stacked(models, seeds, by_adam, device)
        return cls(task, members, _Call(copy.deepcopy(models[seeds[0]])), names, state, shared, noisy, device)

    @property
    def width(self) -> int:
        """How many members."""
        return len(self.members)

    @property
    def repeatable(self) -> bool:
        """Whether a step that raised may be taken again: no buffer can have been changed on the way."""
        return next(self._call.buffers(), None) is None

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

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Inside, the list holds the modules whose forward pass is under way, innermost last, also once one raises."""
        under_way: list[str] = []
        hooks = []
        for name, module in self._call.model.named_modules():
            label = f"'{name}' ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
            hooks.append(module.register_forward_pre_hook(lambda *_, label=label: under_way.append(label)))
            hooks.append(module.register_forward_hook(lambda *_: under_way.pop() and None))
        try:
            yield under_way
        finally:
            for hook in hooks:
                hook.remove()

    def gradients(self, row: int) -> dict[str, Tensor | None]:
        """The gradients of one member, by parameter name, from its last step."""
        return {
            name.removeprefix(PREFIX): None if param.grad is None else param.grad[row]
            for name, param in zip(self._names, self._state.params, strict=True)
        }

    def buffers(self, row: int) -> dict[str, Tensor]:
        """The buffers of one member, by name."""
        own = {name: tensor[row] for name, tensor in self._state.buffers.items()} | self._shared
        known = {PREFIX + name for name, _ in self._call.model.named_buffers()}
        return {name.removeprefix(PREFIX): tensor for name, tensor in own.items() if name in known}

    def evaluate(self) -> list[dict[str, float]]:
        """Validation loss and metrics of every member, as a trial alone measures them."""
        values: list[dict[str, float]] = [{} for _ in self.members]
        for seed in dict.fromkeys(member.request.seed for member in self.members):
            rows = [row for row, member in enumerate(self.members) if member.request.seed == seed]
            try:
                found = self._measured(seed, rows)
            except NotVectorisable:
                raise
            except Exception:  # a metric that calls item(), memory that ends: whatever it is, one by one will tell
                found = [self._measured_alone(seed, row) for row in rows]
            for row, value in zip(rows, found, strict=True):
                values[row] = value
        return values

    def probe(self, row: int, step: int) -> dict[str, float]:
        """What `AdamProbe` records of one member after the update of `step`."""
        state = self._state
        params = []
        for param in state.params:
            own = nn.Parameter(param.detach()[row])
            own.grad = None if param.grad is None else param.grad[row]
            params.append(own)
        run = next(run for run in self._runs if row in run.rows).at(step)
        groups = [
            dataclasses.replace(group, params=tuple(params[place] for place in places), lr=group.lr * move(step))
            for places, group, move in run.groups
        ]
        optimizer = optimizer_for(run.recipe, groups)
        for place, own in enumerate(params):
            if state.steps[place] == 0:
                continue
            if run.recipe.optimizer == "sgd":
                optimizer.state[own] = {"momentum_buffer": state.first[place][row]}
            else:
                moments = {"exp_avg": state.first[place][row], "exp_avg_sq": state.second[place][row]}
                optimizer.state[own] = {"step": state.steps[place], **moments}
        return AdamProbe(optimizer).record()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        if not rows:
            self.members, self._state = [], State([], [], [], {}, [])
        elif len(rows) < self.width:
            self._state = self._state.rows(torch.tensor(rows, device=self._device))
            self.members = [self.members[row] for row in rows]
            self._settle()

    def halves(self) -> tuple[Stack, Stack]:
        """Two stacks in place of this one."""
        middle = self.width // 2
        other = Stack(
            self._task, self.members, copy.deepcopy(self._call), self._names, self._state, self._shared, self._noisy,
            self._device,
        )  # fmt: skip
        other._shared = {name: tensor.clone() for name, tensor in self._shared.items()}
        other.keep(range(middle, self.width))
        self.keep(range(middle))
        return self, other

    def sound(self) -> list[bool]:
        """By member: whether no parameter is NaN, infinite or huge; see `adamtune.trial`."""
        fine = [(param.detach().abs() < HUGE).reshape(self.width, -1).all(1) for param in self._state.params]
        return [bool(value) for value in torch.stack(fine).all(0).tolist()]

    def _settle(self) -> None:
        """Find again what depends on who is in the stack: runs, and the views of each row that are updated."""
        state = self._state
        self._runs = self._find_runs()
        self._views = [
            [tensor.detach().unbind() for tensor in tensors] for tensors in (state.params, state.first, state.second)
        ]

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
        places = {name.removeprefix(PREFIX): place for place, name in enumerate(self._names)}
        groups = param_groups(recipe, self._call.model)
        curves = moves(groups, request.multiplier, request.ramped)
        found = [
            ([places[name] for name in group.names], group, move) for group, move in zip(groups, curves, strict=True)
        ]
        return _Run(rows, recipe, found)

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
            if len(set(seeds)) == 1:
                batch, dims = drawn[seeds[0]].batches[turn], None
            else:
                batch, dims = joined([drawn[seed].batches[turn] for seed in seeds])
            with autocast(recipe.precision, self._device):
                losses = self._call_all(self._loss_at(step), batch, dims, "same" if self._noisy else "error")
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

    def _call_all(
        self, function: Measure, batch: Batch, batch_dims: Any, randomness: str, rows: list[int] | None = None
    ) -> Tensor:
        """`function(model, batch)` for every member, or those in `rows`. `batch_dims` None: they share the batch."""
        tensors = dict(zip(self._names, self._state.params, strict=True)) | self._state.buffers
        if rows is not None and len(rows) < self.width:
            picked = torch.tensor(rows, device=self._device)
            tensors = {name: tensor.index_select(0, picked) for name, tensor in tensors.items()}
        count = self.width if rows is None else len(rows)
        noisy = randomness == "same"

        def one(own: dict[str, Tensor], own_batch: Batch) -> Any:
            with FastOps(count, noisy):
                return self._call_one(own, function, batch if batch_dims is None else own_batch)

        passed, dims = (0, None) if batch_dims is None else (batch, batch_dims)
        own = {name: tensors[name].clone() for name in self._state.buffers} if rows is not None else {}
        out: Tensor = torch.vmap(one, in_dims=(0, dims), randomness=randomness)(tensors, passed)
        if any(not torch.allclose(tensors[name], before, 0.0, 0.0, equal_nan=True) for name, before in own.items()):
            raise NotVectorisable("its model changes a buffer where it is evaluated")
        return out

    def _kept_state(self) -> dict[str, object]:
        """What modules keep beside parameters and float buffers: counters and flags, in buffers and as attributes."""
        kept: dict[str, object] = {name: tensor.tolist() for name, tensor in self._shared.items() if not tensor.ndim}
        for name, module in self._call.model.named_modules():
            for key, value in vars(module).items():
                if key != "training" and isinstance(value, bool | int | float | str):
                    kept[f"{name}.{key}"] = value
        return kept

    def _call_one(self, own: dict[str, Tensor], function: Measure, batch: Batch) -> Any:
        """`function(model, batch)` with one member's parameters and buffers."""
        given = self._shared | own
        lent = dict(given)
        out = functional_call(self._call, lent, (function, batch))
        for name, tensor in given.items():  # torch hands back there what the model has put in place of a buffer
            if lent[name] is not tensor:
                raise NotVectorisable(f"its model puts another tensor in place of '{name.removeprefix(PREFIX)}'")
        return out

    def _clip(self) -> None:
        limits = [member.request.recipe.clip_norm for member in self.members]
        gradients = [param.grad for param in self._state.params if param.grad is not None]
        if not gradients or all(limit is None for limit in limits):
            return
        # As torch.nn.utils.clip_grad_norm_: the norm of the tensors' norms, and a coefficient of at most one.
        norms = torch.stack(
            [torch.linalg.vector_norm(gradient.reshape(self.width, -1), dim=1) for gradient in gradients]
        )
        total = torch.linalg.vector_norm(norms, dim=0)
        most = torch.tensor([math.inf if limit is None else limit for limit in limits], device=self._device)
        free = torch.tensor([limit is None for limit in limits], device=self._device)
        share = torch.where(free, torch.ones_like(total), (most.to(total.dtype) / (total + 1e-6)).clamp(max=1.0))
        for gradient in gradients:
            gradient.mul_(share.view(-1, *[1] * (gradient.ndim - 1)).to(gradient.dtype))

    @torch.no_grad()
    def _update(self, step: int) -> None:
        state = self._state
        gradients = {place: param.grad.unbind() for place, param in enumerate(state.params) if param.grad is not None}
        if not gradients:
            return
        torch._foreach_add_([state.steps[place] for place in gradients], 1)
        for run in self._runs:
            if step == run.until:
                torch._foreach_zero_([row for rows in self._views[1] for row in rows[run.rows.start : run.rows.stop]])
            run = run.at(step)
            for places, group, move in run.groups:
                # Row by row, so that an element's arithmetic does not depend on the rows beside it: a kernel treats the
                # last few elements of a tensor apart.
                mine = [(place, row) for place in places if place in gradients for row in run.rows]
                if mine:
                    self._update_group(run.recipe, group, group.lr * move(step), mine, gradients)

    def _update_group(
        self,
        recipe: Recipe,
        group: ParamGroup,
        lr: float,
        mine: list[tuple[int, int]],
        gradients: dict[int, tuple[Tensor, ...]],
    ) -> None:
        params, first, second = ([views[place][row] for place, row in mine] if views else [] for views in self._views)
        own = [gradients[place][row] for place, row in mine]
        # What `torch.optim.AdamW(fused=True)` and its like call. Their step() would look the same things up anew for
        # every member and group at every step, which costs more than the update of a small model.
        if recipe.optimizer == "sgd":
            torch._fused_sgd_(
                params, own, first if recipe.momentum else [], weight_decay=group.weight_decay,
                momentum=recipe.momentum, lr=lr, dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
            )  # fmt: skip
            return
        kernel = torch._fused_adamw_ if recipe.optimizer == "adamw" else torch._fused_adam_
        kernel(
            params, own, first, second, [], [self._state.steps[place] for place, _ in mine], lr=lr,
            beta1=group.betas[0], beta2=group.betas[1], weight_decay=group.weight_decay, eps=group.eps, amsgrad=False,
            maximize=False,
        )  # fmt: skip

    def _forget_gradients(self) -> None:
        for param in self._state.params:
            param.grad = None

    def _measured(self, seed: int, rows: list[int]) -> list[dict[str, float]]:
        def measure(name: str, function: Measure, batch: Batch) -> list[float]:
            def number(model: nn.Module, own: Batch) -> Tensor:
                return torch.as_tensor(function(model, own)).reshape(())

            return self._call_all(number, batch, None, "same", rows).double().tolist()

        return self._evaluated(seed, len(rows), measure)

    def _measured_alone(self, seed: int, row: int) -> dict[str, float]:
        state = self._state
        own = {name: param.detach()[row] for name, param in zip(self._names, state.params, strict=True)}
        own |= {name: tensor[row] for name, tensor in state.buffers.items()}

        def measure(name: str, function: Measure, batch: Batch) -> list[float]:
            return [float(self._call_one(own, function, batch))]

        return self._evaluated(seed, 1, measure)[0]

    def _evaluated(
        self, seed: int, count: int, measure: Callable[[str, Measure, Batch], list[float]]
    ) -> list[dict[str, float]]:
        """Means over the validation batches, weighed by their rows; `measure` gives one batch's, one a member."""
        measures: dict[str, Measure] = {"loss": self._task.loss, **self._task.metrics}
        sums = {name: [0.0] * count for name in measures}
        rows = 0
        stream = derive_seed(seed, Stream.EVALUATION)
        state = self._kept_state()
        self._call.eval()
        try:
            with (
                RandomState(stream).active(self._device),
                torch.no_grad(),
                autocast(self.members[0].request.recipe.precision, self._device),
            ):
                seed_torch(stream, self._device)
                for host_batch in self._task.val_batches():
                    batch = batch_to(host_batch, self._device)
                    size = batch_rows(batch)
                    rows += size
                    for name, function in measures.items():
                        for place, value in enumerate(measure(name, function, batch)):
                            sums[name][place] += size * value
        finally:
            self._call.train()
        if self._kept_state() != state:  # a trial alone keeps it once, and here each seed measures in turn
            raise NotVectorisable("its model keeps something of what it is evaluated on")
        if not rows:
            raise no_validation(self._task)
        return [{name: totals[place] / rows for name, totals in sums.items()} for place in range(count)]


def _same_update(one: TrialRequest, other: TrialRequest) -> bool:
    return one.ramp == other.ramp and one.recipe.training_key() == other.recipe.training_key()
