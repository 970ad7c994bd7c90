"""`adamtune worker`: train trials of a sweep that runs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamtune.cli import imports
from adamtune.cli.alone import result_alone
from adamtune.errors import ExitCode, StorageError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def worker(
    storage: Annotated[
        str,
        typer.Option(
            help="The Optuna storage URL that the sweep uses.",
            envvar="ADAMTUNE_STORAGE",
            show_envvar=True,
            show_default=False,
        ),
    ],
    study: Annotated[str, typer.Option(help="The sweep: the name of its run directory.", show_default=False)],
    task: Annotated[
        str | None,
        typer.Option(
            help="The task that may be imported here; needed unless it is one of adamtune's own. "
            "A reference such as path/file.py:function.",
            show_default=False,
        ),
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            help="The folder `checkpoints` of the run, where this machine sees it: trials whose worker died go on from "
            "their last rung.",
            envvar="ADAMTUNE_CHECKPOINTS",
            show_envvar=True,
            show_default=False,
            file_okay=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: auto, cpu, cuda, cuda:1.")] = "auto",
    idle: Annotated[float, typer.Option(min=0, help="Seconds to wait for the sweep to begin, or to go on.")] = 600.0,
    json: Annotated[bool, typer.Option("--json", help="Print why it ended as JSON, and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result and errors.")] = False,
) -> int:
    """Train trials of a sweep that runs with `engine: workers` on the same storage; ends with it.

    Example: adamtune worker --storage postgresql://me@db/tuning --study digits-1
    """
    with imports.quickly():
        from adamtune.engines import pick_device
        from adamtune.engines.worker import Worker, task_loader
        from adamtune.report import terminal
        from adamtune.search import open_storage, storage_faults_told

    def tell(note: str) -> None:
        if not json and not quiet:
            typer.echo(note, err=True)

    def reach() -> BaseStorage:
        return open_storage(storage, Path(), tell)

    try:
        with result_alone(), storage_faults_told(storage):
            serving = Worker(reach, study, task_loader(task), pick_device(device), idle, tell, checkpoints)
            ended = serving.serve()
    except StorageError as problem:
        raise StorageError(f"{problem}, then start the worker again") from problem
    if json:
        terminal.print_json({"version": 1, "worker": serving.name, "study": study, "ended": ended})
    else:
        typer.echo(f"worker {serving.name}: {ended}")
    return ExitCode.DONE
