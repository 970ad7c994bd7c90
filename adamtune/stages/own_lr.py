"""The lr of an optimizer for which the incumbent's says nothing: SGD's beside Adam's. Where to look, and a short test.

Adam divides each gradient by its size, SGD does not, so that the one's best lr may be anything beside the other's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adamtune.errors import NothingLearned, TrialFailed
from adamtune.knobs import Knob
from adamtune.recipe import Recipe
from adamtune.stages.context import StageContext
from adamtune.stages.lr_bracket import bracket, for_horizon
from adamtune.stages.lr_response import optimum

MOMENTUM = 0.9
"""SGD's: torch's examples, ResNet (He et al. 2016) and most else."""

SGD_LR, ADAM_LR = 0.1, 1e-3
"""Where to look where nothing was measured: SGD's customary lr (He et al. 2016), torch's default for Adam."""

TRIALS = 5
"""Of a short test, half a decade apart: at a fifth of the horizon they cost one horizon, and reach 1.75 decades to
either side of where they start."""


@dataclass(frozen=True)
class ShortTest:
    """Short trials at a few learning rates, and the lr they name for the whole run; None where all diverged."""

    lr: float | None
    details: Mapping[str, Any]
    """The response as plain data, under `responses`."""
    failed: str = ""
    """Where no lr was found: why, as a clause."""


def matching_lr(recipe: Recipe, probes: Iterable[Mapping[str, float]]) -> float:
    """The lr at which SGD with momentum moves weights as far as Adam did with `recipe`, by its probe.

    Adam moves a weight by lr * m_hat / sqrt(v_hat), SGD along a steady gradient by lr * g / (1 - momentum): alike at
    lr * (1 - momentum) / sqrt(v_hat) (Keskar & Socher 2017 match the two by projection). One lr for all weights must
    suit those with large gradients, so the 90th percentile over weights counts, median over records and groups. On
    nine of `benchmarks.lr_tasks`, whose best lrs of SGD lie between 8e-6 and 3, eight were within a factor of 2.2 of
    it and the GPT's was 10 times higher; `SGD_LR` was off by more than 8 on four. Without records it is `SGD_LR`.
    """
    ending = "/sqrt_v_hat/p90"
    found = [value for record in probes for key, value in record.items() if key.endswith(ending) and value > 0]
    if recipe.optimizer == "sgd" or not found:
        return SGD_LR
    return recipe.lr * (1 - MOMENTUM) / (statistics.median(found) + recipe.eps)


def short_test(
    context: StageContext, stage: str, at: Callable[[float], Recipe], centre: float, horizon: int, limits: Knob
) -> ShortTest:
    """Bracket the best lr around `centre` by at most `TRIALS` whole schedules squeezed into `horizon` steps.

    `at(lr)` is the recipe to train. What the short trials name is carried over to the run's length by `for_horizon`.
    """
    centre = limits.clip(centre)
    try:
        found = bracket(context, at, centre, horizon, TRIALS, limits, stage=stage, baseline=False)
    except (NothingLearned, TrialFailed) as problem:
        ends = "diverged or failed" if isinstance(problem, TrialFailed) else "diverged"
        if (objective := context.spec.objective.name) != "loss":
            ends += f" or had no finite {objective}"
        return ShortTest(None, {}, f"every short trial {ends}, from lr {centre:.2g} downwards")
    response = found.response
    lr = for_horizon(optimum(response), response.horizon, context.horizon).lr
    return ShortTest(limits.clip(float(f"{lr:.3g}")), {"responses": [response.to_dict()]})
