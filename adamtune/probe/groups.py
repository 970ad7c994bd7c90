"""Which parameters are measured together, and under what name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Named:
    """A param group, or one layer of it."""

    name: str
    params: list[Tensor]
    settings: dict[str, Any]
    """The param group as the optimizer has it."""


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer of torch's own within Accelerate's or Lightning's wrapper."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def named_groups(optimizer: Optimizer, model: nn.Module | None, by: str) -> Iterator[Named]:
    """Param groups under their `name`, else `group0`, `group1`, ...; or every parameter under its own name.

    A parameter is measured once, however often it is used. Where two groups have one name, the later has its number
    behind it.
    """
    named = {} if model is None else {id(param): _plain(name) for name, param in model.named_parameters()}
    taken: set[str] = set()
    for index, group in enumerate(optimizer.param_groups):
        name = str(group.get("name", f"group{index}"))
        params = list(dict.fromkeys(group["params"]))
        if by == "group":
            yield Named(_free(name, index, taken), params, group)
            continue
        own = dict(zip(map(id, group["params"]), group.get("param_names", ()), strict=False))
        for place, param in enumerate(params):
            layer = named.get(id(param)) or own.get(id(param)) or f"{name}.{place}"
            yield Named(_free(layer, index, taken), [param], group)


def _plain(name: str) -> str:
    """Without what torch.compile puts into it."""
    return name.replace("_orig_mod.", "")


def _free(name: str, index: int, taken: set[str]) -> str:
    name = f"{name}#{index}" if name in taken else name
    taken.add(name)
    return name
