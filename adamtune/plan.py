"""Which questions to ask within the budget, in which order; asking them; and the last comparison on fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from adamtune.diagnosis import Told
from adamtune.engines import TrialWatch
from adamtune.errors import InputError, NothingLearned
from adamtune.evidence import Evidence, Interval, Verdict, interval, weigh
from adamtune.groups import ParamGroup
from adamtune.recipe import Recipe
from adamtune.rundir import FINAL
from adamtune.spec import FRESH_SEEDS, Objective, Spec, StageName
from adamtune.stages import REGISTRY
from adamtune.stages.context import BudgetSpent, StageAnswer, StageContext, TrialRecord, refuse_failed
from adamtune.stages.costs import budget_steps
from adamtune.stages.findings import found_until_now
from adamtune.trial import Outcome, TrialResult

_FULL_TRIALS_FOR: dict[StageName, int] = {
    **{"lr_range": 0, "lr": 0, "beta1": 10, "eps": 25},
    **{"findings": 25, "portfolio": 25, "precision": 50},
}
_FULL_TRIALS_FOR_THE_REST = 40
"""How many full trials must be affordable before `auto` asks a stage: lr alone under ten, beta1 from ten, eps from 25,
beta2 and all else with many more (Google's tuning playbook). Neither findings nor a portfolio are knobs; 25 can pay for
them. 16 bits are judged on more seeds than all else."""


OTHER_SEEDS = 10
"""The final figures' intervals are for the mean over so many seeds of a reader's own, who will hardly train more."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage to ask, and the training steps it is reckoned with; it often takes fewer, as trials are pruned."""

    name: StageName
    question: str
    steps: int


@dataclass(frozen=True)
class Plan:
    """The stages to ask in order, and the steps set aside for the last comparison."""

    base: Recipe
    """What the sweep starts from: the spec's base recipe, with the groups that the task names."""
    stages: tuple[PlannedStage, ...]
    final_steps: int
    budget: float
    """Steps in all; inf when only time bounds the search."""
    seconds_per_step: float = math.nan
    """Of one trial by itself, timed on this machine; NaN where it was not."""
    seconds_before: float = 0.0
    """What earlier sittings of the sweep took."""
    too_dear: tuple[StageName, ...] = ()
    """What `auto` would ask of a larger budget."""

    @property
    def steps(self) -> int:
        """What the whole sweep is reckoned with: all stages, or the budget where it ends before."""
        return round(min(sum(stage.steps for stage in self.stages) + self.final_steps, self.budget))


@dataclass(frozen=True)
class Measured:
    """A recipe's objective on the fresh seeds."""

    recipe: Recipe
    values: tuple[float, ...]
    """By seed; NaN where the trial diverged, or its metric is none."""
    diverged: int
    """On how many seeds."""
    summary: Interval
    """Their mean, and where the mean over `OTHER_SEEDS` other seeds should lie."""
    steps_to: tuple[float, ...] = ()
    """By seed: the step of the first of the eight rungs at which `time_to` was reached, inf where it never was. Empty
    without `time_to`."""


@dataclass(frozen=True)
class Conclusion:
    """Default against recommended, on seeds no stage has seen."""

    default: Measured
    recommended: Measured
    evidence: Evidence


class Progress(TrialWatch):
    """What a sweep tells whoever watches. The library never prints; a subclass may."""

    def on_plan(self, plan: Plan, groups: Sequence[ParamGroup]) -> None:
        """The plan and the base recipe's param groups, before anything is trained."""

    def on_stage(self, name: str, question: str) -> None:
        """A stage begins; the last comparison counts as one."""

    def on_steps(self, steps: int) -> None:
        """So many training steps were just done."""

    def on_note(self, note: str) -> None:
        """One line: how trials are trained (in stacks or one by one, and why), or what was learned from former runs."""

    def on_trial(self, record: TrialRecord) -> None:
        """A trial has ended."""

    def on_answer(self, answer: StageAnswer) -> None:
        """A stage has its answer."""

    def on_findings(self, findings: Sequence[Told]) -> None:
        """What the rules find in the incumbent's trials and had not found in an incumbent's before."""


def fresh_seeds(spec: Spec) -> int:
    """How many fresh seeds judge the recipe."""
    return max(FRESH_SEEDS, spec.seeds)


def final_steps(spec: Spec) -> int:
    """Training steps of the last comparison."""
    return 2 * fresh_seeds(spec) * spec.horizon


def make_plan(spec: Spec, groups: Sequence[ParamGroup] = ()) -> Plan:
    """The stages the spec lists, or all that its budget is large enough for, lr first.

    `groups` are the model's by the base recipe. `auto` leaves out what cannot matter to them. What the stages are
    reckoned with may add up to more than the budget: the later ones are asked as far as it goes.

    Raises `InputError` when the budget cannot pay for the first question and the last comparison.
    """
    budget, final = budget_steps(spec), final_steps(spec)
    planned: list[PlannedStage] = []
    too_dear: list[StageName] = []
    for stage in REGISTRY.values():
        missing = bool(stage.missing(spec, groups))
        steps = 0 if missing else stage.cost(spec)
        listed = stage.name in spec.stages if spec.stages is not None else False
        # `auto` always asks for lr; further questions only when the budget could pay for lr and for them.
        affordable = (
            stage.name in ("lr_range", "lr") or sum(first.steps for first in planned[:2]) + steps <= budget - final
        )
        enough = _FULL_TRIALS_FOR.get(stage.name, _FULL_TRIALS_FOR_THE_REST) * spec.horizon
        wanted = spec.stages is None and budget >= enough and affordable and not missing
        if listed or wanted:
            planned.append(PlannedStage(stage.name, stage.question, steps))
        elif spec.stages is None and not missing:
            too_dear.append(stage.name)
    if spec.stages is not None:
        planned.sort(key=lambda stage: spec.stages.index(stage.name) if spec.stages else 0)
    first = [stage.steps for stage in planned[: 2 if planned[0].name == "lr_range" else 1]]
    least = final + sum(first)
    if budget < least:
        raise InputError(
            f"the budget of {budget:g} steps is too small: the first question and the comparison on "
            f"{fresh_seeds(spec)} fresh seeds can take {least:,} steps ({math.ceil(least / spec.horizon)} trials); "
            "raise the budget, or lower seeds or the horizon"
        )
    return Plan(spec.base, tuple(planned), final, budget, too_dear=tuple(too_dear))


def run_plan(plan: Plan, context: StageContext, progress: Progress) -> Recipe:
    """Ask every stage in turn, each starting from the recipe the one before left."""
    incumbent = context.spec.base
    known: set[tuple[str, str | None]] = set()
    for planned in plan.stages:
        progress.on_stage(planned.name, planned.question)
        stage = REGISTRY[planned.name]
        unasked = stage.missing(context.spec.model_copy(update={"base": incumbent}), context.groups)
        try:
            answer = stage.run(context, incumbent) if not unasked else None
        except BudgetSpent as spent:
            answer, unasked = None, str(spent)
        if answer is None:
            answer = StageAnswer(planned.name, planned.question, Verdict.UNASKED, unasked, incumbent)
        context.answers[planned.name] = answer
        incumbent = answer.recipe
        progress.on_answer(answer)
        found = {(told.finding.rule, told.finding.group): told for told in found_until_now(context, incumbent)}
        if new := [told for place, told in found.items() if place not in known]:
            progress.on_findings(new)
        known |= set(found)
    return incumbent


def conclude(context: StageContext, recommended: Recipe, progress: Progress) -> Conclusion:
    """Train the base recipe and the recommended one on the fresh seeds.

    Raises `NothingLearned` when the recommended recipe has no finite objective there on any seed, `TrialFailed` where a
    trial fails.
    """
    progress.on_stage(FINAL, "How do default and recommended compare on seeds no stage has seen?")
    context.budget.steps = context.budget.deadline = math.inf  # what was set aside for this is spent now
    seeds = context.seeds.fresh
    recipes = (context.spec.base, recommended)
    results = context.measure_all(FINAL, recipes, seeds)
    refuse_failed(FINAL, chain.from_iterable(results))
    default, answer = (_measured(context, recipe, own) for recipe, own in zip(recipes, results, strict=True))
    if not any(map(math.isfinite, answer.values)):
        if any(result.outcome is Outcome.COMPLETED for result in results[1]):
            raise NothingLearned(
                f"the metric '{context.spec.objective.name}' is not finite in any trial on the {len(seeds)} fresh "
                "seeds, though the loss is, so nothing is recommended; check how the task computes it"
            )
        raise NothingLearned(
            f"every trial diverged on the {len(seeds)} fresh seeds, so nothing is recommended; "
            "check the task's loss for overflow, or lower lr in the base recipe"
        )
    mine, others = ([context.ending(result) for result in own] for own in results)
    direction = context.spec.objective.direction
    evidence = weigh(seeds, default.values, answer.values, direction, ends=(mine, others))
    return Conclusion(default, answer, evidence)


def _measured(context: StageContext, recipe: Recipe, results: Sequence[TrialResult]) -> Measured:
    values = tuple(context.value(result) for result in results)
    target = context.spec.objective.time_to
    steps = () if target is None else tuple(_steps_to(context.spec.objective, result) for result in results)
    diverged = sum(result.outcome is Outcome.DIVERGED for result in results)
    return Measured(recipe, values, diverged, interval(values, OTHER_SEEDS), steps)


def _steps_to(objective: Objective, result: TrialResult) -> float:
    sign = 1.0 if objective.direction == "minimize" else -1.0
    target = math.inf if objective.time_to is None else objective.time_to
    values = ((rung.step, rung.values.get(objective.name, math.nan)) for rung in result.rungs)
    return next((float(step) for step, value in values if sign * value <= sign * target), math.inf)
