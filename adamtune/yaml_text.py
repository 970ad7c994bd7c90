"""YAML in and out: floats as people type them, every problem at once, each with its path."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from adamtune.errors import DocumentError, Problem

MAX_BYTES = 1_000_000  # a spec or recipe is a page of text; more is a mistake or an attack
MAX_NODES = 25_000  # aliases can multiply a short text into gigabytes ("billion laughs"); read in half a second

MAX_DEPTH = 40  # PyYAML's scanner takes time quadratic in the nesting
MAX_DIGITS = 4_300  # and its constructors in the length of a number written in base 60 (`1:30:00`)

# What PyYAML's constructors raise for a value that does not fit its tag (`!!float ''`), beside YAMLError.
MISFITS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)

M = TypeVar("M", bound=BaseModel)


class Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-8` as a float (as YAML 1.2 does) and refuses a key given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a key given twice, before merges (`<<`) add the keys that may be overridden."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                what = f"the key '{key}' stands twice in one mapping; keep one of them"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            seen.add(key)
        return node


# YAML 1.1, which PyYAML follows, asks for a dot and a signed exponent, so `1e-8` and `2e-5` are strings there.
_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.[\d_]+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
Loader.add_implicit_resolver(*_FLOAT)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = _of_some_length(loader, node)
    try:
        return float(text.replace("_", ""))
    except ValueError:  # .inf, .nan, 1:30.5
        return yaml.SafeLoader.construct_yaml_float(loader, node)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    _of_some_length(loader, node)
    return yaml.SafeLoader.construct_yaml_int(loader, node)


def _of_some_length(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    text: str = loader.construct_scalar(node)
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} characters")
    return text


Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


class _Dumper(yaml.SafeDumper):
    """SafeDumper whose floats every YAML reader takes for floats: `1.0e-05`, never `1e-05`."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    if not math.isfinite(value):
        return yaml.SafeDumper.represent_float(dumper, value)
    text = repr(value)
    mantissa, mark, exponent = text.partition("e")
    if mark and "." not in mantissa:
        text = f"{mantissa}.0e{exponent}"
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _represent_float)
_Dumper.add_implicit_resolver(*_FLOAT)  # so that a text which our loader would take for a float gets quotes


def parse(text: str, source: str, error: type[DocumentError] = DocumentError) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises `error` with the line of a syntax error, or when the text is too large or no mapping.
    """

    with telling(text, source, error):
        data = yaml.load(text, Loader=Loader)  # a SafeLoader: builds plain data only
    if data is None:
        raise error(source, [Problem("", "empty; it needs at least the required keys")])
    if not isinstance(data, dict):
        raise error(source, [Problem("", f"a mapping (key: value) is expected at the top, not a {_kind(data)}")])
    return data


@contextmanager
def telling(text: str, source: str, error: type[DocumentError] = DocumentError) -> Iterator[None]:
    """Refuse a text that is too large, and turn what PyYAML raises into `error`."""

    def refuse(where: str, what: str) -> DocumentError:
        return error(source, [Problem(where, what)])

    if len(text) > MAX_BYTES:
        raise refuse(
            "", f"larger than {MAX_BYTES // 1_000_000} MB, so it is hardly a spec, a recipe or a configuration"
        )
    try:
        _bound_nodes(text)
        yield
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        if problem.problem == "but found another document":
            raise refuse(where, "a second document starts (---), where the file should hold one") from problem
        what = problem.problem or problem.context
        if problem.problem and r"'\t' that cannot start any token" in problem.problem:
            what = "a tab stands where YAML takes blanks only"
        raise refuse(where, f"not valid YAML: {what}") from problem
    except yaml.YAMLError as problem:
        raise refuse("", f"not valid YAML: {' '.join(str(problem).split())}") from problem
    except MISFITS as problem:
        raise refuse("", f"not readable as YAML: {problem}") from problem


def _bound_nodes(text: str) -> None:
    """Refuse a document that its aliases would blow up, before anything is built."""
    weight: dict[str, int] = {}
    total = 0
    open_anchors: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_anchors):
                raise ValueError(f"the value '&{event.anchor}' contains itself")
            total += weight.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            total += 1
            open_anchors.append((event.anchor, total))
            if len(open_anchors) > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_anchors.pop()
            if anchor is not None:
                weight[anchor] = total - before + 1
        if total > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} values (aliases counted as often as used)")


def read(path: Path, error: type[DocumentError] = DocumentError) -> dict[str, Any]:
    """Read a YAML file; `error` when it is missing, unreadable, too large or not UTF-8."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)  # of an endless one (/dev/zero) no more
    except FileNotFoundError:
        raise error(str(path), [Problem("", "no such file")]) from None
    except IsADirectoryError:
        raise error(str(path), [Problem("", "a folder, where a YAML file is expected")]) from None
    except UnicodeDecodeError as problem:
        raise error(str(path), [Problem("", f"not a UTF-8 text ({problem.reason})")]) from None
    except OSError as problem:
        raise error(str(path), [Problem("", f"cannot be read: {problem.strerror}")]) from None
    except ValueError as problem:  # a NUL in the name
        raise error(repr(str(path)), [Problem("", f"cannot be read: {problem}")]) from None
    return parse(text, str(path), error)


def dump(data: Mapping[str, Any]) -> str:
    """Write a mapping as YAML, in the order given, short lists on one line."""
    nested = any(isinstance(value, Mapping | list | tuple) for value in data.values())
    flow = None if nested else False  # None would put a mapping of plain values on one line too
    return yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=112, allow_unicode=True
    )


def flow(value: Any, quote: str | None = None) -> str:
    """A value on one line, as it may stand anywhere in a YAML document; a text in `quote`s where they are given."""
    style = (quote or ('"' if "\n" in value else None)) if isinstance(value, str) else None
    text: str = yaml.dump(
        [value], Dumper=_Dumper, sort_keys=False, default_flow_style=True, default_style=style, width=math.inf,
        allow_unicode=True,
    )  # fmt: skip
    return text.strip()[1:-1]


def validate(model: type[M], data: Mapping[str, Any], source: str, error: type[DocumentError] = DocumentError) -> M:
    """Build `model` from `data`; every problem at once, each with its path, in one `error`."""
    try:
        return model.model_validate(data)
    except ValidationError as problems:
        raise error(source, list(_problems(model, data, problems))) from None


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an 'unknown' sentence: the nearest known word, whatever its case, or all of them."""
    known = sorted(known)
    folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return f"did you mean '{folded[close[0]]}'?" if close else f"known are: {', '.join(known)}"


def _problems(model: type[BaseModel], data: Mapping[str, Any], error: ValidationError) -> Iterable[Problem]:
    for item in error.errors(include_url=False):
        path = _real_path(data, item["loc"])
        context: Mapping[str, Any] = item.get("ctx") or {}
        yield Problem(_spell(path), _sentence(item["type"], item["msg"], item["input"], context, model, path))


def _real_path(data: Any, loc: Sequence[int | str]) -> list[int | str]:
    """Pydantic's location without the names it gives to the branches of a union."""
    path: list[int | str] = []
    here = data
    for index, step in enumerate(loc):
        inside = (isinstance(here, Mapping) and step in here) or (
            isinstance(here, Sequence) and not isinstance(here, str) and isinstance(step, int) and step < len(here)
        )
        if inside:
            here = here[step]
            path.append(step)
        elif index == len(loc) - 1 and isinstance(here, Mapping | list | tuple):
            path.append(step)  # a missing key or entry
    return path


def _spell(path: Sequence[int | str]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def _sentence(
    kind: str, message: str, value: Any, context: Mapping[str, Any], model: type[BaseModel], path: Sequence[int | str]
) -> str:
    match kind:
        case "missing":
            return f"required, but not there{_example(model, path)}"
        case "extra_forbidden":
            return f"unknown key; {nearest(str(path[-1]), _known_keys(model, path[:-1]))}"
        case "value_error":
            return str(context["error"])
        case "greater_than":
            return f"must be above {context['gt']:g}, not {value!r}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}, not {value!r}"
        case "less_than":
            return f"must be below {context['lt']:g}, not {value!r}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}, not {value!r}"
        case "literal_error":
            wanted = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            hint = nearest(value, wanted) if isinstance(value, str) else f"known are: {', '.join(wanted)}"
            return f"must be one of {context['expected']}, not {value!r}; {hint}"
        case "float_type" | "int_type" | "string_type" | "bool_type" | "tuple_type" | "list_type" | "dict_type":
            names = {"float": "a number", "int": "a whole number", "string": "a text", "bool": "true or false"}
            names |= {"tuple": "a list", "list": "a list", "dict": "a mapping"}
            return f"must be {names[kind.removesuffix('_type')]}, not {_shown(value)}"
        case "model_type" | "model_attributes_type" | "mapping_type":
            return f"must be a mapping (key: value), not {_shown(value)}{_example(model, path)}"
        case "finite_number":
            return f"must be a finite number, not {value!r}"
        case "too_short":
            return f"needs at least {context['min_length']} entries, has {context['actual_length']}"
        case "too_long":
            return f"takes at most {context['max_length']} entries, has {context['actual_length']}"
        case _:
            return f"{message[0].lower()}{message[1:]}, not {_shown(value)}"


def _example(model: type[BaseModel], path: Sequence[int | str]) -> str:
    """How the key that `path` begins with may be written, where its field has an example."""
    field = model.model_fields.get(str(path[0])) if path else None
    return f"; write it as in {path[0]}: {flow(field.examples[0])}" if field and field.examples else ""


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} (a {_kind(value)})"


def _kind(value: Any) -> str:
    names = {str: "text", bool: "truth value", int: "whole number", float: "number", list: "list", dict: "mapping"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def _known_keys(model: type[BaseModel], path: Sequence[int | str]) -> set[str]:
    """The keys allowed at `path` below `model`."""
    reached: set[type[BaseModel]] = {model}
    for step in path:
        if isinstance(step, int):
            continue  # the items of a list share their model, found through the annotation
        reached = {
            inner
            for outer in reached
            if step in outer.model_fields
            for inner in _models_in(outer.model_fields[str(step)].annotation)
        }
    return {field.alias or name for inner in reached for name, field in inner.model_fields.items()}


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)}
