"""`adamtune show`: what a run found out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adamtune.errors import ExitCode, RunDirError


def show(
    run: Annotated[
        Path | None, typer.Argument(help="A run directory; without it, the runs in runs/.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the run's result.json.")] = False,
) -> int:
    """Show a run: default against recommended, and the verdict on every knob.

    Example: adamtune show runs/digits-1
    """
    from adamtune.plain_text import plain
    from adamtune.report import terminal
    from adamtune.rundir import finished_runs, read_result

    if run is None:
        found = {}
        for path in finished_runs(Path("runs")):
            try:
                found[path] = read_result(path)
            except RunDirError as problem:
                typer.echo(f"adamtune: left out: {plain(problem)}", err=True)
        if json:
            terminal.print_json({str(path): result for path, result in found.items()})
        else:
            terminal.print_runs(found)
        return ExitCode.DONE
    result = read_result(run)
    if json:
        terminal.print_json(result)
    else:
        terminal.print_result(result, run)
    return ExitCode.DONE
