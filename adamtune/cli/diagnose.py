"""`adamtune diagnose`: what Adam does in a checkpoint or did in a run, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adamtune.errors import ExitCode


def diagnose(
    target: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint that torch.save wrote, a folder with one, or a run directory.", show_default=False
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print measurements and findings as JSON.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Read every element of a checkpoint's state, not a sample.")
    ] = False,
) -> int:
    """Tell what Adam does in a saved optimizer state or did in a run, and what to do about it. Nothing in the files is
    run, and neither the model nor the task is needed.

    Example: adamtune diagnose checkpoint-500/optimizer.pt
    """
    from adamtune.diagnosis import diagnose as diagnosis_of
    from adamtune.report import terminal
    from adamtune.report.diagnosis import print_diagnosis

    diagnosis = diagnosis_of(target, exact)
    if json:
        terminal.print_json(diagnosis.to_dict())
    else:
        print_diagnosis(diagnosis)
    return ExitCode.DONE
