"""Findings as they are told: on how many seeds each was raised, and what a sweep has settled since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adamtune.diagnosis.finding import Finding, Observed, Severity
from adamtune.diagnosis.judging import findings
from adamtune.knobs import stage_of


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


def counted(seeds: Sequence[Observed]) -> tuple[Told, ...]:
    """Findings by rule and group: the gravest stands for all, with how many seeds raised one. Warnings, then notes; of
    each, what most seeds raised."""
    found: dict[tuple[str, str | None], list[Finding]] = {}
    for observed in seeds:
        own: dict[tuple[str, str | None], Finding] = {}
        for finding in findings(observed):
            own.setdefault((finding.rule, finding.group), finding)
        for key, finding in own.items():
            found.setdefault(key, []).append(finding)
    told = [Told(min(each, key=_rank), len(each), len(seeds)) for each in found.values()]
    return _graver_first(told)


def _graver_first(found: Iterable[Told]) -> tuple[Told, ...]:
    """Warnings, then notes; of each, what most seeds raised."""
    return tuple(sorted(found, key=lambda each: (_rank(each.finding), -each.seeds)))


def _rank(finding: Finding) -> int:
    return 0 if finding.severity is Severity.WARNING else 1


def without_asked(found: Sequence[Told], verdicts: Mapping[str, str]) -> tuple[Told, ...]:
    """The findings; a warning is a note where every knob of its remedy was asked about by a stage of the sweep.

    Rules know what often helps, a stage what did here. `verdicts` are the stages' own, by name; only `changed` and
    `kept` are decisions.
    """
    return _graver_first(_less(told, verdicts) for told in found)


def _less(told: Told, verdicts: Mapping[str, str]) -> Told:
    finding = told.finding
    stages = dict.fromkeys(stage_of(knob) for knob in finding.remedy)
    asked = bool(stages) and all(verdicts.get(stage) in ("changed", "kept") for stage in stages)
    if finding.severity is not Severity.WARNING or not asked:
        return told
    advice = f"nothing: {' and '.join(stages)} {'was' if len(stages) == 1 else 'were'} asked and decided by evidence"
    advice += f" (else: {finding.advice})"
    return replace(told, finding=replace(finding, severity=Severity.NOTE, advice=advice, remedy={}))
