"""A sweep or a range test as it goes: one bar with ETA on a terminal, a line now and then in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from adamtune.plan import Plan, Progress
from adamtune.report.console import PlainConsole
from adamtune.report.wording import number

if TYPE_CHECKING:
    from adamtune.groups import ParamGroup
    from adamtune.stages.context import StageAnswer, TrialRecord

_PLAIN_EVERY = 25
"""In a pipe, a line is printed after so many trials."""


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
    console = PlainConsole(stderr=True)
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
        self._console = PlainConsole(stderr=True, quiet=quiet, soft_wrap=True)
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
        self._console.print(Text.assemble((name, "bold"), f": {question}"))
        if self._bar:
            self._bar.update(self._task, description=name)

    def on_steps(self, steps: int) -> None:
        """See `Progress`."""
        self._steps += steps
        if self._bar:
            self._bar.update(self._task, advance=steps)

    def on_note(self, note: str) -> None:
        """See `Progress`."""
        self._console.print(f"  {note}")

    def on_trial(self, record: TrialRecord) -> None:
        """See `Progress`."""
        self._trials += 1
        if not self._bar and self._trials % _PLAIN_EVERY == 0:
            self._console.print(f"  {self._trials} trials, {self._steps:,} steps")

    def on_answer(self, answer: StageAnswer) -> None:
        """See `Progress`. What a stage left unspent is taken off the bar, so that the ETA stays true."""
        change = f"{number(answer.before)} -> {number(answer.after)}, " if answer.before != answer.after else ""
        self._console.print(f"  {answer.verdict}: {change}{answer.reason}")
        if self._bar and self._plan:
            planned = sum(stage.steps for stage in self._plan.stages if stage.name == answer.stage)
            total = self._bar.tasks[self._task].total or 0
            self._bar.update(self._task, total=max(self._steps, total - planned + self._steps - self._stage_start))
