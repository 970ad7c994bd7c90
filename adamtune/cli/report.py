"""`adamtune report`: a run as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adamtune.cli.browser import Open, open_address
from adamtune.errors import ExitCode, InputError


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run directory; of several, one page that compares them.")
    ],
    to: Annotated[
        Path | None, typer.Option(help="The file to write; by default report.html in the run directory.")
    ] = None,
    open_: Annotated[
        Open, typer.Option("--open", help="Show it in a browser; auto: on a terminal that has a screen.")
    ] = Open.AUTO,
    json: Annotated[bool, typer.Option("--json", help="Print where it is, as JSON; auto opens nothing then.")] = False,
) -> int:
    """Write the report of a run, finished or as far as it came, from its files alone: one page that works offline.

    Example: adamtune report runs/digits-1 --open never
    """
    if to is None and len(runs) > 1:
        raise InputError("a page over several runs belongs to none of them; say where to write it, with --to FILE")
    from adamtune.plain_text import plain
    from adamtune.report import terminal
    from adamtune.report.written import written_report

    written = written_report(runs, to)
    opened = open_address(written.path.resolve().as_uri(), open_, auto=not json)
    if json:
        terminal.print_json({**written.to_dict(), "opened": opened})
    else:
        typer.echo(f"{plain(written.path)} ({written.size / 1e6:.1f} MB)")
        if open_ is Open.ALWAYS and not opened:
            typer.echo("adamtune: no browser could be started; open that file in one", err=True)
    return ExitCode.DONE
