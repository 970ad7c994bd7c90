"""What stages are reckoned to cost in a plan, in training steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adamtune.evidence import LOOKS
from adamtune.spec import Spec
from adamtune.stages.context import CONFIRM_SEEDS

CONTENDERS = 2
"""Candidates around which lr is re-centred at most."""

_FRUGAL_BELOW = 60
"""Full trials: with fewer in the budget lr is asked on short trials alone, and clear cases only are confirmed."""


def budget_steps(spec: Spec) -> float:
    """The spec's budget in steps, the last comparison included; inf when only time bounds it."""
    bounds = [math.inf]
    if spec.budget.steps is not None:
        bounds.append(spec.budget.steps)
    if spec.budget.trials is not None:
        bounds.append(spec.budget.trials * spec.horizon)
    return min(bounds)


def frugal(spec: Spec) -> bool:
    """Whether the budget is so small that lr takes what it can get."""
    return budget_steps(spec) < _FRUGAL_BELOW * spec.horizon


def confirmation_cost(spec: Spec, recipes: int = 2) -> int:
    """So many recipes on the seeds a confirmation is reckoned with; an unclear one takes more, up to twelve."""
    return recipes * (LOOKS[0] if frugal(spec) else CONFIRM_SEEDS) * spec.horizon


def choice_cost(spec: Spec, values: Sequence[object]) -> int:
    """Every value to the horizon on the search seeds, and both recipes on the confirmation seeds."""
    incumbent_and_values = spec.seeds * (1 + len(values))  # what is claimed before the pruner has spoken
    return spec.horizon * incumbent_and_values + confirmation_cost(spec)


def candidates_cost(spec: Spec, candidates: int) -> int:
    """The same with lr re-centred: two more lrs for each contender, and the incumbent confirmed at the new one."""
    recentred = 2 * min(CONTENDERS, candidates) * spec.seeds * spec.horizon
    return choice_cost(spec, range(candidates)) + (recentred + confirmation_cost(spec, 1) if candidates else 0)
