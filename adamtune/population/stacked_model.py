"""The models of many members as one model, each parameter with a leading dimension that counts members."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from adamtune.population.fast_ops import FastOps
from adamtune.population.kept import Keeping
from adamtune.population.state import PREFIX, NotVectorisable, State, stacked
from adamtune.task import Batch

Measure = Callable[[nn.Module, Batch], Tensor]


class _Call(nn.Module):
    """Calls `function(model, batch)` as a forward pass, so that `functional_call` lends the model its parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Measure, batch: Batch) -> Any:
        return function(self.model, batch)


class StackedModel:
    """What a stack calls: one module, and the members' parameters and buffers to lend it."""

    def __init__(self, call: _Call, names: list[str], state: State, shared: dict[str, Tensor], width: int) -> None:
        """Use `start`."""
        self._call, self.names, self.state, self.width = call, names, state, width
        self._shared = shared
        self._kept = Keeping(call.model)
        call.train()

    @classmethod
    def start(
        cls, models: Mapping[int, nn.Module], seeds: Sequence[int], by_adam: bool, device: torch.device
    ) -> StackedModel:
        """The untrained `models` of these `seeds`, one a member. Raises `NotVectorisable`."""
        state, shared, names = stacked(models, seeds, by_adam, device)
        return cls(_Call(copy.deepcopy(models[seeds[0]])), names, state, shared, len(seeds))

    @property
    def module(self) -> nn.Module:
        """The module whose names and attributes all members share; its own parameters are not trained."""
        return self._call.model

    @property
    def counters(self) -> dict[str, Tensor]:
        """Of what all members share, all that training may change: masks and counters."""
        return {name: tensor for name, tensor in self._shared.items() if not tensor.is_floating_point()}

    def another(self) -> StackedModel:
        """One whose module keeps attributes and counters of its own; the same state until either keeps some rows."""
        shared = {name: tensor.clone() for name, tensor in self._shared.items()}
        return StackedModel(copy.deepcopy(self._call), self.names, self.state, shared, self.width)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        if rows:
            device = self.state.params[0].device
            self.state = self.state.rows(torch.tensor(rows, device=device))
        else:
            self.state = State([], [], [], {}, [])
        self.width = len(rows)

    def buffers(self, row: int) -> dict[str, Tensor]:
        """The buffers of one member, by name."""
        own = {name: tensor[row] for name, tensor in self.state.buffers.items()} | self._shared
        known = {PREFIX + name for name, _ in self.module.named_buffers()}
        return {name.removeprefix(PREFIX): tensor for name, tensor in own.items() if name in known}

    def numbers(self) -> dict[str, object]:
        """Counters and flags that all members share, in buffers and as attributes; and how often masks were written."""
        counters = {name: tensor._version if tensor.ndim else tensor.tolist() for name, tensor in self._shared.items()}
        return counters | self._kept.numbers()

    def call_all(
        self, function: Measure, batch: Batch, batch_dims: Any, randomness: str, rows: Sequence[int] | None = None
    ) -> Tensor:
        """`function(model, batch)` for every member, or those in `rows`, whose buffers it must then leave alone.

        `batch_dims` as `torch.vmap` has them; None: they share the batch. `randomness`: "same" or, where nothing random
        may be drawn, "error". One number a member.
        """
        tensors = dict(zip(self.names, self.state.params, strict=True)) | self.state.buffers
        if rows is not None and len(rows) < self.width:
            picked = torch.tensor(rows, device=self.state.params[0].device)
            tensors = {name: tensor.index_select(0, picked) for name, tensor in tensors.items()}
            for name in self.names:  # as they are alone, also where no gradient is asked for
                tensors[name].requires_grad_()
        count = self.width if rows is None else len(rows)
        noisy = randomness == "same"

        def one(own: dict[str, Tensor], own_batch: Batch) -> Any:
            with FastOps(count, noisy):
                return self._call_with(own, function, batch if batch_dims is None else own_batch)

        passed, dims = (0, None) if batch_dims is None else (batch, batch_dims)
        own = {name: tensors[name].clone() for name in self.state.buffers} if rows is not None else {}
        try:
            out: Tensor = torch.vmap(one, in_dims=(0, dims), randomness=randomness)(tensors, passed)
        finally:
            self._kept.forget_members()
        if out.shape != (count,):
            raise NotVectorisable("its model keeps tensors of its members where they are not found")
        if any(not torch.allclose(tensors[name], before, 0.0, 0.0, equal_nan=True) for name, before in own.items()):
            raise NotVectorisable("its model changes a buffer where it is evaluated")
        return out

    def call_one(self, row: int, function: Measure, batch: Batch) -> Any:
        """`function(model, batch)` of one member, as it is called alone; without a gradient of the parameters."""
        state = self.state
        own = {name: param.detach()[row].requires_grad_() for name, param in zip(self.names, state.params, strict=True)}
        own |= {name: tensor[row] for name, tensor in state.buffers.items()}
        return self._call_with(own, function, batch)

    def _call_with(self, own: dict[str, Tensor], function: Measure, batch: Batch) -> Any:
        """`function(model, batch)` with one member's parameters and buffers."""
        given = self._shared | own
        lent = dict(given)
        out = functional_call(self._call, lent, (function, batch))
        for name, tensor in given.items():  # torch hands back there what the model has put in place of a buffer
            if lent[name] is not tensor:
                raise NotVectorisable(f"its model puts another tensor in place of '{name.removeprefix(PREFIX)}'")
        return out

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The module's mode is that of evaluation."""
        self._call.eval()
        try:
            yield
        finally:
            self._call.train()

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Inside, the list holds the modules whose forward pass is under way, innermost last, also once one raises."""
        under_way: list[str] = []
        hooks = []
        for name, module in self.module.named_modules():
            label = f"'{name}' ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
            hooks.append(module.register_forward_pre_hook(lambda *_, label=label: under_way.append(label)))
            hooks.append(module.register_forward_hook(lambda *_: under_way.pop() and None))
        try:
            yield under_way
        finally:
            for hook in hooks:
                hook.remove()
