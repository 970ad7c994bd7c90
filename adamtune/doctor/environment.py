"""Versions, devices, memory, and which packages are missing; what adamtune asks for is read from its own metadata."""

from __future__ import annotations

import platform
import shlex
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement

from adamtune.doctor.lines import Line, Status
from adamtune.engines.cores import core_count
from adamtune.engines.memory import free_memory

_EXTRAS = {
    "examples": "the tasks in adamtune.tasks",
    "ray": "engine: ray",
    "postgres": "storages on PostgreSQL",
    "dashboard": "adamtune dashboard",
}
"""Extras of ours that one may want, and what for."""
_OTHERS = {
    "transformers": "adamtune init --kind transformers, and the probe as a callback of its Trainer",
    "lightning": "adamtune init --kind lightning, and the probe as its callback",
    "pyarrow": "tables as Parquet",
}
"""Packages beside the extras that adamtune has something for."""
_LITTLE = 2**30
"""Bytes of free memory below which trials soon have too little."""


def check_environment() -> Iterator[Line]:
    """What is installed on this machine, line by line."""
    yield Line("adamtune", Status.OK, f"{version('adamtune')}, Python {platform.python_version()}, {platform.system()}")
    yield from _packages()
    yield from _devices()
    yield _memory()
    yield from _optional()


def _asked(extra: str = "") -> list[Requirement]:
    """What adamtune requires, by itself or for one of its extras."""
    required = [Requirement(text) for text in requires("adamtune") or ()]
    if not extra:
        return [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [
        one
        for one in required
        if one.name != "adamtune"
        and one.marker
        and "extra" in str(one.marker)
        and one.marker.evaluate({"extra": extra})
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _fits(asked: Requirement) -> bool:
    found = _installed(asked.name)
    return found is not None and asked.specifier.contains(found, prereleases=True)


def _install(asked: list[Requirement]) -> str:
    """The command that installs them."""
    wanted = [
        f"{one.name}{'[' + ','.join(sorted(one.extras)) + ']' if one.extras else ''}{one.specifier}" for one in asked
    ]
    return shlex.join(["pip", "install", *wanted])


def _packages() -> Iterator[Line]:
    asked = _asked()
    fitting = [one for one in asked if _fits(one)]
    yield Line("packages", Status.OK, ", ".join(f"{one.name} {_installed(one.name)}" for one in fitting))
    for one in asked:
        if one not in fitting:
            have = _installed(one.name)
            found = f"{one.name} {have} is here, {one.specifier} is needed" if have else f"{one.name} is missing"
            yield Line("packages", Status.PROBLEM, found, _install([one]))


def _devices() -> Iterator[Line]:
    yield Line("cpu", Status.OK, f"{core_count()} cores, {torch.get_num_threads()} threads of torch's")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, whole = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield Line(f"cuda:{index}", Status.OK, f"{name}, {_size(free)} of {_size(whole)} free")
    elif torch.version.cuda is None and torch.version.hip is None and shutil.which("nvidia-smi"):
        found = f"there seems to be an NVIDIA GPU, but torch {torch.__version__} is built without CUDA"
        yield Line("cuda", Status.WARNING, found, "install a build with it; pytorch.org/get-started names the command")
    else:
        yield Line("cuda", Status.OK, "none; trials run on the CPU")
    if torch.backends.mps.is_available():
        yield Line("mps", Status.OK, "Apple's GPU")


def _memory() -> Line:
    free = free_memory(torch.device("cpu"))
    if free < _LITTLE:
        remedy = "end what else runs here, or give trials a smaller share of it by --memory"
        return Line("memory", Status.WARNING, f"only {_size(free)} free", remedy)
    return Line("memory", Status.OK, f"{_size(free)} free")


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _optional() -> Iterator[Line]:
    declared = {one.name: one for extra in ("consumers", "bench") for one in _asked(extra)}
    offers = [(extra, _asked(extra), use) for extra, use in _EXTRAS.items()]
    offers += [(name, [declared.get(name, Requirement(name))], use) for name, use in _OTHERS.items()]
    for name, asked, use in offers:
        missing = [one for one in asked if not _fits(one)]
        if missing:
            names = ", ".join(one.name for one in missing)
            found = f"for {use}: {names} {'are' if len(missing) > 1 else 'is'} missing"
            yield Line(name, Status.NOTE, found, _install(missing))
        else:
            here = ", ".join(f"{one.name} {_installed(one.name)}" for one in asked)
            yield Line(name, Status.OK, f"for {use}: {here}")
