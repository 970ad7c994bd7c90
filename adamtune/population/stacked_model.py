"""The models of many members as one model, each parameter with a leading dimension that counts members."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adamtune.population.every_member import for_every_member
from adamtune.population.fast_ops import FastOps
from adamtune.population.kept import Keeping
from adamtune.population.state import NotVectorisable, State, stacked
from adamtune.task import Batch

Measure = Callable[[nn.Module, Batch], Tensor]


class StackedModel:
    """What a stack calls: one module, and the members' parameters and buffers to lend it."""

    def __init__(
        self, module: nn.Module, names: list[str], state: State, shared: dict[str, Tensor], width: int
    ) -> None:
        """Use `start`."""
        self.module = module
        """Whose names and attributes all members share; its own parameters are not trained."""
        self.names, self.state, self.width = names, state, width
        self._shared = shared
        self._places = _places(module)
        self._held = [
            (kept, {key for key, tensor in kept.items() if tensor is not None})
            for part in module.modules()
            for kept in (part._parameters, part._buffers)
        ]
        self._kept = Keeping(module)
        module.train()

    @classmethod
    def start(
        cls, models: Mapping[int, nn.Module], seeds: Sequence[int], by_adam: bool, device: torch.device
    ) -> StackedModel:
        """The untrained `models` of these `seeds`, one a member. Raises `NotVectorisable`."""
        state, shared, names = stacked(models, seeds, by_adam, device)
        return cls(copy.deepcopy(models[seeds[0]]), names, state, shared, len(seeds))

    @property
    def counters(self) -> dict[str, Tensor]:
        """Of what all members share, all that training may change: masks and counters."""
        return {name: tensor for name, tensor in self._shared.items() if not tensor.is_floating_point()}

    def another(self) -> StackedModel:
        """One whose module keeps attributes and counters of its own; the same state until either keeps some rows."""
        shared = {name: tensor.clone() for name, tensor in self._shared.items()}
        return StackedModel(copy.deepcopy(self.module), self.names, self.state, shared, self.width)

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
        return {name: own[name] for name, _ in self.module.named_buffers()}

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
                return self._call_with(own, function, own_batch)

        own = {name: tensors[name].clone() for name in self.state.buffers} if rows is not None else {}
        try:
            out = for_every_member(one, tensors, batch, batch_dims, count, randomness)
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
        """`function(model, batch)` with one member's parameters and buffers.

        `torch.func.functional_call` would search all modules for tied weights at every call. Here they are found once,
        so a model that gives itself other tensors while it is called is refused.
        """
        lent = [
            (name, kept, key, kept[key], tensor)
            for name, tensor in (self._shared | own).items()
            for kept, key in self._places[name]
        ]
        try:
            for _, kept, key, _, tensor in lent:
                kept[key] = tensor
            out = function(self.module, batch)
            replaced = next((name for name, kept, key, _, tensor in lent if kept.get(key) is not tensor), None)
            held = ((kept, key, keys) for kept, keys in self._held for key in kept)
            added = next((key for kept, key, keys in held if key not in keys and kept[key] is not None), None)
        finally:
            for _, kept, key, before, _ in lent:
                kept[key] = before
        if replaced is not None:
            raise NotVectorisable(f"its model puts another tensor in place of '{replaced}'")
        if added is not None:
            raise NotVectorisable(f"its model registers '{added}' while it is called")
        return out

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The module's mode is that of evaluation."""
        self.module.eval()
        try:
            yield
        finally:
            self.module.train()

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


def _places(module: nn.Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """By the name of a parameter or buffer, all places where the modules keep it: tied weights have several."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for key, tensor in kept.items():
                places.setdefault(id(tensor), []).append((kept, key))
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: places[id(tensor)] for name, tensor in named.items()}
