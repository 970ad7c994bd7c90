"""What `adamtune doctor` finds, in the terminal: a line each, and below it what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from rich.text import Text

from adamtune.doctor import Line, Status
from adamtune.plain_text import plain
from adamtune.report.console import PlainConsole

_STYLES = {Status.OK: "green", Status.NOTE: "cyan", Status.WARNING: "yellow", Status.PROBLEM: "bold red"}
_INDENT = 27


def print_lines(lines: Iterable[Line]) -> list[Line]:
    """Print each as it comes; all of them."""
    out, told = PlainConsole(soft_wrap=True), []
    for line in lines:
        told.append(line)
        shown = Text(_wrapped(f"{line.status:<9}{plain(line.name):<{_INDENT - 10}} {plain(line.found)}", out.width))
        shown.stylize(_STYLES[line.status], 0, len(line.status))
        out.print(shown)
        if line.remedy:
            remedy = f"{'':{_INDENT - 3}}-> {plain(line.remedy)}"
            command = line.remedy.startswith("pip ")  # left whole, to be copied
            out.print(Text(remedy if command else _wrapped(remedy, out.width)))
    return told


def _wrapped(text: str, width: int) -> str:
    indent = " " * _INDENT
    lines = textwrap.wrap(
        text, max(50, width), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)
