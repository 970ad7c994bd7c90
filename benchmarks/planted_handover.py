"""Whether the rule `sgd-handover` is right: trainings that SGD takes over where the rule says ready, and where not.

It is a note and names no recipe change, so a row is measured in another way: where Adam is ready, to stay with Adam is
the fault and to hand over the remedy; where it is not, the other way round. SGD's lr is `matching_lr`, by which
the stage `switch` starts, so that no search hides the difference.

Being ready is not enough: of a CNN with batch norm and an MLP with dropout, ready too (lr 1e-2 and 3e-3, constant), the
loss rose from 0.053 to 0.116 and from 0.109 to 0.124. So it stays a note, and the stage `switch` measures.
"""

from __future__ import annotations

from dataclasses import dataclass

from adamtune.diagnosis.rules import sgd_handover
from adamtune.diagnosis.settling import LATE
from adamtune.recipe import Recipe, Switch
from adamtune.stages.own_lr import MOMENTUM, matching_lr
from benchmarks.planted import FIRST, FRESH, Row, Training, diagnosed, loss, train
from benchmarks.planted_tasks import by_kind


@dataclass(frozen=True)
class Handover:
    """A training by Adam, and what the rule should say of it."""

    training: Training
    ready: bool

    @property
    def name(self) -> str:
        return f"{self.training.task}-{'ready' if self.ready else 'not-ready'}".replace(" ", "-")


def _constant(lr: float) -> Recipe:
    return by_kind(lr).with_knob("schedule", "constant")


HANDOVERS = [
    Handover(Training("digits", _constant(1e-2), 200), True),
    Handover(Training("digits-cnn", _constant(2e-2), 120), True),
    Handover(Training("chars", _constant(3e-3), 110), False),
    Handover(Training("char GRU", by_kind(3e-2), 150), False),
    Handover(Training("digits autoencoder", by_kind(2e-2), 200), False),
]


def said(handover: Handover, seed: int) -> bool:
    """Whether the rule says so."""
    (note,) = (each for each in diagnosed(handover.training, seed) if each.rule == sgd_handover.NAME)
    return bool(note.evidence["ready"]) is handover.ready


def handed_over(training: Training) -> Training:
    """The same, SGD with momentum taking over at the earliest point that the stage `switch` tries."""
    late = [rung.probe for rung in train(training, FIRST).rungs if rung.step > LATE * training.horizon]
    switch = Switch(at=LATE, lr=matching_lr(training.recipe, late), momentum=MOMENTUM)
    return Training(training.task, training.recipe.model_copy(update={"switch": switch}), training.horizon)


def measure(handover: Handover) -> Row:
    adam, sgd = handover.training, handed_over(handover.training)
    told = ("ready, but Adam to the end", f"switch at {LATE:g}") if handover.ready else ("not ready, but SGD", "Adam")
    before, after = (adam, sgd) if handover.ready else (sgd, adam)
    seeds = (FIRST, *FRESH)
    found = sum(said(handover, seed) for seed in seeds)
    return Row(
        sgd_handover.NAME, told[0], adam.task, found, len(seeds), {told[1]: ""}, loss(before), loss(after)
    )  # fmt: skip
