"""`adamtune doctor`: is this machine, and is a task, fit for a sweep?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from adamtune.cli import imports
from adamtune.cli.lr_find import parse_task_args
from adamtune.errors import ExitCode


def doctor(
    task: Annotated[
        str | None,
        typer.Option(help="Check this task too: package.module:function or path/file.py:function.", show_default=False),
    ] = None,
    task_arg: Annotated[
        list[str] | None, typer.Option(help="An argument of the task function, name=value. Repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train it: auto, cpu, cuda, cuda:1, mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> int:
    """Show versions, devices and what is missing; with --task, train a few steps and tell what a sweep would meet.

    Exit code 1 means a problem to mend before a sweep.

    Example: adamtune doctor --task adamtune.tasks.digits:task
    """
    arguments = parse_task_args(task_arg or [])
    with imports.quickly():
        from adamtune.doctor import PROBLEM, check_machine, check_task
        from adamtune.engines import pick_device
        from adamtune.report import terminal
        from adamtune.task import load_task

    checks = list(check_machine())
    if task is not None:
        checks += check_task(load_task(task, arguments), pick_device(device))
    fit = all(check.status != PROBLEM for check in checks)
    if json:
        terminal.print_json({"version": 1, "ok": fit, "checks": [asdict(check) for check in checks]})
    else:
        terminal.print_checks([(check.status, check.name, check.told) for check in checks])
    return ExitCode.DONE if fit else ExitCode.FAILED
