"""`adamtune doctor`: what is installed here, and whether a task can be tuned."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamtune.cli import imports
from adamtune.cli.alone import result_alone
from adamtune.cli.lr_find import parse_task_args
from adamtune.errors import ExitCode, InputError, TaskError

if TYPE_CHECKING:
    from adamtune.doctor import Line


def doctor(
    task: Annotated[
        str | None,
        typer.Option(help="Also check this task: package.module:function or path/file.py:function", show_default=False),
    ] = None,
    task_arg: Annotated[
        list[str] | None,
        typer.Option("--task-arg", "--arg", help="An argument of the task function, name=value. Repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to try the task: auto, cpu, cuda, cuda:1, mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the lines as JSON.")] = False,
) -> int:
    """Check what is installed here, and a task before it is tuned.

    Of a task: it builds and trains, gradients reach its parameters, a seed gives the same numbers twice, batches move
    to the device, validation runs, how its parameters are grouped, whether trials can train side by side, how long a
    step takes, and that made a second time it has the same data. Exit code 1 where there is a problem.

    Example: adamtune doctor --task my_task.py:task
    """
    arguments = parse_task_args(task_arg or [])
    if task_arg and task is None:
        raise InputError("--task-arg is for a task; name it by --task")
    with imports.quickly():
        from adamtune.doctor import Line, Status, check_environment, check_task
        from adamtune.doctor.task_checks import problem_line
        from adamtune.engines import pick_device
        from adamtune.report import terminal
        from adamtune.report.doctor import print_lines
        from adamtune.task import Task, load_task

    here = Path.cwd()

    def load() -> Task:
        assert task is not None
        os.chdir(here)  # a task may change directory, and is made twice
        with result_alone():
            return load_task(task, arguments)

    checks: Iterable[Line] = ()
    if task is not None:
        place = pick_device(device)
        try:
            loaded = load()
            built = Line("task", Status.OK, f"{task} builds '{loaded.name}'")
            checks = chain([built], check_task(loaded, place, load))
        except TaskError as problem:
            checks = [problem_line("task", problem)]
    printed = list if json else print_lines
    with result_alone() if json else nullcontext():  # else each line is printed as it comes
        environment, checked = printed(check_environment()), printed(checks)
    fine = all(line.status is not Status.PROBLEM for line in (*environment, *checked))
    if json:
        parts = {"environment": [line.to_dict() for line in environment], "task": [line.to_dict() for line in checked]}
        terminal.print_json({"version": 1, "ok": fine, **parts})
    return ExitCode.DONE if fine else ExitCode.FAILED
