"""An export into a file that is there: `adamtune export --into`. The file's other lines stay as they are."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from adamtune.errors import ExportError
from adamtune.export.edits import edit
from adamtune.export.format import Settings
from adamtune.export.places import Syntax
from adamtune.rundir import write_atomically
from adamtune.yaml_text import MAX_BYTES

_ENDINGS: dict[str, Syntax] = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}


@dataclass(frozen=True)
class FileEdit:
    """What an export would change in a file; nothing is written until `write`."""

    path: Path
    """As it was named; a link is followed, and what it points to is edited."""
    before: str
    after: str
    added: tuple[str, ...]
    """Keys that the file does not have, as paths, e.g. `$.optimizer.lr`."""
    replaced: tuple[str, ...]
    """Keys that have another value there."""
    left: tuple[str, ...] = ()
    """Keys beside them in a mapping that the recipe sets in part: they stay, and still count."""

    @property
    def diff(self) -> str:
        """The change as a unified diff; empty where the file says it all already."""
        lines = difflib.unified_diff(_lines(self.before), _lines(self.after), str(self.path), f"{self.path} (edited)")
        ends = (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
        return "".join(ends)

    def write(self, force: bool) -> Path:
        """Keep the file as it was, and put the edited one in its place at once; the path of the copy kept.

        The copy is `NAME.bak`, or the first of `NAME.bak.1`, `NAME.bak.2`, ... that is free. Raises `ExportError` where
        values would be replaced and `force` is not given, or the file cannot be written or has changed meanwhile.
        """
        if self.replaced and not force:
            keys = ", ".join(self.replaced)
            raise ExportError(f"{self.path} has other values for {keys}; replace them with --force")
        place = Path(os.path.realpath(self.path)) if self.path.is_symlink() else self.path
        if not os.access(place, os.W_OK) or not os.access(place.parent, os.W_OK):
            raise ExportError(f"{self.path} cannot be written: it or its folder is read-only")
        if _read(self.path) != self.before:
            raise ExportError(f"{self.path} has been changed by something else meanwhile; nothing was written")
        backup = _backup(place, self.before)
        write_atomically(place, self.after, stat.S_IMODE(place.stat().st_mode))
        return backup


def edit_file(path: Path, settings: Settings, syntax: Syntax) -> FileEdit:
    """Settings put into a YAML or JSON file: mappings key by key, all else as a whole; `neutral` where it has the key,
    `placeholders` where it has not.

    The file is read as its ending says (`.json`, `.yaml`, `.yml`), and as `syntax` where that says neither. Raises
    `ExportError` or `DocumentError` where there is no such file, it is no valid document, or a value has no place in it
    (`adamtune.export.edits.edit`).
    """
    before = _read(path)
    syntax = _ENDINGS.get(path.suffix.lower(), syntax)
    edited = edit(before, settings.values, syntax, str(path), settings.neutral, settings.placeholders)
    return FileEdit(path, before, edited.text, edited.added, edited.replaced, edited.left)


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise ExportError(f"{path} is a folder; name the file to edit with --into")
        if not path.exists():
            raise ExportError(f"{path} does not exist; --into edits a file that is there, --to writes a new one")
        if not path.is_file():
            raise ExportError(f"{path} is no plain file, so it cannot be edited")
        if path.stat().st_size > MAX_BYTES:
            raise ExportError(f"{path} is larger than {MAX_BYTES // 1_000_000} MB, so it is hardly a configuration")
        return path.read_bytes().decode()  # not read_text, which would turn \r\n into \n
    except UnicodeDecodeError as problem:
        raise ExportError(f"{path} is not a UTF-8 text ({problem.reason}), so it cannot be edited") from None
    except OSError as problem:
        raise ExportError(f"{str(path)[:200]} cannot be read: {problem.strerror}") from problem


def _backup(place: Path, text: str) -> Path:
    """A copy beside the file, under a name that nothing has yet."""
    number = 0
    while True:
        copy = place.with_name(f"{place.name}.bak" + (f".{number}" if number else ""))
        try:
            with copy.open("xb") as out:
                out.write(text.encode())
            shutil.copystat(place, copy)
            return copy
        except FileExistsError:
            number += 1
        except OSError as problem:
            raise ExportError(f"{copy} cannot be written: {problem.strerror}; nothing was changed") from problem


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+$", text)
