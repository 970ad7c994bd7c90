"""Whether Adam has come to rest late in a run, so that SGD may take over."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from adamtune.diagnosis.finding import Record

LATE = 0.7
"""Of the run: the earliest hand-over that the stage `switch` tries. Later records are those that count."""

_MIDDLE = (0.3, LATE)
"""Of the run: what its later records are compared with."""

DECAYED = 0.75
"""m_hat has decayed when it is at most this share of what it was in the middle of the run. On nine of
`benchmarks.lr_tasks` at their best lr (three seeds) it was 0.83 to 1.26 where gradients are as large at the end as
midway (a GPT, embeddings, tables of noisy rows), so that a quarter is more than it scatters by, and 0.24 to 0.73 where
training came to rest (digits: MLPs, dropout, batch norm, an autoencoder)."""

SETTLED = 10**0.25
"""sqrt(v_hat) has settled when it changes by less than this factor. SGD has one lr for the rest of the run, by which it
stands in for Adam's lr / sqrt(v_hat): what v_hat still moves, that lr is off by, and by less than this factor no stage
tells learning rates apart beforehand (`adamtune.stages.choose.ASIDE`). On those tasks it was 0.73 to 1.04."""


def late_to_middle(records: Iterable[tuple[int, Record]], statistic: str, horizon: int) -> float | None:
    """How the median over weights of `m_hat` or `sqrt_v_hat` changes from the middle of the run to its last stretch.

    `records` are those of one or more trainings, each with its step. In each param group, the median over the later
    records over that of the middle ones; the geometric mean over groups. None where either has none above zero.
    """
    ending = f"/{statistic}/p50"
    middle: dict[str, list[float]] = {}
    late: dict[str, list[float]] = {}
    for step, record in records:
        part = step / horizon
        kept = late if part > LATE else middle if _MIDDLE[0] < part < _MIDDLE[1] else None
        for key, value in record.items():
            if kept is not None and key.endswith(ending) and 0 < value < math.inf:
                kept.setdefault(key, []).append(value)
    ratios = [statistics.median(late[key]) / statistics.median(middle[key]) for key in middle if key in late]
    return statistics.geometric_mean(ratios) if ratios else None


def unready(m_hat: float | None, root_v_hat: float | None) -> str:
    """Why SGD should not take over yet, by how both change (see `late_to_middle`); empty where it may."""
    if m_hat is None or root_v_hat is None:
        return "nothing was recorded of Adam's state late in the run"
    if m_hat > DECAYED:
        return f"m_hat has not decayed: late in the run it is {m_hat:.2f} times what it was midway (at most {DECAYED})"
    if not 1 / SETTLED < root_v_hat < SETTLED:
        told = f"late in the run sqrt(v_hat) is {root_v_hat:.2f} times what it was midway"
        return f"v_hat has not settled: {told} (between {1 / SETTLED:.2f} and {SETTLED:.2f})"
    return ""
