"""Plants: short warmup, layers out of balance, rare rows, too much weight decay, few data, too small a beta1."""

from __future__ import annotations

from adamtune.recipe import Recipe
from benchmarks.planted import Plant, Training
from benchmarks.planted_tasks import by_kind, tuned


def _abrupt(lr: float) -> Recipe:
    """No warmup."""
    return tuned(lr).with_knob("warmup", 0.0)


def _decayed(lr: float, weight_decay: float) -> Recipe:
    return tuned(lr).with_knob("weight_decay", weight_decay)


def _undamped(lr: float, schedule: str = "cosine") -> Recipe:
    return tuned(lr).with_knob("beta1", 0.1).with_knob("schedule", schedule)


_BY_ADAM = Recipe(optimizer="adam", lr=1e-2, weight_decay=0.0)
"""Its decay is in the gradient, and its remedy another."""

PLANTS = [
    Plant("short-warmup", "no warmup, lr 0.06", Training("digits", _abrupt(0.06), 150)),
    Plant("short-warmup", "no warmup, lr 0.06", Training("digits-cnn", _abrupt(0.06), 70)),
    Plant("layer-imbalance", "embeddings x50", Training("chars, embeddings from N(0, 1)", by_kind(6e-3), 110)),
    Plant("layer-imbalance", "lr_mult 0.015 of the head", Training("chars", by_kind(4e-3, head=1.5e-2), 110)),
    Plant("layer-imbalance", "lr_mult 0.01 of the head", Training("char GRU", by_kind(2e-2, head=1e-2), 130)),
    Plant("sparse-rows", "rows seldom seen", Training("rare names", by_kind(5e-3), 200)),
    Plant("sparse-rows", "rows seldom seen", Training("rare trigrams", by_kind(5e-3), 200)),
    Plant("update-to-weight", "weight_decay 10", Training("digits", _decayed(1e-2, 10.0), 150)),
    Plant("update-to-weight", "weight_decay 20", Training("digits-cnn", _decayed(1e-2, 20.0), 100)),
    Plant("update-to-weight", "weight_decay 30", Training("chars", _decayed(4e-3, 30.0), 120)),
    Plant("generalization-gap", "few data", Training("chars, 1,000 of them", tuned(6e-3), 150)),
    Plant("generalization-gap", "few data", Training("diabetes, 100 rows", tuned(1e-2), 200)),
    Plant("generalization-gap", "few data, by Adam", Training("diabetes, 100 rows", _BY_ADAM, 200)),
    Plant("generalization-gap", "wrong labels", Training("digits, 200 rows, 40% mislabelled", tuned(1e-2), 200)),
    Plant("generalization-gap", "wrong labels, by Adam", Training("digits, 200 rows, 40% mislabelled", _BY_ADAM, 200)),
    Plant("oscillation", "beta1 0.1", Training("digits autoencoder", _undamped(3e-3), 200)),
    Plant(
        "oscillation", "beta1 0.1, constant lr", Training("digits, batches of 512", _undamped(2e-3, "constant"), 150)
    ),
]
