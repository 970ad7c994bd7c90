"""adamtune: tune Adam for your own PyTorch model by measurement.

In a training script:

    import adamtune
    optimizer, scheduler = adamtune.load_recipe("recipe.yaml").build(model, total_steps=10_000)

Names are loaded on first use, so that `import adamtune` and `adamtune --help` stay instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamtune.diagnosis import Diagnosis as Diagnosis
    from adamtune.diagnosis import diagnose as diagnose
    from adamtune.live_ramp import RangeTestResult as RangeTestResult
    from adamtune.live_ramp import range_test as range_test
    from adamtune.lr_finder import LRFindResult as LRFindResult
    from adamtune.lr_finder import lr_find as lr_find
    from adamtune.probe import AdamProbe as AdamProbe
    from adamtune.recipe import Recipe as Recipe
    from adamtune.recipe import load_recipe as load_recipe
    from adamtune.spec import Spec as Spec
    from adamtune.spec import load_spec as load_spec
    from adamtune.sweeps import SweepResult as SweepResult
    from adamtune.sweeps import sweep as sweep
    from adamtune.task import Task as Task

    __version__: str

_HOMES = {
    "AdamProbe": "probe",
    "Diagnosis": "diagnosis",
    "LRFindResult": "lr_finder",
    "RangeTestResult": "live_ramp",
    "Recipe": "recipe",
    "Spec": "spec",
    "SweepResult": "sweeps",
    "Task": "task",
    "diagnose": "diagnosis",
    "load_recipe": "recipe",
    "load_spec": "spec",
    "lr_find": "lr_finder",
    "range_test": "live_ramp",
    "sweep": "sweeps",
}
__all__ = [
    "AdamProbe",
    "Diagnosis",
    "LRFindResult",
    "RangeTestResult",
    "Recipe",
    "Spec",
    "SweepResult",
    "Task",
    "__version__",
    "diagnose",
    "load_recipe",
    "load_spec",
    "lr_find",
    "range_test",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # as it was installed, from the tag
        return importlib.import_module("importlib.metadata").version("adamtune")
    if name in _HOMES:
        return getattr(importlib.import_module(f"adamtune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'adamtune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
