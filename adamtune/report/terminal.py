"""What adamtune prints: the plan, progress, results; on a terminal with a live bar, in a pipe as plain lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from adamtune import rundir
from adamtune.plan import Plan, Progress

if TYPE_CHECKING:
    from adamtune.groups import ParamGroup
    from adamtune.lr_finder import LRFindResult
    from adamtune.stages.context import StageAnswer, TrialRecord

_PLAIN_EVERY = 25
"""In a pipe, a line is printed after so many trials."""


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)


def width() -> int:
    """Columns of the terminal, 80 in a pipe."""
    return _out().width


def print_json(data: Mapping[str, Any]) -> None:
    """Plain data as JSON on standard output; NaN and infinity as null."""
    print(json.dumps(rundir.jsonable(dict(data)), indent=2, allow_nan=False))


def number(value: object) -> str:
    """A value as people read it: numbers with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    return "-" if value is None else str(value)


def _bar(console: Console) -> RichProgress:
    return RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} steps"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


@contextmanager
def steps_progress(quiet: bool) -> Iterator[Callable[[int], None]]:
    """A spinner that counts training steps, on a terminal; yields what to tell them to."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda steps: None
        return
    with _bar(console) as bar:
        task = bar.add_task("training", total=None)
        yield lambda steps: bar.advance(task, steps)


class SweepScreen(Progress):
    """A sweep as it goes: one bar with ETA on a terminal, a line now and then in a pipe, nothing when quiet.

    Written to standard error, so that standard output holds the result alone.
    """

    def __init__(self, run_dir: Path, quiet: bool) -> None:
        """`run_dir` is named at the start."""
        self._console = Console(stderr=True, highlight=False, quiet=quiet, soft_wrap=True)
        self._bar = _bar(self._console) if self._console.is_terminal and not quiet else None
        self._run_dir = run_dir
        self._task: Any = None
        self._plan: Plan | None = None
        self._stage = ""
        self._trials = self._steps = self._stage_start = 0

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Stop drawing."""
        if self._bar:
            self._bar.stop()

    def on_plan(self, plan: Plan, groups: Sequence[ParamGroup]) -> None:
        """See `Progress`."""
        self._plan = plan
        self._console.print(f"run directory: {self._run_dir}")
        for group in groups:
            self._console.print(
                f"param group {group.name}: {group.tensors} tensors, {group.parameters:,} parameters, "
                f"lr {group.lr:g}, weight_decay {group.weight_decay:g}"
            )
        names = ", ".join(stage.name for stage in plan.stages)
        self._console.print(f"stages: {names}, then default against recommended; at most {plan.steps:,} steps")
        if self._bar:
            self._task = self._bar.add_task("starting", total=plan.steps)

    def on_stage(self, name: str, question: str) -> None:
        """See `Progress`."""
        self._stage, self._stage_start = name, self._steps
        self._console.print(f"[bold]{name}[/bold]: {question}")
        if self._bar:
            self._bar.update(self._task, description=name)

    def on_steps(self, steps: int) -> None:
        """See `Progress`."""
        self._steps += steps
        if self._bar:
            self._bar.update(self._task, advance=steps)

    def on_trial(self, record: TrialRecord) -> None:
        """See `Progress`."""
        self._trials += 1
        if not self._bar and self._trials % _PLAIN_EVERY == 0:
            self._console.print(f"  {self._trials} trials, {self._steps:,} steps", markup=False)

    def on_answer(self, answer: StageAnswer) -> None:
        """See `Progress`. What a stage left unspent is taken off the bar, so that the ETA stays true."""
        change = f"{number(answer.before)} -> {number(answer.after)}, " if answer.before != answer.after else ""
        self._console.print(f"  {answer.verdict}: {change}{answer.reason}", markup=False)
        if self._bar and self._plan:
            planned = sum(stage.steps for stage in self._plan.stages if stage.name == answer.stage)
            total = self._bar.tasks[self._task].total or 0
            self._bar.update(self._task, total=max(self._steps, total - planned + self._steps - self._stage_start))


def plan_dict(plan: Plan) -> dict[str, Any]:
    """A plan as plain data."""
    return {
        "version": 1,
        "stages": [{"stage": s.name, "question": s.question, "steps": s.steps} for s in plan.stages],
        "final_steps": plan.final_steps,
        "steps": plan.steps,
        "budget_steps": plan.budget,
    }


def print_plan(plan: Plan, horizon: int) -> None:
    """The plan as a table: stages, what they can cost at most."""
    table = Table("stage", "question", "steps at most", "in full trials", box=None)
    for stage in plan.stages:
        table.add_row(stage.name, stage.question, f"{stage.steps:,}", f"{stage.steps / horizon:.0f}")
    last = "How do default and recommended compare on fresh seeds?"
    table.add_row("final", last, f"{plan.final_steps:,}", f"{plan.final_steps / horizon:.0f}")
    _out().print(table)
    budget = f"{plan.budget:,.0f} steps" if math.isfinite(plan.budget) else "bounded by time only"
    _out().print(f"at most {plan.steps:,} steps in all; budget: {budget}; nothing was trained")


def print_result(result: Mapping[str, Any], run_dir: Path) -> None:
    """The answer first, then every verdict. `result` is a run's result.json."""
    out = _out()
    verdicts = Table("knob", "verdict", "default", "recommended", "why", box=None)
    for stage in result["stages"]:
        before, after = ("", "") if stage["before"] is None else (number(stage["before"]), number(stage["after"]))
        verdicts.add_row(stage["stage"], stage["verdict"], before, after, stage["reason"])
    out.print(verdicts)
    out.print()
    objective = result["objective"]["name"]
    for name in ("default", "recommended"):
        out.print(f"{name + ':':<13}{objective} {with_interval(result[name])}", markup=False)
    default, recommended = result["default"]["mean"], result["recommended"]["mean"]
    if default and recommended:
        out.print(f"{'ratio:':<13}{recommended / default:.3f}", markup=False)
    out.print(f"{'cost:':<13}{result['steps_used']:,} training steps, {result['wall_seconds']:.0f} s")
    out.print(f"{'recipe:':<13}{run_dir / rundir.RECIPE}", markup=False)


def with_interval(measured: Mapping[str, Any]) -> str:
    """Mean and interval of a `default` or `recommended` entry of result.json."""
    if measured["mean"] is None:
        return f"diverged on {measured['diverged']} of {measured['seeds']} fresh seeds"
    low, high = measured["ci95"]
    return f"{number(measured['mean'])} [{number(low)}, {number(high)}] over {measured['seeds']} fresh seeds"


def print_runs(runs: Mapping[Path, Mapping[str, Any]]) -> None:
    """One line a run."""
    if not runs:
        _out().print("no finished runs in runs/; start one with: adamtune sweep configs/digits.yaml")
        return
    table = Table("run", "task", "objective", "default", "recommended", "steps", box=None)
    for path, result in runs.items():
        means = [number(result[name]["mean"]) for name in ("default", "recommended")]
        objective, steps = result["objective"]["name"], f"{result['steps_used']:,}"
        table.add_row(str(path), result["task"]["ref"], objective, *means, steps)
    _out().print(table)


def print_lr_find(result: LRFindResult, plot: str) -> None:
    """The curve, the suggestions side by side, and the answer."""
    out = _out()
    if plot:
        out.print(plot, markup=False)
    if result.curve.band:
        low, high = result.curve.band
        out.print(f"{'band:':<13}{low:.3g} to {high:.3g} (the loss falls)", markup=False)
    for rule, lr in result.curve.suggestions.items():
        out.print(f"{rule + ':':<13}{lr:.3g}", markup=False)
    if result.suggestion is None:
        out.print(f"{'suggestion:':<13}none, {result.status}: {result.reason}", markup=False)
    else:
        ending = f" ({result.status}: {result.reason})"
        out.print(f"{'suggestion:':<13}{result.suggestion:.3g} for {result.horizon} steps{ending}", markup=False)
    if result.interval is not None:
        low, high = result.interval
        out.print(f"{'interval:':<13}{low:.2g} to {high:.2g}", markup=False)
    out.print(f"{'cost:':<13}{result.steps_used:,} training steps, {result.seconds:.0f} s", markup=False)
