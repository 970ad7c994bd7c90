"""The most training steps that choosing among candidates can take."""

from __future__ import annotations

from collections.abc import Sequence

from adamtune.spec import Spec
from adamtune.stages.context import CONFIRM_SEEDS

CONTENDERS = 2
"""Candidates around which lr is re-centred at most."""


def choice_cost(spec: Spec, values: Sequence[object]) -> int:
    """Every value to the horizon on the search seeds, and both recipes on the confirmation seeds."""
    seeds = spec.seeds
    incumbent_and_values = seeds * (1 + len(values))  # what is claimed before the pruner has spoken
    return spec.horizon * (incumbent_and_values + 2 * max(CONFIRM_SEEDS, seeds))


def candidates_cost(spec: Spec, candidates: int) -> int:
    """The same with lr re-centred: two more lrs for each contender, and the incumbent confirmed at the new one."""
    recentred = 2 * min(CONTENDERS, candidates) * spec.seeds + (max(CONFIRM_SEEDS, spec.seeds) if candidates else 0)
    return choice_cost(spec, range(candidates)) + spec.horizon * recentred
