"""`adamtune lr-find`: a learning rate for the full run, from a range test and short trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamtune.cli import imports
from adamtune.cli.task_output import beside
from adamtune.errors import ExitCode, InputError

if TYPE_CHECKING:
    from adamtune.lr_finder import LRFindResult


def lr_find(
    task: Annotated[str, typer.Argument(help="package.module:function or path/file.py:function", show_default=False)],
    task_arg: Annotated[
        list[str] | None, typer.Option(help="An argument of the task function, name=value. Repeatable.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the ramp on each seed; by default what the budget allows.")
    ] = None,
    start: Annotated[float, typer.Option(help="Learning rate at the start of the ramp.")] = 1e-6,
    end: Annotated[float, typer.Option(help="Learning rate at its end.")] = 1e-1,
    seeds: Annotated[int, typer.Option(help="Seeds of the ramp, at most.")] = 3,
    seed: Annotated[int, typer.Option(help="Another seed takes other initial weights and batches.")] = 0,
    horizon: Annotated[
        int | None, typer.Option(help="Steps of the run the learning rate is for; by default --steps, or 300.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Training steps to spend in all; by default --horizon, above 2,000 0.3 of it.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe, a file or a shipped one's name; by default AdamW, cosine.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Find the lr of this param group only (embedding, head, ...); the others hold.")
    ] = None,
    validation: Annotated[
        bool, typer.Option("--validation", help="Judge the range test by the validation loss too.")
    ] = False,
    no_refine: Annotated[bool, typer.Option("--no-refine", help="Only the range test.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    engine: Annotated[str, typer.Option(help="auto, sequential or population: who trains the trials.")] = "auto",
    memory: Annotated[float, typer.Option(help="Share of the free memory that trials side by side may take.")] = 0.6,
    plot: Annotated[Path | None, typer.Option(help="Also write the curve as an HTML page here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result and errors.")] = False,
) -> int:
    """Find the learning rate for a run of --horizon steps.

    Exit code 0 means a learning rate to trust (status ok); 1 that there is none (flat, noisy, diverging) or that it
    lies at the end of what was searched (at_boundary).

    Example: adamtune lr-find adamtune.tasks.digits:task --horizon 300
    """
    arguments = parse_task_args(task_arg or [])
    if plot is not None and (plot.is_dir() or not plot.parent.is_dir()):
        raise InputError(f"--plot {plot}: name a file in a folder that exists")
    with imports.quickly():
        from adamtune.lr_finder import lr_find as find
        from adamtune.recipe import load_recipe
        from adamtune.report import terminal
        from adamtune.report.live import steps_progress
        from adamtune.report.lr_plot import lr_html_plot, lr_terminal_plot
        from adamtune.rundir import write_atomically
        from adamtune.task import load_task

    base = load_recipe(recipe) if recipe else None
    with beside(json):
        loaded = load_task(task, arguments)
    with beside(json), steps_progress(quiet=json or quiet) as on_steps:
        result = find(
            loaded,
            steps=steps,
            start=start,
            end=end,
            seeds=seeds,
            horizon=horizon,
            budget=budget,
            recipe=base,
            group=group,
            validation=validation,
            seed=seed,
            refine=not no_refine,
            device=device,
            engine=engine,
            memory=memory,
            on_steps=on_steps,
            on_note=lambda note: None if quiet else typer.echo(f"adamtune: {note}", err=True),
        )
    if plot is not None:
        write_atomically(plot, lr_html_plot(result))
    if json:
        terminal.print_json(result.to_dict())
    else:
        terminal.print_lr_find(result, lr_terminal_plot(result, width=terminal.width()))
    return _exit_code(result)


def parse_task_args(pairs: list[str]) -> dict[str, Any]:
    """`name=value` pairs; values are read as YAML, so `3`, `1e-3`, `true` and `[1, 2]` have their types."""
    from adamtune.yaml_text import parse

    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--task-arg {pair}: write it as name=value")
        arguments[name] = parse(f"value: {value}", f"--task-arg {name}")["value"]
    return arguments


def _exit_code(result: LRFindResult) -> int:
    from adamtune.lr_finder import LRFindStatus

    return ExitCode.DONE if result.status is LRFindStatus.OK else ExitCode.FAILED
