"""Choose among recipes that differ from the incumbent in one knob: the procedure that most stages share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from adamtune.evidence import Verdict
from adamtune.history import worst
from adamtune.knobs import KNOBS, Choice, Knob, Value
from adamtune.recipe import Recipe
from adamtune.schedule import warmup_steps
from adamtune.search import KnobStudy
from adamtune.spec import Spec
from adamtune.stages.context import BudgetSpent, StageAnswer, StageContext
from adamtune.stages.costs import CONTENDERS, candidates_cost, choice_cost
from adamtune.stages.lr_response import Response, optimum
from adamtune.trial import TrialRequest, TrialResult

__all__ = ["Candidate", "Question", "candidates_cost", "choice_cost", "choose", "inside", "numbers"]

ASIDE = 10**0.25
"""By what factor the two more learning rates of a contender lie to either side."""

_WORTH_MOVING = 10**0.05
"""A fitted lr nearer than this to the contender's own is left there: it could not be told from it."""


@dataclass(frozen=True)
class Candidate:
    """A recipe to try in place of the incumbent."""

    label: str
    """What it is called in reasons and in the report, e.g. `0.95` or `head lr x3`; its own within a stage."""
    recipe: Recipe
    parameters: Mapping[str, Value]
    """Its values of the question's knobs, for Optuna's study; lr is added."""
    own_lr: bool = False
    """Whether its lr is another quantity than the incumbent's, as SGD's is beside Adam's. Then the incumbent is not
    tried at that lr, and the spec's range of lr, meant for the incumbent's, does not bound it."""


def with_lr(recipe: Recipe, lr: float) -> Recipe:
    """The recipe at another lr, all else as it is."""
    return recipe.with_knob("lr", lr)


@dataclass(frozen=True)
class Question:
    """What a stage asks, and how."""

    stage: str
    text: str
    knobs: Sequence[Knob | Choice] = ()
    """Of the candidates' parameters."""
    read: Callable[[Recipe], Any] | None = None
    """What a recipe says to the question; by default, its knob of the stage's name."""
    at_lr: Callable[[Recipe, float], Recipe] = with_lr
    """How a recipe is moved to another lr."""
    lr_of: Callable[[Recipe], float] = attrgetter("lr")
    """Which lr of a candidate is re-centred, and `lr_name` what Optuna's study calls it."""
    lr_name: str = "lr"
    prune: bool = True
    """Whether the worse half may be dropped on the way."""

    def answer_of(self, recipe: Recipe) -> Any:
        """What a recipe says to the question."""
        return self.read(recipe) if self.read else recipe.knob(self.stage)


def choose(
    context: StageContext,
    ask: Question,
    incumbent: Recipe,
    candidates: Sequence[Candidate],
    facts: Mapping[str, Any] | None = None,
) -> StageAnswer:
    """Try each candidate on the search seeds to the horizon, then confirm the best against the incumbent on others.

    1. The candidates train side by side. The worse half is dropped at a rung that lies at or after half the horizon and
       behind every candidate's warmup.
    2. Another knob may move the best lr. The best two of those that beat the incumbent, or tie with it within noise,
       are also tried at a lower and a higher lr, and a parabola through the three names theirs. When nothing beats the
       incumbent, it stays without further cost.
    3. The best is confirmed on seeds that chose nothing. Where it has another lr than the incumbent, it must also beat
       the incumbent at that lr, so that what lr does alone is not put down to the knob; where it does not, but that
       lr alone is better by evidence, only lr is changed.

    `facts`, plain data on where the candidates come from, go into the answer's details.
    """
    return _Choice(context, ask, incumbent, candidates, dict(facts or {})).run()


@dataclass
class _Choice:
    context: StageContext
    ask: Question
    incumbent: Recipe
    candidates: Sequence[Candidate]
    details: dict[str, Any]

    def run(self) -> StageAnswer:
        if not self.candidates:
            return self._answer(Verdict.KEPT, "there is nothing else to try", self.incumbent)
        mine = self.context.measure(self.ask.stage, self.incumbent, self.context.seeds.search)
        results = self._train(self.candidates, self.ask.prune)
        own, tried = self._values(mine), list(map(self._values, results))
        self.details |= {
            "candidates": [candidate.label for candidate in self.candidates],
            "scores": [self.context.score(values) for values in tried],
            "outcomes": [str(worst(each)) for each in results],
            "incumbent_score": self.context.score(own),
            "incumbent_outcome": str(worst(mine)),
        }
        contenders = self._contenders(own, tried)
        responses = self._recentre(contenders)
        best = min(contenders, key=lambda place: min(responses[place].scores), default=None)
        if best is None or not min(responses[best].scores) < self.context.score(own):
            labels = ", ".join(candidate.label for candidate in self.candidates)
            told = f"none of {labels} did better on {len(self.context.seeds.search)} seeds"
            return self._answer(Verdict.KEPT, told + (", nor at other lrs" if contenders else ""), self.incumbent)
        candidate = self.candidates[best]
        return self._confirm(candidate, self._lr_of(self.ask.lr_of(candidate.recipe), responses[best]))

    def _confirm(self, candidate: Candidate, lr: float) -> StageAnswer:
        stage, context, incumbent = self.ask.stage, self.context, self.incumbent
        recipe = candidate.recipe if lr == self.ask.lr_of(candidate.recipe) else self.ask.at_lr(candidate.recipe, lr)
        moved = not candidate.own_lr and recipe.lr != incumbent.lr
        evidence = context.confirm(stage, incumbent, recipe)
        value = self.ask.answer_of(recipe)
        as_named = value == self.ask.answer_of(candidate.recipe) or not isinstance(value, float)
        told = f"{stage} {candidate.label if as_named else f'{value:g}'}"
        told += f" at lr {lr:.3g}" if moved or candidate.own_lr else ""
        if evidence.verdict is not Verdict.CHANGED:
            return self._answer(evidence.verdict, f"{told}: {evidence.reason}", incumbent, evidence=evidence)
        lr_alone = self.ask.at_lr(incumbent, recipe.lr) if moved else recipe
        if lr_alone.training_key() != recipe.training_key():  # a remedy may itself be of lr alone
            try:
                by_knob = context.confirm(stage, lr_alone, recipe)
                alone = None if by_knob.verdict is Verdict.CHANGED else context.confirm(stage, incumbent, lr_alone)
            except BudgetSpent:
                told += f": {evidence.reason}; the budget does not tell what of it lr does alone"
                return self._answer(Verdict.CHANGED, told, recipe, evidence=evidence)
            if alone:
                told += f" brings nothing by evidence that this lr does not bring alone; lr alone: {alone.reason}"
                left = lr_alone if alone.verdict is Verdict.CHANGED else incumbent
                return self._answer(alone.verdict, told, left, evidence=alone)
        return self._answer(Verdict.CHANGED, f"{told}: {evidence.reason}", recipe, evidence=evidence)

    def _answer(self, verdict: Verdict, reason: str, recipe: Recipe, **more: Any) -> StageAnswer:
        before, after = self.ask.answer_of(self.incumbent), self.ask.answer_of(recipe)
        ask = self.ask
        return StageAnswer(ask.stage, ask.text, verdict, reason, recipe, before, after, details=self.details, **more)

    def _train(self, candidates: Sequence[Candidate], prune: bool) -> list[list[TrialResult]]:
        """The trials of each candidate by search seed; what was trained before is not trained again."""
        context, seeds = self.context, self.context.seeds.search
        new = [candidate for candidate in candidates if self._known(candidate) is None]
        study = self._study()
        asked = [
            trial
            for candidate in new
            for trial in study.ask(
                {**candidate.parameters, self.ask.lr_name: self.ask.lr_of(candidate.recipe)},
                seeds,
                candidate=candidate.label,
            )
        ]
        requests = [TrialRequest(candidate.recipe, seed, context.horizon) for candidate in new for seed in seeds]
        rungs = context.rungs()
        prune_at = _fair_rung(context, [*candidates, self.incumbent]) if prune else []
        results = context.race(self.ask.stage, study, asked, requests, rungs, prune_at) if new else []
        trained = {
            candidate.label: results[at * len(seeds) : (at + 1) * len(seeds)] for at, candidate in enumerate(new)
        }
        return [trained.get(candidate.label) or self._known(candidate) or [] for candidate in candidates]

    def _known(self, candidate: Candidate) -> list[TrialResult] | None:
        results = [self.context.known(candidate.recipe, seed) for seed in self.context.seeds.search]
        found = [result for result in results if result is not None]
        return found if len(found) == len(results) else None

    def _study(self) -> KnobStudy:
        lr = replace(self.context.spec.knob("lr"), name=self.ask.lr_name)
        return self.context.study(f"{self.ask.stage}/candidates", [*self.ask.knobs, lr])

    def _values(self, results: Iterable[TrialResult]) -> list[float]:
        return [self.context.value(result) for result in results]

    def _contenders(self, own: Sequence[float], tried: Sequence[Sequence[float]]) -> list[int]:
        """Places of the best candidates that beat the incumbent or tie with it, no two alike but for lr."""
        scores = [self.context.score(values) for values in tried]
        ranked = sorted(range(len(tried)), key=scores.__getitem__)
        found: dict[str, int] = {}
        for place in ranked:
            if math.isfinite(scores[place]) and self._holds_its_own(own, tried[place]):
                found.setdefault(with_lr(self.candidates[place].recipe, 1.0).training_key(), place)
        return list(found.values())[:CONTENDERS]

    def _holds_its_own(self, own: Sequence[float], values: Sequence[float]) -> bool:
        """Whether a candidate is no worse than the incumbent by more than the standard error of their difference."""
        behind = self.context.score(values) - self.context.score(own)
        if behind < 0 or not math.isfinite(behind):
            return behind < 0
        differences = [b - a for a, b in zip(own, values, strict=True)]
        return len(own) > 1 and behind <= statistics.stdev(differences) / math.sqrt(len(own))

    def _recentre(self, contenders: Sequence[int]) -> dict[int, Response]:
        """Each contender's response to its own lr and one to either side, all trained side by side."""
        lr_of = self.ask.lr_of
        ladders: dict[int, list[Candidate]] = {}
        for place in contenders:
            own = self.candidates[place]
            limits = KNOBS["lr"] if own.own_lr else self.context.spec.knob("lr")
            lrs = {float(f"{lr_of(own.recipe) * factor:.4g}") for factor in (1 / ASIDE, ASIDE)}
            moved = [
                replace(own, label=f"{own.label}, lr {lr:.3g}", recipe=self.ask.at_lr(own.recipe, lr))
                for lr in sorted(lrs)
                if limits.low <= lr <= limits.high
            ]
            ladders[place] = sorted([own, *moved], key=lambda candidate: lr_of(candidate.recipe))
        flat = [candidate for ladder in ladders.values() for candidate in ladder]
        results = dict(zip((each.label for each in flat), self._train(flat, prune=False), strict=True))
        responses = {
            place: Response(
                self.context.horizon,
                tuple(lr_of(candidate.recipe) for candidate in ladder),
                tuple(self.context.score(self._values(results[candidate.label])) for candidate in ladder),
                tuple(worst(results[candidate.label]) for candidate in ladder),
            )
            for place, ladder in ladders.items()
        }
        self.details["recentred"] = [
            {
                "candidate": self.candidates[place].label,
                "lrs": list(response.lrs),
                "scores": list(response.scores),
                "outcomes": list(map(str, response.outcomes)),
                "lr": self._lr_of(lr_of(self.candidates[place].recipe), response),
            }
            for place, response in responses.items()
        ]
        return responses

    def _lr_of(self, own: float, response: Response) -> float:
        """The best lr by the three; the contender's own unless another is better and clearly another."""
        at = response.lrs.index(own)
        if response.scores[at] == min(response.scores) and response.best != at:  # as good as another: nothing to gain
            return own
        best = float(f"{optimum(response):.3g}")
        return own if max(best / own, own / best) < _WORTH_MOVING else best


def _fair_rung(context: StageContext, recipes: Iterable[Candidate | Recipe]) -> list[int]:
    """The first rung at or after half the horizon and behind every warmup; none where only the horizon is.

    A rung inside warmup would punish those that warm up longer for what they have not begun.
    """
    schedules = [entry.schedule if isinstance(entry, Recipe) else entry.recipe.schedule for entry in recipes]
    warmup = max(warmup_steps(schedule, context.horizon) for schedule in schedules)
    fair = [rung for rung in context.rungs() if 2 * rung >= context.horizon and warmup < rung < context.horizon]
    return fair[:1]


def inside(spec: Spec, name: str, values: Iterable[float]) -> list[float]:
    """The values inside the spec's range of a knob; three even over it where it has both ends and holds fewer."""
    knob, bounds = spec.knob(name), getattr(spec.space, name)
    within = [value for value in values if knob.low <= value <= knob.high]
    closed = bounds is not None and bounds.low is not None and bounds.high is not None
    return knob.spread(3) if closed and len(within) < 3 else within


def numbers(name: str, incumbent: Recipe, values: Iterable[float]) -> list[Candidate]:
    """Candidates that set one knob of numbers to each of the values but its own."""
    own = incumbent.knob(name)
    return [
        Candidate(f"{value:g}", incumbent.with_knob(name, value), {name: value}) for value in values if value != own
    ]
