"""A sweep or a range test as it goes: a screen on a terminal, a line now and then in a pipe, nothing when quiet."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from adamtune.report.aside import kept_aside
from adamtune.report.console import PlainConsole
from adamtune.report.screen import screen_lines
from adamtune.report.so_far import SoFar, spent_told, standing_told
from adamtune.report.wording import beside_values, number

if TYPE_CHECKING:
    from adamtune.diagnosis import Told
    from adamtune.groups import ParamGroup
    from adamtune.plan import Plan, Progress
    from adamtune.spec import Spec
    from adamtune.stages.context import StageAnswer, TrialRecord

_LINE_TRIALS, _LINE_SECONDS = 25, 60.0
"""In a pipe a line is printed after so many trials, or so long after the last one."""
_DRAW_SECONDS = 0.5
"""Between two drawings of the screen."""

# A process forked in the middle of a drawing would wait for the console's locks for ever once it prints.
_drawing = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_drawing.acquire, after_in_parent=_drawing.release, after_in_child=_drawing.release)


def _can_draw(console: Console) -> bool:
    """Whether somebody looks at a terminal that can be drawn on. Logs of a CI system may claim to be one."""
    stream = sys.stderr
    looked_at = stream is not None and stream.isatty() and not os.environ.get("CI")
    return looked_at and console.is_terminal and not console.is_dumb_terminal


@contextmanager
def steps_progress(quiet: bool) -> Iterator[Callable[[int], None]]:
    """A spinner that counts training steps, on a terminal; yields what to tell them to."""
    console = PlainConsole(stderr=True)
    if quiet or not _can_draw(console):
        yield lambda steps: None
        return
    columns = (SpinnerColumn(), TextColumn("training"), BarColumn(20), TextColumn("{task.completed:,.0f} steps"))
    with RichProgress(*columns, TimeElapsedColumn(), console=console, transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("training", total=None)
        yield lambda steps: bar.advance(task, steps)


@contextmanager
def sweep_progress(spec: Spec, run_dir: Path, quiet: bool) -> Iterator[Progress]:
    """Who tells of a sweep, on standard error, so that standard output holds the result alone.

    On a terminal that is a screen, which is gone at the end; elsewhere lines; nobody when `quiet`.
    """
    console = PlainConsole(file=sys.stderr, quiet=quiet, soft_wrap=True)
    if quiet or not _can_draw(console):
        yield SweepLines(spec, run_dir, console)
        return
    so_far = SoFar(spec, run_dir)
    with kept_aside(), _drawn(so_far, console):
        yield so_far


class SweepLines(SoFar):
    """A sweep in lines: what is asked and answered, and in between how far it is."""

    def __init__(self, spec: Spec, run_dir: Path, console: PlainConsole) -> None:
        """Print to `console`."""
        super().__init__(spec, run_dir)
        self._console = console
        self._line_trials, self._line_time = 0, 0.0

    def on_plan(self, plan: Plan, groups: Sequence[ParamGroup]) -> None:
        """See `Progress`."""
        super().on_plan(plan, groups)
        self._console.tell(f"run directory: {self.run_dir}")
        for group in groups:
            self._console.tell(
                f"param group {group.name}: {group.tensors} tensors, {group.parameters:,} parameters, "
                f"lr {group.lr:g}, weight_decay {group.weight_decay:g}"
            )
        names = ", ".join(stage.name for stage in plan.stages)
        self._console.tell(f"stages: {names}, then default against recommended; at most {plan.steps:,} steps")

    def on_stage(self, name: str, question: str) -> None:
        """See `Progress`."""
        super().on_stage(name, question)
        self._console.tell(f"{name}: {question}", style="bold")

    def on_steps(self, steps: int) -> None:
        """See `Progress`."""
        super().on_steps(steps)
        if self.elapsed - self._line_time >= _LINE_SECONDS:
            self._print_line()

    def on_note(self, note: str) -> None:
        """See `Progress`."""
        super().on_note(note)
        self._console.tell(f"  {note}", 4)

    def on_trial(self, record: TrialRecord) -> None:
        """See `Progress`."""
        super().on_trial(record)
        if self.trials - self._line_trials >= _LINE_TRIALS:
            self._print_line()

    def on_answer(self, answer: StageAnswer) -> None:
        """See `Progress`."""
        super().on_answer(answer)
        told = answer.reason
        if answer.before != answer.after:
            why = beside_values(answer.stage, answer.after, answer.reason)
            told = f"{number(answer.before)} -> {number(answer.after)}{why}"
        self._console.tell(f"  {answer.verdict}: {told}", 4)

    def on_findings(self, findings: Sequence[Told]) -> None:
        """See `Progress`."""
        super().on_findings(findings)
        for told in findings:
            self._console.tell(f"  {told.finding.severity}: {told.finding.told}; {told.finding.advice}", 4)

    def _print_line(self) -> None:
        self._line_trials, self._line_time = self.trials, self.elapsed
        told = [f"{self.stage}: {self.trials} trials", *spent_told(self), *standing_told(self)]
        self._console.tell("  " + ", ".join(told), 4)


@contextmanager
def _drawn(so_far: SoFar, console: Console) -> Iterator[None]:
    """Draw `so_far` on the terminal's other screen a few times a second, whatever its size is at the time."""

    def drawing() -> Group:
        width, height = console.size
        return Group(*screen_lines(so_far, width, height, console.options.ascii_only))

    live = Live(
        get_renderable=drawing, console=console, screen=True, auto_refresh=False,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    ended = threading.Event()

    def draw() -> None:
        while not ended.wait(_DRAW_SECONDS):
            with _drawing:
                live.refresh()

    thread = threading.Thread(target=draw, name="screen", daemon=True)
    with live, _left_when_killed(live):
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def _left_when_killed(live: Live) -> Iterator[None]:
    """Give the terminal back also where the process is told to end by `kill`, which ends Python at once."""
    owner = os.getpid()

    def killed(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:  # not a worker that was forked
            live.stop()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield
        return
    before = signal.signal(signal.SIGTERM, killed)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
