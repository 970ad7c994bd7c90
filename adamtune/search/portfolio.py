"""Starting recipes worth trying on any task, best-believed first. They only propose: evidence decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adamtune.knobs import Value


@dataclass(frozen=True)
class Start:
    """Knobs to set together. lr is left to the task: the one that was found for it."""

    name: str
    source: str
    knobs: Mapping[str, Value]


PORTFOLIO = (
    Start(
        "short second moment",
        "nanoGPT and most language models since GPT-3: beta2 0.95 (Brown et al. 2020, appendix B)",
        {"beta1": 0.9, "beta2": 0.95},
    ),
    Start(
        "short second moment, decay, linear",
        "GPT-3's betas with the linear decay to zero of Defazio et al. 2023 and a decay of 0.1",
        {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "schedule": "linear"},
    ),
    Start(
        "vision transformer",
        "open_clip's ViT: betas 0.9 and 0.98, eps 1e-6, decay 0.2",
        {"beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "weight_decay": 0.2},
    ),
    Start(
        "AlgoPerf 3",
        "Dahl et al. 2023: the third of AlgoPerf's points for external tuning, rounded",
        {"beta1": 0.864, "beta2": 0.629, "weight_decay": 0.115, "warmup": 0.02},
    ),
    Start(
        "no warmup, little momentum",
        "beta1 0.8, between AlgoPerf's 0.86 and the 0.5 of adversarial training (Radford et al. 2016)",
        {"beta1": 0.8, "beta2": 0.95, "warmup": 0.0},
    ),
    Start(
        "large eps",
        "PPO's eps of 1e-5, ten times as large for losses per sample rather than per batch (Huang et al. 2022)",
        {"beta1": 0.9, "beta2": 0.99, "eps": 1e-4},
    ),
    Start(
        "AlgoPerf 1",
        "Dahl et al. 2023: the first of AlgoPerf's points for external tuning, rounded",
        {"beta1": 0.973, "beta2": 0.998, "weight_decay": 0.164, "warmup": 0.1},
    ),
    Start(
        "strong decay",
        "a decay of 1 as data-limited training takes it (Wang & Aitchison 2024: what counts is 1 / (lr * decay) steps)",
        {"beta1": 0.9, "beta2": 0.95, "weight_decay": 1.0},
    ),
)
"""Ordered by how widely each is used. Written down from what is published; fitted to no task of ours."""
