"""A YAML or JSON text as nodes that know where in the text they stand, and what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from adamtune.errors import DocumentError, Problem
from adamtune.yaml_text import MISFITS, Loader, telling

_ANCHOR = re.compile(r"(?:![^\s,\[\]{}]*\s+)?&([^\s,\[\]{}]+)")
_PROPERTIES = re.compile(r"(?:[&!][^\s,\[\]{}]*(?:\s+|$))+")
MERGE = "tag:yaml.org,2002:merge"

Syntax = Literal["yaml", "json"]


class Alias(yaml.Node):
    """Where `*name` stands. `value` is the name."""

    id = "alias"

    def __init__(self, event: yaml.AliasEvent) -> None:
        """A node at the place of `event`."""
        super().__init__("*", event.anchor, event.start_mark, event.end_mark)  # type: ignore[arg-type]


class _PlaceLoader(Loader):
    """Composes an alias as a node of its own, where PyYAML puts the node it stands for."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        return Alias(event) if isinstance(event, yaml.AliasEvent) else node


@dataclass(frozen=True)
class Document:
    """One document. `root` is None where it says nothing."""

    text: str
    root: yaml.Node | None
    anchored: Mapping[str, yaml.Node]
    """By anchor: the node it names."""
    shared: frozenset[str]
    """The anchors that an alias uses: what stands there is said elsewhere too."""

    @classmethod
    def parse(cls, text: str, source: str, syntax: Syntax) -> Document:
        """Raises `DocumentError` with the line where `text` is not one valid document."""
        if syntax == "json":
            _refuse_invalid_json(text, source)
            text = text.replace("\t", " ")  # JSON may be indented by tabs, YAML not; within a text there are none
        with telling(text, source):
            root = yaml.compose(text, Loader=_PlaceLoader)
        if isinstance(root, yaml.ScalarNode) and root.value == "" and root.style is None:
            root = None  # nothing but `---`
        nodes = list(_all(root)) if root else []
        anchored = {name: node for node in nodes if (name := anchor(text, node))}
        return cls(text, root, anchored, frozenset(node.value for node in nodes if isinstance(node, Alias)))

    def target(self, node: yaml.Node) -> yaml.Node:
        """The node itself, or what an alias stands for."""
        return self.anchored[node.value] if isinstance(node, Alias) else node

    def shared_name(self, node: yaml.Node) -> str | None:
        """The anchor by which what a node holds, or some of it, is said elsewhere too; None where it is not."""
        if isinstance(node, Alias):
            return str(node.value)
        names = (anchor(self.text, inner) for inner in _all(node))
        return next((name for name in names if name in self.shared), None)

    def own(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """By key: the nodes of key and value, without what is merged in."""
        return {
            key.value: (key, value)
            for key, value in node.value
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE
        }

    def merged(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        """By key: the values that `<<` brings into a mapping; where two do, the first counts."""
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.tag == MERGE:
                source = self.target(value)
                for part in source.value if isinstance(source, yaml.SequenceNode) else [source]:
                    inner = self.target(part)
                    if isinstance(inner, yaml.MappingNode):
                        own = {name: pair[1] for name, pair in self.own(inner).items()}
                        found = self.merged(inner) | own | found
        return found

    def says(self, node: yaml.Node) -> Any:
        """What a node means, as plain data; a node of a tag that is not YAML's own means itself."""
        node = self.target(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.says(item) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            pairs = {name: self.says(value) for name, (_, value) in self.own(node).items()}
            return {name: self.says(value) for name, value in self.merged(node).items()} | pairs
        try:
            return Loader("").construct_object(node)
        except (yaml.YAMLError, *MISFITS):
            return node

    def start(self, node: yaml.Node) -> int:
        """Where a node's content starts, after its anchor and tag."""
        properties = _PROPERTIES.match(self.text, node.start_mark.index, self.end(node))
        return properties.end() if properties and not isinstance(node, Alias) else int(node.start_mark.index)

    def end(self, node: yaml.Node) -> int:
        """Where it ends; PyYAML has a block end only where the next thing starts, comments and blank lines included."""
        node = _last(node)
        start, end = int(node.start_mark.index), int(node.end_mark.index)
        return start + len(self.text[start:end].rstrip())

    def ends_in_its_line_ends(self, node: yaml.Node) -> bool:
        """Whether the line ends after a node are part of what it says: a block of text with `+`, or at the very end."""
        last = _last(node)
        if not isinstance(last, yaml.ScalarNode) or last.style not in ("|", ">"):
            return False
        header = self.text[self.start(last) :].partition("\n")[0]
        return "+" in header.partition("#")[0] or self.text.find("\n", self.end(last)) < 0


def anchor(text: str, node: yaml.Node) -> str | None:
    """The name after `&` that a node has."""
    found = None if isinstance(node, Alias) else _ANCHOR.match(text, node.start_mark.index)
    return found[1] if found else None


def alike(data: Any, wanted: Any) -> bool:
    """Whether two plain values are the same; unlike in Python, true is not 1."""
    if isinstance(data, bool) or isinstance(wanted, bool):
        return data is wanted
    if isinstance(wanted, Mapping):
        return isinstance(data, dict) and set(data) == set(wanted) and all(alike(data[k], wanted[k]) for k in wanted)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return isinstance(data, list) and len(data) == len(wanted) and all(map(alike, data, wanted))
    return bool(data == wanted)


def _last(node: yaml.Node) -> yaml.Node:
    """The innermost node at the end of a block."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return node


def _all(node: yaml.Node) -> Iterator[yaml.Node]:
    yield node
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for inner in item if isinstance(item, tuple) else (item,):
                yield from _all(inner)


def _refuse_invalid_json(text: str, source: str) -> None:
    try:
        json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as problem:
        where = f"line {problem.lineno}, column {problem.colno}"
        raise DocumentError(source, [Problem(where, f"not valid JSON: {problem.msg}")]) from None
    except RecursionError:
        raise DocumentError(source, [Problem("", "not readable as JSON: nested too deep")]) from None
