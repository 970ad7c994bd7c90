"""What training changes in a stack, and how it is made from the models that its members start from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adamtune.history import History, TrialRequest


class NotVectorisable(Exception):
    """These trials cannot be trained as one stack; the text says what stands in the way."""


@dataclass(eq=False)
class Member:
    """One trial of a population, and its place in the batch that was asked for."""

    index: int
    request: TrialRequest
    history: History


@contextmanager
def stacking(device: torch.device) -> Iterator[None]:
    """Around work with stacks: the caller's random streams stay as they are, and torch does not say that an operation
    runs once a member for want of a rule for all (which the timing of stacks takes into account).
    """
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "There is a performance drop because", UserWarning)
        yield


@dataclass
class State:
    """What training changes. Each tensor in a list or dict has a leading dimension of members, but for `steps`."""

    params: list[Tensor]
    first: list[Tensor]
    """Adam's first moments; SGD's momentum."""
    second: list[Tensor]
    """Adam's second moments; empty where all members train by SGD."""
    buffers: dict[str, Tensor]
    steps: list[Tensor]
    """Updates made, by parameter: torch does not count those without a gradient."""

    def rows(self, keep: Tensor) -> State:
        """A copy with these members only."""

        def taken(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.detach().index_select(0, keep) for tensor in tensors]

        params = [param.requires_grad_() for param in taken(self.params)]
        buffers = {name: tensor.index_select(0, keep) for name, tensor in self.buffers.items()}
        steps = [step.clone() for step in self.steps]
        return State(params, taken(self.first), taken(self.second), buffers, steps)


def stacked(
    models: Mapping[int, nn.Module], seeds: Sequence[int], by_adam: bool, device: torch.device
) -> tuple[State, dict[str, Tensor], list[str]]:
    """The untrained models of these `seeds` (one a member) as one: its state, what all share, the parameters' names.

    Shared are frozen parameters that are equal in all, masks and counters. Raises `NotVectorisable`.
    """
    first = models[seeds[0]]
    for name, param in (pair for model in models.values() for pair in model.named_parameters()):
        if param._backward_hooks or getattr(param, "_post_accumulate_grad_hooks", None):
            raise NotVectorisable(f"its parameter '{name}' has a gradient hook")
    tensors = {
        seed: {**dict(model.named_parameters()), **dict(model.named_buffers())} for seed, model in models.items()
    }
    trained = {name for name, param in first.named_parameters() if param.requires_grad}
    params: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    for name, tensor in tensors[seeds[0]].items():
        if any(name not in own or own[name].shape != tensor.shape for own in tensors.values()):
            raise NotVectorisable(f"its model differs by seed (in '{name}')")
        if name in trained:
            if tensor.dtype not in (torch.float32, torch.float64):
                raise NotVectorisable(f"its parameter '{name}' is {str(tensor.dtype).removeprefix('torch.')}")
            params[name] = torch.stack([tensors[seed][name].detach() for seed in seeds]).requires_grad_()
            continue
        same = all(own[name] is tensor or torch.equal(own[name], tensor) for own in tensors.values())
        if same and (not tensor.is_floating_point() or isinstance(tensor, nn.Parameter)):
            shared[name] = tensor.detach().clone()
        else:
            buffers[name] = torch.stack([tensors[seed][name].detach() for seed in seeds])
    values = list(params.values())
    moments = [[torch.zeros_like(param, requires_grad=False) for param in values] for _ in range(1 + by_adam)]
    steps = [torch.zeros((), device=device) for _ in values]
    state = State(values, moments[0], moments[1] if by_adam else [], buffers, steps)
    return state, shared, list(params)
