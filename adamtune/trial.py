"""Train one recipe. The one plain training loop; every engine gives the numbers this one gives."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from adamtune.errors import AdamtuneError
from adamtune.groups import trainable
from adamtune.history import INSPECT_EVERY, History, Outcome, Ramp, RungReport, TrialRequest, TrialResult
from adamtune.optim import build_with
from adamtune.probe import AdamProbe
from adamtune.randomness import RandomState, Stream, derive_seed, seed_torch
from adamtune.recipe import Precision
from adamtune.task import Batch, Task, batch_rows, batch_to, own_batch
from adamtune.task_calls import check_loss, measured, new_model, next_batch, no_validation, raised
from adamtune.trial_state import (
    SYNC,
    WORTH,
    ModelState,
    batch_digest,
    expected_seconds,
    own_copy,
    read_state,
    write_state,
)

__all__ = ["Outcome", "Ramp", "RungReport", "Trial", "TrialRequest", "TrialResult", "new_model"]

HUGE = 1e10
"""A model that raises while a parameter is beyond this has diverged; one that raises below has a bug."""

_LEAST_SCALE = 2.0**-24
"""A GradScaler that has come down to this from 65,536 has skipped forty updates on end: fp16 cannot train this."""


class Trial:
    """A trial under way. `advance` trains it to a rung; `result` says how it stands or ended."""

    @classmethod
    def begin(cls, task: Task, request: TrialRequest, device: torch.device) -> Trial:
        """The trial as its request's `checkpoint` has it; where that does not fit, untrained.

        One that goes on tells the rungs it has reached before again, without training, and then trains further. Raises
        `TaskError` where the task fails.
        """
        trial = cls(task, request, device)
        state = read_state(request)
        if state is None:
            return trial
        try:
            trial._restore(state)
        except Exception:  # whatever differs: the model's shapes, the batches, or what the file holds
            return cls(task, request, device)
        return trial

    def __init__(self, task: Task, request: TrialRequest, device: torch.device) -> None:
        """Build model, optimizer and batches from the request's seed. Raises `TaskError` where the task fails."""
        self._told: deque[RungReport | None] = deque()
        self._drawn: int | None = 0
        self._task, self.request, self._device = task, request, device
        self._history = History(request)
        self._unread: list[Tensor] = []
        self._probed: Mapping[str, float] = {}
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
            except (Exception, SystemExit) as problem:
                raise raised(task, "before training", problem) from problem
            recipe = request.recipe
            self._optimizer, self._scheduler = build_with(
                recipe, self._model, request.multiplier, request.ramped, request.switch_at
            )
        self._params = [param for _, param in trainable(self._model)]
        self._scaler = torch.amp.GradScaler(device.type) if request.recipe.precision == "fp16" else None
        self._probe = AdamProbe(self._optimizer, self._model) if request.probe else None
        self._kept = ModelState(self._model) if request.checkpoint else None
        self._kept_at, self._writing = 0.0, expected_seconds(self._model)
        self._history.seconds += time.perf_counter() - began

    @property
    def outcome(self) -> Outcome | None:
        """None while the trial runs, or has rungs to tell again."""
        return None if self._told else self._history.outcome

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._history.step

    @property
    def reached(self) -> list[int]:
        """The rungs it will tell again before it trains further."""
        return self._history.reached[: len(self._told)]

    def advance(
        self, to_step: int, evaluate: bool = True, on_steps: Callable[[int], None] = lambda steps: None
    ) -> RungReport | None:
        """Train up to `to_step` steps in all, then evaluate; the report, or None when the trial has ended.

        `on_steps(n)` hears of every n steps trained, whenever the losses are looked at.

        A divergence ends the trial and is no error. What the task's own code raises is a `TaskError`, unless the
        parameters had already become non-finite: then that is how the divergence showed.
        """
        if self._told:
            return self._told.popleft()
        if self.outcome is not None:
            return None
        began = time.perf_counter()
        to_step = min(to_step, self.request.horizon)
        values: dict[str, float] = {}
        self._probed = {}
        told = self.step
        with self._random.active(self._device):
            try:
                self._model.train()
                while self.step < to_step and self.outcome is None:
                    self._train_step(last=self.step + 1 == to_step)
                    if len(self._unread) >= INSPECT_EVERY or self.step == to_step:
                        self._inspect_losses()
                        on_steps(self.step - told)
                        told = self.step
                if self.outcome is None and evaluate:
                    values = self._evaluate()
            except AdamtuneError:
                raise
            except (Exception, SystemExit) as problem:
                self._inspect_losses()
                if self.outcome is None:
                    if self._sound_parameters():
                        when = "training step" if self.step < to_step else "the evaluation after training step"
                        step = self.step + 1 if self.step < to_step else self.step
                        raise raised(self._task, f"at {when} {step}", problem) from problem
                    self._history.diverge(max(0, self.step - 1))
        report = self._history.rung(values, self._probed)
        self._history.seconds += time.perf_counter() - began
        return report

    def prune(self) -> None:
        """End the trial here by decision of whoever compares it."""
        self._history.prune()

    def fail(self, why: str) -> None:
        """End the trial here: it cannot go on, for a reason that is not its recipe's."""
        self._history.fail(why)

    def result(self) -> TrialResult:
        """The trial as it stands; one that has not ended counts as pruned."""
        return self._history.result()

    def keep(self) -> None:
        """Save where the trial stands to its request's `checkpoint`, where there is one: once it has ended, or has
        trained so long since it was saved last that writing costs little beside.
        """
        seconds = self._history.seconds
        writing = self._writing if self.outcome is None else SYNC  # of its record alone
        if self._kept is None or self._told or seconds - self._kept_at < WORTH * writing:
            return
        if self.outcome is not None:
            write_state(self.request, self._history, {})
            return
        model = self._kept.read()
        if model is None or self._drawn is None:
            return
        parts = {
            "model": model,
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "scaler": self._scaler.state_dict() if self._scaler else None,
            "random": self._random.state(),
            "drawn": self._drawn,
        }
        self._writing = max(SYNC, write_state(self.request, self._history, parts))
        self._kept_at = seconds

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `keep` saved. Raises, and leaves the trial of no use, where it does not fit."""
        self._history = History.of(self.request, state["history"])
        self._told.extend(self._history.reports)
        self._kept_at = self._history.seconds
        if self._history.outcome is not None:
            return
        if "optimizer" not in state:
            raise ValueError("it was saved in a stack")
        with self._random.active(self._device):
            for step in range(self.step):
                seed_torch(derive_seed(self.request.seed, Stream.STEP, step), self._device)
                self._drawn = 0
                for _ in range(self.request.recipe.accumulate):
                    drawn = self._draw(step)
                    if step + 1 == self.step:
                        self._drawn = batch_digest(drawn, self._drawn)
        if self._kept is None or self._drawn != state["drawn"]:
            raise ValueError("other batches")
        self._random.restore(state["random"])
        self._kept.put_back(state["model"])
        self._optimizer.load_state_dict(own_copy(state["optimizer"]))
        self._scheduler.load_state_dict(state["scheduler"])
        if self._scaler:
            self._scaler.load_state_dict(state["scaler"])

    def _draw(self, step: int) -> Batch:
        return next_batch(self._task, self._batches, step, self.request.horizon)

    def _train_step(self, last: bool) -> None:
        """One optimizer step: `accumulate` batches, backward, clip, update; then the probe, before lr moves on, where
        it is the last before a rung.
        """
        self._drawn = 0
        recipe = self.request.recipe
        seed_torch(derive_seed(self.request.seed, Stream.STEP, self.step), self._device)
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for _ in range(recipe.accumulate):
            drawn = self._draw(self.step)
            if last and self._kept:
                self._drawn = batch_digest(drawn, self._drawn)
            batch = batch_to(drawn, self._device)
            with autocast(recipe.precision, self._device):
                loss = self._task.loss(self._model, batch)
            check_loss(self._task, loss, self.step)
            share = loss.reshape(()) / recipe.accumulate
            (self._scaler.scale(share) if self._scaler else share).backward()  # type: ignore[no-untyped-call]
            total = total + share.detach()
        updated = self._update()
        if last and self._probe:
            self._probed = self._probe.record()
        if updated:
            self._scheduler.step()
        else:
            self._history.skip()
        self._unread.append(total)
        self._history.step += 1

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
            self._history.diverge(self.step)
        return self._scaler.get_scale() >= before

    def _inspect_losses(self) -> None:
        self._history.read(torch.stack(self._unread).double().tolist() if self._unread else [])
        self._unread.clear()

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
        with torch.no_grad(), autocast(self.request.recipe.precision, self._device):
            for host_batch in self._task.val_batches():
                batch = batch_to(host_batch, self._device)
                size = batch_rows(batch)
                rows += size
                for name, measure in measures.items():
                    sums[name] += size * measured(self._task, name, measure(self._model, own_batch(batch)))
        self._model.train()
        if not rows:
            raise no_validation(self._task)
        return {name: total / rows for name, total in sums.items()}

    def _sound_parameters(self) -> bool:
        """Whether no parameter is NaN, infinite, or so large that what it is multiplied with may overflow."""
        return all(bool((param.detach().abs() < HUGE).all()) for param in self._params)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which forward passes of a recipe of this precision run."""
    match precision:
        case "fp32":
            return nullcontext()
        case "bf16":
            return torch.autocast(device.type, torch.bfloat16)
        case "fp16":
            return torch.autocast(device.type, torch.float16)
