"""`adamtune sweep`: from a spec to a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from adamtune.cli import imports
from adamtune.cli.alone import result_alone
from adamtune.cli.completing import ENGINES, one_of
from adamtune.cli.interrupts import after_the_rung
from adamtune.errors import AdamtuneError, ExitCode, InputError, StorageError, TrialFailed, UnwritableError
from adamtune.passwords import without_passwords


def sweep(
    spec: Annotated[Path, typer.Argument(help="The spec, a YAML file; see configs/.", show_default=False)],
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where to leave the results, or an unfinished run to go on with; by default runs/SPEC-N, N free."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the spec's seed.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="Instead of the spec's engine.", autocompletion=one_of(ENGINES))
    ] = None,
    storage: Annotated[str | None, typer.Option(help="Instead of the spec's storage: an Optuna URL.")] = None,
    workers: Annotated[
        str | None, typer.Option(help="Instead of the spec's workers: processes to train in here, or auto.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="Share of the free memory that trials side by side may take; 0.6 by default.")
    ] = None,
    learn_from: Annotated[
        list[Path] | None,
        typer.Option(help="A folder of former runs, or one; what did well there is tried first. May be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan, cost and time; keep nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result and errors.")] = False,
) -> int:
    """Tune the recipe of a training run and write down the best, with the evidence.

    Example: adamtune sweep configs/digits.yaml --run-dir runs/digits
    """
    given = {"seed": seed, "engine": engine, "storage": storage, "memory": memory}
    if workers is not None:
        given["workers"] = int(workers) if workers.isdecimal() else workers
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    again = [*overrides.items(), *(("learn-from", folder) for folder in learn_from or ())]
    from adamtune.spec import load_spec

    loaded = load_spec(spec, overrides)
    with imports.quickly():
        from adamtune.report import terminal
        from adamtune.report.live import sweep_progress
        from adamtune.rundir import is_run, jsonable, next_run_dir
        from adamtune.sweeps import plan_of
        from adamtune.sweeps import sweep as run_sweep

    if dry_run:
        with result_alone():
            plan = plan_of(loaded)
        if json:
            terminal.print_json(terminal.plan_dict(plan))
        else:
            terminal.print_plan(plan, loaded.horizon)
        return ExitCode.DONE
    target = run_dir or next_run_dir(spec.stem)
    place = target.resolve()  # before the task is loaded, which may change directory
    try:
        with (
            result_alone(),
            sweep_progress(loaded, target, quiet=json or quiet) as told,
            after_the_rung(told.on_note) as stop,
        ):
            result = run_sweep(loaded, target, told, learn_from or (), stop)
    except KeyboardInterrupt:
        kept = f"what has been measured is in {target}; {_again(spec, target, again)} goes on from there"
        typer.echo(f"adamtune: interrupted; {kept if is_run(place) else 'nothing was begun'}", err=True)
        return ExitCode.INTERRUPTED
    except (StorageError, TrialFailed, UnwritableError) as problem:
        what = _as_typed(problem, place, target)
        raise type(problem)(f"{what}, then {_again(spec, target, again)} goes on from there") from problem
    except InputError as problem:
        if type(problem) is not InputError:  # the others say what was typed
            raise
        raise InputError(_as_typed(problem, place, target)) from problem
    if json:
        terminal.print_json(result.to_dict())
    else:
        terminal.print_result(jsonable(result.to_dict()), target)
    return ExitCode.DONE


def _as_typed(problem: AdamtuneError, place: Path, run_dir: Path) -> str:
    """The sentence, with files of the run directory under the name that it was given."""
    return str(problem).replace(f"{place}/", f"{run_dir}/")


def _again(spec: Path, run_dir: Path, given: Iterable[tuple[str, object]]) -> str:
    """The command that goes on with a sweep: its options as they were `given`."""
    options = [text for name, value in given for text in (f"--{name}", without_passwords(str(value)))]
    return shlex.join(["adamtune", "sweep", str(spec), "--run-dir", str(run_dir), *options])
