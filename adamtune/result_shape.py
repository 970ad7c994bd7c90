"""What a result.json must hold, so that whoever reads one need not ask again. It may come from a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adamtune.plain_text import plain

_DEEPEST = 50
"""How deep lists and mappings may lie within one another; ours are five deep."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Task(_Shape):
    ref: str
    args: dict[str, Any]


class _Objective(_Shape):
    name: str
    direction: Literal["minimize", "maximize"]
    time_to: float | None = None


class _Interval(_Shape):
    mean: float | None
    ci95: Annotated[list[float | None], Field(min_length=2, max_length=2)]


class _Measured(_Interval):
    seeds: int
    values: list[float | None]
    diverged: int
    median_steps_to: float | None = None


class _Evidence(_Shape):
    seeds: list[int]
    incumbent: list[float | None]
    challenger: list[float | None]
    difference: _Interval


class _Stage(_Shape):
    stage: str
    question: str
    verdict: str
    reason: str
    before: Any
    after: Any
    evidence: _Evidence | None
    details: dict[str, Any]


class _Seeds(_Shape):
    raised: int
    of: int


class _Finding(_Shape):
    rule: str
    severity: str
    told: str
    advice: str
    remedy: dict[str, Any]
    seeds: _Seeds | None = None


class _Change(_Shape):
    default: Any
    recommended: Any


class _Provenance(_Shape):
    fresh_seeds: list[int] = Field(default_factory=list)


class _Recipe(_Shape):
    provenance: _Provenance = _Provenance()


class _Result(_Shape):
    task: _Task
    horizon: int
    objective: _Objective
    steps_used: int
    wall_seconds: float
    default: _Measured
    recommended: _Measured
    difference: _Interval | None = None
    changed: dict[str, _Change]
    stages: list[_Stage]
    findings: list[_Finding] = Field(default_factory=list)
    recipe: _Recipe = _Recipe()


def checked(data: Any) -> dict[str, Any]:
    """`data` from a result.json, unchanged but for characters that do not print, which are spelled out.

    Raises `ValueError` saying what is missing or of the wrong kind.
    """
    clean = _printable(data, _DEEPEST)
    try:
        _Result.model_validate(clean)
    except ValidationError as problems:
        first = problems.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        more = f" (and {problems.error_count() - 1} more)" if problems.error_count() > 1 else ""
        raise ValueError(f"it holds no sweep result: {where or 'all of it'}: {first['msg'].lower()}{more}") from None
    assert isinstance(clean, dict)
    return clean


def _printable(value: Any, deeper: int) -> Any:
    if deeper < 0:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    if isinstance(value, str):
        return plain(value, keep="\n\t")
    if isinstance(value, Mapping):
        return {plain(key): _printable(item, deeper - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item, deeper - 1) for item in value]
    return value
