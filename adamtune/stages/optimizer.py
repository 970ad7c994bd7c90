"""optimizer: whether Adam, AdamW or SGD with momentum makes all of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

from adamtune.groups import ParamGroup
from adamtune.knobs import KNOBS, Choice, Value
from adamtune.recipe import Recipe
from adamtune.spec import Spec
from adamtune.stages.choose import Candidate, Question, candidates_cost, choose, with_lr
from adamtune.stages.context import StageAnswer, StageContext
from adamtune.stages.lr import squeezed
from adamtune.stages.missing import from_sparse
from adamtune.stages.own_lr import ADAM_LR, MOMENTUM, TRIALS, matching_lr, short_test
from adamtune.stages.weight_decay import PRODUCT

NAME = "optimizer"
QUESTION = "Adam, AdamW or SGD with momentum from the start?"

KINDS = Choice(NAME, get_args(Recipe.model_fields[NAME].annotation))

_L2 = 1e-4
"""weight_decay of an `adam` tried in place of `adamw`, beside none: what SGD is customarily given (He et al. 2016)."""

_SHRINKAGE = 1.0
"""lr * weight_decay * horizon of an `adamw` tried in place of `adam`: weights forget within about the run (Wang &
Aitchison 2024). Without decay the two are the same."""


def with_decays(recipe: Recipe, change: Callable[[float], float]) -> Recipe:
    """The recipe with its weight decay, and that of every group with one of its own, changed."""

    def changed(decay: float) -> float:
        return float(f"{change(decay):.3g}")

    rules = tuple(
        rule if rule.weight_decay is None else rule.model_copy(update={"weight_decay": changed(rule.weight_decay)})
        for rule in recipe.groups
    )
    return recipe.model_copy(update={"weight_decay": changed(recipe.weight_decay), "groups": rules})


def at_lr(recipe: Recipe, lr: float) -> Recipe:
    """The recipe at another lr, shrinking its weights as fast; `adam`, whose decay is normalised away, as it is."""
    factor = 1.0 if recipe.optimizer == "adam" else recipe.lr / lr
    return with_lr(with_decays(recipe, lambda decay: decay * factor) if factor != 1.0 else recipe, lr)


def as_sgd(recipe: Recipe, lr: float) -> Recipe:
    """By SGD with momentum at `lr`, with the decay that shrinks weights as fast as before.

    torch's SGD adds weight_decay * w to the gradient, which shrinks a weight by lr * weight_decay / (1 - momentum) a
    step; AdamW shrinks it by lr * weight_decay. A decay of `adam` is in the gradient too and stays: at `matching_lr`
    it weighs as much beside the loss's own gradient.
    """
    factor = recipe.lr * (1 - MOMENTUM) / lr if recipe.optimizer == "adamw" else 1.0
    sgd = recipe.model_copy(update={NAME: "sgd", "lr": lr, "momentum": MOMENTUM, "switch": None})
    return with_decays(sgd, lambda decay: decay * factor)


def as_adamw(sgd: Recipe, lr: float) -> Recipe:
    """The reverse: by AdamW at `lr`, shrinking weights as fast as SGD did."""
    factor = sgd.lr / (1 - sgd.momentum) / lr
    return with_decays(sgd.model_copy(update={NAME: "adamw", "lr": lr}), lambda decay: decay * factor)


def _decays(recipe: Recipe) -> bool:
    return any([recipe.weight_decay, *(rule.weight_decay for rule in recipe.groups)])


def _candidate(recipe: Recipe, own_lr: bool = False) -> Candidate:
    label: str = recipe.optimizer
    told: dict[str, Value] = {NAME: recipe.optimizer}
    if recipe.weight_decay and recipe.optimizer == "adam":
        label += f" with L2 {recipe.weight_decay:g}"
        told["weight_decay"] = recipe.weight_decay
    elif recipe.weight_decay:
        told[PRODUCT.name] = recipe.lr * recipe.weight_decay
    return Candidate(label, recipe, told, own_lr)


def _of_adams_kind(spec: Spec, incumbent: Recipe) -> list[Candidate]:
    """The other of `adam` and `adamw`, all knobs kept but weight_decay, which is another thing in each.

    `adam` adds it to the gradient and divides both by the gradient's size: what was right for `adamw` is then far too
    much for weights with small gradients. So it is tried with none and with a little.
    """
    if incumbent.optimizer == "adam":
        decay = _SHRINKAGE / (incumbent.lr * spec.horizon)
        adamw = incumbent.model_copy(update={NAME: "adamw", "weight_decay": decay})
        return [_candidate(with_decays(adamw, lambda own: decay if own else 0.0))]
    adam = incumbent.model_copy(update={NAME: "adam", "weight_decay": _L2})
    with_l2 = with_decays(adam, lambda own: _L2 if own else 0.0)
    without = with_decays(adam, lambda own: 0.0)
    return [_candidate(without)] * _decays(incumbent) + [_candidate(with_l2)]


def missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    """Why it cannot matter; empty where it can."""
    return from_sparse(groups, "of which SGD keeps ever longer momenta")


def cost(spec: Spec) -> int:
    """Steps at most."""
    return candidates_cost(spec, 3) + TRIALS * squeezed(spec.horizon)


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """Each other optimizer, those of another kind at an lr found by a short test; see `adamtune.stages.choose`.

    One whose short trials all diverge is left out, and the reason says so. None is dropped on the way: SGD may be
    behind at half the run, while its lr is high, and ahead at the end.
    """
    from_sgd = incumbent.optimizer == "sgd"
    context.measure(NAME, incumbent, context.seeds.search)
    centre = ADAM_LR if from_sgd else matching_lr(incumbent, context.probes(incumbent))
    other = as_adamw if from_sgd else as_sgd
    test = short_test(context, NAME, lambda lr: other(incumbent, lr), centre, squeezed(context.horizon), KNOBS["lr"])
    candidates = [] if from_sgd else _of_adams_kind(context.spec, incumbent)
    if test.lr is not None:
        candidates.append(_candidate(other(incumbent, test.lr), own_lr=True))
        if from_sgd and _decays(incumbent):  # without decay adam and adamw are the same
            adam = incumbent.model_copy(update={NAME: "adam", "lr": test.lr})
            candidates.append(_candidate(adam, own_lr=True))
    ask = Question(NAME, QUESTION, [KINDS, PRODUCT, KNOBS["weight_decay"]], at_lr=at_lr, prune=False)
    answer = choose(context, ask, incumbent, candidates, test.details)
    if not test.failed:
        return answer
    left_out = f"{'adam and adamw were' if from_sgd else 'sgd was'} left out: {test.failed}"
    return replace(answer, reason=f"{answer.reason}; {left_out}" if candidates else left_out)
