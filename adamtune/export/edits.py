"""Settings put into an existing YAML or JSON text by changing only the places concerned.

The text is edited where its nodes stand and never written anew: writers that round-trip, ruamel.yaml among them, give
back other spacing, line ends, number formats and document markers than they read. What comes out is read again, and
refused unless it says the settings and all else says what it said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from adamtune import yaml_text
from adamtune.errors import DocumentError, ExportError, Problem
from adamtune.export.kept import says_only
from adamtune.export.places import Alias, Document, Syntax, alike
from adamtune.rundir import jsonable

_COMMA = re.compile(r"(?:\s|#[^\n]*\n)*,")
_CLASS_KEYS = ("_target_", "_component_", "class_path", "type")
"""Where hydra, torchtune, LightningCLI and DeepSpeed name the class that a mapping makes."""
_ADAMS = {("torch", "adam"), ("torch", "adamw")}
_OF_BOTH_ADAMS = ("amsgrad", "capturable", "differentiable", "foreach", "fused", "maximize")
"""What torch's Adam and AdamW take and no recipe sets."""
_REST_OF_LINE = re.compile(r"[ \t]*(?:[ \t]#[^\r\n]*)?(?=\r?\n)")


@dataclass(frozen=True)
class EditedText:
    """A text with settings put in, and what that did; keys are written as paths, e.g. `$.optimizer.lr`."""

    text: str
    added: tuple[str, ...]
    replaced: tuple[str, ...]
    """Keys that held another value."""
    left: tuple[str, ...] = ()
    """Keys that stand beside these within the same mapping and were not concerned; at the top there may be any."""


def edit(
    text: str,
    values: Mapping[str, Any],
    syntax: Syntax,
    source: str,
    neutral: Mapping[str, Any] | None = None,
    placeholders: Collection[str] = (),
) -> EditedText:
    """Set `values` in a text: mappings key by key, anything else, lists too, as a whole.

    `neutral` only where the text has the key at the top, and the values of `placeholders` only where it has not.

    Raises `DocumentError` where the text is not valid, `ExportError` where a value has no place in it: a scalar stands
    where a mapping is needed or the reverse, a change would also change what an alias or merge says elsewhere, or a
    class is replaced by another and arguments would stay that this may not take.
    """
    document = Document.parse(text, source, syntax)
    if isinstance(document.root, yaml.MappingNode):
        there = document.own(document.root).keys() | document.merged(document.root).keys()
        values = {key: value for key, value in values.items() if key not in placeholders or key not in there}
        values |= {key: value for key, value in (neutral or {}).items() if key in there}
        if misfits := list(_misfits(document, document.root, values, "$")):
            raise ExportError(
                f"{source} names another class than the recipe does, and these arguments would stay under the new one: "
                f"{', '.join(misfits)}; delete them there first"
            )
    values = jsonable(dict(values)) if syntax == "json" else _listed(values)
    editor = _Editor(document, text, syntax, source)
    if document.root is None:
        editor.append(values)
    elif isinstance(document.root, yaml.MappingNode):
        editor.merge(document.root, values, "$", None)
    else:
        raise DocumentError(source, [Problem("", "a mapping (key: value) is expected at the top")])
    after = editor.spliced()
    if not says_only(document, after, values, syntax):
        raise ExportError(f"{source} is written in a way that cannot be edited safely; edit it by hand")
    return EditedText(after, tuple(editor.added), tuple(editor.replaced), tuple(editor.left))


def _misfits(
    document: Document,
    node: yaml.MappingNode,
    values: Mapping[str, Any],
    path: str,
    shared: Collection[str] | None = None,
) -> Iterator[str]:
    """Arguments, as paths, that would stay under a class that `values` replace and that may not take them.

    `shared`: what the old and the new class of a mapping above both take; None where they are the same.
    """
    there = document.merged(node) | {key: value for key, (_, value) in document.own(node).items()}
    for key in _CLASS_KEYS:
        if key in there and key in values:
            classes = {_class(document.says(there[key])), _class(values[key])}
            if len(classes) > 1:
                shared = _OF_BOTH_ADAMS if classes == _ADAMS else ()
    for key, old in there.items():
        inner = document.target(old)
        if key not in values:
            if shared is not None and key not in shared and not key.startswith("_"):  # hydra's own, as _convert_
                yield f"{path}.{key}"
        elif isinstance(inner, yaml.MappingNode) and isinstance(values[key], Mapping):
            yield from _misfits(document, inner, values[key], f"{path}.{key}", shared)


def _class(name: Any) -> tuple[str, str]:
    """Its package, torch for a short name, and its own name in lower case, wherever in the package it is taken from."""
    package, _, own = f"{name}".rpartition(".")
    return package.split(".")[0] or "torch", own.lower()


class _Editor:
    """Collects the splices that put values into a document."""

    def __init__(self, document: Document, text: str, syntax: Syntax, source: str) -> None:
        self.document, self.text, self.syntax, self.source = document, text, syntax, source
        self.newline = "\r\n" if "\r\n" in text else "\n"
        self.splices: list[tuple[int, int, str]] = []
        self.added: list[str] = []
        self.replaced: list[str] = []
        self.left: list[str] = []

    def spliced(self) -> str:
        """The text with all of them made; of those at one place the first stands first."""
        text = self.text
        in_order = sorted(self.splices, key=lambda splice: splice[:2])
        for start, end, new in in_order[::-1]:
            text = text[:start] + new.replace("\n", self.newline) + text[end:]
        return text

    def append(self, values: Mapping[str, Any]) -> None:
        """Put values into a document that says nothing yet."""
        self.added += [f"$.{key}" for key in values]
        if values:
            gap = "\n" if self.text and not self.text.endswith("\n") else ""
            self.splices.append((len(self.text), len(self.text), gap + yaml_text.dump(values)))

    def merge(self, node: yaml.MappingNode, values: Mapping[str, Any], path: str, shared: str | None) -> None:
        """Set keys of a mapping. `shared` is the anchor by which it is said elsewhere too."""
        own, merged = self.document.own(node), self.document.merged(node)
        if path != "$":
            self.left += [f"{path}.{key}" for key in {**own, **merged} if key not in values]
        new = {}
        for key, value in values.items():
            where = f"{path}.{key}"
            if key in own:
                self.set(node, *own[key], value, where, shared)
            elif key not in merged:
                self.added.append(where)
                new[key] = value
            elif not alike(self.document.says(merged[key]), value):
                if isinstance(value, Mapping):
                    raise self.refusal(where, "comes from a merge (<<), which it would hide; write it out there first")
                self.replaced.append(where)
                new[key] = value  # an own key hides the merged one, here only
        if new:
            self.refuse_shared(shared, path)
            if node.flow_style:
                self.insert_flow(node, new, top=path == "$")
            else:
                self.insert_block(node, new)

    def set(
        self, parent: yaml.MappingNode, key: yaml.Node, old: yaml.Node, value: Any, where: str, shared: str | None
    ) -> None:
        """Give a key that is there another value, if it has another."""
        target = self.document.target(old)
        null = isinstance(target, yaml.ScalarNode) and self.document.says(target) is None
        if isinstance(value, Mapping) and isinstance(target, yaml.MappingNode):
            return self.merge(target, value, where, shared or self.document.shared_name(old))
        if isinstance(value, Mapping) and not null:
            raise self.refusal(where, "holds no mapping (key: value), which the recipe needs there; change it by hand")
        if isinstance(target, yaml.MappingNode):
            raise self.refusal(where, f"holds a mapping, and the recipe says {value!r} there; change it by hand")
        if not isinstance(value, Mapping) and alike(self.document.says(target), value):
            return None
        # An alias stands here only: what replaces it changes nothing elsewhere.
        self.refuse_shared(shared or (None if isinstance(old, Alias) else self.document.shared_name(old)), where)
        (self.added if null and target.value == "" else self.replaced).append(where)
        if self.item_by_item(old, value):
            return None
        start, end = self.document.start(old), self.document.end(old)
        if parent.flow_style:
            new = self.in_flow(value, old)
            before = self.text[start - 1 : start]
            self.splices.append((start, end, new if before.isspace() or self.syntax == "json" else f" {new}"))
            return None
        new = self.in_block(value, key.start_mark.column, old)
        colon = self.text.index(":", key.end_mark.index) + 1
        between = self.text[colon:start]
        below = start - len(between) + len(between.rstrip()) if "\n" in between else start
        if between.lstrip().startswith("#"):  # the value stood below a comment, which stays
            self.splices += [(colon, colon, new), (below, end, "")] if new[0] == " " else [(below, end, new)]
        elif not between.strip() and (new[0] == "\n" or "\n" in between or not between):
            self.splices.append((colon, end, new))
        else:
            self.splices.append((start, end, new.removeprefix(" ")))
        return None

    def item_by_item(self, old: yaml.Node, value: Any) -> bool:
        """Replace a list of scalars by one as long within the style it is written in."""
        if not isinstance(old, yaml.SequenceNode) or not isinstance(value, Sequence) or len(old.value) != len(value):
            return False
        if not all(isinstance(item, yaml.ScalarNode) for item in old.value):
            return False
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            return False
        for item, new in zip(old.value, value, strict=True):
            if not alike(self.document.says(item), new):
                start, end = self.document.start(item), self.document.end(item)
                gap = "" if start < end or old.flow_style else " "
                self.splices.append((start, end, gap + self.in_flow(new, item)))
        return True

    def in_flow(self, value: Any, old: yaml.Node | None = None) -> str:
        """A value on one line, a text in the quotes that the old one had."""
        if self.syntax == "json":
            return json.dumps(value)
        style = old.style if isinstance(old, yaml.ScalarNode) else None
        return yaml_text.flow(value, style if style in ("'", '"') else None)

    def in_block(self, value: Any, column: int, old: yaml.Node | None = None) -> str:
        """What follows `key:` for a key that starts at `column`: a blank and one line, or lines below."""
        if not _nested(value):
            return f" {self.in_flow(value, old)}"
        lines = yaml_text.dump({"k": value}).removeprefix("k:").rstrip("\n")
        return lines.replace("\n", "\n" + " " * column)

    def insert_block(self, node: yaml.MappingNode, new: Mapping[str, Any]) -> None:
        column = node.value[0][0].start_mark.column
        lines = [" " * column + f"{yaml_text.flow(key)}:{self.in_block(value, column)}" for key, value in new.items()]
        text = "\n".join(lines)
        keep_last = self.document.ends_in_its_line_ends(node)
        if keep_last and len(node.value) == 1:
            place = self.text.rfind("\n", 0, node.value[0][0].start_mark.index) + 1
        else:
            place = self.text.find("\n", self.document.end(node.value[-2 if keep_last else -1][1])) + 1
        if place or keep_last:
            self.splices.append((place, place, f"{text}\n"))
        else:  # the last line has no end
            self.splices.append((len(self.text), len(self.text), f"\n{text}"))

    def insert_flow(self, node: yaml.MappingNode, new: Mapping[str, Any], top: bool) -> None:
        close = node.end_mark.index - 1
        if not node.value:
            start = self.document.start(node) + 1
            pad = "  " if top and self.syntax == "json" else None
            items = self.items(new, pad)
            body = ", ".join(items) if pad is None else "\n  " + ",\n  ".join(items) + "\n"
            self.splices.append((start, close, body))
            return
        first = node.value[-1][0].start_mark
        line = self.text.rfind("\n", 0, first.index) + 1
        pad = self.text[line : first.index]
        own_line = not pad.strip() and line > node.start_mark.index
        last = self.document.end(node.value[-1][1])
        comma = _COMMA.match(self.text, last, close)
        after = comma.end() if comma else last
        items = self.items(new, pad if own_line else None)
        if not own_line:
            body = ", ".join(items)
            self.splices.append((after, after, f" {body}," if comma else f", {body}"))
            return
        rest = _REST_OF_LINE.match(self.text, after)
        place = rest.end() if rest and rest.end() <= close else after
        body = ",".join(f"\n{pad}{item}" for item in items)
        if comma or place == last:
            self.splices.append((place, place, f"{body}," if comma else f",{body}"))
        else:
            self.splices += [(last, last, ","), (place, place, body)]

    def items(self, new: Mapping[str, Any], pad: str | None) -> list[str]:
        """`key: value` within braces; `pad` is what stands before each where it has a line of its own."""
        if self.syntax == "yaml":
            return [f"{yaml_text.flow(key)}: {self.in_flow(value)}" for key, value in new.items()]
        step = None if pad is None else "\t" if "\t" in pad else "  "
        return [f"{json.dumps(key)}: {_json(value, pad or '', step)}" for key, value in new.items()]

    def refuse_shared(self, shared: str | None, where: str) -> None:
        if shared is not None:
            what = f"carries or uses the anchor &{shared}, so that a change would also change what *{shared} says"
            raise self.refusal(where, f"{what} elsewhere; write the values out there first")

    def refusal(self, where: str, what: str) -> ExportError:
        return ExportError(f"{self.source}: {where} {what}")


def _nested(value: Any) -> bool:
    """Whether a value is best written on several lines."""
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value)


def _listed(value: Any) -> Any:
    """Tuples as lists, which YAML has."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _json(value: Any, pad: str, step: str | None) -> str:
    """JSON with a line an entry where entries are nested; on one line without a `step`."""
    if step is None or not _nested(value) or not value:
        return json.dumps(value)
    if isinstance(value, Mapping):
        items = [f"{json.dumps(key)}: {_json(item, pad + step, step)}" for key, item in value.items()]
    else:
        items = [_json(item, pad + step, step) for item in value]
    body = ",".join(f"\n{pad}{step}{item}" for item in items)
    return f"{{{body}\n{pad}}}" if isinstance(value, Mapping) else f"[{body}\n{pad}]"
