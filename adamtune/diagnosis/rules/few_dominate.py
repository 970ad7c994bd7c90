"""Few elements take all updates: the others get no gradient any more, as behind ReLUs that died of too large an lr."""

from __future__ import annotations

from collections.abc import Iterator

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import FEWEST_RECORDS, mean, rounded, unsolved

NAME = "few-dominate"

DEAD = 1e-4
"""r at the last record below which an element gets no gradient: m falls by beta1 a step, so r does after some eighty
steps without one. Of nine elements in ten: 2e-9 and 7e-8 where lr was ten times too large, 3e-3 and more in tuned
trainings and up to three times their lr (digits)."""

SKEWED = 1e-3
"""The median r in terms of its 90th percentile, from which on half of the elements are said to be left out. Tuned
trainings of ReLU networks show it too, so that it is a note."""

LESS = 0.1
"""What a remedy multiplies lr by."""


def _find(observed: Observed) -> Iterator[Finding]:
    for group in observed.groups:
        high, median = observed.series(group, "r", 90), observed.series(group, "r", 50)
        if len(high) < FEWEST_RECORDS or not median:
            continue
        evidence = {"r_p50": median[-1][1], "r_p90": high[-1][1]}
        reached = mean(observed.series(group, "never_updated")) or 0.0
        below = mean(observed.series(group, "below_eps")) or 0.0
        kinds = observed.kinds.get(group, ())
        if reached > 0.5 or below > 0.5:
            continue  # no gradient ever comes, or eps makes r small: other rules speak of that
        if high[-1][1] < DEAD and high[0][1] > DEAD and kinds and "embedding" not in kinds and unsolved(observed):
            lr = observed.recipe.lr if observed.recipe else None
            yield Finding(
                NAME,
                Severity.WARNING,
                f"nine in ten elements of {group} get no gradient any more (90th percentile of r {high[-1][1]:.1g}), "
                "though the training loss is not solved",
                f"lower lr from {lr:g} to {rounded(lr * LESS):g}" if lr else "lower lr",
                group,
                {"lr": rounded(lr * LESS)} if lr else {},
                evidence,
            )
        elif median[-1][1] < SKEWED * high[-1][1]:
            yield Finding(
                NAME,
                Severity.NOTE,
                f"half of the elements of {group} get next to no update: median r {median[-1][1]:.1g}, 90th percentile "
                f"{high[-1][1]:.2g}",
                "nothing, unless the loss is worse than with a smaller lr; rare embedding rows show it too",
                group,
                {},
                evidence,
            )


RULE = Rule(
    NAME,
    f"the 90th percentile of r falls below {DEAD:g} while the training loss is not solved, in a group without "
    f"embeddings; a note where the median is below {SKEWED:g} times the 90th percentile",
    "own measurement on networks with ReLUs, which die of steps too large (Lu et al. 2019, Dying ReLU and "
    "Initialization)",
    _find,
)
