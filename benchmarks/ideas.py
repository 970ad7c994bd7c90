"""What people say about Adam, measured: each idea on one of the situations in `configs/`, around its measured recipe.

    python -m benchmarks.ideas [IDEA ...] [--json FILE]

An idea is a few values of one knob. Each is trained at three learning rates, half a decade across, on three seeds; at
the best of these on ten others. Told are the objective there, the paired difference from the value that stands first,
with its 95% interval, and what the probe's rules find in the first one's trials.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from adamtune import load_recipe
from adamtune.diagnosis import counted
from adamtune.diagnosis.trials import observed
from adamtune.engines import make_engine, pick_device
from adamtune.evidence import interval
from adamtune.groups import param_groups
from adamtune.history import TrialRequest
from adamtune.recipe import GroupRule, Match, Recipe, Switch
from adamtune.spec import Spec, load_spec
from adamtune.task import load_task
from benchmarks.search_race import train

REPO = Path(__file__).parent.parent
CHOOSING, JUDGING = range(3 * 10**8, 3 * 10**8 + 3), range(3 * 10**8 + 10, 3 * 10**8 + 20)
"""Seeds that no sweep has."""
LR_FACTORS = (10**-0.25, 1.0, 10**0.25)
SGD_FACTORS = (0.1, 10**-0.5, 1.0, 10**0.5)
"""SGD's lr is known less well."""
EIGHTHS = 8
"""Where Adam's state is read, as in a sweep."""

At = Callable[[Recipe, float], Recipe]
"""The recipe with a value of the idea's knob, lr being multiplied by a factor."""


@dataclass(frozen=True)
class Idea:
    """Values of a knob on a situation; the first is what the others are compared with."""

    asks: str
    situation: str
    """Names a spec in `configs/` and a recipe in `recipes/measured/`."""
    values: Mapping[str, At]
    factors: tuple[float, ...] = LR_FACTORS


def _scaled(recipe: Recipe, factor: float) -> Recipe:
    return recipe.with_knob("lr", recipe.lr * factor)


def _knob(name: str, value: Any) -> At:
    return lambda recipe, factor: _scaled(recipe.with_knob(name, value), factor)


def _group(name: str, lr_mult: float) -> At:
    """A group of the recipe's, or a new one for the kind of that name, at `lr_mult`."""

    def at(recipe: Recipe, factor: float) -> Recipe:
        if all(rule.name != name for rule in recipe.groups):
            rule = GroupRule.model_validate({"name": name, "match": Match.model_validate({"kind": [name]})})
            recipe = recipe.model_copy(update={"groups": (*recipe.groups, rule)})
        return _scaled(recipe.with_knob(f"groups.{name}.lr_mult", lr_mult), factor)

    return at


def _switch(recipe: Recipe, factor: float, *, at: float) -> Recipe:
    """`factor` multiplies SGD's lr; 1 is where its steps are as long as those of an Adam whose sqrt(v_hat) is 0.01."""
    lr = 10 * recipe.lr * factor
    return recipe.model_copy(update={"switch": Switch(at=at, lr=lr, momentum=0.9)})


def _no_switch(recipe: Recipe, factor: float) -> Recipe:
    return _scaled(recipe.model_copy(update={"switch": None}), factor)


def _values(at: Callable[[Any], At], *values: Any) -> dict[str, At]:
    return {f"{value:g}": at(value) for value in values}


IDEAS = {
    "head-lr": Idea(
        "does a higher lr of the fresh head help fine-tuning?",
        "finetune_minilm",
        _values(partial(_group, "head"), 1, 3, 10, 30),
    ),
    "embedding-lr": Idea(
        "does a lower lr of pretrained embeddings help?",
        "finetune_minilm_whole",
        _values(partial(_group, "embeddings"), 1, 0.1, 0),
    ),
    "table-lr": Idea(
        "does a lower lr of embedding tables help a recommender?",
        "flights_embeddings",
        _values(partial(_group, "embedding"), 1, 0.3, 0.1, 3),
    ),
    "sparse-beta2": Idea(
        "does beta2 = 0.99 help where rows are seen rarely?",
        "flights_sparse",
        _values(partial(_knob, "beta2"), 0.999, 0.99, 0.9),
    ),
    "eps-bf16": Idea(
        "does eps matter in bf16?",
        "chars_bf16",
        _values(partial(_knob, "eps"), 1e-8, 1e-10, 1e-6, 1e-5, 1e-4, 1e-3),
    ),
    "handover": Idea(
        "does handing over to SGD help an image classifier?",
        "digits_cnn",
        {"Adam": _no_switch} | {f"SGD from {at:.0%}": partial(_switch, at=at) for at in (0.7, 0.8, 0.9)},
        SGD_FACTORS,
    ),
    "warmup-fine-tune": Idea(
        "is warmup needed to fine-tune a transformer, and how much?",
        "finetune_minilm",
        _values(partial(_knob, "warmup"), 0.05, 0, 0.1, 0.2),
    ),
    "warmup-gpt": Idea(
        "is warmup needed to train a small transformer from scratch, and how much?",
        "chars_bf16",
        _values(partial(_knob, "warmup"), 0.05, 0, 0.02, 0.1, 0.2),
    ),
    "warmup-gru": Idea(
        "is warmup needed for a GRU, and how much?",
        "temperatures",
        _values(partial(_knob, "warmup"), 0.05, 0, 0.02, 0.1, 0.2),
    ),
}


def measure(idea: Idea) -> dict[str, Any]:
    """Train all; plain data."""
    spec = load_spec(REPO / "configs" / f"{idea.situation}.yaml")
    base = load_recipe(REPO / "recipes" / "measured" / f"{idea.situation}.yaml")
    task, device = load_task(spec.task.ref, spec.task.args), pick_device(spec.device)
    with closing(make_engine(spec.engine, task, device)) as engine:

        def values(recipes: list[Recipe], seeds: range) -> list[list[float]]:
            """By recipe and seed, lower being better."""
            results = train(engine, [TrialRequest(recipe, seed, spec.horizon) for recipe in recipes for seed in seeds])
            finals = [_sign(spec) * result.final(spec.objective.name) for result in results]
            return [finals[place : place + len(seeds)] for place in range(0, len(finals), len(seeds))]

        tried = {label: [at(base, factor) for factor in idea.factors] for label, at in idea.values.items()}
        scores = iter(values([recipe for recipes in tried.values() for recipe in recipes], CHOOSING))
        best = {label: min(recipes, key=lambda _: _mean(next(scores))) for label, recipes in tried.items()}
        judged = dict(zip(best, values(list(best.values()), JUDGING), strict=True))
        first = next(iter(best))
        probed = engine.open([TrialRequest(best[first], seed, spec.horizon, probe=True) for seed in JUDGING[:3]])
        for eighth in range(1, EIGHTHS + 1):
            probed.advance(max(1, round(spec.horizon * eighth / EIGHTHS)))
        groups = param_groups(best[first], task.make_model())
        found = counted([observed(result, groups) for result in probed.results()])
    rows = []
    for label, recipe in best.items():
        differences = [mine - its for mine, its in zip(judged[label], judged[first], strict=True)]
        against = None if label == first else interval([_sign(spec) * each for each in differences])
        mean = _sign(spec) * fmean(judged[label])
        lr = recipe.switch.lr if recipe.switch else recipe.lr
        rows.append(
            {
                "value": label,
                "lr": lr,
                "mean": mean,
                "against_first": against and [against.mean, against.low, against.high],
            }
        )
    told = [f"{each.finding.told} ({each.seeds} of {each.of} seeds)" for each in found]
    return {
        "asks": idea.asks,
        "situation": idea.situation,
        "objective": spec.objective.name,
        "rows": rows,
        "found": told,
    }


def _sign(spec: Spec) -> float:
    return 1.0 if spec.objective.direction == "minimize" else -1.0


def _mean(values: list[float]) -> float:
    return fmean(values) if all(map(math.isfinite, values)) else math.inf


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n{told['asks']} ({told['situation']}, {told['objective']})"
    for row in told["rows"]:
        against = row["against_first"]
        paired = "" if against is None else "{:+.3g} [{:+.2g}, {:+.2g}]".format(*against)
        yield f"  {row['value']:>14}  lr {row['lr']:<9.3g} {row['mean']:.4g}  {paired}"
    for found in told["found"]:
        yield f"  found: {found}"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ideas")
    parser.add_argument("ideas", nargs="*", metavar="IDEA", help=f"of {', '.join(IDEAS)}; by default all")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    if unknown := set(options.ideas) - IDEAS.keys():
        parser.error(f"no such idea: {', '.join(sorted(unknown))}")
    told = {}
    for name in options.ideas or IDEAS:
        told[name] = measure(IDEAS[name])
        sys.stdout.write("\n".join(_lines(told[name])) + "\n")
        sys.stdout.flush()
        if options.json:
            options.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
