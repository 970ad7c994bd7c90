"""Records of a training as one table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("step", "group", "statistic", "percentile", "value")

_KEY = re.compile(r"(?P<group>.*)/(?P<statistic>[a-z_]+)(/p(?P<percentile>[0-9.e+-]+))?", re.DOTALL)


def frame(records: Iterable[tuple[int, Mapping[str, float]]]) -> pd.DataFrame:
    """One row a value, with `COLUMNS`, in the order they were recorded; `percentile` is NaN where it is no percentile.

    Loads pandas, which nothing else of the probe needs.
    """
    import pandas as pd

    rows = [(step, *parts(key), value) for step, record in records for key, value in record.items()]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    types = {"step": "int64", "group": "str", "statistic": "str", "percentile": "float64", "value": "float64"}
    return table.astype(types)


def parts(key: str) -> tuple[str, str, float | None]:
    """Group (which may hold slashes), statistic and percentile of a record's key."""
    found = _KEY.fullmatch(key)
    assert found, key
    percentile = found["percentile"]
    return found["group"], found["statistic"], None if percentile is None else float(percentile)
