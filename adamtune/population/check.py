"""Whether a task's trials train in a stack as they do alone: tried on one step before anything is trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from adamtune.history import History, TrialRequest
from adamtune.population.feed import Drawn, Feed, same_numpy
from adamtune.population.joined import Uneven
from adamtune.population.stack import Stack
from adamtune.population.state import Member, NotVectorisable, stacking
from adamtune.randomness import RandomState, Stream, TorchState, derive_seed
from adamtune.task import Task, has_tensor
from adamtune.task_calls import check_loss
from adamtune.trial import autocast

_TOLERANCE = {"fp32": 2e-3, "bf16": 0.2}
"""How far a parameter's gradient may be from the one computed alone, as a share of its norm. Rounding is a hundredth of
it; what this is for (weights kept out of the stack's sight, noise in another order) is mostly all of it."""
_LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}
"""The same for the loss, whose rounding is far smaller: a term that a stack leaves out may be a small one."""
_NOTHING = 1e-5
"""As a share of the largest gradient's norm: how far any gradient may be off. That of a bias before a batch norm, or of
attention's keys, is zero but for rounding."""
_ROUNDING = 4.0
"""In bf16 such a gradient may be off by so many times what it is off from fp32 when computed alone."""
_EPSILON = 2.0**-8
"""Of bf16: by that share of the largest gradient's norm at most."""
_IN_FLOAT64 = 1e-6
"""Where a model computes in float64, what all these tolerances are multiplied with."""
_SHIFT = 0.01
"""How far a parameter's last entry is moved; its first is by half of that."""


Gradients = Mapping[str, Tensor | None]
"""By parameter name."""


@dataclass(frozen=True)
class StepFacts:
    """What one step told."""

    noisy: bool
    """Whether the loss draws random numbers."""
    activations: int
    """Bytes kept for the backward pass, for one member."""
    state: int
    """Bytes of parameters, gradients, Adam's moments and buffers, for one member."""


@dataclass(frozen=True)
class _Alone:
    loss: float
    gradients: Gradients
    buffers: Mapping[str, Tensor]


def check(task: Task, requests: Sequence[TrialRequest], device: torch.device) -> StepFacts:
    """Train a step of two of `requests`, from weights moved a little, alone and stacked, and compare.

    Raises `NotVectorisable`. What the task itself raises is told in the same way: trained one by one, it will raise it
    again.
    """
    first = requests[0]
    if first.recipe.precision == "fp16":
        raise NotVectorisable("fp16 scales each trial's loss by itself")
    if device.type not in ("cpu", "cuda"):
        raise NotVectorisable(f"torch has no fused update on {device.type}")
    try:
        return _check(task, requests, device)
    except NotVectorisable:
        raise
    except Exception as problem:
        raise NotVectorisable(_one_line(problem)) from problem


def _check(task: Task, requests: Sequence[TrialRequest], device: torch.device) -> StepFacts:
    first = requests[0]
    other = next((request for request in requests if request.seed != first.seed), replace(first, seed=first.seed + 1))
    with stacking(device):
        alone, drawn, facts = {}, {}, None
        for request in (first, other):
            drawn[request.seed], alone[request.seed], found = _step_alone(task, request, device)
            facts = facts or found
        assert facts is not None
        pairs = [(first, first), (other, other)] if facts.noisy else [(first, other)]
        for pair in pairs:
            try:
                _compare(task, pair, alone, drawn, facts.noisy, device)
            except Uneven:  # then each seed has a stack of its own
                for request in pair:
                    _compare(task, (request, request), alone, drawn, facts.noisy, device)
    return facts


def _step_alone(task: Task, request: TrialRequest, device: torch.device) -> tuple[Drawn, _Alone, StepFacts]:
    feed = Feed(task, request.seed, device)
    (drawn,) = feed.draw(0, 1, request.recipe.accumulate, request.horizon, noisy=True)
    if feed.failure is not None:
        raise feed.failure
    if not any(map(has_tensor, drawn.batches)):
        raise NotVectorisable("its batches hold no tensors, so that its loss gets data by itself (a rollout, say)")
    return drawn, *_train_alone(task, request, feed.model, drawn, device)


def _train_alone(
    task: Task, request: TrialRequest, model: nn.Module, drawn: Drawn, device: torch.device
) -> tuple[_Alone, StepFacts]:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with RandomState(derive_seed(request.seed, Stream.INIT)).active(device):
        _shift(param for param in model.parameters() if param.requires_grad)
        python, numpy = random.getstate(), np.random.get_state()
        assert drawn.chance is not None
        drawn.chance.restore()
        total, versions = torch.zeros((), device=device), drawn.versions()
        model.train()
        for batch in drawn.batches:
            with (
                torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
                autocast(request.recipe.precision, device),
            ):
                loss = task.loss(model, batch)
            check_loss(task, loss, 0)
            share = loss.reshape(()) / request.recipe.accumulate
            share.backward()  # type: ignore[no-untyped-call]
            total = total + share.detach()
        if drawn.versions() != versions:
            raise NotVectorisable("its loss changes its batch in place")
        noisy = TorchState.now(device) != drawn.chance
        if random.getstate() != python or not same_numpy(np.random.get_state(), numpy):
            raise NotVectorisable("its loss draws from Python's or NumPy's random numbers")
    own = [*model.parameters(), *model.buffers()]
    for tensor in own:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    gradients = {name: param.grad for name, param in model.named_parameters() if param.requires_grad}
    if any(gradient is not None and gradient.is_sparse for gradient in gradients.values()):
        raise NotVectorisable("its gradients are sparse")
    trained = sum(param.nbytes for param in model.parameters() if param.requires_grad)
    facts = StepFacts(noisy, sum(kept.values()), 3 * trained + sum(tensor.nbytes for tensor in own))
    return _Alone(float(total), gradients, dict(model.named_buffers())), facts


def _shift(params: Iterable[Tensor]) -> None:
    """Move each a little, as an update does.

    What a model reads of its weights elsewhere (a buffer on the same memory, a list that holds them) is then another in
    a stack, which lends it only the weights themselves; at first it may be alike, zero for instance. All move by
    different amounts and one way, which neither a softmax nor a sum hides.
    """
    with torch.no_grad():
        for param in params:
            moves = torch.linspace(_SHIFT / 2, _SHIFT, param.numel(), device=param.device)
            param.add_(moves.view(param.shape).to(param.dtype))


def _compare(
    task: Task,
    pair: tuple[TrialRequest, TrialRequest],
    alone: dict[int, _Alone],
    drawn: dict[int, Drawn],
    noisy: bool,
    device: torch.device,
) -> None:
    members = [Member(index, request, History(request)) for index, request in enumerate(pair)]
    feeds = {request.seed: Feed(task, request.seed, device) for request in pair}
    stack = Stack.start(task, members, feeds, noisy, device)
    _shift(row for param in stack.model.state.params for row in param.detach())
    with stack.watched() as where, _one_reason(where):
        losses = stack.backward(drawn, 0)
    precision = pair[0].recipe.precision
    computed = [losses, *(gradient for gradient in stack.gradients(0).values() if gradient is not None)]
    finer = _IN_FLOAT64 if all(tensor.dtype == torch.float64 for tensor in computed) else 1.0
    for row, request in enumerate(pair):
        loss, expected = float(losses[row]), alone[request.seed].loss
        if abs(loss - expected) > finer * _LOSS_TOLERANCE[precision] * max(1e-6, abs(expected)):
            raise NotVectorisable(f"in a stack its first loss is {loss:.12g}, alone {expected:.12g}")
        exact = cache(partial(_exact, task, request, device)) if precision == "bf16" else dict
        _compare_gradients(stack.gradients(row), alone[request.seed].gradients, finer, precision, exact)
        _compare_buffers(stack.buffers(row), alone[request.seed].buffers, finer, precision)


def _compare_gradients(
    found: Gradients, expected: Gradients, finer: float, precision: str, exact: Callable[[], Gradients]
) -> None:
    scale = max((float(gradient.norm()) for gradient in expected.values() if gradient is not None), default=0.0)
    for name, gradient in found.items():
        reference = expected[name]
        if (gradient is None) != (reference is None):
            raise NotVectorisable(
                f"in a stack the parameter '{name}' gets {'no' if gradient is None else 'a'} gradient"
            )
        if gradient is None or reference is None:
            continue
        gap = float((gradient - reference).norm()) - finer * _TOLERANCE[precision] * float(reference.norm())
        if gap <= finer * _NOTHING * scale:
            continue
        known = exact().get(name)
        if known is None or gap > _rounding(reference, known, scale):
            raise NotVectorisable(f"in a stack the gradient of the parameter '{name}' is another")


def _rounding(gradient: Tensor, exact: Tensor, scale: float) -> float:
    """How far a gradient in bf16 may be off where one computed alone is `gradient`, and `exact` in fp32."""
    most = _EPSILON * scale
    if float(exact.norm()) <= _NOTHING * scale:  # zero but for rounding, which may happen to be small in the one alone
        return most
    return min(most, _ROUNDING * float((gradient - exact).norm()))


def _compare_buffers(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], finer: float, precision: str) -> None:
    for name, buffer in found.items():
        mine, reference = buffer.double(), expected[name].double()
        share, near_zero = finer * _TOLERANCE[precision], finer * 1e-6
        if precision == "bf16" and reference.numel() and reference.isfinite().all():
            # A running mean that is nearly zero is no more exact than the others of its layer.
            near_zero += share * float(reference.square().mean().sqrt())
        if not torch.allclose(mine, reference, rtol=share, atol=near_zero, equal_nan=True):
            raise NotVectorisable(f"in a stack the buffer '{name}' is not kept")


def _exact(task: Task, request: TrialRequest, device: torch.device) -> Gradients:
    """Those of a step alone in fp32; none where the task does not train in it."""
    try:
        in_fp32 = replace(request, recipe=request.recipe.with_knob("precision", "fp32"))
        return _step_alone(task, in_fp32, device)[1].gradients
    except Exception:
        return {}


@contextmanager
def _one_reason(where: list[str]) -> Iterator[None]:
    try:
        yield
    except (NotVectorisable, Uneven):
        raise
    except Exception as problem:
        place = f"module {where[-1]}: " if where else ""
        raise NotVectorisable(place + _one_line(problem)) from problem


def _one_line(problem: Exception) -> str:
    text = str(problem).strip().split("\n")[0].split(". ")[0]
    return f"{text[:160] or type(problem).__name__}"
