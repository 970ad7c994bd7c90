"""One line of what `adamtune doctor` says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How grave it is."""

    OK = "ok"
    NOTE = "note"
    """Nothing is wrong; there is more to be had."""
    WARNING = "warning"
    """A sweep will run, and may tell less than it could, or not run elsewhere."""
    PROBLEM = "problem"
    """A sweep will fail, or what it finds cannot be trusted."""


@dataclass(frozen=True)
class Line:
    """What was looked at, how it stands, and what to do about it."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    """Empty where nothing is to be done."""

    def to_dict(self) -> dict[str, str]:
        """As plain data."""
        return {"name": self.name, "status": str(self.status), "found": self.found, "remedy": self.remedy}
