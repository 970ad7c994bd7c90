"""What is believed about a knob before anything is tried: where good values lie, and how far from there they may."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adamtune.knobs import KNOBS, Knob


@dataclass(frozen=True)
class Belief:
    """A normal distribution over one knob, on the knob's own scale (decades, for those searched by logarithm)."""

    knob: Knob
    mean: float
    """A value of the knob."""
    deviation: float
    """Standard deviation on the knob's scale."""
    harmless_below: bool = False
    """Whether any value below the mean is as good as the mean: below a certain eps or decay nothing changes."""

    def distance(self, value: float) -> float:
        """Standard deviations from the mean, signed on the knob's scale; 0 where it makes no difference."""
        z = (self.knob.to_unit(value) - self.knob.to_unit(self.mean)) / self.deviation
        return max(z, 0.0) if self.harmless_below else z


@dataclass(frozen=True)
class Prior:
    """Independent beliefs about several knobs."""

    beliefs: tuple[Belief, ...]

    def log_density(self, values: Mapping[str, float]) -> float:
        """Up to a constant; 0 for the best-believed values. Every knob of the prior must be in `values`."""
        return -0.5 * math.fsum(belief.distance(values[belief.knob.name]) ** 2 for belief in self.beliefs)

    def apart(self, one: Mapping[str, float], other: Mapping[str, float]) -> float:
        """How far apart two points are, in standard deviations."""
        steps = (
            (b.knob.to_unit(one[b.knob.name]) - b.knob.to_unit(other[b.knob.name])) / b.deviation for b in self.beliefs
        )
        return math.sqrt(math.fsum(step**2 for step in steps))

    def ordered(self, points: Sequence[Mapping[str, float]]) -> list[int]:
        """Places of `points`, the best-believed first; ties by place."""
        return sorted(range(len(points)), key=lambda place: (-self.log_density(points[place]), place))


ADAM = (
    # Published winners and defaults scatter over about this much: torch 1e-3, nanoGPT 6e-4, AlgoPerf 1e-4 .. 1e-2.
    Belief(KNOBS["lr"], 3e-3, 0.7),
    # torch, nanoGPT, transformers 0.9; AlgoPerf's space 0.5 .. 0.98 (Dahl et al. 2023).
    Belief(KNOBS["beta1"], 0.9, 0.5),
    # From torch's 0.999 and transformers' like, over 0.98 and 0.95 (open_clip, nanoGPT), to AlgoPerf's 0.63 .. 0.9988.
    Belief(KNOBS["beta2"], 0.997, 1.0),
    # 1e-8 (torch) to 1e-5 (PPO); beyond, Adam turns into SGD with momentum, which some tasks like (Choi et al. 2019).
    Belief(KNOBS["eps"], 1e-6, 2.0, harmless_below=True),
)
"""Beliefs about Adam's own knobs that hold wherever nothing better is known. Taken from what is published, by hand;
fitted to nothing."""
