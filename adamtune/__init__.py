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
    from adamtune.recipe import Recipe as Recipe
    from adamtune.recipe import load_recipe as load_recipe

__version__ = "0.1.0"

_HOMES = {
    "Recipe": "adamtune.recipe",
    "load_recipe": "adamtune.recipe",
}
__all__ = ["Recipe", "__version__", "load_recipe"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'adamtune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
