"""What an export format is: a recipe told in a consumer's keys, and what those keys cannot say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adamtune.errors import ExportError
from adamtune.recipe import Recipe

Syntax = Literal["python", "yaml", "json", "arguments", "assignments"]
"""How a file of the format is written: a module, YAML, JSON, command line arguments, or lines of `name = value`."""


@dataclass(frozen=True)
class Unsaid:
    """One knob of the recipe that the format has no word for."""

    knob: str
    """As `Recipe.knobs` calls it, e.g. `groups.head.lr_mult`."""
    why: str
    """What the consumer does in its place, in half a sentence."""

    def __str__(self) -> str:
        """`knob: why`."""
        return f"{self.knob}: {self.why}"


@dataclass(frozen=True)
class Settings:
    """A recipe in a consumer's own keys: plain data, nested as the consumer nests it, in the order people read."""

    values: Mapping[str, Any]
    unsaid: tuple[Unsaid, ...] = ()
    neutral: Mapping[str, Any] = field(default_factory=dict)
    """Keys at the top that would say otherwise where a file has them already, and the value that says nothing."""
    placeholders: tuple[str, ...] = ()
    """Keys at the top that the consumer asks for and the recipe says nothing about: what a file has there stays."""


@dataclass(frozen=True)
class Context:
    """What an export needs beside the recipe."""

    total_steps: int | None = None
    """Optimizer steps of the run; None where nobody said."""
    version: int | None = None
    """Major version of the consumer to write for; None for its newest."""
    steps_per_epoch: int | None = None
    """Optimizer steps of an epoch, for consumers that count in epochs; None where nobody said."""

    def needs_total_steps(self, format: str, what: str) -> int:
        """`total_steps`; `ExportError` where it is not known."""
        if self.total_steps is None:
            raise ExportError(f"{format} needs {what} in steps; say how long the run is with --total-steps")
        return self.total_steps


@dataclass(frozen=True)
class Format:
    """One export format."""

    name: str
    consumer: str
    """Who reads it, in a few words, e.g. `transformers TrainingArguments`."""
    syntax: Syntax
    settings: Callable[[Recipe, Context], Settings]
    """The recipe in the consumer's keys; raises `ExportError` where it cannot be told at all."""
    how: str = ""
    """How the consumer is given the file, for its header: one line."""
    companion: Callable[[Recipe, Context], str] | None = None
    """Source of the Python module that adds what `settings` leaves unsaid; None where nothing ever is."""
    versions: tuple[int, ...] = ()
    """Major versions of the consumer that `Context.version` may ask for."""
    whole: Callable[[Recipe], str] | None = None
    """Writes the file itself, for a format that says everything in words of its own."""
