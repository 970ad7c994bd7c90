"""`adamtune export`: the recipe in the words of a training repo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adamtune.errors import ExitCode


def export(
    source: Annotated[Path, typer.Argument(help="A run directory or a recipe file.", show_default=False)],
    format: Annotated[str, typer.Option(help="python (needs torch only) or yaml.")] = "python",
    to: Annotated[Path | None, typer.Option(help="The file to write; without it, print.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
) -> int:
    """Write a recipe as a Python module that builds the optimizer, or as YAML.

    Example: adamtune export runs/digits-1 --format python --to optim_recipe.py
    """
    from adamtune.export import export_recipe, recipe_of, write_export

    text = export_recipe(recipe_of(source), format)
    if to is None:
        typer.echo(text, nl=False)
    else:
        write_export(to, text, force)
        typer.echo(f"wrote {to}")
    return ExitCode.DONE
