"""range_test: an lr ramp inside somebody's own training script, on the model and optimizer at hand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adamtune.divergence import DivergenceWatch, patience_for
from adamtune.errors import InputError, TaskError
from adamtune.handover import AdamThenSGD
from adamtune.live_state import Moments, restored
from adamtune.stages.lr_curve import RangeCurve, RangeStatus, read_curve
from adamtune.stages.lr_range import END, START, STEPS, smoothing_window, why_stop
from adamtune.task import Batch, batch_to
from adamtune.trial import Ramp

_LOOK_EVERY = 16
"""Steps between looks at the losses: on a GPU each look waits for the device."""

Batches = Iterable[Batch] | Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class RangeTestResult:
    """What a ramp on the live model found. Learning rates are the first param group's, or the ramped group's."""

    status: RangeStatus
    reason: str
    stopped: str
    """Where and why the ramp ended."""
    suggestion: float | None
    """The lr of the lowest loss, the lag of the smoothing taken off; None unless status is ok."""
    steps_used: int
    seconds: float
    curve: RangeCurve

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def range_test(
    model: nn.Module,
    optimizer: Optimizer,
    loss: Callable[[nn.Module, Batch], Tensor],
    batches: Batches,
    *,
    steps: int = STEPS,
    start: float = START,
    end: float = END,
    group: str | int | None = None,
    scaler: torch.amp.GradScaler | None = None,
    autocast: torch.dtype | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
    validate: Callable[[nn.Module], float] | None = None,
    moments: Moments = "fresh",
    on_steps: Callable[[int], None] = lambda steps: None,
) -> RangeTestResult:
    """Raise lr from `start` to `end` over `steps` optimizer steps, read off where the loss falls, and undo it all.

    Afterwards model, optimizer, GradScaler, modes, random streams and the DataLoader's generators are exactly as
    before, also when it is interrupted; see `adamtune.live_state.restored`.

    `loss(model, batch)` gives the scalar mean loss; batches are moved to the model's device. `batches` is a DataLoader,
    a list, or a function that returns an iterable; it is started anew when it ends. Every param group keeps its ratio
    to the first one's lr (its `initial_lr` under a scheduler); with `group`, a name or an index, only that one moves.
    `autocast` is a dtype such as torch.bfloat16. With `validate`, the curve is what that function returns, called in
    eval mode about three times in a smoothing window.

    Adam's moments start empty (`fresh`): the ramp then sees what a run sees that starts here, whatever the optimizer
    did before. `keep` goes on with copies of them, for a run under way. In the ramp they run on from one lr to the
    next: m remembers 1 / (1 - beta1) steps, with 0.9 and 60 steps a decade a sixth of a decade, which is what the
    smoothing averages over anyway.

    The suggestion knows neither the length nor the schedule of the run to come; `adamtune.lr_find` does. Raises
    `InputError` for arguments that make no ramp, `TaskError` for a loss that cannot be trained.
    """
    ramp = Ramp(start, end, steps)
    _check(ramp, model, optimizer, batches, accumulate)
    moved = _Moved(optimizer, group)
    began = time.perf_counter()
    with restored(model, optimizer, scaler, batches, moments):
        run = _Run(model, optimizer, loss, batches, ramp, moved, scaler, autocast, clip_norm, accumulate, validate)
        run.train(on_steps)
    curve = run.read()
    return RangeTestResult(
        status=curve.status,
        reason=curve.reason,
        stopped=run.stopped,
        suggestion=float(f"{curve.suggestions['lowest']:.3g}") if curve.suggestions else None,
        steps_used=run.trained,
        seconds=time.perf_counter() - began,
        curve=curve,
    )


class _Moved:
    """The param groups whose lr the ramp sets, each with its ratio to the ramp."""

    def __init__(self, optimizer: Optimizer, which: str | int | None) -> None:
        groups = optimizer.param_groups
        full = [float(group.get("initial_lr", group["lr"])) for group in groups]
        self._groups = groups
        if which is None:
            base = next((lr for lr in full if lr > 0), 1.0)
            self._ratios = {index: lr / base if any(full) else 1.0 for index, lr in enumerate(full)}
        else:
            self._ratios = {_index(groups, which): 1.0}
        self._held = {index: lr for index, lr in enumerate(full) if index not in self._ratios}

    def set(self, lr: float) -> None:
        """Put the ramp at `lr`."""
        for index, ratio in self._ratios.items():
            self._put(self._groups[index], lr * ratio)

    def hold(self) -> None:
        """Put the others at their own lr, which a scheduler in its warmup may have at zero."""
        for index, lr in self._held.items():
            self._put(self._groups[index], lr)

    def _put(self, group: dict[str, Any], lr: float) -> None:
        group["lr"] = torch.full_like(group["lr"], lr) if isinstance(group["lr"], Tensor) else lr


def _index(groups: list[dict[str, Any]], which: str | int) -> int:
    names = [str(group.get("name", index)) for index, group in enumerate(groups)]
    if isinstance(which, int) and 0 <= which < len(groups):
        return which
    if str(which) in names:
        return names.index(str(which))
    raise InputError(f"the optimizer has no param group {which!r}; it has: {', '.join(names)}")


def _check(ramp: Ramp, model: nn.Module, optimizer: Optimizer, batches: Batches, accumulate: int) -> None:
    if ramp.steps < 10:
        raise InputError(f"steps must be at least 10, not {ramp.steps}")
    if accumulate < 1:
        raise InputError(f"accumulate must be at least 1, not {accumulate}")
    if not (math.isfinite(ramp.start) and math.isfinite(ramp.end) and 0 < ramp.start < ramp.end):
        raise InputError(f"start must be above 0 and below end, not start {ramp.start:g} and end {ramp.end:g}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("LBFGS searches its own step along each direction; a range test tells it nothing")
    learning = {id(param) for param in model.parameters() if param.requires_grad}
    if not learning:
        raise InputError("the model has no trainable parameters; set requires_grad on what is to learn")
    if not any(id(param) in learning for group in optimizer.param_groups for param in group["params"]):
        raise InputError("the optimizer steps none of the model's trainable parameters; build it from this model")
    if isinstance(batches, Iterator):
        raise InputError(
            "batches is an iterator, whose items would be used up; pass the DataLoader or list itself, or a function "
            "that returns a new iterator"
        )


class _Run:
    """The ramp under way."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[nn.Module, Batch], Tensor],
        batches: Batches,
        ramp: Ramp,
        moved: _Moved,
        scaler: torch.amp.GradScaler | None,
        autocast: torch.dtype | None,
        clip_norm: float | None,
        accumulate: int,
        validate: Callable[[nn.Module], float] | None,
    ) -> None:
        self._model, self._optimizer, self._loss, self._ramp, self._moved = model, optimizer, loss, ramp, moved
        self._scaler, self._autocast, self._clip, self._accumulate = scaler, autocast, clip_norm, accumulate
        self._validate = validate
        self._params = [param for group in optimizer.param_groups for param in group["params"]]
        self._device = next(param.device for param in model.parameters() if param.requires_grad)
        self._batches = _endless(batches)
        window = smoothing_window(ramp)
        self._look = max(1, round(window / 3)) if validate else _LOOK_EVERY
        self._window = max(1.0, window / self._look) if validate else window
        self._losses: list[float] = []
        self._lrs: list[float] = []
        self.trained = 0
        self.stopped = f"the ramp ended at lr {ramp.end:.2g}"

    def train(self, on_steps: Callable[[int], None]) -> None:
        """Up to the end of the ramp, or to where the loss breaks away."""
        self._model.train()
        if isinstance(self._optimizer, AdamThenSGD):
            self._optimizer.stay()  # one ramp tells of one optimizer; `restored` puts the hand-over back
        self._moved.hold()
        watch = DivergenceWatch(patience_for(self._ramp.steps))
        at, unread = 0, list[Tensor]()
        skips = 0
        while at < self._ramp.steps:
            self._moved.set(self._ramp.lr_at(at))
            value, updated = self._step()
            self.trained += 1
            if not updated:  # the GradScaler skipped it, so it says nothing about this lr
                skips += 1
                if skips > self._ramp.steps:
                    self.stopped = "the GradScaler skips every update: this loss overflows in fp16"
                    return
                continue
            unread.append(value)
            at += 1
            if len(unread) < self._look and at < self._ramp.steps:
                continue
            on_steps(len(unread))
            if self._inspect(unread, at, watch):
                return
            unread.clear()

    def read(self) -> RangeCurve:
        """The curve of what was trained."""
        return read_curve(self._lrs, [self._losses], self._window)

    def _step(self) -> tuple[Tensor, bool]:
        self._optimizer.zero_grad(set_to_none=True)
        total: Tensor | None = None
        for _ in range(self._accumulate):
            batch = batch_to(next(self._batches), self._device)
            with self._casting():
                loss = self._loss(self._model, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise TaskError("the loss must be a scalar tensor: return the mean over the batch")
            if not loss.requires_grad:
                raise TaskError(
                    "the loss has no gradient; compute it from the model's output without detach() or item()"
                )
            share = loss.reshape(()) / self._accumulate if self._accumulate > 1 else loss.reshape(())
            (self._scaler.scale(share) if self._scaler else share).backward()  # type: ignore[no-untyped-call]
            total = share.detach() if total is None else total + share.detach()
        assert total is not None
        return total, self._update()

    def _update(self) -> bool:
        if self._scaler is None:
            if self._clip is not None:
                torch.nn.utils.clip_grad_norm_(self._params, self._clip)
            self._optimizer.step()
            return True
        if self._clip is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._params, self._clip)
        before = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return self._scaler.get_scale() >= before

    def _inspect(self, unread: list[Tensor], at: int, watch: DivergenceWatch) -> bool:
        """Take up the losses of the last steps, up to step `at`; whether the ramp is over."""
        first = at - len(unread)
        for offset, value in enumerate(torch.stack(unread).double().tolist()):
            lr = self._ramp.lr_at(first + offset)
            if watch.diverged(value):
                self.stopped = f"the loss diverged at lr {lr:.2g}"
                return True
            if self._validate is None:
                self._losses.append(value)
                self._lrs.append(lr)
        if self._validate is not None:
            self._losses.append(self._validation())
            self._lrs.append(self._ramp.lr_at(at - 1))
            if not math.isfinite(self._losses[-1]):
                self.stopped = f"the validation loss is not finite at lr {self._lrs.pop():.2g}"
                self._losses.pop()
                return True
        why = why_stop(self._losses, self._window, past_the_end=False)
        if why:
            self.stopped = f"{why} by lr {self._lrs[-1]:.2g}"
        return bool(why)

    def _validation(self) -> float:
        assert self._validate is not None
        self._model.eval()
        with torch.no_grad(), self._casting():
            value = float(self._validate(self._model))
        self._model.train()
        return value

    def _casting(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._autocast is None else torch.autocast(self._device.type, self._autocast)


def _endless(batches: Batches) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches() if callable(batches) else batches:
            empty = False
            yield batch
        if empty:
            raise InputError("batches holds no batch")
