"""What is told of a checkpoint, a run, or a training at hand: measurements and findings."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adamtune.diagnose.finding import Finding, Observed, Record, Severity
from adamtune.diagnose.judging import findings
from adamtune.rundir import is_run

VERSION = 1


@dataclass(frozen=True)
class Told:
    """A finding, and on how many seeds it was raised."""

    finding: Finding
    seeds: int = 1
    of: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `seeds` only where there were several."""
        finding = self.finding
        return {
            "rule": finding.rule,
            "severity": str(finding.severity),
            "group": finding.group,
            "told": finding.told,
            "advice": finding.advice,
            "remedy": dict(finding.remedy),
            "evidence": dict(finding.evidence),
            **({"seeds": {"raised": self.seeds, "of": self.of}} if self.of > 1 else {}),
        }


@dataclass(frozen=True)
class Diagnosis:
    """What was measured last, and what the rules find."""

    target: str
    """The file or folder; empty for a training at hand."""
    kind: Literal["checkpoint", "run", "training"]
    step: int | None
    """Optimizer steps done at `record`."""
    record: Record
    """See `AdamProbe`. Of a run, the median over its fresh seeds, by statistic."""
    findings: tuple[Told, ...]
    seeds: int = 1
    notes: tuple[str, ...] = ()
    """What could not be told, in sentences."""

    @property
    def groups(self) -> dict[str, dict[str, float]]:
        """The record by param group: statistic (`r/p50`, `grad_norm`) -> value."""
        by_group: dict[str, dict[str, float]] = {}
        for key, value in self.record.items():
            group, _, statistic = key.partition("/")
            by_group.setdefault(group, {})[statistic] = value
        return by_group

    def to_dict(self) -> dict[str, Any]:
        """Plain data, versioned."""
        return {
            "version": VERSION,
            "target": self.target,
            "kind": self.kind,
            "step": self.step,
            "groups": self.groups,
            "findings": [told.to_dict() for told in self.findings],
            "notes": list(self.notes),
        }


def diagnose(target: str | Path | Observed, exact: bool = False) -> Diagnosis:
    """Measure and judge a checkpoint (a file that torch.save wrote, or a folder with one), a run directory, or a
    training at hand (`Observed`).

    Nothing that the files say is run, and no task is imported. `exact` reads every element of a checkpoint's state
    instead of a sample. Raises `CheckpointError`, `RunDirError` or `RecipeError` for what cannot be read.
    """
    if isinstance(target, Observed):
        step, record = target.records[-1] if target.records else (None, {})
        return Diagnosis("", "training", step, record, counted([target]))
    path = Path(target)
    if is_run(path):
        return _of_run(path)
    from adamtune.diagnose.checkpoint import read_checkpoint  # loads torch, which a run does not need

    checkpoint = read_checkpoint(path, exact)
    found = counted([checkpoint.observed])
    return Diagnosis(str(path), "checkpoint", checkpoint.step, checkpoint.record, found, notes=checkpoint.notes)


def _of_run(path: Path) -> Diagnosis:
    from adamtune.diagnose.run import read_run

    seeds = list(read_run(path).seeds.values())
    last = [observed.records[-1] for observed in seeds if observed.records]
    step = max((step for step, _ in last), default=None)
    record = _medians([record for at, record in last if at == step])  # a diverged seed may end before
    notes = () if last else ("the run kept no records of the probe for its recommended recipe",)
    return Diagnosis(str(path), "run", step, record, counted(seeds), len(seeds), notes)


def _medians(records: Sequence[Record]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.items():
            values.setdefault(key, []).append(value)
    return {key: statistics.median(each) for key, each in values.items()}


def counted(seeds: Sequence[Observed]) -> tuple[Told, ...]:
    """Findings by rule and group: the gravest stands for all, with how many seeds raised one. Warnings first, then what
    most seeds raised.
    """
    found: dict[tuple[str, str | None], list[Finding]] = {}
    for observed in seeds:
        own: dict[tuple[str, str | None], Finding] = {}
        for finding in findings(observed):
            own.setdefault((finding.rule, finding.group), finding)
        for key, finding in own.items():
            found.setdefault(key, []).append(finding)
    told = [Told(min(each, key=_rank), len(each), len(seeds)) for each in found.values()]
    return tuple(sorted(told, key=lambda each: (_rank(each.finding), -each.seeds)))


def _rank(finding: Finding) -> int:
    return 0 if finding.severity is Severity.WARNING else 1
