"""beta1: over how many steps Adam averages the gradient itself."""

from __future__ import annotations

from collections.abc import Sequence

from adamtune.groups import ParamGroup
from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages.choose import Candidate, Question, candidates_cost, choose, inside, numbers
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.missing import from_adam, from_groups

NAME = "beta1"
QUESTION = "Does a shorter or longer memory of the gradient train better?"

_VALUES = (0.5, 0.8, 0.9, 0.95, 0.98)
"""About even in log(1 - beta1), over AlgoPerf's AdamW space: 1 - beta1 from 0.02 to 0.5 (Dahl et al. 2023)."""


def _candidates(spec: Spec, incumbent: Recipe) -> list[Candidate]:
    return numbers(NAME, incumbent, inside(spec, NAME, _VALUES))


def missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    """Why it cannot matter; empty where it can."""
    return from_adam(NAME, spec.base) or from_groups("betas", spec.base, groups)


def cost(spec: Spec) -> int:
    """Steps at most."""
    return candidates_cost(spec, len(_candidates(spec, spec.base)))


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """See `adamtune.stages.choose`."""
    ask = Question(NAME, QUESTION, [context.spec.knob(NAME)])
    return choose(context, ask, incumbent, _candidates(context.spec, incumbent))
