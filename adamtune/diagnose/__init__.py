"""Probe and curves -> findings: what Adam did in a training, and what to do about it."""

from __future__ import annotations

from adamtune.diagnose.finding import Finding, Observed, Record, Rule, Severity
from adamtune.diagnose.rules import RULES

__all__ = ["RULES", "Finding", "Observed", "Record", "Rule", "Severity", "findings"]


def findings(observed: Observed) -> list[Finding]:
    """What the rules find in a training, warnings first."""
    found = [finding for rule in RULES for finding in rule.find(observed)]
    return sorted(found, key=lambda finding: finding.severity is not Severity.WARNING)
