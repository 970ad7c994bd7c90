"""A command's help: what it does, its options, and last the example that ends its docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypedDict

_EXAMPLE = "\n\nExample: "


class HelpText(TypedDict):
    """As typer's `command` and `callback` take it."""

    help: str
    epilog: str


def help_of(command: Callable[..., object]) -> HelpText:
    """The docstring in two: the example stands below the options, where one looks when the help has scrolled by."""
    about, _, example = inspect.cleandoc(command.__doc__ or "").partition(_EXAMPLE)
    return {"help": about, "epilog": _EXAMPLE.strip() + " " + example}
