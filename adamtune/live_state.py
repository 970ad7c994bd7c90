"""Leave a training script as it was found: everything a trial run on the live model and optimizer moves, put back."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Moments = Literal["fresh", "keep"]


@contextmanager
def restored(
    model: nn.Module, optimizer: Optimizer, scaler: Any = None, batches: Any = None, moments: Moments = "fresh"
) -> Iterator[None]:
    """Within, train as you like; on leaving, by whatever way, all is as before, to the bit and to the same objects.

    That is: parameters, buffers, gradients (None stays None), the optimizer's state and every value of its param
    groups, the GradScaler, train or eval mode of each submodule, the random streams of Python, NumPy and torch on every
    device, and the generators of a DataLoader given as `batches`. Not put back: attributes of modules that are no
    tensors, and what hooks of your own write down.

    Memory: one copy of the parameters and buffers, on their device. The optimizer's state is set aside, not copied;
    within, it starts empty (`fresh`) or as a copy (`keep`, which costs that copy).
    """
    tensors = _tensors(model, optimizer)
    values = [tensor.detach().clone() for tensor in tensors]
    registered = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    modes = [(module, module.training) for module in model.modules()]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    gradients = [(param, param.grad) for param in dict.fromkeys([*model.parameters(), *params])]
    groups = [dict(group) for group in optimizer.param_groups]
    state, flags = (
        optimizer.state,
        {key: value for key, value in vars(optimizer).items() if isinstance(value, bool | int)},
    )
    scaling = _copied(vars(scaler)) if scaler is not None else {}
    generators = [(generator, generator.get_state()) for generator in _generators(batches)]
    chance = _random_states()
    try:
        for param, _ in gradients:
            param.grad = None  # the caller's gradients are set aside, not written into
        optimizer.state = defaultdict(dict) if moments == "fresh" else _state_copy(state)
        yield
    finally:
        for module, parameters, buffers in registered:
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for param, gradient in gradients:
            param.grad = gradient
        for module, training in modes:
            module.training = training
        optimizer.state = state
        vars(optimizer).update(flags)
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(before)
        if scaler is not None:
            vars(scaler).update(scaling)
        for generator, at in generators:
            generator.set_state(at)
        _set_random_states(chance)


def _tensors(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    """Every parameter and buffer once, also what the optimizer steps and the model does not hold."""
    stepped = (param for group in optimizer.param_groups for param in group["params"])
    return list(dict.fromkeys([*model.parameters(), *model.buffers(), *stepped]))


def _state_copy(state: dict[Tensor, Any]) -> defaultdict[Tensor, Any]:
    copied: defaultdict[Tensor, Any] = defaultdict(dict)
    copied.update({param: _copied(values) for param, values in state.items()})
    return copied


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """A copy that shares no tensor."""
    return {
        key: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for key, value in values.items()
    }


def _generators(batches: Any) -> list[torch.Generator]:
    """The generators a DataLoader and its samplers shuffle with; torch's global one is kept with the random states."""
    sampler = getattr(batches, "sampler", None)
    batch_sampler = getattr(batches, "batch_sampler", None)
    owners = (batches, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list(dict.fromkeys(each for each in found if isinstance(each, torch.Generator)))


def _random_states() -> dict[str, Any]:
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])
