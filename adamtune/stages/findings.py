"""findings: what the rules of `adamtune.diagnosis` find in the incumbent's trainings; every remedy is a candidate."""

from __future__ import annotations

from collections.abc import Sequence

from adamtune.diagnosis import Severity, Told, counted, without_asked
from adamtune.diagnosis.trials import observed
from adamtune.errors import RecipeError
from adamtune.evidence import Verdict
from adamtune.groups import ParamGroup
from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages import clip
from adamtune.stages.choose import Candidate, Question, candidates_cost, choose
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.missing import from_adam
from adamtune.trial import TrialResult

NAME = "findings"
QUESTION = "Does mending what the probe finds wrong train better?"

_REMEDIES = 2
"""Remedies tried at most, the gravest findings first."""


def missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    """Why it cannot matter; empty where it can."""
    return from_adam("state to look at", spec.base)


def cost(spec: Spec) -> int:
    """Steps at most; nearly none where nothing is found."""
    return candidates_cost(spec, _REMEDIES)


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """Try the remedies of warnings that most of the incumbent's trials raise; see `adamtune.stages.choose`."""
    trials = _probed(context, incumbent) or context.measure(NAME, incumbent, context.seeds.search)
    told = counted([observed(result, context.groups) for result in trials])
    facts = {"findings": [each.to_dict() for each in told]}
    warnings = [each for each in told if each.finding.severity is Severity.WARNING and 2 * each.seeds > each.of]
    candidates = _candidates(context.spec, incumbent, warnings, context.groups)[:_REMEDIES]
    if not candidates:
        found = ", ".join(dict.fromkeys(each.finding.rule for each in warnings))
        reason = f"no recipe is known against {found}" if found else f"nothing was found in {len(trials)} trials"
        return StageAnswer(NAME, QUESTION, Verdict.KEPT, reason, incumbent, details=facts)
    return choose(context, Question(NAME, QUESTION, read=lambda recipe: None), incumbent, candidates, facts)


def found_until_now(context: StageContext, recipe: Recipe) -> tuple[Told, ...]:
    """What the rules find in the trials of a recipe to the horizon until now, less what stages have settled; nothing is
    trained.
    """
    found = counted([observed(result, context.groups) for result in _probed(context, recipe)])
    return without_asked(found, context.verdicts)


def _probed(context: StageContext, recipe: Recipe) -> list[TrialResult]:
    return [trial for trial in context.trained(recipe) if any(rung.probe for rung in trial.rungs)]


def _candidates(
    spec: Spec, incumbent: Recipe, warnings: Sequence[Told], groups: Sequence[ParamGroup]
) -> list[Candidate]:
    """The incumbent with each remedy, but for lrs outside the spec's range and what recipe or model cannot have."""
    found: dict[str, Candidate] = {}
    limits = spec.knob("lr")
    left_out = {"clip_norm"} if clip.missing(spec, groups) else set()
    for each in warnings:
        remedy = {name: value for name, value in each.finding.remedy.items() if name not in left_out}
        recipe = incumbent
        try:
            for name, value in remedy.items():
                recipe = recipe.with_knob(name, value)
        except RecipeError:
            continue
        if recipe != incumbent and limits.low <= recipe.lr <= limits.high:
            changes = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                                for name, value in remedy.items())  # fmt: skip
            where = f" in {each.finding.group}" if each.finding.group else ""
            candidate = Candidate(f"{changes} (against {each.finding.rule}{where})", recipe, {})
            found.setdefault(recipe.training_key(), candidate)
    return list(found.values())
