"""The recipes that come with adamtune, by name."""

from __future__ import annotations

from pathlib import Path

from adamtune.errors import Problem, RecipeError
from adamtune.yaml_text import nearest

_FOLDER = Path(__file__).parent / "recipes"
"""In a clone a link to the folder `recipes/` at its top; in an installed package a copy of it."""


def shipped_names() -> list[str]:
    """Names of the shipped recipes, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def shipped_path(name: str) -> Path:
    """The file of a shipped recipe; `RecipeError` when none is called that."""
    names = shipped_names()
    if name not in names:
        what = f"no recipe of that name comes with adamtune; {nearest(name, names)}"
        raise RecipeError(name[:60], [Problem("", what)])
    return _FOLDER / f"{name}.yaml"


def recipe_path(reference: str | Path) -> Path:
    """The file meant by a path or by a shipped recipe's name. Where there is such a file, it counts.

    What looks like a path (`my/recipe`, `recipe.yaml`) is given back as it is, there or not; for a word that is neither
    a file nor a name raises `RecipeError`.
    """
    path, names = Path(reference), shipped_names()
    word = str(reference)
    try:
        if path.is_file() or path.suffix or path.name != word or (path.is_dir() and word not in names):
            return path
    except (OSError, ValueError):  # too long a name, or a NUL in it
        return path
    if word not in names:
        what = f"no such file, and no recipe of that name comes with adamtune; {nearest(word, names)}"
        raise RecipeError(word if word.isprintable() else repr(word), [Problem("", what)])
    return shipped_path(word)
