"""Whether the rules of `adamtune.diagnosis` are right: real trainings with a fault planted, and healthy ones.

    python -m benchmarks.planted [RULE ...] [--json FILE]

A plant is a training whose recipe, data or initialisation has a fault. Its rule must warn of it on every seed; and the
remedy that it names on the first seed, applied, must lower the mean final validation loss on seeds of its own. Healthy
trainings have a tuned lr and torch's other values; no rule may say more than a note of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch

from adamtune.diagnosis import Finding, Severity, findings
from adamtune.diagnosis.rules import sgd_handover
from adamtune.diagnosis.trials import observed
from adamtune.groups import param_groups
from adamtune.recipe import Recipe
from adamtune.task import Task
from adamtune.trial import Trial, TrialRequest, TrialResult

FIRST = 0
"""The seed whose finding names the remedy."""
FRESH = (101, 102, 103)
"""Those that judge it."""
HEALTHY_SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Training:
    """A recipe on a task."""

    task: str
    """A key of `tasks()`."""
    recipe: Recipe
    horizon: int
    rungs: tuple[int, ...] = ()
    """Where Adam's state is recorded; by default where a sweep does, at the eighths of the horizon."""

    def recorded(self) -> tuple[int, ...]:
        eighths = {max(1, round(self.horizon * share / 8)) for share in range(1, 9)}
        return tuple(sorted({*self.rungs, self.horizon})) if self.rungs else tuple(sorted(eighths))


@dataclass(frozen=True)
class Plant:
    """A fault, and the rule that must find it."""

    rule: str
    fault: str
    training: Training

    @property
    def name(self) -> str:
        return f"{self.rule}-{self.training.task}-{self.fault}".replace(" ", "-")


@dataclass(frozen=True)
class Row:
    """What became of a plant. Losses are means over `FRESH`; inf where a training diverged."""

    rule: str
    fault: str
    task: str
    found: int
    of: int
    remedy: dict[str, object]
    before: float
    after: float


@functools.cache
def tasks() -> Mapping[str, Callable[[], Task]]:
    """Everything that a training can name."""
    from benchmarks import planted_tasks, planted_tasks_b

    return {**planted_tasks.TASKS, **planted_tasks_b.TASKS}


@functools.cache
def _task(name: str) -> Task:
    return tasks()[name]()


@functools.cache
def _trained(task: str, recipe: str, horizon: int, rungs: tuple[int, ...], seed: int) -> TrialResult:
    request = TrialRequest(Recipe.from_yaml(recipe), seed, horizon, probe=True)
    trial = Trial(_task(task), request, torch.device("cpu"))
    for rung in rungs:
        trial.advance(rung)
    return trial.result()


def train(training: Training, seed: int) -> TrialResult:
    """Train it; what was trained before is not trained again."""
    return _trained(training.task, training.recipe.to_yaml(), training.horizon, training.recorded(), seed)


def diagnosed(training: Training, seed: int) -> list[Finding]:
    """What the rules find."""
    groups = param_groups(training.recipe, _task(training.task).make_model())
    return findings(observed(train(training, seed), groups))


def warnings_of(plant: Plant, seed: int) -> list[Finding]:
    """The warnings of the plant's rule."""
    found = diagnosed(plant.training, seed)
    return [finding for finding in found if finding.rule == plant.rule and finding.severity is Severity.WARNING]


def remedied(plant: Plant) -> Training | None:
    """The training as the first warning of the first seed wants it; None where there is none, or it has no remedy."""
    warned = warnings_of(plant, FIRST)
    if not warned or not warned[0].remedy:
        return None
    recipe = plant.training.recipe
    for knob, value in warned[0].remedy.items():
        recipe = recipe.with_knob(knob, value)
    return Training(plant.training.task, recipe, plant.training.horizon, plant.training.rungs)


def loss(training: Training) -> float:
    """Mean final validation loss over `FRESH`; inf where one diverged."""
    finals = [train(training, seed).final() for seed in FRESH]
    return fmean(finals) if all(map(math.isfinite, finals)) else math.inf


def measure(plant: Plant) -> Row:
    """Train the plant and its remedy."""
    seeds = (FIRST, *FRESH)
    found = sum(bool(warnings_of(plant, seed)) for seed in seeds)
    mended = remedied(plant)
    remedy = {knob: value for knob, (_, value) in plant.training.recipe.diff(mended.recipe).items()} if mended else {}
    after = loss(mended) if mended else math.nan
    return Row(
        plant.rule, plant.fault, plant.training.task, found, len(seeds), remedy, loss(plant.training), after
    )  # fmt: skip


def false_alarms(training: Training) -> dict[int, list[Finding]]:
    """By seed, what is said above a note of a healthy training."""
    return {
        seed: [finding for finding in diagnosed(training, seed) if finding.severity is not Severity.NOTE]
        for seed in HEALTHY_SEEDS
    }


def plants() -> list[Plant]:
    """All of them."""
    from benchmarks import planted_a, planted_b

    return [*planted_a.PLANTS, *planted_b.PLANTS]


def table(rows: Iterable[Row], alarms: Mapping[str, int], healthy: int) -> str:
    """For the README."""
    lines = [
        "| rule | planted fault | task | found | false alarms | remedy | loss before | after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        remedy = ", ".join(f"{knob} {value}".strip() for knob, value in row.remedy.items()) or "-"
        before = "diverged" if math.isinf(row.before) else f"{row.before:.3g}"
        lines.append(
            f"| {row.rule} | {row.fault} | {row.task} | {row.found}/{row.of} | {alarms[row.rule]}/{healthy} "
            f"| {remedy} | {before} | {row.after:.3g} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", nargs="*", help="only these; all by default")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    from benchmarks import planted_handover
    from benchmarks.planted_tasks import HEALTHY

    rows = [measure(plant) for plant in plants() if not asked.rules or plant.rule in asked.rules]
    if not asked.rules or sgd_handover.NAME in asked.rules:
        rows += [planted_handover.measure(handover) for handover in planted_handover.HANDOVERS]
    raised = [finding for training in HEALTHY for found in false_alarms(training).values() for finding in found]
    alarms = {row.rule: sum(finding.rule == row.rule for finding in raised) for row in rows}
    print(table(rows, alarms, len(HEALTHY) * len(HEALTHY_SEEDS)))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
