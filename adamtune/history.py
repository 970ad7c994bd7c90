"""What is written down about one trial while it trains: losses, rungs, and how it ended. Whoever trains fills it."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from adamtune.divergence import DivergenceWatch, patience_for
from adamtune.recipe import Recipe
from adamtune.schedule import multiplier, switch_step

INSPECT_EVERY = 16
"""Steps between looks at the losses: on a GPU each look waits for the device. Part of a trial's definition, since a
diverged trial has trained up to this many steps past its divergence, and they count."""


class Outcome(StrEnum):
    """How a trial ended."""

    COMPLETED = "completed"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Ramp:
    """An exponential lr ramp from `start` to `end` over `steps` updates, in place of the recipe's lr, schedule and
    switch.
    """

    start: float
    end: float
    steps: int
    group: str | None = None
    """Ramp this group only; the others hold the recipe's lr."""

    def lr_at(self, step: int) -> float:
        """Learning rate of update `step`, from 0; groups multiply it by their own `lr_mult`."""
        share = step / max(1, self.steps - 1)
        return math.exp((1 - share) * math.log(self.start) + share * math.log(self.end))


@dataclass(frozen=True, slots=True)
class TrialRequest:
    """One training run to do: one recipe, one seed, up to `horizon` optimizer steps."""

    recipe: Recipe
    seed: int
    horizon: int
    ramp: Ramp | None = None
    probe: bool = False
    """Whether rungs record Adam's state."""
    checkpoint: Path | None = field(default=None, compare=False, repr=False)
    """Where its state is kept from rung to rung, for a later sitting or another process of this machine."""

    @property
    def key(self) -> str:
        """A text equal for two requests whose trials have the same numbers."""
        ramp = self.ramp and asdict(self.ramp)
        return json.dumps([self.recipe.training_key(), self.seed, self.horizon, ramp, self.probe])

    def multiplier(self, step: int) -> float:
        """What the lr of update `step`, from 0, is multiplied by: the schedule's, or the ramp's in its place."""
        if self.ramp is None:
            return multiplier(self.recipe.schedule, step, self.horizon)
        return self.ramp.lr_at(step) / self.recipe.lr

    @property
    def switch_at(self) -> int | None:
        """The first update, from 0, that is SGD's; None where Adam hands over to nobody, as in a ramp."""
        if self.ramp is not None or self.recipe.switch is None:
            return None
        return switch_step(self.recipe.switch, self.horizon)

    @property
    def ramped(self) -> str | None:
        """The one group that moves; None where all do."""
        return self.ramp.group if self.ramp else None


_NOTHING: Mapping[str, float] = {}
"""Shared by the rungs without a record: a sweep holds tens of thousands."""


@dataclass(frozen=True, slots=True)
class RungReport:
    """What was measured when a trial reached a rung."""

    step: int
    train_losses: Sequence[float]
    """Of every step since the rung before; NaN where fp16 skipped the update. Kept as an `array`, in eight bytes each:
    a sweep holds those of all its trials."""
    values: Mapping[str, float]
    """Validation `loss` and the task's metrics; empty where the rung was not evaluated."""
    probe: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take the losses from any sequence."""
        object.__setattr__(self, "train_losses", array("d", self.train_losses))
        if not self.probe:
            object.__setattr__(self, "probe", _NOTHING)


@dataclass(frozen=True, slots=True)
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


_WORST_FIRST = (Outcome.DIVERGED, Outcome.FAILED, Outcome.PRUNED, Outcome.COMPLETED)


def worst(results: Iterable[TrialResult]) -> Outcome:
    """How the trials of one recipe ended taken together: diverged where one has, else failed, else pruned."""
    return min((result.outcome for result in results), key=_WORST_FIRST.index)


class History:
    """A trial's record under way. `outcome` is None while it runs."""

    def __init__(self, request: TrialRequest) -> None:
        """Nothing trained yet."""
        self.request = request
        self.outcome: Outcome | None = None
        self.step = 0
        """Optimizer steps done."""
        self.seconds = 0.0
        self._message = ""
        self._rungs: list[RungReport] = []
        self._losses: list[float] = []
        self._reported = 0
        self._skipped: set[int] = set()
        self._watch = DivergenceWatch(patience_for(request.horizon))

    def skip(self) -> None:
        """The step under way made no update: fp16 overflowed."""
        self._skipped.add(self.step)

    def read(self, losses: Iterable[float]) -> None:
        """Take the losses of the steps since the last look; the trial ends where they show that it diverged."""
        for loss in losses:
            at = len(self._losses)
            self._losses.append(loss)
            if at not in self._skipped and self._watch.diverged(loss):
                self.diverge(at)
                break

    def diverge(self, step: int) -> None:
        """End the trial: it diverged with step `step`, from 0."""
        self.outcome = Outcome.DIVERGED
        self._message = f"diverged at step {step + 1}"

    def rung(self, values: Mapping[str, float], probed: Mapping[str, float]) -> RungReport | None:
        """Close a rung with what was measured there; the report, or None where the trial has diverged."""
        if self.outcome is None and not math.isfinite(values.get("loss", 0.0)):
            self.diverge(self.step - 1)
        new = enumerate(self._losses[self._reported :], start=self._reported)
        losses = [math.nan if at in self._skipped else loss for at, loss in new]
        self._reported = len(self._losses)
        report = RungReport(self.step, losses, values, {} if self.outcome else probed)
        self._rungs.append(report)
        if self.outcome is None and self.step >= self.request.horizon:
            self.outcome = Outcome.COMPLETED
        return None if self.outcome is Outcome.DIVERGED else report

    def fail(self, why: str) -> None:
        """End the trial here: it cannot go on."""
        self.outcome, self._message = Outcome.FAILED, why

    def prune(self) -> None:
        """End the trial here by decision of whoever compares it."""
        if self.outcome is None:
            self.outcome = Outcome.PRUNED

    def result(self) -> TrialResult:
        """The trial as it stands; one that has not ended counts as pruned."""
        return TrialResult(
            self.request, self.outcome or Outcome.PRUNED, self.step, tuple(self._rungs), self.seconds, self._message
        )

    @property
    def reached(self) -> list[int]:
        """Steps of the rungs so far."""
        return [rung.step for rung in self._rungs]

    @property
    def reports(self) -> list[RungReport | None]:
        """What `rung` has answered so far."""
        last = len(self._rungs) - 1 if self.outcome is Outcome.DIVERGED else None
        return [None if place == last else rung for place, rung in enumerate(self._rungs)]

    def state(self) -> dict[str, Any]:
        """All of it as plain data; `of` makes a record of it."""
        return {
            "outcome": self.outcome and str(self.outcome),
            "step": self.step,
            "seconds": self.seconds,
            "message": self._message,
            "rungs": [
                (rung.step, list(rung.train_losses), dict(rung.values), dict(rung.probe)) for rung in self._rungs
            ],
            "losses": self._losses,
            "reported": self._reported,
            "skipped": sorted(self._skipped),
            "watch": self._watch.state(),
        }

    @classmethod
    def of(cls, request: TrialRequest, state: Mapping[str, Any]) -> History:
        """The record that `state` was made of. Raises where it is something else."""
        history = cls(request)
        history.outcome = state["outcome"] and Outcome(state["outcome"])
        history.step, history.seconds, history._message = state["step"], state["seconds"], state["message"]
        history._rungs = [RungReport(*rung) for rung in state["rungs"]]
        history._losses, history._reported = list(state["losses"]), state["reported"]
        history._skipped = set(state["skipped"])
        history._watch.restore(state["watch"])
        return history
