"""range_test on a live model: it finds the fall, and leaves no trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from adamtune import range_test
from adamtune.errors import InputError, TaskError
from adamtune.live_state import restored
from adamtune.stages.lr_curve import RangeStatus

Maker = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Maker] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    "amsgrad": lambda groups: torch.optim.Adam(groups, lr=1e-3, amsgrad=True),
    "foreach": lambda groups: torch.optim.AdamW(groups, lr=1e-3, foreach=True),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=True),
    "tensor-lr": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(1e-3), foreach=False),
    "nadam": lambda groups: torch.optim.NAdam(groups, lr=1e-3),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
}


class Net(nn.Module):
    """Dropout and batch norm, so that chance and buffers are in play."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(8, 32), nn.BatchNorm1d(32)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(torch.relu(self.norm(self.first(x)))))
        return out


def data() -> TensorDataset:
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x[:, :3].argmax(1))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def script(kind: str, seed: int = 0) -> tuple[Net, torch.optim.Optimizer, DataLoader[Any]]:
    """What a training script has before its loop: model, optimizer with groups, a shuffling loader of its own."""
    torch.manual_seed(seed)
    model = Net()
    groups = [
        {"params": [*model.first.parameters(), *model.norm.parameters()], "name": "body"},
        {"params": list(model.head.parameters()), "lr": 1e-2, "weight_decay": 0.0, "name": "head"},
    ]
    loader = DataLoader(data(), batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(seed))
    return model, OPTIMIZERS[kind](groups), loader


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any], epochs: int) -> list[float]:
    losses = []
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            value = loss(model, batch)
            value.backward()
            optimizer.step()
            losses.append(value.item())
    return losses


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any]) -> Any:
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "gradients": [param.grad for param in model.parameters()],
            "optimizer": optimizer.state_dict(),
            "modes": [module.training for module in model.modules()],
            "chance": (random.getstate(), np.random.get_state(), torch.get_rng_state(), loader.generator.get_state()),
        }
    )


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor | np.ndarray):
        return type(one) is type(other) and bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("epochs_before", [0, 1])
def test_training_goes_on_as_if_there_had_been_no_range_test(kind: str, epochs_before: int) -> None:
    runs = []
    for tested in (False, True):
        model, optimizer, loader = script(kind)
        before = train(model, optimizer, loader, epochs_before)
        if tested:
            state = snapshot(model, optimizer, loader)
            assert range_test(model, optimizer, loss, loader, steps=40).steps_used > 10
            assert equal(snapshot(model, optimizer, loader), state)
        runs.append((before + train(model, optimizer, loader, 2), model.state_dict()))
    assert equal(runs[0], runs[1])


class Stop(BaseException):
    """As Ctrl-C: not an Exception."""


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(OPTIMIZERS)),
    trained=st.booleans(),
    moments=st.sampled_from(["fresh", "keep"]),
    fails_at=st.integers(1, 40),
    frozen=st.booleans(),
)
def test_an_interruption_leaves_no_trace_either(
    kind: str, trained: bool, moments: Any, fails_at: int, frozen: bool
) -> None:
    model, optimizer, loader = script(kind)
    model.norm.eval()
    if frozen:
        model.first.weight.requires_grad_(False)
    if trained:
        train(model, optimizer, loader, 1)
    params = [*model.parameters()]
    state, gradients = snapshot(model, optimizer, loader), [param.grad for param in params]
    calls = 0

    def interrupted(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise Stop
        np.random.rand()
        return loss(model, batch)

    with pytest.raises(Stop):
        range_test(model, optimizer, interrupted, loader, steps=60, moments=moments)
    assert equal(snapshot(model, optimizer, loader), state)
    assert all(now is before for now, before in zip(model.parameters(), params, strict=True))
    assert all(param.grad is before for param, before in zip(params, gradients, strict=True))


def test_sparse_adam_and_replaced_buffers_are_restored() -> None:
    model = nn.Sequential(nn.Embedding(20, 4, sparse=True))
    model.register_buffer("seen", torch.zeros(1))
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=1e-2)
    start = copy.deepcopy(model.state_dict())

    def pull(model: nn.Module, rows: Tensor) -> Tensor:
        model.seen = model.seen + 1
        out: Tensor = model(rows).square().mean()
        return out

    assert range_test(model, optimizer, pull, [torch.arange(8)], steps=30).steps_used == 30
    assert equal(dict(model.state_dict()), dict(start))
    assert not optimizer.state


def test_it_finds_where_the_loss_falls() -> None:
    model, optimizer, loader = script("adamw")
    found = range_test(model, optimizer, loss, loader, steps=200, end=10.0)
    assert found.status is RangeStatus.OK
    assert found.suggestion is not None
    assert 3e-4 < found.suggestion < 1
    assert found.steps_used <= 200
    assert found.to_dict()["suggestion"] == found.suggestion


def test_each_group_keeps_its_ratio_and_a_named_group_moves_alone() -> None:
    seen: list[list[float]] = []

    def spy(model: nn.Module, batch: Any) -> Tensor:
        seen.append([group["lr"] for group in optimizer.param_groups])
        return loss(model, batch)

    model, optimizer, loader = script("adamw")
    range_test(model, optimizer, spy, loader, steps=20, start=1e-5, end=1e-3)
    assert seen[0] == pytest.approx([1e-5, 1e-4])
    assert seen[-1] == pytest.approx([1e-3, 1e-2])
    for which in ("head", 1):
        seen.clear()
        range_test(model, optimizer, spy, loader, steps=20, start=1e-5, end=1e-3, group=which)
        assert seen[0] == pytest.approx([1e-3, 1e-5])
        assert seen[-1] == pytest.approx([1e-3, 1e-3])


def test_under_a_scheduler_in_its_warmup_the_groups_ratios_are_those_of_the_full_lr() -> None:
    model, optimizer, loader = script("adamw")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    lrs: list[list[float]] = []
    range_test(
        model,
        optimizer,
        lambda model, batch: lrs.append([group["lr"] for group in optimizer.param_groups]) or loss(model, batch),
        loader,
        steps=12,
        start=1e-5,
    )
    assert lrs[0] == pytest.approx([1e-5, 1e-4])
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4, 1e-3])


def test_fresh_moments_start_from_nothing_and_kept_ones_from_copies() -> None:
    model, optimizer, loader = script("adamw")
    train(model, optimizer, loader, 1)
    held = {param: values["exp_avg"] for param, values in optimizer.state.items()}
    with restored(model, optimizer, moments="fresh"):
        assert not optimizer.state
    with restored(model, optimizer, moments="keep"):
        for param, moment in held.items():
            assert optimizer.state[param]["exp_avg"] is not moment
            assert torch.equal(optimizer.state[param]["exp_avg"], moment)
    assert all(optimizer.state[param]["exp_avg"] is moment for param, moment in held.items())


def test_the_curve_can_be_the_validation_loss() -> None:
    model, optimizer, loader = script("adamw")
    whole = data().tensors
    modes: list[bool] = []

    def validate(model: nn.Module) -> float:
        modes.append(model.training)
        return loss(model, whole).item()

    found = range_test(model, optimizer, loss, loader, steps=200, end=1.0, validate=validate)
    assert found.status is RangeStatus.OK
    assert 10 <= len(modes) == len(found.curve.lrs) < 200
    assert not any(modes)
    assert model.training


def test_accumulation_takes_several_batches_a_step_and_clipping_bounds_the_update() -> None:
    model, optimizer, loader = script("sgd")
    calls: list[float] = []

    def counted(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        return loss(model, batch)

    assert range_test(model, optimizer, counted, loader, steps=10, accumulate=3, end=1e-5).steps_used == 10
    assert len(calls) == 30
    before = [param.detach().clone() for param in model.parameters()]
    with restored(model, optimizer):
        batch = next(iter(loader))
        (1e6 * loss(model, batch)).backward()
        assert sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None) > 1e6
    assert all(map(torch.equal, before, model.parameters()))
    wild = range_test(model, optimizer, lambda m, b: 1e4 * loss(m, b), loader, steps=60, end=1e-1)
    calm = range_test(model, optimizer, lambda m, b: 1e4 * loss(m, b), loader, steps=60, end=1e-1, clip_norm=1.0)
    assert wild.steps_used < calm.steps_used == 60


def test_a_grad_scaler_is_put_back_and_its_skipped_steps_are_no_points() -> None:
    model, optimizer, loader = script("adamw")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**110, growth_interval=1000)
    state = scaler.state_dict()
    found = range_test(model, optimizer, lambda m, b: 1e6 * loss(m, b), loader, steps=20, scaler=scaler)
    assert found.steps_used > 20
    assert len(found.curve.lrs) == 20
    assert scaler.state_dict() == state
    assert scaler._scale is None  # as lazily made as before


def test_bf16_autocast_reaches_the_model() -> None:
    model, optimizer, loader = script("adamw")
    kinds: set[torch.dtype] = set()

    def spy(model: nn.Module, batch: Any) -> Tensor:
        out = model(batch[0])
        kinds.add(out.dtype)
        return functional.cross_entropy(out.float(), batch[1])

    range_test(model, optimizer, spy, loader, steps=12, autocast=torch.bfloat16)
    assert kinds == {torch.bfloat16}


def once() -> Iterator[Any]:
    yield from DataLoader(data(), batch_size=32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 5}, "steps must be at least 10, not 5"),
        ({"start": 1.0, "end": 0.1}, "start must be above 0 and below end"),
        ({"start": float("nan")}, "start must be above 0"),
        ({"group": "tail"}, "no param group 'tail'; it has: body, head"),
        ({"group": 7}, "no param group 7; it has: body, head"),
        ({"batches": once()}, "pass the DataLoader or list itself"),
        ({"batches": []}, "batches holds no batch"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
    ],
)
def test_what_makes_no_ramp_is_refused_in_a_sentence(change: dict[str, Any], said: str) -> None:
    model, optimizer, loader = script("adamw")
    state = snapshot(model, optimizer, loader)
    arguments: dict[str, Any] = {"batches": loader} | change
    with pytest.raises(InputError, match=said):
        range_test(model, optimizer, loss, **arguments)
    assert equal(snapshot(model, optimizer, loader), state)


def test_models_optimizers_and_losses_that_cannot_learn_are_refused_in_a_sentence() -> None:
    model, optimizer, loader = script("adamw")
    with pytest.raises(InputError, match="steps none of the model's trainable parameters"):
        range_test(Net(), optimizer, loss, loader)
    with pytest.raises(InputError, match="LBFGS"):
        range_test(model, torch.optim.LBFGS(model.parameters()), loss, loader)
    with pytest.raises(TaskError, match="no gradient"):
        range_test(model, optimizer, lambda m, b: loss(m, b).detach(), loader)
    with pytest.raises(TaskError, match="scalar"):
        range_test(model, optimizer, lambda m, b: m(b[0]), loader)
    model.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameters"):
        range_test(model, optimizer, loss, loader)


def test_a_loss_that_is_nan_at_once_or_never_falls_has_no_suggestion() -> None:
    model, optimizer, loader = script("adamw")
    nan = range_test(model, optimizer, lambda m, b: loss(m, b) * float("nan"), loader, steps=30)
    assert (nan.status, nan.suggestion) == (RangeStatus.DIVERGING, None)
    assert "diverged at lr 1e-06" in nan.stopped
    flat = range_test(model, optimizer, lambda m, b: loss(m, b) * 0 + 2, loader, steps=30)
    assert (flat.status, flat.suggestion) == (RangeStatus.FLAT, None)
