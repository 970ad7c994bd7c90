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
    json: Annotated[
        bool, typer.Option("--json", help="Print what was written and is to be run, as JSON; asks nothing.")
    ] = False,
) -> int:
    """Write a task file and a spec to put your own model into.

    task.py and spec.yaml run as they are, on a small model and data that stand in for yours: put those in their place,
    where it says YOURS. Without a terminal nothing is asked, and the defaults are taken.

    Example: adamtune init my_model --kind pytorch
    """
    asking = not yes and not json and sys.stdin is not None and sys.stdin.isatty()
    if kind is None:
        kind = _ask(f"What is the model ({', '.join(Kind)})?", Kind.PYTORCH, _kind) if asking else Kind.PYTORCH
    if horizon is None:
        usual = usual_horizon(kind)
        horizon = _ask("For a run of how many optimizer steps?", usual, _horizon) if asking else usual
    written = write_starting_files(folder, kind, horizon, force)
    task, spec = written
    commands = (
        ["doctor", "--task", f"{task}:task"],
        ["lr-find", f"{task}:task", "--horizon", str(horizon)],
        ["sweep", str(spec), "--run-dir", str(folder / "run")],
    )
    next_ones = [shlex.join(["adamtune", *words]) for words in commands]
    if json:
        from adamtune.report import terminal

        told = {"kind": str(kind), "horizon": horizon, "written": list(map(str, written)), "commands": next_ones}
        terminal.print_json({"version": 1, **told})
        return ExitCode.DONE
    for path in written:
        typer.echo(f"wrote {path}")
    typer.echo("put your model and data where it says YOURS; it runs as it is, too:\n")
    for command in next_ones:
        typer.echo(f"  {command}")
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
