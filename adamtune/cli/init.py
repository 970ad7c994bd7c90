"""`adamtune init`: a task file and a spec to start from."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from adamtune.errors import ExitCode
from adamtune.starting_files import Kind, usual_horizon, write_starting_files

T = TypeVar("T")
MOST_STEPS = 1_000_000_000
"""As in a spec."""


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write; made where it is not there.")] = Path(),
    kind: Annotated[
        Kind | None, typer.Option(help="What the model is; asked for on a terminal.", show_default="pytorch")
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_STEPS, help="Steps of the run the recipe is for; asked for.", show_default="short"
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, take the defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> int:
    """Write task.py and spec.yaml, which run as they are, on a small stand-in: put your model and data in its place.

    Example: adamtune init my_model --kind pytorch
    """
    asking = not yes and sys.stdin is not None and sys.stdin.isatty()
    if kind is None:
        kind = _ask(f"What is the model ({', '.join(Kind)})?", Kind.PYTORCH, _kind) if asking else Kind.PYTORCH
    if horizon is None:
        usual = usual_horizon(kind)
        horizon = _ask("For a run of how many optimizer steps?", usual, _horizon) if asking else usual
    written = write_starting_files(folder, kind, horizon, force)
    for path in written:
        typer.echo(f"wrote {path}")
    task, spec = written
    typer.echo("put your model and data where it says YOURS; it runs as it is, too:\n")
    for words in (
        ["doctor", "--task", f"{task}:task"],
        ["lr-find", f"{task}:task", "--horizon", str(horizon)],
        ["sweep", str(spec), "--run-dir", str(folder / "run")],
    ):
        typer.echo(f"  {shlex.join(['adamtune', *words])}")
    return ExitCode.DONE


def _ask(question: str, default: T, read: Callable[[str], T]) -> T:
    answer: T = typer.prompt(question, default=str(default), value_proc=read)
    return answer


def _kind(answer: str) -> Kind:
    try:
        return Kind(answer.strip().lower())
    except ValueError:
        raise typer.BadParameter(f"{answer} is none of {', '.join(Kind)}") from None


def _horizon(answer: str) -> int:
    steps = answer.replace(",", "").replace("_", "").strip()
    if not steps.isdecimal() or not 1 <= int(steps) <= MOST_STEPS:
        raise typer.BadParameter(f"{answer} is no number of steps; it must be from 1 to {MOST_STEPS:,}")
    return int(steps)
