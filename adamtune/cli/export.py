"""`adamtune export`: the recipe in the words of a training repo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamtune.cli.completing import FORMATS, one_of
from adamtune.errors import ExitCode

if TYPE_CHECKING:
    from adamtune.export import Export


def export(
    source: Annotated[
        Path, typer.Argument(help="A run directory, a recipe file, or a shipped recipe's name.", show_default=False)
    ],
    format: Annotated[
        str,
        typer.Option(
            help="Whose words: python (needs torch only), yaml, hf (transformers), accelerate, deepspeed, lightning, "
            "timm, torchtune, axolotl, hydra, megatron or nanogpt.",
            autocompletion=one_of(FORMATS),
        ),
    ] = "python",
    to: Annotated[Path | None, typer.Option(help="The file to write; without it, print.")] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            help="An existing YAML or JSON file to set the recipe's keys in. Shows the change, keeps a copy "
            "(FILE.bak), and leaves every other line as it is; values there are replaced with --force only."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --into: show the change, write nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file where it exists; with --into, the values it has.")
    ] = False,
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
    json: Annotated[
        bool, typer.Option("--json", help="Print as JSON: the text, what it cannot say, what was written.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result and errors.")] = False,
) -> int:
    """Write a recipe in the words of a training repo; says what they cannot express.

    With --into, lists are replaced as a whole, mappings key by key; what the recipe does not name stays.

    Example: adamtune export runs/digits-1 --format python --to optim_recipe.py
    """
    from adamtune.errors import ExportError
    from adamtune.export import (
        Context,
        check_ending,
        check_target,
        companion_path,
        export_into,
        export_recipe,
        recipe_of,
        write_export,
    )

    if to is not None and into is not None:
        raise ExportError("--to writes a file and --into edits one; give one of them")
    if dry_run and into is None:
        raise ExportError("--dry-run shows what --into would change; name that file with --into")
    target = into if to is None else to
    if companion and target is None:
        raise ExportError("--companion writes a file beside the export; name that with --to or --into")
    if to is not None:
        check_ending(to, format)
        check_target(to, force)
    recipe = recipe_of(source)
    horizon = recipe.provenance.get("horizon")
    tuned = horizon if type(horizon) is int and horizon > 0 else None
    context = Context(total_steps or tuned, consumer_version, steps_per_epoch)
    export = export_into(recipe, format, into, context) if into else export_recipe(recipe, format, context)
    steps = context.total_steps if format not in ("python", "yaml") else None
    if not json and not quiet:
        _tell(export, format, steps if total_steps is None else None)
    if not json and export.edit and (dry_run or not quiet):  # shown before it is done
        typer.echo(export.edit.diff or f"{into} says all of this already\n", nl=False)
    beside = companion_path(target) if target and companion and export.companion else None
    if beside and not dry_run:
        check_target(beside, force)
    backup, written = None, []
    if not dry_run and export.edit and export.edit.diff:
        backup = export.edit.write(force)
        written.append(into)
    elif to:
        write_export(to, export.text, force)
        written.append(to)
    if not dry_run and beside and export.companion:
        write_export(beside, export.companion, force)
        written.append(beside)
    if json:
        from adamtune.report import terminal

        told = {
            "format": format,
            "total_steps": steps,
            "written": list(map(str, written)),
            "backup": backup and str(backup),
        }
        terminal.print_json({"version": 1, **told, **export.to_dict()})
    elif target is None:
        typer.echo(export.text, nl=False)
    elif not quiet and not dry_run:
        for path in written:
            typer.echo(f"wrote {path}" + (f"; as it was before: {backup}" if path == into else ""))
        if export.companion and not beside:
            typer.echo("--companion writes the Python module that adds what is missing")
        elif companion and not export.companion:
            typer.echo("no companion is needed: the format says everything")
    return ExitCode.DONE


def _tell(export: Export, format: str, steps: int | None) -> None:
    """What somebody must know who takes the text as it is. `steps`: those it assumes."""
    if steps:
        typer.echo(f"for a run of {steps:,} steps, as the recipe was tuned for; --total-steps says another", err=True)
    for unsaid in export.unsaid:
        typer.echo(f"{format} cannot say {unsaid}", err=True)
    if export.edit and export.edit.left:
        typer.echo(f"left as they are, and in force: {', '.join(export.edit.left)}", err=True)
