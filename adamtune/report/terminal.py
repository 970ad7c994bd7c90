"""What adamtune prints when it is done: plans, results, runs. Loads no torch, so that `show` answers at once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from adamtune import rundir
from adamtune.report.console import PlainConsole
from adamtune.report.wording import beside_values, number, steps_to, with_bounds, with_interval

if TYPE_CHECKING:
    from adamtune.comparison import Comparison, Paired
    from adamtune.lr_finder import LRFindResult
    from adamtune.plan import Plan


_TOLD = 13
"""Columns of the names before what is told."""
_PIPE = 10_000
"""Columns where nobody looks: a row of a table is a line, however long."""


def _out() -> PlainConsole:
    return PlainConsole(soft_wrap=True)


def width() -> int:
    """Columns of the terminal, 80 in a pipe."""
    return _out().width


def print_json(data: Mapping[str, Any]) -> None:
    """Plain data as JSON on standard output; NaN and infinity as null."""
    print(json.dumps(rundir.jsonable(dict(data)), indent=2, allow_nan=False))


def plan_dict(plan: Plan) -> dict[str, Any]:
    """A plan as plain data."""
    return {
        "version": 1,
        "stages": [{"stage": s.name, "question": s.question, "steps": s.steps} for s in plan.stages],
        "final_steps": plan.final_steps,
        "steps": plan.steps,
        "budget_steps": plan.budget,
        "seconds_per_step": plan.seconds_per_step,
    }


def print_plan(plan: Plan, horizon: int) -> None:
    """The plan as a table: stages, what they are reckoned with, and how long that takes."""
    timed = math.isfinite(plan.seconds_per_step)
    table = Table("stage", "question", "steps", "trials", "time", box=None)
    last = "How do default and recommended compare on fresh seeds?"
    rows = [(stage.name, stage.question, stage.steps) for stage in plan.stages]
    for name, question, steps in [*rows, ("final", last, plan.final_steps)]:
        time = _duration(steps * plan.seconds_per_step) if timed else "-"
        table.add_row(name, question, f"{steps:,}", f"{steps / horizon:.0f}", time)
    out = _out()
    out.print(table)
    budget = f"{plan.budget:,.0f} steps" if math.isfinite(plan.budget) else "bounded by time only"
    out.tell(f"about {plan.steps:,} steps in all; budget: {budget}; stages are asked as far as it goes")
    if plan.too_dear:
        out.tell(f"left out, as the budget is too small for them: {', '.join(plan.too_dear)}")
    if timed:
        whole, step = _duration(plan.steps * plan.seconds_per_step), f"{1e3 * plan.seconds_per_step:.3g} ms"
        out.tell(f"about {whole} one trial at a time, less side by side; a step takes {step} (a few were timed)")


def _duration(seconds: float) -> str:
    """To two digits: `0.31 s`, `42 s`, `7 min`, `2.5 h`."""
    for unit, size, above in (("h", 3600, 5400), ("min", 60, 90)):
        if seconds >= above:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} s"


def print_result(result: Mapping[str, Any], run_dir: Path) -> None:
    """Every verdict, findings, and last the answer, where the eye is when the command returns.

    `result` is a run's result.json.
    """
    out = _out()
    if not out.is_terminal:
        out.width = _PIPE
    verdicts = Table("knob", "verdict", "default", "recommended", "why", box=None)
    for stage in result["stages"]:
        told = stage["before"] is not None or stage["after"] is not None
        before, after = (number(stage["before"]), number(stage["after"])) if told else ("", "")
        why = stage["reason"]
        if stage["before"] != stage["after"]:  # both stand to the left
            why = beside_values(stage["stage"], stage["after"], why).lstrip(":, ")
        verdicts.add_row(stage["stage"], stage["verdict"], before, after, why)
    out.print(verdicts)
    out.print()
    for finding in result.get("findings", ()):
        seeds = finding.get("seeds")
        on = f" ({seeds['raised']} of {seeds['of']} seeds)" if seeds else ""
        out.tell(f"{finding['severity']}: {finding['told']}{on}; {finding['advice']}")
    objective = result["objective"]["name"]
    for name in ("default", "recommended"):
        out.tell(f"{name + ':':<{_TOLD}}{objective} {with_interval(result[name])}", _TOLD)
    if "time_to" in result["objective"]:
        first, second = (steps_to(result[name]) for name in ("default", "recommended"))
        what = f"time to {number(result['objective']['time_to'])}:"
        out.tell(f"{what:<{_TOLD}}{first} by default, {second} recommended", _TOLD)
    default, recommended = result["default"]["mean"], result["recommended"]["mean"]
    if default is not None and recommended is not None and default > 0 and recommended > 0:
        out.print(f"{'ratio:':<{_TOLD}}{recommended / default:.3f}")
    out.print(f"{'cost:':<{_TOLD}}{result['steps_used']:,} training steps, {result['wall_seconds']:.0f} s")
    out.print(f"{'recipe:':<{_TOLD}}{run_dir / rundir.RECIPE}")


def print_runs(folder: Path, runs: Mapping[Path, Mapping[str, Any]], unfinished: Sequence[Path]) -> None:
    """One line a run, in a pipe however long; at a terminal long names go on below. Then those that have no result."""
    out = _out()
    if not out.is_terminal:
        out.width = _PIPE
    if not runs and not unfinished:
        out.tell(
            f"no runs in {folder}/; adamtune init writes a task and a spec to start from, adamtune sweep SPEC runs it"
        )
    if runs:
        table = Table(box=None)
        for heading in ("run", "task", "objective", "default", "recommended", "steps"):
            table.add_column(heading, overflow="fold")  # nothing of a name is left out
        for path, result in runs.items():
            means = [number(result[name]["mean"]) for name in ("default", "recommended")]
            objective, steps = result["objective"]["name"], f"{result['steps_used']:,}"
            table.add_row(str(path), result["task"]["ref"], objective, *means, steps)
        out.print(table)
    for path in unfinished:
        out.tell(f"not finished: {path}")
    if unfinished:
        out.tell(
            "adamtune report RUN shows how far one came, adamtune sweep RUN/spec.yaml --run-dir RUN goes on with it"
        )


def print_recipes(recipes: Mapping[str, str]) -> None:
    """Name and purpose, one line each."""
    longest = max(map(len, recipes), default=0)
    for name, about in recipes.items():
        _out().tell(f"{name:{longest}}  {about}", longest + 2)


def print_comparison(comparison: Comparison) -> None:
    """What differs between two recipes; then, of two runs, what each measured and decided."""
    out = _out()
    out.print(f"A: {comparison.a}\nB: {comparison.b}\n")
    if comparison.knobs:
        _print_sides("knob", {name: _unlike(a, b) for name, (a, b) in comparison.knobs.items()})
    else:
        out.print("the recipes are the same")
    runs = comparison.runs
    if runs is None:
        return
    out.print()
    a, b = _figures(runs.a), _figures(runs.b)
    _print_sides("measured", {name: (a[name], b[name]) for name in a})
    out.print()
    if runs.paired is None:
        out.tell(f"not paired: {runs.unpaired}")
    else:
        for line in difference_told(runs.paired).splitlines():
            out.tell(line)
    out.print()
    _print_sides("stage", {name: (number(a), number(b)) for name, (a, b) in runs.verdicts.items()})


def _unlike(a: object, b: object) -> tuple[str, str]:
    """Two values that differ, in as many digits as it takes to see it."""
    return (number(a), number(b)) if number(a) != number(b) else (str(a), str(b))


def _print_sides(what: str, rows: Mapping[str, tuple[str, str]]) -> None:
    """A table of A and B no wider than the terminal: long cells are folded."""
    table = Table(box=None)
    for heading in (what, "A", "B"):
        table.add_column(heading, overflow="fold")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    _out().print(table, soft_wrap=False)


def _figures(result: Mapping[str, Any]) -> dict[str, str]:
    """What a run measured, by name. `result` is its result.json."""
    task, objective = result["task"], result["objective"]
    means = {
        name: with_interval(result[name]) if result[name]["mean"] is None else with_bounds(result[name])
        for name in ("default", "recommended")
    }
    return {
        "task": " ".join([task["ref"], *(f"{name}={value}" for name, value in task["args"].items())]),
        "horizon": f"{result['horizon']:,}",
        "objective": f"{objective['name']}, {objective['direction']}",
        **means,
        "fresh seeds": str(result["recommended"]["seeds"]),
        "steps used": f"{result['steps_used']:,}",
        "wall seconds": f"{result['wall_seconds']:.0f}",
    }


def difference_told(paired: Paired) -> str:
    """The paired difference of two runs, and which is better by it; two lines."""
    difference, count = paired.difference, len(paired.seeds)
    bounds = with_bounds({"mean": difference.mean, "ci95": (difference.low, difference.high)})
    some = difference.count < count
    over = f"{difference.count} of {count}" if some else str(count)
    better = paired.better.upper() if paired.better else "neither"
    why = " (the other lacks some)" if paired.better and some else ""
    return f"recommended, B minus A: {bounds} over {over} fresh seeds\nbetter by evidence: {better}{why}"


def print_lr_find(result: LRFindResult, plot: str) -> None:
    """The curve, the suggestions side by side, and the answer."""
    out = _out()
    if plot:
        out.print(plot)
    if result.curve.band:
        low, high = result.curve.band
        out.print(f"{'band:':<{_TOLD}}{low:.3g} to {high:.3g} (the loss falls)")
    for rule, lr in result.curve.suggestions.items():
        out.print(f"{rule + ':':<{_TOLD}}{lr:.3g}")
    if result.suggestion is None:
        out.tell(f"{'suggestion:':<{_TOLD}}none, {result.status}: {result.reason}", _TOLD)
    else:
        whose = f" for group {result.group}" if result.group else ""
        ending = f" for {result.horizon} steps ({result.status}: {result.reason})"
        out.tell(f"{'suggestion:':<{_TOLD}}{result.suggestion:.3g}{whose}{ending}", _TOLD)
    if result.interval is not None:
        low, high = result.interval
        out.print(f"{'interval:':<{_TOLD}}{low:.2g} to {high:.2g}")
        band = result.curve.band
        if result.suggestion is not None and band and not band[0] <= result.suggestion <= band[1]:
            why = (
                "the suggestion lies outside the band: short trials were trained for it, the band is of the ramp alone"
            )
            out.tell(f"{'note:':<{_TOLD}}{why}", _TOLD)
    out.tell(f"{'stopped:':<{_TOLD}}{result.stopped}", _TOLD)
    out.print(f"{'cost:':<{_TOLD}}{result.steps_used:,} training steps, {result.seconds:.0f} s")
