"""What is known of a sweep while it runs, gathered from what it tells: nothing here prints."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adamtune.diagnosis import Told
from adamtune.groups import ParamGroup
from adamtune.plan import Plan, Progress
from adamtune.recipe import Recipe
from adamtune.report.sparkline import binned
from adamtune.report.wording import number
from adamtune.rundir import FINAL
from adamtune.spec import Spec
from adamtune.stages.context import Seeds, StageAnswer, TrialRecord
from adamtune.trial import RungReport, TrialRequest

_RATE_SECONDS = 60.0
"""Speed is measured over so long: stages differ in it."""


_POINTS = 32


@dataclass
class Running:
    """A trial under way, as far as its rungs tell."""

    request: TrialRequest
    step: int = 0
    value: float = math.nan
    """The objective where it was measured last."""
    train: list[float] = field(default_factory=list)
    """Training losses up to the last rung, as means over stretches: `_POINTS` a rung at most."""
    validation: list[float] = field(default_factory=list)
    """The validation loss at every rung that was evaluated."""
    label: str = ""
    """What tells it from the others; for whoever draws it to keep."""


class SoFar(Progress):
    """Keeps what a sweep tells, for a screen or for lines. It is written by one thread and may be read by another."""

    def __init__(self, spec: Spec, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing told yet. `clock`: seconds."""
        self.spec, self.run_dir = spec, run_dir
        self.plan: Plan | None = None
        self.stage, self.question = "", ""
        self.answers: dict[str, StageAnswer] = {}
        self.trials = 0
        """Trials that have ended."""
        self.base = self.incumbent = spec.base
        self.said: list[str] = []
        """Notes and findings, as they came."""
        self._clock, self._began = clock, clock()
        self._running: dict[int, Running] = {}
        self._ended_steps = self._under_way = self._trained = self._stage_start = 0
        self._samples: deque[tuple[float, int]] = deque([(self._began, 0)])
        self._unbiased = set(Seeds.of(spec, 0).confirm)
        self._values: dict[str, dict[int, float]] = {}

    @property
    def running(self) -> list[Running]:
        """The trials under way, the best first; those not measured yet last."""
        sign = 1.0 if self.spec.objective.direction == "minimize" else -1.0
        trials = list(self._running.values())
        return sorted(trials, key=lambda each: sign * each.value if math.isfinite(each.value) else math.inf)

    @property
    def spent(self) -> int:
        """Training steps of all trials, those of earlier sittings included."""
        return self._ended_steps + self._under_way

    @property
    def elapsed(self) -> float:
        """Seconds, those of earlier sittings included."""
        return self._clock() - self._began + (self.plan.seconds_before if self.plan else 0.0)

    @property
    def expected(self) -> int:
        """Steps that the whole sweep should come to: what is spent, and what is reckoned for all still to do."""
        if self.plan is None:
            return 0
        done_here = self.spent - self._stage_start
        to_do = 0
        for planned in self.plan.stages:
            if planned.name not in self.answers:
                to_do += max(0, planned.steps - (done_here if planned.name == self.stage else 0))
        final = max(0, self.plan.final_steps - (done_here if self.stage == FINAL else 0))
        left = max(0.0, self.plan.budget - self.plan.final_steps - self.spent)
        return self.spent + final + (0 if self.stage == FINAL else round(min(to_do, left)))

    @property
    def eta(self) -> float:
        """Seconds that are left, by the speed of the last minute; NaN where nothing was trained yet."""
        now = self._clock()
        if self._trained > self._samples[-1][1]:
            self._samples.append((now, self._trained))
        # Where a rung takes longer than a minute, since the rung before.
        while len(self._samples) > 2 and now - self._samples[1][0] > _RATE_SECONDS:
            self._samples.popleft()
        then, before = self._samples[0]
        if self._trained == before:
            return math.nan
        seconds_a_step = (now - then) / (self._trained - before)
        seconds = seconds_a_step * (self.expected - self.spent)
        if self.spec.budget.time is not None and self.plan is not None and self.stage != FINAL:
            left = max(0.0, self.spec.budget.time - self.elapsed)
            seconds = min(seconds, left + seconds_a_step * self.plan.final_steps)
        return seconds

    @property
    def standing(self) -> tuple[float, float, int] | None:
        """The objective of incumbent and default, and on how many seeds: means over those of the confirmation seeds,
        which chose nothing, on which both were trained. None where there are none.
        """
        mine, base = (self._values.get(recipe.training_key(), {}) for recipe in (self.incumbent, self.base))
        seeds = sorted(mine.keys() & base.keys())
        if not seeds:
            return None
        return (*(math.fsum(values[seed] for seed in seeds) / len(seeds) for values in (mine, base)), len(seeds))  # type: ignore[return-value]

    def on_plan(self, plan: Plan, groups: Sequence[ParamGroup]) -> None:
        """See `Progress`."""
        self.plan = plan
        self.base = self.incumbent = plan.base

    def on_stage(self, name: str, question: str) -> None:
        """See `Progress`."""
        self.stage, self.question, self._stage_start = name, question, self.spent

    def on_begin(self, requests: Sequence[TrialRequest]) -> None:
        """See `Progress`."""
        self._running |= {id(request): Running(request) for request in requests}

    def on_rung(self, requests: Sequence[TrialRequest], reports: Sequence[RungReport | None]) -> None:
        """See `Progress`."""
        for request, report in zip(requests, reports, strict=True):
            trial = self._running.get(id(request))
            if trial is None:
                continue
            if report is None:
                del self._running[id(request)]
                continue
            trial.step = report.step
            trial.train.extend(binned(report.train_losses, _POINTS))
            if "loss" in report.values:
                trial.validation.append(report.values["loss"])
            trial.value = report.values.get(self.spec.objective.name, trial.value)

    def on_end(self, requests: Sequence[TrialRequest]) -> None:
        """See `Progress`."""
        for request in requests:
            self._running.pop(id(request), None)

    def on_steps(self, steps: int) -> None:
        """See `Progress`."""
        self._trained += steps
        self._under_way += steps

    def on_note(self, note: str) -> None:
        """See `Progress`."""
        self.said.append(note)

    def on_trial(self, record: TrialRecord) -> None:
        """See `Progress`."""
        self.trials += 1
        self._ended_steps += record.result.steps
        self._under_way = 0  # all trials of a batch end at once, with their steps
        request = record.result.request
        whole = request.horizon == self.spec.horizon and request.ramp is None and math.isfinite(record.value)
        if whole and request.seed in self._unbiased:
            self._values.setdefault(request.recipe.training_key(), {})[request.seed] = record.value

    def on_answer(self, answer: StageAnswer) -> None:
        """See `Progress`."""
        self.answers[answer.stage] = answer
        self.incumbent = answer.recipe

    def on_findings(self, findings: Sequence[Told]) -> None:
        """See `Progress`."""
        self.said.extend(f"{told.finding.severity}: {told.finding.told}" for told in findings)


def changes(before: Recipe, after: Recipe) -> list[str]:
    """What was changed, knob by knob: `lr 0.001 -> 0.016`."""
    return [f"{name} {number(was)} -> {number(now)}" for name, (was, now) in before.diff(after).items()]


def standing_told(so_far: SoFar) -> list[str]:
    """The incumbent against the default, in pieces."""
    if so_far.incumbent.training_key() == so_far.base.training_key():
        return ["incumbent: the default"]
    standing, name = so_far.standing, so_far.spec.objective.name
    if standing is None:
        return ["incumbent: not compared with the default yet"]
    mine, base, seeds = standing
    ratio = [f"ratio {mine / base:.3f}"] if mine > 0 and base > 0 else []
    return [f"incumbent: {name} {number(mine)}", f"default: {number(base)}", *ratio, f"{seeds} seeds"]


def clock(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`; `-:--` where it is not known."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def spent_told(so_far: SoFar) -> list[str]:
    """Steps and time of the budget, and the time that is left, in pieces."""
    budget = so_far.plan.budget if so_far.plan else math.inf
    steps = f"{so_far.spent:,}" + (f" of {budget:,.0f}" if math.isfinite(budget) else "") + " steps"
    most = so_far.spec.budget.time
    return [
        steps,
        clock(so_far.elapsed) + (f" of {clock(most)}" if most is not None else ""),
        f"ETA {clock(so_far.eta)}",
    ]
