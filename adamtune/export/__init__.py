"""Recipes in the words of a training repo, one file a format. Never imports a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adamtune.errors import ExportError
from adamtune.export.python_module import python_module
from adamtune.recipe import Recipe, load_recipe
from adamtune.rundir import RECIPE, read_result, write_atomically
from adamtune.yaml_text import nearest

FORMATS: dict[str, Callable[[Recipe], str]] = {"python": python_module, "yaml": Recipe.to_yaml}
"""Text of a recipe by format."""


def recipe_of(source: Path) -> Recipe:
    """The recipe of a run directory, or of a recipe file.

    Raises `RunDirError` for a run without one, `RecipeError` for a file that is none.
    """
    if source.is_dir():
        if not (source / RECIPE).exists():
            read_result(source)  # says whether it is no run, or an unfinished one
        return load_recipe(source / RECIPE)
    return load_recipe(source)


def export_recipe(recipe: Recipe, format: str) -> str:
    """The recipe in a format; `ExportError` when there is no such format."""
    if format not in FORMATS:
        raise ExportError(f"there is no export format '{format}'; {nearest(format, FORMATS)}")
    return FORMATS[format](recipe)


def write_export(target: Path, text: str, force: bool) -> None:
    """Write an export; `ExportError` when the file exists and `force` is not given, or the folder does not."""
    if target.is_dir():
        raise ExportError(f"{target} is a folder; name the file to write with --to")
    if target.exists() and not force:
        raise ExportError(f"{target} exists; name another file, or replace it with --force")
    if not target.parent.is_dir():
        raise ExportError(f"there is no folder {target.parent} to write {target.name} in")
    write_atomically(target, text)
