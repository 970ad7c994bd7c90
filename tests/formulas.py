"""An engine that trains nothing and computes every loss from a formula, to try out what stages decide."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage

from adamtune.groups import ParamGroup
from adamtune.recipe import Recipe
from adamtune.spec import Spec, TaskSpec
from adamtune.stages import context as stage_context
from adamtune.stages.context import Seeds, StageContext, TrialRecord
from adamtune.trial import Outcome, RungReport, TrialRequest, TrialResult

NAN = math.nan
Formula = Callable[[Recipe, int], float]


@dataclass
class FormulaEngine:
    """Trials whose loss at every step is `formula(recipe, seed)`; NaN is a divergence. A ramp's follows its lr."""

    formula: Formula
    short_formula: Formula | None = None
    """Of trials shorter than `short_below` steps, where these are not like the others."""
    short_below: int = 100
    early: Callable[[Recipe, int], float] | None = None
    """What is added to a loss at a step before the horizon, from 1."""
    probe: Callable[[Recipe], Mapping[str, float]] | None = None
    """What a probe records of a recipe, where one is asked for."""
    probe_at: Callable[[float], Mapping[str, float]] | None = None
    """What it records at a share of the run, in place of that."""
    seconds: Callable[[Recipe], float] = lambda recipe: 0.0
    """Of a step."""
    fails: Callable[[TrialRequest], bool] = lambda request: False
    """Which trials fail before their first step."""
    unscored: Callable[[TrialRequest], bool] = lambda request: False
    """Which trials have no finite `score` beside their loss."""
    untrained: float = 1e9
    name: str = "formula"
    opened: list[TrialRequest] = field(default_factory=list)
    steps: int = 0

    def open(self, requests: Sequence[TrialRequest]) -> FormulaBatch:
        self.opened.extend(requests)
        return FormulaBatch(self, requests)


class FormulaBatch:
    def __init__(self, engine: FormulaEngine, requests: Sequence[TrialRequest]) -> None:
        self._engine, self._requests = engine, requests
        self._steps = [0] * len(requests)
        self._outcomes: list[Outcome | None] = [
            Outcome.FAILED if engine.fails(request) else None for request in requests
        ]
        self._rungs: list[list[RungReport]] = [[] for _ in requests]

    def _loss(self, request: TrialRequest, step: int) -> float:
        ramp = request.ramp
        recipe = request.recipe if ramp is None else request.recipe.with_knob("lr", ramp.lr_at(step))
        short = self._engine.short_formula if request.horizon < self._engine.short_below else None
        early = self._engine.early if step + 1 < request.horizon else None
        return (short or self._engine.formula)(recipe, request.seed) + (early(recipe, step + 1) if early else 0.0)

    def advance(self, to_step: int, evaluate: bool = True) -> list[RungReport | None]:
        return [self._advance(at, to_step, evaluate) for at in range(len(self._requests))]

    def _advance(self, at: int, to_step: int, evaluate: bool) -> RungReport | None:
        request = self._requests[at]
        if self._outcomes[at] is not None:
            return None
        new = range(self._steps[at], min(to_step, request.horizon))
        self._engine.steps += len(new)
        self._steps[at] += len(new)
        if request.ramp is None and self._engine.early is None:  # every step has the same
            losses = tuple([self._loss(request, 0)] * len(new)) if new else ()
        else:
            losses = tuple(self._loss(request, step) for step in new)
        last = losses[-1] if losses else self._engine.untrained
        values = {"loss": last, "score": math.nan if self._engine.unscored(request) else last} if evaluate else {}
        probe = self._engine.probe(request.recipe) if self._engine.probe and request.probe else {}
        if self._engine.probe_at and request.probe:
            probe = self._engine.probe_at(self._steps[at] / request.horizon)
        self._rungs[at].append(RungReport(self._steps[at], losses, values, probe))
        if not all(map(math.isfinite, losses)):
            self._outcomes[at] = Outcome.DIVERGED
            return None
        if self._steps[at] == request.horizon:
            self._outcomes[at] = Outcome.COMPLETED
        return self._rungs[at][-1]

    def prune(self, index: int) -> None:
        self._outcomes[index] = self._outcomes[index] or Outcome.PRUNED

    def results(self) -> list[TrialResult]:
        rows = zip(self._requests, self._outcomes, self._steps, self._rungs, strict=True)
        return [
            TrialResult(
                request, outcome or Outcome.PRUNED, steps, tuple(rungs), steps * self._engine.seconds(request.recipe)
            )
            for request, outcome, steps, rungs in rows
        ]


@dataclass
class Bench:
    """A stage context over a formula, and all that happened in it."""

    context: StageContext
    engine: FormulaEngine
    records: list[TrialRecord]
    storage: BaseStorage

    def trained(self, **options: Any) -> list[TrialRequest]:
        return [r for r in self.engine.opened if all(getattr(r, key) == value for key, value in options.items())]


def bench(formula: Formula, budget: float = math.inf, groups: Sequence[ParamGroup] = (), **spec: Any) -> Bench:
    options: dict[str, Any] = {"task": TaskSpec(ref="a:b"), "horizon": 8, "seeds": 2, "base": Recipe()}
    whole = Spec(**options | spec)
    engine, storage = FormulaEngine(formula), InMemoryStorage()
    records: list[TrialRecord] = []
    context = StageContext(
        spec=whole,
        engine=engine,
        storage=storage,
        budget=stage_context.Budget(steps=budget),
        seeds=Seeds.of(whole, fresh=5),
        on_trial=records.append,
        groups=groups,
    )
    return Bench(context, engine, records, storage)


def noise(scale: float, *about: object) -> float:
    return random.Random(repr(about)).gauss(0.0, scale)
