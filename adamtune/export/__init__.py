"""Recipes in the words of a training repo, one file a format. Never imports a task."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamtune.errors import ExportError
from adamtune.export import (
    accelerate,
    axolotl,
    deepspeed,
    hf,
    hydra,
    lightning,
    megatron,
    nanogpt,
    python_module,
    recipe_yaml,
    timm,
    torchtune,
)
from adamtune.export.format import Context, Format, Settings, Unsaid
from adamtune.export.into import FileEdit, edit_file
from adamtune.export.text import text_of
from adamtune.recipe import Recipe, load_recipe
from adamtune.rundir import RECIPE, read_result, run_file, write_atomically
from adamtune.yaml_text import nearest

__all__ = [
    "FORMATS", "Context", "Export", "Format", "Settings", "Unsaid", "check_ending", "check_target", "companion_path",
    "export_into", "export_recipe", "recipe_of", "write_export",
]  # fmt: skip

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        python_module, recipe_yaml, hf, accelerate, deepspeed, lightning, timm, torchtune, axolotl, hydra, megatron,
        nanogpt,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Export:
    """A recipe in a format: what to write, and what that leaves out."""

    text: str
    unsaid: tuple[Unsaid, ...] = ()
    companion: str | None = None
    """Source of the module that adds what is unsaid; None where nothing is."""
    edit: FileEdit | None = None
    """Of `export_into`: the change to the file."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `edit` only of `export_into`."""
        data = {"text": self.text, "unsaid": list(map(str, self.unsaid)), "companion": self.companion}
        if self.edit is None:
            return data
        edit = {name: list(getattr(self.edit, name)) for name in ("added", "replaced", "left")}
        return data | {"edit": {"diff": self.edit.diff, **edit}}


def recipe_of(source: Path) -> Recipe:
    """The recipe of a run directory or a recipe file, or the shipped one of that name.

    Raises `RunDirError` for a run without one, `RecipeError` for a file that is none.
    """
    try:
        folder = source.is_dir()
    except (OSError, ValueError):  # too long a name, or a NUL in it: no file either, as is said below
        folder = False
    if folder:
        if not (source / RECIPE).exists():
            read_result(source)  # says whether it is no run, or an unfinished one
        return load_recipe(run_file(source, RECIPE))
    return load_recipe(source)


def format_called(name: str) -> Format:
    """The format of that name; `ExportError` when there is none."""
    if name.lower() in ("pytorch", "torch"):
        raise ExportError(f"there is no export format '{name}'; did you mean 'python'?")
    if name not in FORMATS:
        raise ExportError(f"there is no export format '{name}'; {nearest(name, FORMATS)}")
    return FORMATS[name]


_ENDINGS = {"python": (".py",), "assignments": (".py",), "yaml": (".yaml", ".yml"), "json": (".json",)}


def check_ending(path: Path, format: str) -> None:
    """Raise `ExportError` where a file's name says another syntax than the format has, by which a reader takes it."""
    syntax = format_called(format).syntax
    fit = _ENDINGS.get(syntax, ())
    if path.suffix in {ending for endings in _ENDINGS.values() for ending in endings} - set(fit):
        written = "Python" if ".py" in fit else {"arguments": "command line arguments"}.get(syntax, syntax.upper())
        name = f"a file that ends in {fit[0]}" if fit else f"a file that does not end in {path.suffix}"
        raise ExportError(f"{format} is written as {written}, which {path} does not look like; name {name}")


def export_recipe(recipe: Recipe, format: str, context: Context | None = None) -> Export:
    """The recipe in a format; `ExportError` when there is no such format, or it cannot be told in it."""
    context = context or Context()
    chosen = _for_version(format, context)
    if chosen.whole:
        return Export(chosen.whole(recipe))
    settings = chosen.settings(recipe, context)
    text = text_of(chosen, settings, recipe, context.total_steps)
    return Export(text, settings.unsaid, _companion(chosen, settings, recipe, context))


def export_into(recipe: Recipe, format: str, path: Path, context: Context | None = None) -> Export:
    """The same, put into an existing file; nothing is written until its `edit.write`.

    Raises `ExportError` when the format is neither YAML nor JSON, and as `into.edit_file`.
    """
    context = context or Context()
    chosen = _for_version(format, context)
    if chosen.syntax not in ("yaml", "json"):
        able = ", ".join(name for name, other in FORMATS.items() if other.syntax in ("yaml", "json"))
        raise ExportError(
            f"{format} is neither YAML nor JSON, so --into cannot edit it into a file; formats it can: {able}"
        )
    settings = chosen.settings(recipe, context)
    edit = edit_file(path, settings, chosen.syntax)
    return Export(edit.after, settings.unsaid, _companion(chosen, settings, recipe, context), edit)


def _for_version(name: str, context: Context) -> Format:
    chosen = format_called(name)
    if context.version is not None and context.version not in chosen.versions:
        known = f"of version {' or '.join(map(str, chosen.versions))}" if chosen.versions else "without a version"
        raise ExportError(f"{name} is written {known}, not for version {context.version}")
    return chosen


def _companion(chosen: Format, settings: Settings, recipe: Recipe, context: Context) -> str | None:
    return chosen.companion(recipe, context) if chosen.companion and settings.unsaid else None


def companion_path(target: Path) -> Path:
    """Where the companion of an export goes: beside it, under a name that Python can import."""
    name = re.sub(r"\W", "_", target.stem)
    return target.with_name(f"{'_' if name[:1].isdigit() else ''}{name}_optimizer.py")


def check_target(target: Path, force: bool) -> None:
    """`ExportError` when the file exists and `force` is not given, or no file can be put there."""
    try:
        if "\0" in str(target):
            raise ValueError
        if target.is_dir():
            raise ExportError(f"{target} is a folder; name the file to write with --to")
        if target.exists() and not target.is_file():
            raise ExportError(f"{target} is no plain file; name another, or leave --to out to print")
        if target.exists() and not force:
            raise ExportError(f"{target} exists; name another file, or replace it with --force")
        if not target.parent.is_dir():
            raise ExportError(f"there is no folder {target.parent} to write {target.name} in")
        if not os.access(target.parent, os.W_OK):
            raise ExportError(f"the folder {target.parent} is read-only; name one to write {target.name} in")
    except (OSError, ValueError) as problem:  # too long, or with a NUL in it
        raise ExportError(f"no file can have the name {str(target)[:60]!r}...; name another with --to") from problem


def write_export(target: Path, text: str, force: bool) -> None:
    """Write an export, through a link where the target is one; raises as `check_target`."""
    check_target(target, force)
    write_atomically(Path(os.path.realpath(target)) if target.is_symlink() else target, text)
