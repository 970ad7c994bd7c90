"""What a sweep runs on, written down with the run, and what of it is not as it was when the run is gone on with."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from adamtune import rundir
from adamtune.errors import RunDirError
from adamtune.passwords import without_passwords
from adamtune.plain_text import plain


def environment(device: torch.device, ref: str) -> dict[str, Any]:
    """What a sweep ran on: versions, machine, device, command, and a checksum of the task's file."""
    packages = ("adamtune", "torch", "optuna", "numpy", "scipy", "pandas", "pydantic")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *map(without_passwords, sys.argv[1:])],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "task_file": _task_file(ref),
    }


def changes(run: Path, now: Mapping[str, Any]) -> list[str]:
    """What the figures hang on that is not as it was when the run was begun: nobody else would notice."""
    try:
        begun = rundir.read_json(run, rundir.ENVIRONMENT)
        packages = {name: begun["packages"][name] for name in ("adamtune", "torch")}
        file = begun.get("task_file")
    except (RunDirError, OSError, ValueError, KeyError, TypeError, AttributeError):  # cut short, or of an older version
        return []
    changed = [
        f"{name} was {plain(before)}, and is {now['packages'][name]}"
        for name, before in packages.items()
        if before != now["packages"][name]
    ]
    if file is not None and file != now["task_file"]:
        changed.append("the task's file has changed")
    return [f"not as when the run was begun, so that figures may not agree: {what}" for what in changed]


def _task_file(ref: str) -> str | None:
    """A checksum of the file that a loaded task comes from; None where there is none."""
    place = ref.rpartition(":")[0]
    module = sys.modules.get(place)
    path = place if module is None else getattr(module, "__file__", None)
    try:
        return hashlib.sha256(Path(str(path)).read_bytes()).hexdigest()
    except OSError:
        return None
