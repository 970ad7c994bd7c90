"""Ready or not to hand over to SGD: Adam's state has come to rest late in the run, or has not."""

from __future__ import annotations

from collections.abc import Iterator

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.settling import DECAYED, LATE, SETTLED, late_to_middle, unready

NAME = "sgd-handover"


def _find(observed: Observed) -> Iterator[Finding]:
    recipe, horizon = observed.recipe, observed.horizon
    if recipe is None or horizon is None or recipe.optimizer == "sgd" or recipe.switch is not None:
        return
    m_hat = late_to_middle(observed.records, "m_hat", horizon)
    root_v_hat = late_to_middle(observed.records, "sqrt_v_hat", horizon)
    if m_hat is None or root_v_hat is None:
        return
    why = unready(m_hat, root_v_hat)
    told = f"late in the run m_hat has decayed to {m_hat:.2f} times what it was midway, and sqrt(v_hat) has settled at "
    told += f"{root_v_hat:.2f} times"
    yield Finding(
        NAME,
        Severity.NOTE,
        f"not ready for SGD: {why}" if why else f"ready for SGD: {told}",
        "stay with Adam to the end" if why else "the stage `switch` can measure whether SGD finishes better",
        None,
        {},
        {"m_hat_late_to_middle": m_hat, "sqrt_v_hat_late_to_middle": root_v_hat, "ready": float(not why)},
    )


RULE = Rule(
    NAME,
    f"after {LATE:g} of the run m_hat is at most {DECAYED:g} times what it was midway and sqrt(v_hat) within a factor "
    f"of {SETTLED:.2g} of it (medians over weights); always a note",
    "own measurement; Keskar & Socher 2017 hand over once their estimate of SGD's lr has settled",
    _find,
)
