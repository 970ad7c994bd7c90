"""What a consumer's optimizer trains every parameter with, held against what ours does, update by update."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume
from torch import Tensor, nn

from adamtune.errors import RecipeError
from adamtune.export import Context, export_recipe
from adamtune.groups import param_groups
from adamtune.handover import AdamThenSGD
from adamtune.recipe import GroupRule, Match, Recipe, Schedule, Switch, WarmupSteps
from recipes import recipes

TOTAL = 60
CONTEXT = Context(total_steps=TOTAL, steps_per_epoch=10)
NO_DECAY = GroupRule(name="no_decay", match=Match(kind=("bias", "norm")), weight_decay=0.0)


class LM(nn.Module):
    """Named as a language model of transformers'."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(7, 4)
        self.q_proj = nn.Linear(4, 4)
        self.mlp = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 7)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.lm_head(self.norm(self.mlp(torch.tanh(self.q_proj(self.embed_tokens(input_ids))))))
        if labels is None:
            return scores
        return {"loss": nn.functional.cross_entropy(scores.flatten(0, -2), labels.flatten()), "logits": scores}


@dataclass(frozen=True)
class Difference:
    """One setting that theirs and ours have not in common."""

    update: int
    parameter: str
    key: str
    """As torch's param groups call it, or `class`."""
    theirs: object
    ours: object


ADAM = ("eps", "betas", "amsgrad")
KEYS = {"Adam": ADAM, "AdamW": ADAM, "SGD": ("momentum", "dampening", "nesterov")}


def settings_by_parameter(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """What each parameter is trained with at the next update."""
    names = {id(param): name for name, param in model.named_parameters()}
    return {
        names[id(param)]: {"class": stepping(optimizer)}
        | {key: group[key] for key in ("lr", "weight_decay", "maximize", *KEYS[stepping(optimizer)])}
        for group in optimizer.param_groups
        for param in group["params"]
    }


def stepping(optimizer: torch.optim.Optimizer) -> str:
    """Whose update comes next."""
    if isinstance(optimizer, AdamThenSGD) or type(optimizer).__name__ == "AdamThenSGD":  # a companion has its own
        return "SGD" if optimizer.handed_over else optimizer._kind.__name__
    return type(optimizer).__name__


def same(key: str, theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether a setting is the same in both; without weight decay AdamW is Adam."""
    if key != "class":
        return bool(theirs[key] == pytest.approx(ours[key], rel=1e-6, abs=1e-12))
    either = {theirs[key], ours[key]}
    return len(either) == 1 or (either == {"Adam", "AdamW"} and not (theirs["weight_decay"] and ours["weight_decay"]))


def differences(
    recipe: Recipe, model: nn.Module, theirs: torch.optim.Optimizer, step: Callable[[int], object]
) -> list[Difference]:
    """All that differs over TOTAL updates; `step(n)` is what the consumer does after its nth."""
    ours, scheduler = recipe.build(model, total_steps=TOTAL)
    found = []
    for update in range(TOTAL):
        told, wanted = settings_by_parameter(theirs, model), settings_by_parameter(ours, model)
        assert told.keys() == wanted.keys()
        for name, values in wanted.items():
            found += [
                Difference(update, name, key, told[name][key], values[key])
                for key in values
                if key in told[name] and not same(key, told[name], values)
            ]
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        theirs.step()
        ours.step()
        scheduler.step()
        step(update + 1)
    return found


def assert_alike(
    recipe: Recipe, model: nn.Module, theirs: torch.optim.Optimizer, step: Callable[[int], object]
) -> None:
    """Every parameter is trained alike at each of TOTAL updates."""
    assert not differences(recipe, model, theirs, step)[:3]


SCHEDULE = {"schedule", "warmup", "floor", "milestones", "gamma"}
OF_THE_LOOP = {"clip_norm", "precision", "accumulate"}
"""Knobs that no optimizer has."""


def explanations(recipe: Recipe, group: str, key: str) -> set[str]:
    """The knobs that can account for a parameter of this group being trained with another `key`."""
    knobs = {f"groups.{group}.{'lr_mult' if key == 'lr' else key}"}
    if key == "lr":
        return knobs | SCHEDULE | {"switch", "optimizer"}
    return knobs | {key, *({"optimizer", "switch"} if key == "class" else ())}


def assert_alike_but_for(
    unsaid: Iterable[str],
    recipe: Recipe,
    model: nn.Module,
    theirs: torch.optim.Optimizer,
    step: Callable[[int], object],
    *,
    each: bool = True,
    moving: Iterable[str] = (),
) -> None:
    """Whatever differs, the file has said so; with `each`, whatever it says does differ.

    Those of `moving` account for the lr of any parameter.
    """
    named = {name: group.name for group in param_groups(recipe, model) for name in group.names}
    knobs, used = set(unsaid) - OF_THE_LOOP, set()
    for difference in differences(recipe, model, theirs, step):
        why = explanations(recipe, named[difference.parameter], difference.key) & knobs
        if difference.key == "lr":
            why |= knobs & set(moving)
        assert why, difference
        used |= why
    assert not each or not knobs - used, f"{knobs - used} is not said, yet makes no difference"


SCHEDULES = [
    Schedule(),
    Schedule(warmup=WarmupSteps(steps=20), floor=0.1),
    Schedule(warmup=0.0),
    Schedule(kind="linear", warmup=WarmupSteps(steps=10)),
    Schedule(kind="linear", warmup=0.0, floor=0.2),
    Schedule(kind="linear", warmup=0.11, floor=0.2),
    Schedule(kind="constant", warmup=0.0),
    Schedule(kind="constant", warmup=WarmupSteps(steps=10)),
    Schedule(kind="step", warmup=0.0, milestones=(0.33, 0.5, 0.71), gamma=0.3),
    Schedule(kind="step", warmup=WarmupSteps(steps=10)),
    Schedule(kind="cosine", floor=1.0),
    Schedule(warmup=WarmupSteps(steps=1)),
    Schedule(warmup=WarmupSteps(steps=TOTAL)),
]
WHOLE_EPOCHS = Schedule(warmup=WarmupSteps(steps=20))
OPTIMIZERS = [
    Recipe(lr=3e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3, schedule=WHOLE_EPOCHS),
    Recipe(optimizer="adam", lr=3e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3, schedule=WHOLE_EPOCHS),
    Recipe(optimizer="adam", lr=3e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0, schedule=WHOLE_EPOCHS),
    Recipe(optimizer="sgd", lr=0.1, momentum=0.8, weight_decay=0.3, schedule=WHOLE_EPOCHS),
]
GROUPED = Recipe(
    lr=3e-3,
    weight_decay=0.3,
    schedule=Schedule(kind="linear", floor=0.2),
    groups=(
        GroupRule(name="embedding", match=Match(kind=("embedding",)), lr_mult=0.5, betas=(0.7, 0.9)),
        GroupRule(name="head", match=Match(params=("lm_head.*",)), lr_mult=3.0, eps=1e-5),
        NO_DECAY,
    ),
)
SWITCHED = GROUPED.model_copy(update={"switch": Switch(at=0.5, lr=0.1, momentum=0.8)})


def with_no_decay(recipe: Recipe) -> Recipe:
    """With the one group that most consumers have by themselves."""
    return recipe.model_copy(update={"groups": (NO_DECAY,)})


RECIPES = [
    *(OPTIMIZERS[0].model_copy(update={"schedule": schedule}) for schedule in SCHEDULES),
    *OPTIMIZERS[1:],
]
RECIPES += [with_no_decay(recipe) for recipe in RECIPES]
RECIPES += [GROUPED, SWITCHED, Recipe.default(), Recipe(weight_decay=0.0)]
IDS = [f"{at}-{recipe.optimizer}-{recipe.schedule.kind}" for at, recipe in enumerate(RECIPES)]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
random_recipes = recipes(
    params=("lm_head.*", "*.weight", "*proj*", "norm.*", "*mlp.*", "embed*"), max_lr=0.1, max_mult=3.0, min_eps=1e-9
)


def model_for(recipe: Recipe) -> LM:
    """A model that the recipe can be built for; else hypothesis is told to draw another."""
    torch.manual_seed(0)
    model = LM()
    try:
        param_groups(recipe, model)
    except RecipeError:  # a rule whose patterns match nothing, or nothing that is left
        assume(False)
    return model


def unsaid_of(recipe: Recipe, format: str, context: Context = CONTEXT) -> set[str]:
    """The knobs that an export says it does not say."""
    return {unsaid.knob for unsaid in export_recipe(recipe, format, context).unsaid}


def write_companion(
    recipe: Recipe, format: str, folder: Path, monkeypatch: pytest.MonkeyPatch, context: Context = CONTEXT
) -> str:
    """The companion's module, to be imported by the name that is returned."""
    source = export_recipe(recipe, format, context).companion
    assert source is not None
    name = f"recipe_for_{format}"
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def trained_by_hand(recipe: Recipe) -> LM:
    """A model after TOTAL updates on one batch of four, in a plain loop."""
    torch.manual_seed(0)
    model = LM()
    optimizer, scheduler = recipe.build(model, total_steps=TOTAL)
    ids, labels = torch.arange(7).repeat(4, 1), torch.arange(7).flip(0).repeat(4, 1)
    for _ in range(TOTAL):
        model(ids, labels)["loss"].backward()
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Up to the order of a sum."""
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=2e-6, msg=name)


LOOPS: Mapping[str, Recipe] = {
    "fp32": Recipe(),
    "bf16, clipped": Recipe(precision="bf16", clip_norm=0.5),
    "fp16, accumulated": Recipe(precision="fp16", accumulate=4),
}
"""Recipes for what the training loop does."""
