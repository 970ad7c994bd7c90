"""Probe and curves -> findings: what Adam did in a training, and what to do about it."""

from __future__ import annotations

from adamtune.diagnose.diagnosis import Diagnosis, Told, counted, diagnose
from adamtune.diagnose.finding import Finding, Observed, Rule, Severity
from adamtune.diagnose.judging import findings
from adamtune.diagnose.rules import RULES

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
]
