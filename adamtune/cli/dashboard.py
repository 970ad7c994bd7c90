"""`adamtune dashboard`: a run's trials in optuna-dashboard."""

from __future__ import annotations

from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from adamtune.cli.browser import Open, open_address
from adamtune.errors import ExitCode, InputError


def dashboard(
    run: Annotated[Path, typer.Argument(help="A run directory, finished or not.", show_default=False)],
    storage: Annotated[
        str | None, typer.Option(help="The storage's whole URL, where the run's spec has left out its password.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes a free one.")] = 8080,
    open_: Annotated[
        Open, typer.Option("--open", help="Show it in a browser; auto: on a terminal that has a screen.")
    ] = Open.AUTO,
    json: Annotated[
        bool, typer.Option("--json", help="Print the address as a line of JSON; auto opens nothing then.")
    ] = False,
) -> int:
    """Look at a run's trials in optuna-dashboard, where that is installed, until Ctrl-C. Nothing can be changed there.

    Example: adamtune dashboard runs/digits-1
    """
    if find_spec("optuna_dashboard") is None:
        raise InputError("optuna-dashboard is not installed; install it with: pip install optuna-dashboard")
    from optuna_dashboard import wsgi

    from adamtune.cli.read_only import server
    from adamtune.search import storage_to_look_at

    shown = wsgi(storage_to_look_at(run, storage))
    try:
        serving = server(shown, port)
    except OSError as problem:
        raise InputError(f"port {port} cannot be used: {problem.strerror}; name another with --port") from problem
    with serving:
        address = f"http://127.0.0.1:{serving.server_port}/dashboard"
        if json:  # in one line, for whoever reads it while this goes on
            typer.echo(dumps({"version": 1, "run": str(run), "address": address}))
        else:
            typer.echo(f"{address} shows the trials until Ctrl-C")
        open_address(address, open_, auto=not json)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:  # how it is meant to end
            typer.echo(err=True)
    return ExitCode.DONE
