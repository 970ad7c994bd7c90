"""Docstrings of the installed libraries, as labelled text: which library does this come from?"""

from __future__ import annotations

import ast
import functools
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adamtune.errors import TaskError
from adamtune.tasks.packages import folder_of

LIBRARIES = ("stdlib", "numpy", "scipy", "pandas", "scikit-learn", "torch")
"""The classes, in the order of their numbers."""

_MODULES = {"scikit-learn": "sklearn"}
_NAMES = re.compile(r"\b(numpy|np|scipy|pandas|pd|sklearn|scikit|learn|torch|pytorch|aten)\b", re.IGNORECASE)
"""Words that give the answer away, and are left out."""
_SKIPPED = {"site-packages", "test", "tests", "testing", "idlelib", "lib2to3", "_vendor", "vendor", "externals"}
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_OF_A_FILE = 8
"""Docstrings taken of a file at most, so that many files speak."""
_WORDS = 8, 60
"""Fewest words of a text that is taken, and most that are kept of it."""


@dataclass(frozen=True)
class Texts:
    """Texts and the numbers of their libraries, side by side."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


@functools.cache
def docstrings(train: int, validation: int) -> tuple[Texts, Texts]:
    """So many a library for training and for validation; no file, and no text, is in both.

    The files are read, not imported. Which texts there are depends on the versions installed. Raises `TaskError` where
    a library is missing or too small.
    """
    parts: tuple[list[tuple[str, int]], list[tuple[str, int]]] = ([], [])
    for label, library in enumerate(LIBRARIES):
        wanted = (train, validation)
        found: tuple[list[str], list[str]] = ([], [])
        seen: set[str] = set()
        for number, path in enumerate(_files(library)):
            part = number % 4 == 3  # every fourth file validates
            new = [text for text in dict.fromkeys(_texts(path)) if text not in seen]
            new = new[: min(_OF_A_FILE, wanted[part] - len(found[part]))]
            seen.update(new)
            found[part].extend(new)
            if all(len(texts) == count for texts, count in zip(found, wanted, strict=True)):
                break
        else:
            raise TaskError(f"{library} has fewer than {train} + {validation} docstrings; ask for fewer labels")
        for collected, texts in zip(parts, found, strict=True):
            collected.extend((text, label) for text in texts)
    train_texts, validation_texts = (
        Texts(tuple(text for text, _ in part), tuple(label for _, label in part)) for part in parts
    )
    return train_texts, validation_texts


def _files(library: str) -> list[Path]:
    """Its Python files in an order of chance, the same each time."""
    if library == "stdlib":
        folder = Path(sysconfig.get_paths()["stdlib"])
    else:
        folder = folder_of(_MODULES.get(library, library), library)
    files = sorted(path for path in folder.rglob("*.py") if _SKIPPED.isdisjoint(path.relative_to(folder).parts))
    random.Random(0).shuffle(files)
    return files


def _texts(path: Path) -> Iterator[str]:
    """The docstrings of a file, without examples and names of libraries, the longer ones cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's escape sequences
        try:
            tree = ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
        except SyntaxError:
            return
    for node in _documented(tree):
        lines = (ast.get_docstring(node) or "").splitlines()
        prose = " ".join(line for line in lines if not line.lstrip().startswith((">>>", "...")))
        words = _NAMES.sub(" ", prose).split()
        if len(words) >= _WORDS[0]:
            yield " ".join(words[: _WORDS[1]])


def _documented(node: _Documented) -> Iterator[_Documented]:
    """A module, and the classes and functions in it."""
    yield node
    for inner in node.body:
        if isinstance(inner, _Documented):
            yield from _documented(inner)
