"""The rules, one file each; a file has a `RULE`."""

from __future__ import annotations

from adamtune.diagnose.finding import Rule
from adamtune.diagnose.rules import eps_size, few_dominate, frozen_group, nonfinite_state, oscillation, v_hat_lag

RULES: tuple[Rule, ...] = (
    nonfinite_state.RULE,
    frozen_group.RULE,
    few_dominate.RULE,
    v_hat_lag.RULE,
    eps_size.RULE,
    oscillation.RULE,
)
"""In the order in which their findings are told."""
