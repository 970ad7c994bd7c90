"""beta2: over how many steps Adam averages the squared gradient."""

from __future__ import annotations

from collections.abc import Sequence

from adamtune.groups import ParamGroup
from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages.choose import Candidate, Question, candidates_cost, choose, inside, numbers
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.missing import from_adam, from_groups

NAME = "beta2"
QUESTION = "Does a shorter or longer memory of the squared gradient train better?"

_VALUES = (0.8, 0.9, 0.95, 0.98, 0.99, 0.997, 0.999, 0.9997)
"""Even in log(1 - beta2), over the range of AlgoPerf's winning recipes (0.63 to 0.9988) and torch's default."""


def _candidates(spec: Spec, incumbent: Recipe) -> list[Candidate]:
    """Averaging lengths 1 / (1 - beta2) beyond four horizons are all alike: bias correction makes them plain means."""
    values = [value for value in _VALUES if 1 / (1 - value) <= 4 * spec.horizon]
    return numbers(NAME, incumbent, inside(spec, NAME, values))


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
