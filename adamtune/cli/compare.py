"""`adamtune compare`: two recipes, or two runs, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adamtune.errors import ExitCode


def compare(
    a: Annotated[
        Path, typer.Argument(help="A run directory, a recipe file, or a shipped recipe's name.", show_default=False)
    ],
    b: Annotated[Path, typer.Argument(help="Another.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> int:
    """Compare two recipes knob by knob; of two runs, also what they measured and decided.

    Example: adamtune compare runs/digits-1 runs/digits-2
    """
    from adamtune.comparison import compare as compare_sources
    from adamtune.report import terminal

    comparison = compare_sources(a, b)
    if json:
        terminal.print_json(comparison.to_dict())
    else:
        terminal.print_comparison(comparison)
    return ExitCode.DONE
