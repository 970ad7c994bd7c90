"""What rules say of real trainings with a fault planted, and of healthy ones: see `benchmarks.planted`.

The quick half trains MLPs only, and one GPT for the rule that needs embeddings; the tasks that take longer are `slow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from adamtune.diagnosis import RULES
from benchmarks import planted
from benchmarks.planted import FIRST, FRESH, HEALTHY_SEEDS, Plant, Training
from benchmarks.planted_handover import HANDOVERS, Handover, handed_over, said
from benchmarks.planted_tasks import HEALTHY

LONG = ("chars", "char GRU", "digits-cnn")
KEPT = "chars, embeddings from N(0, 1)"
"""Quick all the same: without it no embedding and no imbalance of layers would be seen."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the benchmark trains, and faster for models so small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def split(cases: Iterable[tuple[str, str, Any]]) -> list[Any]:
    """Parameters out of (name, task, case), those on long tasks marked slow."""
    return [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if task.startswith(LONG) and task != KEPT else [])
        for name, task, case in cases
    ]


PLANTS = split((plant.name, plant.training.task, plant) for plant in planted.plants())
HANDED_OVER = split((each.name, each.training.task, each) for each in HANDOVERS)


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_fault_is_found_on_every_seed(plant: Plant) -> None:
    assert [seed for seed in (FIRST, *FRESH) if not planted.warnings_of(plant, seed)] == []


@pytest.mark.parametrize("plant", PLANTS)
def test_the_remedy_lowers_the_loss_of_what_was_planted(plant: Plant) -> None:
    mended = planted.remedied(plant)
    assert mended is not None
    assert planted.loss(mended) < planted.loss(plant.training)


@pytest.mark.parametrize("training", split((each.task, each.task, each) for each in HEALTHY))
def test_where_nothing_is_planted_nothing_is_said_above_a_note(training: Training) -> None:
    assert {seed: found for seed, found in planted.false_alarms(training).items() if found} == {}


@pytest.mark.parametrize("handover", HANDED_OVER)
def test_readiness_for_sgd_is_told_on_every_seed_and_sgd_does_better_only_where_it_is(handover: Handover) -> None:
    assert [seed for seed in (FIRST, *FRESH) if not said(handover, seed)] == []
    adam = planted.loss(handover.training)
    assert (planted.loss(handed_over(handover.training)) < adam) is handover.ready


def test_every_rule_that_warns_is_planted_on_two_tasks() -> None:
    tasks = {
        rule.name: {plant.training.task for plant in planted.plants() if plant.rule == rule.name} for rule in RULES
    }
    assert {name for name, own in tasks.items() if len(own) < 2} == {"sgd-handover"}  # a note: `HANDOVERS`
    for ready in (True, False):
        assert len({each.training.task for each in HANDOVERS if each.ready is ready}) >= 2


def test_healthy_are_all_the_built_in_tasks_on_five_seeds() -> None:
    names = {planted.tasks()[training.task]().name for training in HEALTHY}
    assert names == {"digits-mlp", "digits-cnn", "chars"}
    assert len(HEALTHY_SEEDS) == 5
