"""`adamtune show`: what a run found out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adamtune.errors import ExitCode, RunDirError


def show(
    run: Annotated[
        Path | None,
        typer.Argument(help="A run directory, or a folder of them; without it, runs/.", show_default=False),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the run's result.json, or of several all of them.")
    ] = False,
) -> int:
    """Show a run: the verdict on every knob, and default against recommended. Of a folder of runs, a line each.

    Example: adamtune show runs/digits-1
    """
    from adamtune.report import terminal
    from adamtune.rundir import is_run, read_result, runs_in

    folder = Path("runs") if run is None else run
    if run is None or (not is_run(run) and runs_in(run)):
        return _list(folder, json)
    result = read_result(run)
    if json:
        terminal.print_json(result)
    else:
        terminal.print_result(result, run)
    return ExitCode.DONE


def _list(folder: Path, json: bool) -> int:
    from adamtune.plain_text import plain
    from adamtune.report import terminal
    from adamtune.rundir import RESULT, read_result, runs_in

    found, unfinished = {}, []
    for path in runs_in(folder):
        try:
            if (path / RESULT).exists():
                found[path] = read_result(path)
            else:
                unfinished.append(path)
        except RunDirError as problem:
            typer.echo(f"adamtune: left out: {plain(problem)}", err=True)
    if json:
        runs = {str(path): result for path, result in found.items()}
        terminal.print_json({"version": 1, "runs": runs, "unfinished": list(map(str, unfinished))})
    else:
        terminal.print_runs(folder, found, unfinished)
    return ExitCode.DONE
