"""The report's section on what a run ran on, and how to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamtune import rundir
from adamtune.report.page import Section, table, verbatim


def reproduce_section(run: Path, unfinished: bool = False) -> Section:
    """The command, the spec, and the environment. Of an unfinished run the command goes on with it."""
    target = shlex.quote(str(run)) if unfinished else "a-new-folder"
    aim = "go on" if unfinished else "reproduce"
    command = f"adamtune sweep {shlex.quote(str(run / rundir.SPEC))} --run-dir {target}"
    parts = [
        verbatim(command, f"Command to {aim}"),
        f"<h3>{rundir.SPEC}</h3>",
    ]
    parts.append(verbatim(file_text(run, rundir.SPEC), rundir.SPEC))
    rows = [[key, _in_words(value)] for key, value in _environment(run).items() if value not in (None, "")]
    if rows:
        parts += ["<h3>Environment</h3>", table(["environment", "value"], rows)]
    return Section(f"Environment and how to {aim}", "\n".join(parts), "reproduce")


def file_text(run: Path, name: str) -> str:
    """A file of the run; empty where there is none. Raises `RunDirError` as `rundir.run_file`."""
    path = rundir.run_file(run, name)
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _environment(run: Path) -> dict[str, Any]:
    """An earlier sitting wrote it, or whoever gave us the run; a report need not fail for it."""
    try:
        data = rundir.read_json(run, rundir.ENVIRONMENT)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _in_words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
