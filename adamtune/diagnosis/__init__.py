"""Probe and curves -> findings: what Adam did in a training, and what to do about it."""

from __future__ import annotations

from adamtune.diagnosis.diagnosis import Diagnosis, diagnose
from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.judging import findings
from adamtune.diagnosis.rules import RULES
from adamtune.diagnosis.told import Told, counted, without_asked

__all__ = [
    "RULES",
    "Diagnosis",
    "Finding",
    "Observed",
    "Rule",
    "Severity",
    "Told",
    "counted",
    "diagnose",
    "findings",
    "without_asked",
]
