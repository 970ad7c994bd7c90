"""One file a question. Every stage has the same signature: context and incumbent in, answer with a recipe out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from adamtune.groups import ParamGroup
from adamtune.recipe import Recipe
from adamtune.spec import STAGES, Spec, StageName
from adamtune.stages import (
    beta1,
    beta2,
    clip,
    eps,
    findings,
    groups,
    lr,
    lr_range,
    optimizer,
    portfolio,
    precision,
    schedule,
    switch,
    warmup,
    weight_decay,
)
from adamtune.stages.context import StageAnswer, StageContext


@dataclass(frozen=True)
class Stage:
    """One question of the plan."""

    name: StageName
    question: str
    cost: Callable[[Spec], int]
    """The most training steps it can take."""
    run: Callable[[StageContext, Recipe], StageAnswer]
    missing: Callable[[Spec, Sequence[ParamGroup]], str]
    """Why it cannot matter to the spec's base recipe and the model's param groups, as a clause; empty where it can."""


def _never_missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    return ""


def _stage(name: StageName, module: ModuleType) -> Stage:
    missing = getattr(module, "missing", _never_missing)
    return Stage(name, module.QUESTION, module.cost, module.run, missing)


_MODULES: dict[StageName, ModuleType] = {
    "lr_range": lr_range,
    "lr": lr,
    "findings": findings,
    "portfolio": portfolio,
    "beta1": beta1,
    "eps": eps,
    "beta2": beta2,
    "weight_decay": weight_decay,
    "warmup": warmup,
    "schedule": schedule,
    "groups": groups,
    "clip": clip,
    "precision": precision,
    "switch": switch,
    "optimizer": optimizer,
}
REGISTRY = {name: _stage(name, _MODULES[name]) for name in STAGES}
"""Every stage by name, in the order they are asked."""
