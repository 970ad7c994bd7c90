"""What modules keep from one call to the next beside parameters and buffers: numbers and tensors in attributes.

A stack's model is one module for all its members, so a number kept there is theirs in common; and a tensor computed
within `torch.vmap` cannot be read outside of it, nor in a later pass over other members.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from adamtune.population.fast_ops import of_members
from adamtune.population.state import NotVectorisable

_TORCHS_OWN = frozenset(vars(nn.Module()))
_DEEPEST, _LONGEST = 3, 64
"""How far lists, tuples, dicts and objects are looked into, and up to how many entries: it is done at every step."""
_NUMBERS = bool | int | float | str
_PLAIN = frozenset({bool, int, float, str, type(None)})


class Keeping:
    """The attributes of a model, looked at between calls."""

    def __init__(self, model: nn.Module) -> None:
        """Watch `model`, whose modules do not change."""
        self._owners = [(name, type(module).__name__, vars(module)) for name, module in model.named_modules()]
        self._settled: dict[tuple[str, str], Any] = {}
        """The last value seen, by module and attribute, that can never hold a tensor: what is in it cannot change."""

    def numbers(self) -> dict[str, object]:
        """Counters and flags by name, those in tensors of no dimension too."""
        found: dict[str, object] = {}
        for name, _, key, value in self._attributes():
            if isinstance(value, _NUMBERS):
                found[f"{name}.{key}"] = value
            elif isinstance(value, Tensor) and not isinstance(value, _Gone) and not value.ndim:
                found[f"{name}.{key}"] = value.item()
        return found

    def forget_members(self) -> None:
        """Replace what a call has left of the members' tensors: to read it later raises `NotVectorisable`.

        A model that only writes them (a penalty that its loss reads in the same call) does not notice.
        """
        seen: set[int] = set()
        for name, kind, attributes in self._owners:
            for key, value in attributes.items():
                if type(value) in _PLAIN or key in _TORCHS_OWN or value is self._settled.get((name, key)):
                    continue
                if type(value) is tuple and all(type(item) in _PLAIN for item in value):
                    self._settled[name, key] = value
                else:
                    place = f"'{name}.{key}'" if name else f"'{key}' of the model ({kind})"
                    attributes[key] = _without_members(value, place, seen)  # a key that is there, so the walk goes on

    def _attributes(self) -> Iterator[tuple[str, str, str, Any]]:
        for name, kind, attributes in self._owners:
            for key, value in attributes.items():
                if key not in _TORCHS_OWN:
                    yield name, kind, key, value


class _Gone(Tensor):
    """Stands where a tensor of the members was; whatever is done with it raises."""

    place: str
    forgotten = True
    """For `trial_state`: nothing is lost without it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gone = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, cls))
        raise NotVectorisable(f"its model reads {gone.place}, a tensor that an earlier call has left there")

    def __deepcopy__(self, memo: Any) -> _Gone:
        return self


def _without_members(value: Any, place: str, seen: set[int], depth: int = 0) -> Any:
    """The same object, or where it is or holds a tensor of the members, one with `_Gone` in its place."""
    if isinstance(value, Tensor):
        if not of_members(value):
            return value
        gone = torch.Tensor._make_subclass(_Gone, torch.empty(0))
        gone.place = place
        return gone
    if depth == _DEEPEST or id(value) in seen or callable(value):  # a module is looked at by itself
        return value
    if isinstance(value, tuple) and len(value) <= _LONGEST:
        items = [_without_members(item, place, seen, depth + 1) for item in value]
        if any(item is not before for item, before in zip(items, value, strict=True)):
            return type(value)._make(items) if hasattr(value, "_make") else tuple(items)
        return value
    entries = value if isinstance(value, list | dict) else getattr(value, "__dict__", {})
    if len(entries) <= _LONGEST:
        seen.add(id(value))
        for key, item in list(enumerate(entries) if isinstance(entries, list) else entries.items()):
            left = _without_members(item, place, seen, depth + 1)
            if left is not item:
                entries[key] = left
    return value
