"""Whether an edited text says what was set in it, and in all else what it said before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from adamtune.errors import DocumentError
from adamtune.export.places import MERGE, Document, Syntax, alike


def says_only(before: Document, text: str, values: Mapping[str, Any], syntax: Syntax) -> bool:
    """Whether the edited text says the values, and otherwise what it said before."""
    try:
        after = Document.parse(text, "", syntax)
    except DocumentError:
        return False
    if before.root is None:
        return after.root is None if not values else after.root is not None and alike(after.says(after.root), values)
    return _kept(before, before.root, after, after.root, values)


def _kept(before: Document, old: yaml.Node, after: Document, new: yaml.Node | None, values: Any) -> bool:
    """The same of one node; `values` is what was set in it, or None where nothing was."""
    if new is None or type(old) is not type(new) or old.tag != new.tag:
        return False
    if isinstance(old, yaml.MappingNode) and isinstance(new, yaml.MappingNode):
        return _mapping_kept(before, old, after, new, values or {})
    if isinstance(old, yaml.SequenceNode):
        pairs = zip(old.value, new.value, strict=False)
        return len(old.value) == len(new.value) and all(_kept(before, a, after, b, None) for a, b in pairs)
    return bool(old.value == new.value)


def _mapping_kept(
    before: Document, old: yaml.MappingNode, after: Document, new: yaml.MappingNode, values: Mapping[str, Any]
) -> bool:
    """Its keys stand in the same order, those that were set say what they should, and so do new ones."""
    there = {str(key.value) for key, _ in old.value}
    kept = [pair for pair in new.value if str(pair[0].value) in there]
    if len(kept) < len(old.value):
        return False
    for (key, value), (new_key, new_value) in zip(old.value, kept, strict=True):
        if not _kept(before, key, after, new_key, None):
            return False
        concerned = isinstance(key, yaml.ScalarNode) and key.tag != MERGE and key.value in values
        setting = values[key.value] if concerned else None
        if not concerned or isinstance(value, yaml.MappingNode):
            if not _kept(before, value, after, new_value, setting):
                return False
        elif not _set(after, new_value, setting):
            return False
    own, merged = after.own(new), after.merged(new)
    extra = [str(key.value) for key, _ in new.value if str(key.value) not in there]
    return (
        all(key in values and alike(after.says(own[key][1]), values[key]) for key in extra)
        and all(key in own or key in merged for key in values)
    )  # fmt: skip


def _set(after: Document, node: yaml.Node, setting: Any) -> bool:
    """Whether a node says a setting; a mapping behind an alias may say more."""
    said = after.says(node)
    if isinstance(setting, Mapping):
        return isinstance(said, dict) and all(key in said and alike(said[key], setting[key]) for key in setting)
    return alike(said, setting)
