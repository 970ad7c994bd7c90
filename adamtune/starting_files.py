"""The files that `adamtune init` writes: a task and a spec that run as they are, for a person to put their own into."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

from adamtune.errors import InputError, writing

_TEMPLATES = Path(__file__).parent / "templates"
"""A folder a kind; every file in it is written."""
_HORIZON = re.compile(r"^horizon: (\d+)", re.MULTILINE)


class Kind(StrEnum):
    """What the model is."""

    PYTORCH = "pytorch"
    TRANSFORMERS = "transformers"
    LIGHTNING = "lightning"


def usual_horizon(kind: Kind) -> int:
    """Optimizer steps of a run of the stand-in."""
    found = _HORIZON.search((_TEMPLATES / kind / "spec.yaml").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1])


def write_starting_files(folder: Path, kind: Kind, horizon: int, force: bool = False) -> list[Path]:
    """Write task.py and spec.yaml of this `kind` into `folder`, which is made where it is not there; the paths.

    Raises `InputError`, before anything is written, where one of them is there already, unless by `force`;
    `UnwritableError` where the folder cannot be written to.
    """
    from adamtune.rundir import (
        write_atomically,  # not above: it costs `adamtune --help`, which needs `Kind`, a third more
    )

    sources = sorted((_TEMPLATES / kind).glob("*.*"), key=lambda path: (path.suffix != ".py", path.name))
    targets = [folder / source.name for source in sources]
    file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise InputError(f"{file} is a file; name a folder")
    there = [str(target) for target in targets if target.exists() or target.is_symlink()]
    if there and not force:
        they, it = ("are", "them") if len(there) > 1 else ("is", "it")
        raise InputError(f"{' and '.join(there)} {they} there already; name another folder, or replace {it} by --force")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for source, target in zip(sources, targets, strict=True):
        text = source.read_text(encoding="utf-8")
        write_atomically(target, _HORIZON.sub(f"horizon: {horizon}", text) if source.suffix == ".yaml" else text)
    return targets
