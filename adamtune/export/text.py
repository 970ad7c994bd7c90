"""The text of an exported file: a header that says what is missing, then the settings in the format's syntax."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from adamtune import yaml_text
from adamtune.export.format import Format, Settings
from adamtune.export.told import decay_convention
from adamtune.recipe import Recipe


def text_of(format: Format, settings: Settings, recipe: Recipe, total_steps: int | None = None) -> str:
    """A whole file. JSON has no comments, so there only the export itself tells what is unsaid."""
    match format.syntax:
        case "json":
            return json.dumps(settings.values, indent=2) + "\n"
        case "yaml":
            body = yaml_text.dump(settings.values)
        case "assignments":
            body = "".join(f"{key} = {value!r}\n" for key, value in settings.values.items())
        case "arguments":
            body = "\n".join(_arguments(settings.values)) + "\n"
        case "python":
            raise AssertionError(f"{format.name} writes its own module")
    return "".join(f"# {line}".rstrip() + "\n" for line in _header(format, settings, recipe, total_steps)) + body


def _arguments(values: Mapping[str, Any]) -> Iterator[str]:
    """`--key value` a line; a switch that is on stands alone, one that is off not at all."""
    for key, value in values.items():
        if value is True:
            yield f"--{key}"
        elif value is not False and value is not None:
            listed = value if isinstance(value, list | tuple) else [value]
            yield " ".join([f"--{key}", *(shlex.quote(str(item)) for item in listed)])


def _header(format: Format, settings: Settings, recipe: Recipe, total_steps: int | None) -> Iterator[str]:
    yield f"Optimizer recipe for {format.consumer}, written by adamtune."
    if format.how:
        yield from textwrap.wrap(format.how, 112)
    about = recipe.provenance
    if about.get("default") is not None and about.get("recommended") is not None:
        told = {key: _one_line(about.get(key)) for key in ("task", "horizon", "objective", "default", "recommended")}
        yield (
            "Measured on {task}, {horizon} steps: {objective} {default} by default, {recommended} with this recipe."
        ).format_map(told)
    if total_steps is not None:
        yield f"For a run of {total_steps:,} optimizer steps."
    if convention := decay_convention(recipe):
        yield convention
    if settings.unsaid:
        yield f"Not said here, since {format.name} has no word for it (--companion writes the code that adds it):"
        for unsaid in settings.unsaid:
            yield from textwrap.wrap(_one_line(unsaid), 112, initial_indent="  - ", subsequent_indent="    ")


def _one_line(value: object) -> str:
    """Text from a recipe file that stays within its comment."""
    return "".join(c if c.isprintable() else " " for c in str(value))
