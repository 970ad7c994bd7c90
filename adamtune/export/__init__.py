"""Recipes in the words of a training repo, one file a format. Never imports a task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adamtune.errors import ExportError
from adamtune.export import accelerate, deepspeed, hf, lightning, python_module, recipe_yaml
from adamtune.export.format import Context, Format, Settings, Unsaid
from adamtune.export.text import text_of
from adamtune.recipe import Recipe, load_recipe
from adamtune.rundir import RECIPE, read_result, write_atomically
from adamtune.yaml_text import nearest

__all__ = ["FORMATS", "Context", "Export", "Format", "Settings", "Unsaid", "export_recipe", "recipe_of", "write_export"]

FORMATS: dict[str, Format] = {
    part.FORMAT.name: part.FORMAT for part in (python_module, recipe_yaml, hf, accelerate, deepspeed, lightning)
}


@dataclass(frozen=True)
class Export:
    """A recipe in a format: what to write, and what that leaves out."""

    text: str
    unsaid: tuple[Unsaid, ...] = ()
    companion: str | None = None
    """Source of the module that adds what is unsaid; None where nothing is."""


def recipe_of(source: Path) -> Recipe:
    """The recipe of a run directory, or of a recipe file.

    Raises `RunDirError` for a run without one, `RecipeError` for a file that is none.
    """
    if source.is_dir():
        if not (source / RECIPE).exists():
            read_result(source)  # says whether it is no run, or an unfinished one
        return load_recipe(source / RECIPE)
    return load_recipe(source)


def format_called(name: str) -> Format:
    """The format of that name; `ExportError` when there is none."""
    if name not in FORMATS:
        raise ExportError(f"there is no export format '{name}'; {nearest(name, FORMATS)}")
    return FORMATS[name]


def export_recipe(recipe: Recipe, format: str, context: Context | None = None) -> Export:
    """The recipe in a format; `ExportError` when there is no such format, or it cannot be told in it."""
    chosen, context = format_called(format), context or Context()
    if context.version is not None and context.version not in chosen.versions:
        known = f"of version {' or '.join(map(str, chosen.versions))}" if chosen.versions else "without a version"
        raise ExportError(f"{format} is written {known}, not for version {context.version}")
    if chosen.whole:
        return Export(chosen.whole(recipe))
    settings = chosen.settings(recipe, context)
    companion = chosen.companion(recipe, context) if chosen.companion and settings.unsaid else None
    return Export(text_of(chosen, settings, recipe), settings.unsaid, companion)


def write_export(target: Path, text: str, force: bool) -> None:
    """Write an export; `ExportError` when the file exists and `force` is not given, or the folder does not."""
    if target.is_dir():
        raise ExportError(f"{target} is a folder; name the file to write with --to")
    if target.exists() and not force:
        raise ExportError(f"{target} exists; name another file, or replace it with --force")
    if not target.parent.is_dir():
        raise ExportError(f"there is no folder {target.parent} to write {target.name} in")
    write_atomically(target, text)
