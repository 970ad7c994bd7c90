"""What every stage is given: the spec, the engine, the budget, the study; and how a trial gets trained and kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.storages import BaseStorage

from adamtune.engines import Engine, FinishedTrials, ResumableBatch, ResumableEngine, TrialBatch, TrialWatch
from adamtune.errors import AdamtuneError, NothingLearned, TrialFailed
from adamtune.evidence import ERROR, LOOKS, Direction, Evidence, Verdict, settled, share_of_error, weigh
from adamtune.groups import ParamGroup
from adamtune.knobs import Choice, Knob
from adamtune.recipe import Recipe
from adamtune.schedule import rescaled
from adamtune.search import Asked, KnobStudy
from adamtune.search.portfolio import Start
from adamtune.spec import Spec
from adamtune.trial import Outcome, RungReport, TrialRequest, TrialResult

CONFIRM_SEEDS = 5
"""Seeds a confirmation is reckoned with in a plan: the clear ones take three, the others up to twelve. They chose no
candidate; every stage uses the same, so that the incumbent is trained on them once."""

Enough = Callable[[Evidence, Direction, Sequence[int], float], bool]
"""Whether a comparison may end: `evidence.settled`, or another rule with its arguments."""

_SEEDS_APART = 10_000


class BudgetSpent(AdamtuneError):
    """The next trials would cost more than is left. The plan catches it and keeps the incumbent."""


def refuse_failed(stage: str, results: Iterable[TrialResult]) -> None:
    """Raise `TrialFailed` where one of the trials failed: it says nothing of its recipe, and leaves no comparison."""
    for result in results:
        if result.outcome is Outcome.FAILED:
            request = result.request
            raise TrialFailed(
                f"{stage}: the trial with seed {request.seed} failed after {result.steps} of {request.horizon} steps "
                f"({result.message}), and without it there is nothing to compare; raise trial_timeout, or mend what "
                "held it up"
            )


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial of a sweep, as `trials.csv` and `curves.csv` tell it."""

    stage: str
    study: str
    number: int
    result: TrialResult
    value: float
    """The objective at the horizon; NaN unless completed."""


@dataclass(frozen=True)
class StageAnswer:
    """What a stage found out, and the recipe it leaves."""

    stage: str
    question: str
    verdict: Verdict
    reason: str
    recipe: Recipe
    before: Any = None
    """The value of the stage's knob it found, and `after` the one it leaves."""
    after: Any = None
    evidence: Evidence | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain data for the report, e.g. a response curve."""


@dataclass
class Budget:
    """Steps and seconds the search may still spend. Counts every step trained, whoever asked for it."""

    steps: float = math.inf
    deadline: float = math.inf
    """On time.monotonic's clock."""
    spent: int = 0

    def affords(self, steps: int) -> bool:
        """Whether `steps` more fit; of time nobody can say."""
        return self.spent + steps <= self.steps

    def claim(self, steps: int, in_time: Callable[[], bool] = lambda: False) -> None:
        """Raise `BudgetSpent` unless `steps` more fit. `in_time` tells of what was claimed before the deadline."""
        if not self.affords(steps):
            raise BudgetSpent(f"{steps} more steps do not fit the budget of {self.steps:g}")
        if time.monotonic() > self.deadline and not in_time():
            raise BudgetSpent("the time is spent")


@dataclass(frozen=True)
class Seeds:
    """Disjoint sets of seeds: those that choose candidates, that confirm them, and that judge the final recipe."""

    search: tuple[int, ...]
    confirm: tuple[int, ...]
    fresh: tuple[int, ...]

    @classmethod
    def of(cls, spec: Spec, fresh: int) -> Seeds:
        """The seeds of a spec; another `seed` shifts them all."""
        start = spec.seed * 3 * _SEEDS_APART

        def block(index: int, count: int) -> tuple[int, ...]:
            return tuple(range(start + index * _SEEDS_APART, start + index * _SEEDS_APART + count))

        return cls(block(0, spec.seeds), block(1, LOOKS[-1]), block(2, fresh))


class StageContext:
    """Trains what stages ask for, once; keeps every trial; counts every step."""

    def __init__(
        self,
        spec: Spec,
        engine: Engine,
        storage: BaseStorage,
        budget: Budget,
        seeds: Seeds,
        on_trial: Callable[[TrialRecord], None] = lambda record: None,
        name: str = "run",
        groups: Sequence[ParamGroup] = (),
        learned: Sequence[Start] = (),
        finished: FinishedTrials | None = None,
        stop: Callable[[], bool] = lambda: False,
        watch: TrialWatch | None = None,
    ) -> None:
        """`finished` has the trials of earlier sittings; `stop` tells at every rung whether to interrupt there.

        `watch` hears of trials while they train.

        `name` is the run's, for its studies; `on_trial` hears of every trial as it ends.

        `groups` are those that the spec's base recipe makes of the model, `learned` what former runs propose.
        """
        self.spec, self.budget, self.seeds, self.groups = spec, budget, seeds, tuple(groups)
        self.learned = tuple(learned)
        self.answers: dict[str, StageAnswer] = {}
        self._name, self._storage, self._on_trial = name, storage, on_trial
        self._engine = ResumableEngine(engine, finished, stop, watch)
        self._studies: dict[str, KnobStudy] = {}
        self._tests = 0
        self._error_left = ERROR
        self._known: dict[tuple[str, int, int], TrialResult] = {}

    @property
    def verdicts(self) -> dict[str, str]:
        """What each stage has decided so far, by its name."""
        return {name: str(answer.verdict) for name, answer in self.answers.items()}

    @property
    def horizon(self) -> int:
        """Steps of the run the recipe is for."""
        return self.spec.horizon

    def value(self, result: TrialResult) -> float:
        """The objective of a trial at its horizon; NaN unless it completed."""
        return result.final(self.spec.objective.name)

    def ending(self, result: TrialResult) -> str:
        """How a trial without a value ended, as a verdict tells it."""
        if result.outcome is Outcome.COMPLETED:
            return f"had no finite {self.spec.objective.name} (let the metric return a number)"
        return str(result.outcome)

    def refuse_unmeasured(self, stage: str, results: Iterable[TrialResult]) -> None:
        """Of trials none of which has a value: raise as `refuse_failed`, and where one has completed all the same."""
        results = list(results)
        refuse_failed(stage, results)
        if any(result.outcome is Outcome.COMPLETED for result in results):
            raise NothingLearned(
                f"{stage}: the metric '{self.spec.objective.name}' is not finite in any trial that completed, though "
                "the loss is; let it return a number for every validation batch"
            )

    def score(self, values: Iterable[float]) -> float:
        """Mean objective as a loss (lower is better, whatever the direction); inf when any value is missing."""
        values = list(values)
        if not values or not all(map(math.isfinite, values)):
            return math.inf
        mean = math.fsum(values) / len(values)
        return mean if self.spec.objective.direction == "minimize" else -mean

    def study(self, stage: str, knobs: Iterable[Knob | Choice] = (), keep: float = 0.5) -> KnobStudy:
        """The stage's Optuna study, RUN/STAGE, so that runs can share a storage."""
        if stage not in self._studies:
            name, direction = f"{self._name}/{stage}", self.spec.objective.direction
            self._studies[stage] = KnobStudy(self._storage, name, knobs, direction, self.spec.seed, keep)
        return self._studies[stage]

    def measure(self, stage: str, recipe: Recipe, seeds: Sequence[int]) -> list[TrialResult]:
        """Train a fixed recipe to the horizon on each seed; what was trained before is not trained again.

        Raises `TrialFailed` where a trial fails.
        """
        (results,) = self.measure_all(stage, [recipe], seeds)
        refuse_failed(stage, results)
        return results

    def measure_all(self, stage: str, recipes: Sequence[Recipe], seeds: Sequence[int]) -> list[list[TrialResult]]:
        """The same for several recipes, side by side; a trial that fails is a result."""
        asked: list[Asked] = []
        requests: list[TrialRequest] = []
        for recipe in {recipe.training_key(): recipe for recipe in recipes}.values():
            missing = [seed for seed in seeds if (recipe.training_key(), seed, self.horizon) not in self._known]
            if missing:
                asked += self.study(stage).ask({}, missing, recipe=recipe.to_dict())
                requests += [TrialRequest(recipe, seed, self.horizon, probe=True) for seed in missing]
        if requests:
            self.race(stage, self.study(stage), asked, requests, rungs=self.rungs())
        return [[self._known[recipe.training_key(), seed, self.horizon] for seed in seeds] for recipe in recipes]

    def known(self, recipe: Recipe, seed: int) -> TrialResult | None:
        """What a recipe did on a seed up to the horizon, where it was trained before and not pruned."""
        return self._known.get((recipe.training_key(), seed, self.horizon))

    def probes(self, recipe: Recipe) -> list[Mapping[str, float]]:
        """What was recorded of Adam's state in the trials of a recipe to the horizon: one record a rung.

        Trials of `measure` record it. See `AdamProbe` for the keys.
        """
        return [rung.probe for rung in self.probed(recipe)]

    def probed(self, recipe: Recipe) -> list[RungReport]:
        """The rungs of those records, which tell the step."""
        return [rung for result in self.trained(recipe) for rung in result.rungs if rung.probe]

    def trained(self, recipe: Recipe) -> list[TrialResult]:
        """All trials of a recipe to the horizon until now."""
        mine = (recipe.training_key(), self.horizon)
        return [result for (key, _, horizon), result in self._known.items() if (key, horizon) == mine]

    def rungs(self) -> list[int]:
        """Where full-length trials are evaluated: eight points of the curve, the horizon last."""
        return sorted({max(1, round(self.horizon * share / 8)) for share in range(1, 9)})

    def request(self, recipe: Recipe, seed: int, horizon: int) -> TrialRequest:
        """A trial of `horizon` steps, the whole schedule of the recipe's run squeezed into them."""
        schedule = rescaled(recipe.schedule, self.horizon, horizon)
        return TrialRequest(recipe.model_copy(update={"schedule": schedule}), seed, horizon)

    def race(
        self,
        stage: str,
        study: KnobStudy,
        asked: Sequence[Asked],
        requests: Sequence[TrialRequest],
        rungs: Sequence[int],
        prune_at: Iterable[int] = (),
    ) -> list[TrialResult]:
        """Train the trials asked for side by side, evaluating at `rungs`; at `prune_at` the study may stop some.

        Every request must have the last rung as its horizon. Raises `BudgetSpent` before training anything.
        """
        batch = self.open(requests)
        try:
            self._advance(batch, study, asked, rungs, prune_at)
        finally:  # whatever happens, what was trained is counted and kept
            results = self.close(stage, study, asked, batch)
        return results

    def _advance(
        self,
        batch: TrialBatch,
        study: KnobStudy,
        asked: Sequence[Asked],
        rungs: Sequence[int],
        prune_at: Iterable[int],
    ) -> None:
        objective = self.spec.objective.name
        for rung in rungs:
            reports = batch.advance(rung)
            running = [(index, report) for index, report in enumerate(reports) if report is not None]
            for index, report in running:
                study.report(asked[index], rung, report.values[objective])
            if rung in prune_at:
                for index, _ in running:
                    if study.should_prune(asked[index]):
                        batch.prune(index)

    def open(self, requests: Sequence[TrialRequest]) -> ResumableBatch:
        """Trials that are no race, such as the range test's; the caller must `close` them."""
        self.claim(requests, sum(request.horizon for request in requests))
        return self._engine.open(requests)

    def claim(self, requests: Sequence[TrialRequest], steps: int) -> None:
        """Raise `BudgetSpent` unless the budget has `steps` for these trials.

        Of time it also has what an earlier sitting had: trials that were begun there were claimed before the deadline.
        """
        self.budget.claim(steps, in_time=lambda: any(map(self._engine.begun, requests)))

    def close(
        self,
        stage: str,
        study: KnobStudy,
        asked: Sequence[Asked],
        batch: ResumableBatch,
        value: Callable[[TrialResult], float] | None = None,
    ) -> list[TrialResult]:
        """The results of a batch, counted, kept and told to the study with their objective, or `value` in its place.

        Where the sweep was interrupted the trials stay open in the study: a later sitting goes through them again.
        """
        results = batch.results()
        for trial, result in zip(asked, results, strict=True):
            if not batch.interrupted:
                study.tell(trial, result, (value or self.value)(result))
            self._keep(stage, study.name, trial.number, result)
        return results

    def _keep(self, stage: str, study: str, number: int, result: TrialResult) -> None:
        self.budget.spent += result.steps
        request = result.request
        if request.ramp is None and result.outcome is not Outcome.PRUNED:
            self._known[request.recipe.training_key(), request.seed, request.horizon] = result
        self._on_trial(TrialRecord(stage, study, number, result, self.value(result)))

    def confirm(self, stage: str, incumbent: Recipe, challenger: Recipe, enough: Enough = settled) -> Evidence:
        """Both recipes to the horizon on the seeds kept for confirmation, paired; on more seeds until `enough` says so.

        Every confirmation of a sweep takes a smaller share of the error allowed to all, and divides it among as many
        looks as the budget could pay for: where it cannot pay for a second one, the only one takes all seeds it pays
        for. Where it cannot pay for another confirmation either, this one takes all the error that is left. One that
        divergence decides takes none. Raises `BudgetSpent` when it cannot pay for the first, and `TrialFailed` where a
        trial of the incumbent fails.
        """
        looks = self._looks([incumbent, challenger])
        # A budget for one look pays for nothing after it, unless a trial diverges.
        share = self._error_left if len(looks) == 1 else share_of_error(self._tests + 1)
        share = min(share, self._error_left)
        error = share / len(looks)
        direction = self.spec.objective.direction
        evidence: Evidence | None = None
        tested = False
        for place, look in enumerate(looks):
            seeds = self.seeds.confirm[:look]
            try:
                results = self.measure_all(stage, [incumbent, challenger], seeds)
            except BudgetSpent:  # the time, which may run out on the way
                if evidence is None:
                    raise
                break
            refuse_failed(stage, results[0])
            here, there = ([self.value(result) for result in own] for own in results)
            mine, others = ([self.ending(result) for result in own] for own in results)
            evidence = weigh(seeds, here, there, direction, error, (mine, others))
            tested |= evidence.tested
            if enough(evidence, direction, looks[place + 1 :], error):
                break
        assert evidence is not None  # there is one look at least
        if tested:
            self._tests += 1
            self._error_left -= share
        return evidence

    def _looks(self, recipes: Sequence[Recipe]) -> list[int]:
        """Numbers of seeds after which to decide, as far as the budget goes; the first in any case."""
        most = max(
            (n for n in range(LOOKS[0], LOOKS[-1] + 1) if self.budget.affords(self._missing(recipes, n))), default=0
        )
        return [look for look in LOOKS if look <= most] if most >= LOOKS[1] else [max(most, LOOKS[0])]

    def _missing(self, recipes: Sequence[Recipe], count: int) -> int:
        """Steps that it takes to know the recipes on the first `count` seeds of confirmation."""
        keys = {recipe.training_key() for recipe in recipes}
        seeds = self.seeds.confirm[:count]
        return self.horizon * sum((key, seed, self.horizon) not in self._known for key in keys for seed in seeds)
