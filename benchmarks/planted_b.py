"""Plants: short warmup, layers out of balance, rare rows, too much weight decay, few data."""

from __future__ import annotations

from adamtune.recipe import GroupRule, Match, Recipe
from benchmarks.planted import Plant, Training
from benchmarks.planted_tasks import tuned


def by_kind(lr: float, embedding: float = 1.0, head: float = 1.0) -> Recipe:
    """The default recipe with groups of their own for embeddings and heads, at these multiples of lr."""
    own = (
        GroupRule(name="embedding", match=Match(kind=("embedding",)), lr_mult=embedding),
        GroupRule(name="head", match=Match(kind=("head",)), lr_mult=head),
    )
    recipe = tuned(lr)
    return recipe.model_copy(update={"groups": (*recipe.groups, *own)})


def _abrupt(lr: float) -> Recipe:
    """No warmup."""
    return tuned(lr).with_knob("warmup", 0.0)


def _decayed(lr: float, weight_decay: float) -> Recipe:
    return tuned(lr).with_knob("weight_decay", weight_decay)


PLANTS = [
    Plant("short-warmup", "no warmup, lr 0.06", Training("digits", _abrupt(0.06), 150)),
    Plant("short-warmup", "no warmup, lr 0.1", Training("digits", _abrupt(0.1), 150)),
    Plant("short-warmup", "no warmup, lr 0.06", Training("digits-cnn", _abrupt(0.06), 100)),
    Plant("layer-imbalance", "embeddings x50", Training("chars, embeddings from N(0, 1)", by_kind(6e-3), 150)),
    Plant("layer-imbalance", "lr_mult 0.01 of the head", Training("chars", by_kind(4e-3, head=1e-2), 150)),
    Plant("layer-imbalance", "lr_mult 0.01 of the head", Training("char GRU", by_kind(2e-2, head=1e-2), 150)),
    Plant("sparse-rows", "rows seldom seen", Training("rare names", by_kind(5e-3), 200)),
    Plant("sparse-rows", "rows seldom seen", Training("rare trigrams", by_kind(5e-3), 200)),
    Plant("update-to-weight", "weight_decay 10", Training("digits", _decayed(1e-2, 10.0), 200)),
    Plant("update-to-weight", "weight_decay 20", Training("digits-cnn", _decayed(1e-2, 20.0), 150)),
    Plant("update-to-weight", "weight_decay 30", Training("chars", _decayed(4e-3, 30.0), 150)),
    Plant("generalization-gap", "few data", Training("chars, 1,000 of them", tuned(6e-3), 150)),
    Plant("generalization-gap", "few data", Training("diabetes, 100 rows", tuned(1e-2), 200)),
    Plant("generalization-gap", "wrong labels", Training("digits, 200 rows, 40% mislabelled", tuned(1e-2), 200)),
]
