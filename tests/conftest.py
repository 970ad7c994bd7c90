from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import settings

# Small models train fastest on one thread, and two processes with two threads each on two cores wait for each other.
torch.set_num_threads(1)

# A first example may import scipy or wait for a busy machine; how long one takes is no property we test.
settings.register_profile("adamtune", deadline=None)
settings.load_profile("adamtune")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """These import libraries that take seconds, and are not asked for by default."""
    wanted = config.getoption("markexpr")
    consumer = "not consumers" in wanted and collection_path.name.startswith("test_consumer_")
    browser = "not browser" in wanted and collection_path.name == "test_browser.py"
    return True if consumer or browser else None


@pytest.fixture
def shells(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes packages whose modules import without the package's own `__init__`; undone afterwards.

    For those that do not import whole beside a CPU torch, or among today's versions of what they need.
    """
    before, made = set(sys.modules), set()

    def make(distribution: str, *packages: str) -> None:
        try:
            root = Path(str(importlib.metadata.distribution(distribution).locate_file("")))
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{distribution} is not installed")
        made.add(packages[0].split(".")[0])
        for name in packages:
            shell = ModuleType(name)
            shell.__path__ = [str(root.joinpath(*name.split(".")))]
            monkeypatch.setitem(sys.modules, name, shell)
            parent, _, child = name.rpartition(".")
            if parent in packages:
                setattr(sys.modules[parent], child, shell)

    yield make
    for name in set(sys.modules) - before:
        if name.split(".")[0] in made:
            del sys.modules[name]
