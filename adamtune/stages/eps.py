"""eps: below which gradient size Adam stops normalising."""

from __future__ import annotations

from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages.choose import choice_cost, choose, others
from adamtune.stages.context import StageAnswer, StageContext

NAME = "eps"
QUESTION = "Should small gradients be kept small instead of being blown up to full steps?"

_VALUES = (1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3)
"""torch 1e-8, open_clip 1e-6, PPO 1e-5; larger ones turn Adam towards SGD with momentum (Choi et al. 2019)."""


def cost(spec: Spec) -> int:
    """Steps at most."""
    return choice_cost(spec, others(spec, NAME, spec.base, _VALUES))


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """See `adamtune.stages.choose`."""
    return choose(context, NAME, QUESTION, incumbent, others(context.spec, NAME, incumbent, _VALUES))
