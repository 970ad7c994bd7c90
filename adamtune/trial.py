"""Train one recipe. The only training loop; every engine gives the numbers this one gives."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from adamtune.divergence import DivergenceWatch, patience_for
from adamtune.errors import AdamtuneError, TaskError
from adamtune.groups import trainable
from adamtune.optim import build, build_with
from adamtune.probe import AdamProbe
from adamtune.randomness import RandomState, Stream, derive_seed, seed_torch
from adamtune.recipe import Recipe
from adamtune.task import Batch, Task, batch_rows, batch_to, describe_exception

_INSPECT_EVERY = 16
"""Steps between looks at the losses: on a GPU each look waits for the device. Part of a trial's definition, since a
diverged trial has trained up to this many steps past its divergence, and they count."""


_USED = "_adamtune_used"
"""Set on parameters that a trial trains. Copies of a parameter do not inherit it."""


_HUGE = 1e10
"""A model that raises while a parameter is beyond this has diverged; one that raises below has a bug."""

_LEAST_SCALE = 2.0**-24
"""A GradScaler that has come down to this from 65,536 has skipped forty updates on end: fp16 cannot train this."""


class Outcome(StrEnum):
    """How a trial ended."""

    COMPLETED = "completed"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"


@dataclass(frozen=True)
class Ramp:
    """An exponential lr ramp from `start` to `end` over `steps` updates, in place of the recipe's lr and schedule."""

    start: float
    end: float
    steps: int
    group: str | None = None
    """Ramp this group only; the others hold the recipe's lr."""

    def lr_at(self, step: int) -> float:
        """Learning rate of update `step`, from 0; groups multiply it by their own `lr_mult`."""
        share = step / max(1, self.steps - 1)
        return math.exp((1 - share) * math.log(self.start) + share * math.log(self.end))


@dataclass(frozen=True)
class TrialRequest:
    """One training run to do: one recipe, one seed, up to `horizon` optimizer steps."""

    recipe: Recipe
    seed: int
    horizon: int
    ramp: Ramp | None = None
    probe: bool = False
    """Whether rungs record Adam's state."""


@dataclass(frozen=True)
class RungReport:
    """What was measured when a trial reached a rung."""

    step: int
    train_losses: tuple[float, ...]
    """Of every step since the rung before; NaN where fp16 skipped the update."""
    values: Mapping[str, float]
    """Validation `loss` and the task's metrics; empty where the rung was not evaluated."""
    probe: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialResult:
    """A trial that has ended. `steps` counts every optimizer step it trained, also those past a divergence."""

    request: TrialRequest
    outcome: Outcome
    steps: int
    rungs: tuple[RungReport, ...]
    seconds: float
    message: str = ""

    @property
    def train_losses(self) -> list[float]:
        """The loss of every step up to the end or the divergence."""
        return [loss for rung in self.rungs for loss in rung.train_losses]

    def final(self, name: str = "loss") -> float:
        """Validation `loss` or a metric at the horizon; NaN unless the trial completed and was evaluated there."""
        return self.rungs[-1].values.get(name, math.nan) if self.outcome is Outcome.COMPLETED else math.nan


def new_model(task: Task) -> nn.Module:
    """A model of the task, on the CPU, checked: it has something to train, and nothing another trial has trained.

    Raises `TaskError`.
    """
    try:
        model = task.make_model()
    except AdamtuneError:
        raise
    except Exception as problem:
        raise TaskError(f"task '{task.name}': make_model raised {describe_exception(problem)}") from problem
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise TaskError(f"task '{task.name}': make_model returned a {got}; it must return a torch.nn.Module")
    named = list(trainable(model))
    if not named:
        raise TaskError(
            f"task '{task.name}' fails at step 0: its model has no trainable parameters; make_model must return a "
            "model with parameters whose requires_grad is True"
        )
    for name, param in named:
        if hasattr(param, _USED):
            raise TaskError(
                f"task '{task.name}': make_model returned the parameter '{name}' a second time, so trials would train "
                "each other's weights; build a new model, or copy.deepcopy the pretrained one, at each call"
            )
        setattr(param, _USED, True)
    return model


class Trial:
    """A trial under way. `advance` trains it to a rung; `result` says how it stands or ended."""

    def __init__(self, task: Task, request: TrialRequest, device: torch.device) -> None:
        """Build model, optimizer and batches from the request's seed. Raises `TaskError` where the task fails."""
        self._task, self.request, self._device = task, request, device
        self.outcome: Outcome | None = None
        self.step = 0
        self._message = ""
        self._rungs: list[RungReport] = []
        self._unread: list[Tensor] = []
        self._losses: list[float] = []
        self._skipped: set[int] = set()
        self._seconds = 0.0
        self._probed: Mapping[str, float] = {}
        self._watch = DivergenceWatch(patience_for(request.horizon))
        self._random = RandomState(derive_seed(request.seed, Stream.INIT))
        began = time.perf_counter()
        with self._random.active(device):
            seed_torch(derive_seed(request.seed, Stream.INIT), device)
            try:
                self._model = new_model(task).to(device)
                generator = torch.Generator().manual_seed(derive_seed(request.seed, Stream.DATA))
                self._batches: Iterator[Batch] = iter(task.train_batches(generator))
            except AdamtuneError:
                raise
            except Exception as problem:
                raise self._task_error("before training", problem) from problem
            self._optimizer, self._scheduler = self._build()
        self._params = [param for _, param in trainable(self._model)]
        self._scaler = torch.amp.GradScaler(device.type) if request.recipe.precision == "fp16" else None
        self._probe = AdamProbe(self._optimizer, self._model) if request.probe else None
        self._seconds += time.perf_counter() - began

    def advance(self, to_step: int, evaluate: bool = True) -> RungReport | None:
        """Train up to `to_step` steps in all, then evaluate; the report, or None when the trial has ended.

        A divergence ends the trial and is no error. What the task's own code raises is a `TaskError`, unless the
        parameters had already become non-finite: then that is how the divergence showed.
        """
        if self.outcome is not None:
            return None
        began = time.perf_counter()
        to_step = min(to_step, self.request.horizon)
        values: dict[str, float] = {}
        self._probed = {}
        with self._random.active(self._device):
            try:
                self._model.train()
                while self.step < to_step and self.outcome is None:
                    self._train_step(probe=self.step + 1 == to_step)
                    if len(self._unread) >= _INSPECT_EVERY or self.step == to_step:
                        self._inspect_losses()
                if self.outcome is None and evaluate:
                    values = self._evaluate()
            except AdamtuneError:
                raise
            except Exception as problem:
                self._inspect_losses()
                if self.outcome is None:
                    if self._sound_parameters():
                        when = "training step" if self.step < to_step else "the evaluation after training step"
                        step = self.step + 1 if self.step < to_step else self.step
                        raise self._task_error(f"at {when} {step}", problem) from problem
                    self._diverge(max(0, self.step - 1))
        if self.outcome is None and not math.isfinite(values.get("loss", 0.0)):
            self._diverge(self.step - 1)
        losses = tuple(math.nan if at in self._skipped else loss for at, loss in enumerate(self._losses))
        report = RungReport(self.step, losses[self._reported() :], values, {} if self.outcome else self._probed)
        self._rungs.append(report)
        if self.outcome is None and self.step >= self.request.horizon:
            self.outcome = Outcome.COMPLETED
        self._seconds += time.perf_counter() - began
        return None if self.outcome is Outcome.DIVERGED else report

    def prune(self) -> None:
        """End the trial here by decision of whoever compares it."""
        if self.outcome is None:
            self.outcome = Outcome.PRUNED

    def result(self) -> TrialResult:
        """The trial as it stands; one that has not ended counts as pruned."""
        return TrialResult(
            self.request, self.outcome or Outcome.PRUNED, self.step, tuple(self._rungs), self._seconds, self._message
        )

    def _reported(self) -> int:
        return sum(len(rung.train_losses) for rung in self._rungs)

    def _build(self) -> tuple[Optimizer, LRScheduler]:
        recipe, ramp = self.request.recipe, self.request.ramp
        if ramp is None:
            return build(recipe, self._model, self.request.horizon)
        return build_with(recipe, self._model, lambda step: ramp.lr_at(step) / recipe.lr, ramp.group)

    def _train_step(self, probe: bool) -> None:
        """One optimizer step: `accumulate` batches, backward, clip, update; then the probe, before lr moves on."""
        recipe = self.request.recipe
        seed_torch(derive_seed(self.request.seed, Stream.STEP, self.step), self._device)
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for _ in range(recipe.accumulate):
            batch = batch_to(self._next_batch(), self._device)
            with self._autocast():
                loss = self._task.loss(self._model, batch)
            self._check_loss(loss)
            share = loss.reshape(()) / recipe.accumulate
            (self._scaler.scale(share) if self._scaler else share).backward()  # type: ignore[no-untyped-call]
            total = total + share.detach()
        updated = self._update()
        if probe and self._probe:
            self._probed = self._probe.record()
        if updated:
            self._scheduler.step()
        else:
            self._skipped.add(self.step)
        self._unread.append(total)
        self.step += 1

    def _update(self) -> bool:
        """Clip and step; False where fp16 overflowed and the scaler skipped the update."""
        clip = self.request.recipe.clip_norm
        if self._scaler is None:
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(self._params, clip)
            self._optimizer.step()
            return True
        if clip is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._params, clip)
        before = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._scaler.get_scale() < _LEAST_SCALE:
            self._diverge(self.step)
        return self._scaler.get_scale() >= before

    def _next_batch(self) -> Batch:
        try:
            return next(self._batches)
        except StopIteration:
            raise TaskError(
                f"task '{self._task.name}': train_batches ended at training step {self.step + 1} of "
                f"{self.request.horizon}; it must be endless (loop over the epochs with `while True`)"
            ) from None

    def _check_loss(self, loss: Any) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            mend = "return the mean over the batch" if isinstance(loss, Tensor) else "return a tensor"
            raise TaskError(
                f"task '{self._task.name}': the loss at training step {self.step + 1} is {got}, not a scalar; {mend}"
            )
        if not loss.requires_grad:
            raise TaskError(
                f"task '{self._task.name}': the loss at training step {self.step + 1} has no gradient; compute it from "
                "the model's output without detach(), item() or no_grad()"
            )

    def _inspect_losses(self) -> None:
        for loss in torch.stack(self._unread).double().tolist() if self._unread else []:
            at = len(self._losses)
            self._losses.append(loss)
            if at not in self._skipped and self._watch.diverged(loss):
                self._diverge(at)
                break
        self._unread.clear()

    def _diverge(self, step: int) -> None:
        self.outcome = Outcome.DIVERGED
        self._message = f"diverged at step {step + 1}"

    def _evaluate(self) -> dict[str, float]:
        seed = derive_seed(self.request.seed, Stream.EVALUATION)
        with RandomState(seed).active(self._device):  # the streams of training must not feel how often it is evaluated
            seed_torch(seed, self._device)
            return self._measure()

    def _measure(self) -> dict[str, float]:
        measures = {"loss": self._task.loss, **self._task.metrics}
        sums = dict.fromkeys(measures, 0.0)
        rows = 0
        self._model.eval()
        with torch.no_grad(), self._autocast():
            for host_batch in self._task.val_batches():
                batch = batch_to(host_batch, self._device)
                size = batch_rows(batch)
                rows += size
                for name, measure in measures.items():
                    sums[name] += size * float(measure(self._model, batch))
        self._model.train()
        if not rows:
            raise TaskError(f"task '{self._task.name}': val_batches gave no batch, so a recipe cannot be judged")
        return {name: total / rows for name, total in sums.items()}

    def _autocast(self) -> AbstractContextManager[Any]:
        match self.request.recipe.precision:
            case "fp32":
                return nullcontext()
            case "bf16":
                return torch.autocast(self._device.type, torch.bfloat16)
            case "fp16":
                return torch.autocast(self._device.type, torch.float16)

    def _sound_parameters(self) -> bool:
        """Whether no parameter is NaN, infinite, or so large that what it is multiplied with may overflow."""
        return all(bool((param.detach().abs() < _HUGE).all()) for param in self._params)

    def _task_error(self, when: str, problem: Exception) -> TaskError:
        if isinstance(problem, torch.OutOfMemoryError):
            mend = "use a smaller batch with `accumulate`, or a device with more memory"
        else:
            mend = "mend the task, or see the whole traceback with --debug"
        return TaskError(f"task '{self._task.name}' raised {describe_exception(problem)} {when}; {mend}")
