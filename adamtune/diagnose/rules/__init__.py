"""The rules, one file each; a file has a `RULE`."""

from __future__ import annotations

from adamtune.diagnose.finding import Rule

RULES: tuple[Rule, ...] = ()
"""In the order in which their findings are told."""
