"""The rules, one file each; a file has a `RULE`."""

from __future__ import annotations

from adamtune.diagnosis.finding import Rule
from adamtune.diagnosis.rules import (
    eps_size,
    few_dominate,
    frozen_group,
    generalization_gap,
    layer_imbalance,
    nonfinite_state,
    oscillation,
    sgd_handover,
    short_warmup,
    sparse_rows,
    update_to_weight,
    v_hat_lag,
)

RULES: tuple[Rule, ...] = (
    nonfinite_state.RULE,
    frozen_group.RULE,
    few_dominate.RULE,
    v_hat_lag.RULE,
    eps_size.RULE,
    short_warmup.RULE,
    layer_imbalance.RULE,
    sparse_rows.RULE,
    update_to_weight.RULE,
    generalization_gap.RULE,
    oscillation.RULE,
    sgd_handover.RULE,
)
"""In the order in which their findings are told."""
