"""What `adamtune doctor` finds, in the terminal: a line each, and below it what to do."""

from __future__ import annotations

from collections.abc import Iterable

from adamtune.doctor import Line, Status
from adamtune.report.console import PlainConsole

_STYLES = {Status.WARNING: "yellow", Status.PROBLEM: "bold red"}
_INDENT = 27


def print_lines(lines: Iterable[Line]) -> list[Line]:
    """Print each as it comes; all of them."""
    out, told = PlainConsole(), []
    for line in lines:
        told.append(line)
        out.tell(f"{line.status:<9}{line.name:<{_INDENT - 10}} {line.found}", _INDENT, _STYLES.get(line.status))
        remedy = f"{'':{_INDENT - 3}}-> {line.remedy}"
        if line.remedy.startswith("pip "):  # left whole, to be copied
            out.print(remedy, soft_wrap=True)
        elif line.remedy:
            out.tell(remedy, _INDENT)
    return told
