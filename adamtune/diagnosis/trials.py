"""A trial as the rules look at it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adamtune.diagnosis.finding import Observed
from adamtune.groups import ParamGroup
from adamtune.history import TrialResult


def observed(result: TrialResult, groups: Sequence[ParamGroup] = ()) -> Observed:
    """What a trial's rungs tell: the probe's records, training losses, and validation losses where they are finite.

    `groups` are those that its recipe makes of the model (`adamtune.groups.param_groups`); without them no rule knows
    the kinds of parameters. An lr ramp in place of the recipe's lr is not told: rules would judge a lr the recipe does
    not have, so such a trial has no recipe.
    """
    request = result.request
    losses = [(rung.step, rung.values["loss"]) for rung in result.rungs if "loss" in rung.values]
    return Observed(
        records=tuple((rung.step, rung.probe) for rung in result.rungs if rung.probe),
        recipe=request.recipe if request.ramp is None else None,
        horizon=request.horizon,
        train_losses=tuple(result.train_losses),
        validation=tuple((step, loss) for step, loss in losses if math.isfinite(loss)),
        kinds={group.name: tuple(dict.fromkeys(group.kinds)) for group in groups},
    )
