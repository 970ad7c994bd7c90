"""What is told of a checkpoint, a run, or a training at hand: measurements and findings."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adamtune.diagnosis.finding import Observed, Record
from adamtune.diagnosis.told import Told, counted, without_asked
from adamtune.errors import InputError
from adamtune.probe.frame import parts
from adamtune.recipe import Recipe
from adamtune.rundir import is_run

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from adamtune.probe import AdamProbe

VERSION = 1


@dataclass(frozen=True)
class Diagnosis:
    """What was measured last, and what the rules find."""

    target: str
    """The file or folder; empty for a training at hand."""
    kind: Literal["checkpoint", "run", "training"]
    step: int | None
    """Optimizer steps done at `record`."""
    record: Record
    """See `AdamProbe`. Of a run, the median over its fresh seeds, by statistic."""
    findings: tuple[Told, ...]
    seeds: int = 1
    notes: tuple[str, ...] = ()
    """What could not be told, in sentences."""

    @property
    def groups(self) -> dict[str, dict[str, float]]:
        """The record by param group: statistic (`r/p50`, `grad_norm`) -> value."""
        by_group: dict[str, dict[str, float]] = {}
        for key, value in self.record.items():
            group = parts(key)[0]
            by_group.setdefault(group, {})[key[len(group) + 1 :]] = value
        return by_group

    def to_dict(self) -> dict[str, Any]:
        """Plain data, versioned."""
        return {
            "version": VERSION,
            "target": self.target,
            "kind": self.kind,
            "step": self.step,
            "groups": self.groups,
            "findings": [told.to_dict() for told in self.findings],
            "notes": list(self.notes),
        }


def diagnose(
    target: str | Path | AdamProbe | Optimizer | Observed,
    exact: bool = False,
    *,
    recipe: Recipe | None = None,
    horizon: int | None = None,
    train_losses: Sequence[float] = (),
    validation: Sequence[tuple[int, float]] = (),
) -> Diagnosis:
    """Tell what Adam does or did, and what to do about it: `Diagnosis.findings`, warnings first.

    `target` is a checkpoint (a file that torch.save wrote, or a folder with one), a run directory, or, in a training
    script, an `AdamProbe` with its records, or an optimizer, whose state is measured now. Nothing that files say is
    run, and no task is imported. `exact` reads every element of a checkpoint's or an optimizer's state instead of a
    sample; a probe has been told already.

        probe = adamtune.AdamProbe(optimizer, model, every=50)
        ...
        adamtune.diagnose(probe, recipe=recipe, horizon=10_000, train_losses=losses).findings

    The rest tells the rules more of a live training; files have their own. Without `recipe` the rules that need its
    betas, eps or lr say nothing; `horizon` is the optimizer steps planned; `train_losses` are of every step from the
    first, `validation` is (step, loss). Layers are told apart by the probe's model.

    Raises `CheckpointError`, `RunDirError` or `RecipeError` for files that cannot be read, `ProbeError` for an
    optimizer that cannot be probed or what is none, `InputError` where more is told of a file.
    """
    more = recipe is not None or horizon is not None or len(train_losses) > 0 or len(validation) > 0
    if more and isinstance(target, str | Path | Observed):
        raise InputError(
            "recipe, horizon, train_losses and validation are for a probe or an optimizer; "
            f"{'an Observed' if isinstance(target, Observed) else 'a file or a run'} tells its own, so leave them out"
        )
    if isinstance(target, str | Path):
        return _of_file(Path(target), exact)
    if isinstance(target, Observed):
        return _of_training(target, ())
    from adamtune.diagnosis.live import observed_live

    return _of_training(*observed_live(target, exact, recipe, horizon, tuple(train_losses), tuple(validation)))


def _of_training(observed: Observed, notes: tuple[str, ...]) -> Diagnosis:
    step, record = observed.records[-1] if observed.records else (None, {})
    return Diagnosis("", "training", step, record, counted([observed]), notes=notes)


def _of_file(path: Path, exact: bool) -> Diagnosis:
    if is_run(path):
        return _of_run(path)
    from adamtune.diagnosis.checkpoint import read_checkpoint  # loads torch, which a run does not need

    checkpoint = read_checkpoint(path, exact)
    found = counted([checkpoint.observed])
    return Diagnosis(str(path), "checkpoint", checkpoint.step, checkpoint.record, found, notes=checkpoint.notes)


def _of_run(path: Path) -> Diagnosis:
    from adamtune.diagnosis.run import read_run

    run = read_run(path)
    seeds = list(run.seeds.values())
    last = [observed.records[-1] for observed in seeds if observed.records]
    step = max((step for step, _ in last), default=None)
    record = _medians([record for at, record in last if at == step])  # a diverged seed may end before
    notes = () if last else ("the run kept no records of the probe for its recommended recipe",)
    found = without_asked(counted(seeds), run.verdicts)
    return Diagnosis(str(path), "run", step, record, found, len(seeds), notes)


def _medians(records: Sequence[Record]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.items():
            values.setdefault(key, []).append(value)
    return {key: statistics.median(each) for key, each in values.items()}
