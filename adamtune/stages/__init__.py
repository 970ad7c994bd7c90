"""One file a question. Every stage has the same signature: context and incumbent in, answer with a recipe out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from adamtune.recipe import Recipe
from adamtune.spec import STAGES, Spec, StageName
from adamtune.stages import beta2, eps, lr, lr_range, warmup
from adamtune.stages.context import StageAnswer, StageContext


@dataclass(frozen=True)
class Stage:
    """One question of the plan."""

    name: StageName
    question: str
    cost: Callable[[Spec], int]
    """The most training steps it can take."""
    run: Callable[[StageContext, Recipe], StageAnswer]


def _stage(name: StageName, module: ModuleType) -> Stage:
    return Stage(name, module.QUESTION, module.cost, module.run)


_MODULES: dict[StageName, ModuleType] = {"lr_range": lr_range, "lr": lr, "eps": eps, "beta2": beta2, "warmup": warmup}
REGISTRY = {name: _stage(name, _MODULES[name]) for name in STAGES}
"""Every stage by name, in the order they are asked."""
