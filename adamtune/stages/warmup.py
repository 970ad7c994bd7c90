"""warmup: how long lr rises before it decays, and how high it may then be."""

from __future__ import annotations

from collections.abc import Sequence

from adamtune.groups import ParamGroup
from adamtune.recipe import Recipe, Warmup, WarmupSteps
from adamtune.schedule import warmup_steps
from adamtune.spec import Spec
from adamtune.stages.choose import ASIDE, Candidate, Question, candidates_cost, choose, inside
from adamtune.stages.context import StageAnswer, StageContext

NAME = "warmup"
QUESTION = "Is warmup needed, how much of the run, and does it allow a higher lr?"

_FRACTIONS = (0.0, 0.01, 0.02, 0.05, 0.1)
"""Of the horizon; more than a tenth is too much (Google's tuning playbook)."""

_STEPS = (500, 1000, 2000)
"""What long runs are often warmed up for, whatever their length."""

_MOST = 0.2
"""Share of the horizon that a warmup in steps may take."""


def _warmups(spec: Spec, incumbent: Recipe) -> list[Warmup]:
    """Inside the spec's range, each of another number of steps than the others and the incumbent's."""
    taken = {warmup_steps(incumbent.schedule, spec.horizon)}
    in_steps = {steps / spec.horizon: WarmupSteps(steps=steps) for steps in _STEPS if steps <= _MOST * spec.horizon}
    found: list[Warmup] = []
    for fraction in inside(spec, NAME, [*_FRACTIONS, *in_steps]):
        steps = round(fraction * spec.horizon)
        if steps not in taken:
            taken.add(steps)
            found.append(fraction if fraction in _FRACTIONS else in_steps.get(fraction, fraction))
    return found


def _candidates(spec: Spec, incumbent: Recipe) -> list[Candidate]:
    """Each warmup at the incumbent's lr and at a higher one, inside the spec's range."""
    limits = spec.knob("lr")
    candidates = []
    for warmup in _warmups(spec, incumbent):
        warmed = incumbent.with_knob(NAME, warmup.model_dump() if isinstance(warmup, WarmupSteps) else warmup)
        told = {NAME: warmup.steps / spec.horizon if isinstance(warmup, WarmupSteps) else warmup}
        label = f"{warmup.steps} steps" if isinstance(warmup, WarmupSteps) else f"{warmup:g}"
        candidates.append(Candidate(label, warmed, told))
        higher = float(f"{incumbent.lr * ASIDE:.4g}")
        if limits.low <= higher <= limits.high:
            candidates.append(Candidate(f"{label} at lr x{ASIDE:.3g}", warmed.with_knob("lr", higher), told))
    return candidates


def missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    """Why it cannot matter; empty where it can."""
    return "" if _warmups(spec, spec.base) else f"a run of {spec.horizon} steps has no other warmup to try"


def cost(spec: Spec) -> int:
    """Steps at most."""
    return candidates_cost(spec, 2 * len(_warmups(spec, spec.base)))


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """Jointly with lr; see `adamtune.stages.choose`."""
    ask = Question(NAME, QUESTION, [context.spec.knob(NAME)])
    return choose(context, ask, incumbent, _candidates(context.spec, incumbent))
