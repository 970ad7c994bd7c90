"""What rules say of real trainings with a fault planted, and of healthy ones: see `benchmarks.planted`."""

from __future__ import annotations

from statistics import fmean

import pytest

from adamtune.diagnosis import RULES
from benchmarks import planted
from benchmarks.planted import FIRST, FRESH, HEALTHY_SEEDS, Plant, Training
from benchmarks.planted_tasks import HEALTHY


@pytest.mark.parametrize("plant", planted.plants(), ids=lambda plant: plant.name)
def test_planted_fault_is_found_on_every_seed(plant: Plant) -> None:
    assert [seed for seed in (FIRST, *FRESH) if not planted.warnings_of(plant, seed)] == []


@pytest.mark.parametrize("plant", planted.plants(), ids=lambda plant: plant.name)
def test_the_remedy_lowers_the_loss_of_what_was_planted(plant: Plant) -> None:
    mended = planted.remedied(plant)
    assert mended is not None
    assert planted.loss(mended) < planted.loss(plant.training)


@pytest.mark.parametrize("training", HEALTHY, ids=lambda training: training.task)
def test_where_nothing_is_planted_nothing_is_said_above_a_note(training: Training) -> None:
    assert {seed: found for seed, found in planted.false_alarms(training).items() if found} == {}


def test_every_rule_that_warns_is_planted_on_two_tasks() -> None:
    tasks = {
        rule.name: {plant.training.task for plant in planted.plants() if plant.rule == rule.name} for rule in RULES
    }
    assert {name for name, own in tasks.items() if len(own) < 2} == {"sgd-handover"}  # notes only


def test_readiness_for_sgd_is_told_where_training_comes_to_rest_and_not_where_it_goes_on() -> None:
    shares = {}
    for training in HEALTHY:
        notes = [found for seed in HEALTHY_SEEDS for found in planted.diagnosed(training, seed)]
        shares[training.task] = fmean(note.evidence["ready"] for note in notes if note.rule == "sgd-handover")
    assert min(shares["digits"], shares["digits-cnn"]) > 0.5 > shares["chars, two layers"]
