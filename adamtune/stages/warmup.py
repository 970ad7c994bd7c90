"""warmup: how long lr rises before it decays."""

from __future__ import annotations

from adamtune.recipe import Recipe
from adamtune.schedule import warmup_steps
from adamtune.spec import Spec
from adamtune.stages.choose import choice_cost, choose, others
from adamtune.stages.context import StageAnswer, StageContext

NAME = "warmup"
QUESTION = "Is warmup needed, and how much of the run?"

_VALUES = (0.0, 0.01, 0.02, 0.05, 0.1)
"""Fractions of the horizon; more than a tenth is too much (Google's tuning playbook)."""


def _candidates(spec: Spec, incumbent: Recipe) -> list[float]:
    """Without the fractions that round to the same number of steps as one already there."""
    steps = {warmup_steps(incumbent.schedule, spec.horizon)}
    values = []
    for value in others(spec, NAME, incumbent, _VALUES):
        if round(value * spec.horizon) not in steps:
            steps.add(round(value * spec.horizon))
            values.append(value)
    return values


def cost(spec: Spec) -> int:
    """Steps at most."""
    return choice_cost(spec, _candidates(spec, spec.base))


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """See `adamtune.stages.choose`."""
    return choose(context, NAME, QUESTION, incumbent, _candidates(context.spec, incumbent))
