"""The knobs that can be searched: their default ranges and the scale on which each is searched, or their names."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum


class Scale(StrEnum):
    """On what a knob is spread evenly."""

    LINEAR = "linear"
    LOG = "log"
    LOG_ONE_MINUS = "log(1 - x)"
    """For betas: what matters is the averaging length 1 / (1 - beta)."""


@dataclass(frozen=True)
class Knob:
    """One searchable value of a recipe and the range it is searched in, ends included."""

    name: str
    low: float
    high: float
    scale: Scale

    @property
    def parameter(self) -> str:
        """What the knob is called in an Optuna study, which knows no log(1 - x): there one minus beta is searched."""
        return f"one_minus_{self.name}" if self.scale is Scale.LOG_ONE_MINUS else self.name

    def to_parameter(self, value: float) -> float:
        """A knob's value as the study's parameter."""
        return 1.0 - value if self.scale is Scale.LOG_ONE_MINUS else value

    def from_parameter(self, value: float) -> float:
        """A study's parameter as the knob's value, rounded to twelve digits so that 1 - (1 - 0.9) reads 0.9."""
        return round(1.0 - value, 12) if self.scale is Scale.LOG_ONE_MINUS else value

    def spread(self, count: int) -> list[float]:
        """`count` values, at least two, even on the knob's scale, the ends of the range among them."""
        low, high = self.to_unit(self.low), self.to_unit(self.high)
        inner = [self.from_unit(low + (high - low) * k / (count - 1)) for k in range(1, count - 1)]
        return [self.low, *inner, self.high]

    def to_unit(self, value: float) -> float:
        """Position on the knob's scale: decades for logarithmic ones."""
        match self.scale:
            case Scale.LINEAR:
                return value
            case Scale.LOG:
                return math.log10(value)
            case Scale.LOG_ONE_MINUS:
                return math.log10(1.0 - value)

    def from_unit(self, position: float) -> float:
        """The value at a position, to four digits of what the scale spreads."""
        match self.scale:
            case Scale.LINEAR:
                return float(f"{position:.4g}")
            case Scale.LOG:
                return float(f"{10**position:.4g}")
            case Scale.LOG_ONE_MINUS:
                return round(1.0 - float(f"{10**position:.4g}"), 12)

    def clip(self, value: float) -> float:
        """The nearest value inside the range."""
        return min(max(value, self.low), self.high)

    def narrowed(self, low: float | None, high: float | None) -> Knob:
        """The same knob over a part of its range, or over another where a person asks for that."""
        return replace(self, low=self.low if low is None else low, high=self.high if high is None else high)


@dataclass(frozen=True)
class Choice:
    """A knob whose values are names, in no order."""

    name: str
    values: tuple[str, ...]


Value = float | str
"""Of a knob: a number, or one of a choice's names."""

KNOBS = {
    knob.name: knob
    for knob in (
        # Adam moves a weight by about lr a step, so the range must hold any scale a model's weights may have.
        Knob("lr", 1e-7, 10.0, Scale.LOG),
        # AlgoPerf's AdamW space has 1 - beta1 in 0.02 .. 0.5 (Dahl et al. 2023).
        Knob("beta1", 0.5, 0.99, Scale.LOG_ONE_MINUS),
        # AlgoPerf's winning recipes had beta2 from 0.63 to 0.9988; torch's default is 0.999.
        Knob("beta2", 0.6, 0.9999, Scale.LOG_ONE_MINUS),
        # Up to the gradients' own size, whatever that is, where Adam turns into SGD with momentum (Choi et al. 2019).
        Knob("eps", 1e-16, 1e3, Scale.LOG),
        # What matters is lr * weight_decay * horizon (`adamtune.stages.weight_decay`): short runs need large values.
        Knob("weight_decay", 1e-6, 10.0, Scale.LOG),
        # Over a tenth of the run spent warming up is too much (Google's tuning playbook).
        Knob("warmup", 0.0, 0.2, Scale.LINEAR),
        # A gradient's norm has the scale of the loss and grows with the model: any.
        Knob("clip_norm", 1e-9, 1e9, Scale.LOG),
    )
}
"""The knobs of numbers, which a spec may narrow; weight_decay may also be 0, and clip_norm off."""

_STAGE_OF = {"clip_norm": "clip"}


def stage_of(knob: str) -> str:
    """The name of the stage that asks about a knob. Of a param group's own values, only lr has one: `groups`."""
    return "groups" if knob.startswith("groups.") and knob.endswith(".lr_mult") else _STAGE_OF.get(knob, knob)
