"""`adamtune export`: the recipe in the words of a training repo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adamtune.errors import ExitCode


def export(
    source: Annotated[Path, typer.Argument(help="A run directory or a recipe file.", show_default=False)],
    format: Annotated[str, typer.Option(help="Whose words: python (needs torch only), yaml, ...")] = "python",
    to: Annotated[Path | None, typer.Option(help="The file to write; without it, print.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
    companion: Annotated[
        bool, typer.Option("--companion", help="Also write the Python module that adds what the format cannot say.")
    ] = False,
    total_steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps of your run; else those the recipe was tuned for.")
    ] = None,
    steps_per_epoch: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps of one of your epochs, for formats that count in them.")
    ] = None,
    consumer_version: Annotated[
        int | None, typer.Option(help="Major version of the consumer to write for, where formats differ.")
    ] = None,
) -> int:
    """Write a recipe in the words of a training repo; says what they cannot express.

    Example: adamtune export runs/digits-1 --format python --to optim_recipe.py
    """
    from adamtune.errors import ExportError
    from adamtune.export import Context, export_recipe, recipe_of, write_export

    if companion and to is None:
        raise ExportError("--companion writes a file beside the export; name that with --to")
    recipe = recipe_of(source)
    horizon = recipe.provenance.get("horizon")
    steps = total_steps or (horizon if isinstance(horizon, int) and horizon > 0 else None)
    export = export_recipe(recipe, format, Context(steps, consumer_version, steps_per_epoch))
    for unsaid in export.unsaid:
        typer.echo(f"{format} cannot say {unsaid}", err=True)
    if to is None:
        typer.echo(export.text, nl=False)
        return ExitCode.DONE
    write_export(to, export.text, force)
    typer.echo(f"wrote {to}")
    if companion and export.companion is None:
        typer.echo("no companion is needed: the format says everything")
    elif companion and export.companion:
        beside = to.with_name(f"{to.stem}_optimizer.py")
        write_export(beside, export.companion, force)
        typer.echo(f"wrote {beside}")
    elif export.companion:
        typer.echo("--companion writes the Python module that adds what is missing")
    return ExitCode.DONE
