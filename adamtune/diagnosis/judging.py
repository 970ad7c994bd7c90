"""All the rules at once."""

from __future__ import annotations

from adamtune.diagnosis.finding import Finding, Observed, Severity
from adamtune.diagnosis.rules import RULES


def findings(observed: Observed) -> list[Finding]:
    """What the rules find in a training, warnings first."""
    found = [finding for rule in RULES for finding in rule.find(observed)]
    return sorted(found, key=lambda finding: finding.severity is not Severity.WARNING)
