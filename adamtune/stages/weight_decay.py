"""weight_decay: how fast weights shrink by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from adamtune.groups import ParamGroup
from adamtune.knobs import Choice, Knob, Scale, Value
from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages.choose import Candidate, Question, candidates_cost, choose, inside, with_lr
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.missing import from_groups

NAME = "weight_decay"
QUESTION = "How much should weights shrink by themselves?"

_SHRINKAGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""lr * weight_decay * horizon: over a run at full lr, a weight left alone shrinks by a factor e to this power. What
matters is that time scale, 1 / (lr * weight_decay) steps, beside the length of the run (Wang & Aitchison 2024). A tenth
shrinks nothing to speak of; at 30, weights remember a thirtieth of the run."""

_L2 = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""weight_decay of `adam`, which adds it to the gradient instead, where lr does not multiply it."""

PRODUCT = Knob("lr_times_weight_decay", 1e-12, 1.0, Scale.LOG)
_ON = Choice(NAME, ("off", "on"))
"""Optuna's log scale has no zero: a decay of nothing is its own branch of the space."""


def keeping_product(limits: Knob, recipe: Recipe, lr: float) -> Recipe:
    """The recipe at another lr that shrinks its weights as fast, as far as weight_decay may go."""
    decay = float(f"{recipe.weight_decay * recipe.lr / lr:.3g}")
    inside_range = limits.low <= recipe.weight_decay <= limits.high  # 0 is not, nor may an incumbent's be
    return recipe.with_knob("lr", lr).with_knob(NAME, limits.clip(decay) if inside_range else decay)


def _candidates(spec: Spec, incumbent: Recipe) -> list[Candidate]:
    """No decay, and decays inside the spec's range; none where the spec bounds it from below."""
    if incumbent.optimizer == "adam":
        values = list(_L2)
    else:
        values = [float(f"{share / (incumbent.lr * spec.horizon):.2g}") for share in _SHRINKAGES]
    bounds = getattr(spec.space, NAME)
    unbounded = bounds is None or bounds.low is None
    candidates = []
    for value in [*([0.0] if unbounded else []), *inside(spec, NAME, values)]:
        if value != incumbent.weight_decay:
            told: dict[str, Value] = {NAME: "on", PRODUCT.name: incumbent.lr * value} if value else {NAME: "off"}
            candidates.append(Candidate(f"{value:g}", incumbent.with_knob(NAME, value), told))
    return candidates


def missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    """Why it cannot matter; empty where it can."""
    return from_groups(NAME, spec.base, groups)


def cost(spec: Spec) -> int:
    """Steps at most."""
    return candidates_cost(spec, 1 + len(_SHRINKAGES))


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """Searched as lr * weight_decay, which a contender keeps at other lrs; see `adamtune.stages.choose`."""
    at_lr = with_lr if incumbent.optimizer == "adam" else partial(keeping_product, context.spec.knob(NAME))
    ask = Question(NAME, QUESTION, [_ON, PRODUCT], at_lr=at_lr)
    return choose(context, ask, incumbent, _candidates(context.spec, incumbent))
