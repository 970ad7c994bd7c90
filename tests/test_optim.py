from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from reference import Twin, takes
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from adamtune.errors import RecipeError
from adamtune.recipe import GroupRule, Match, Recipe, Schedule, WarmupSteps
from recipes import recipes

TOLERANCE = 1e-10
KINDS = {
    "embed.weight": "embedding",
    "body.weight": "rest",
    "body.bias": "bias",
    "norm.weight": "norm",
    "norm.bias": "norm",
    "head.weight": "head",
    "head.bias": "bias",
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.body = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.body(self.embed(x)))))


def make_model(dtype: torch.dtype = torch.float64) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model().to(dtype)


def batches(size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    while True:
        x = torch.randint(0, 6, (size,), generator=generator)  # the last of the seven rows is never seen
        yield x, torch.randint(0, 3, (size,), generator=generator)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(recipe: Recipe, steps: int, *, dtype: torch.dtype = torch.float64) -> Model:
    """What a training script does with `recipe.build`."""
    model, data = make_model(dtype), batches()
    optimizer, scheduler = recipe.build(model, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(recipe.accumulate):
            (loss(model, next(data)) / recipe.accumulate).backward()
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        scheduler.step()
    return model


def train_twin(recipe: Recipe, steps: int) -> Model:
    model, data = make_model(), batches()
    twin = Twin(recipe, model, KINDS, steps)
    for _ in range(steps):
        twin.step([loss(model, next(data)) for _ in range(recipe.accumulate)])
    return model


def gap(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of any parameter, relative for those above one."""
    return max(
        float(((a - b).abs() / b.abs().clamp(min=1.0)).max().detach())
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


FLAT = Schedule(kind="constant", warmup=0.0)
NO_DECAY = GroupRule(name="no_decay", match=Match(kind=("bias", "norm")), weight_decay=0.0)
RECIPES = {
    "default": Recipe.default().with_knob("lr", 1e-2),
    "adamw with a group for everything": Recipe(
        lr=5e-3,
        betas=(0.9, 0.95),
        weight_decay=0.3,
        groups=(
            GroupRule(name="table", match=Match(kind=("embedding",)), lr_mult=0.5, betas=(0.8, 0.9), eps=1e-4),
            GroupRule(name="head", match=Match(params=("head.*",)), lr_mult=3.0, weight_decay=0.1, betas=(0.0, 0.99)),
            NO_DECAY,
            GroupRule(name="rest", match=Match(params=("*",)), eps=1e-3),
        ),
        schedule=Schedule(kind="linear", warmup=WarmupSteps(steps=20), floor=0.1),
    ),
    "adam with L2": Recipe(
        optimizer="adam",
        lr=1e-2,
        weight_decay=0.05,
        groups=(NO_DECAY, GroupRule(name="frozen", match=Match(kind=("head",)), lr_mult=0.0)),
        schedule=Schedule(kind="step", warmup=0.0, milestones=(0.25, 0.5), gamma=0.3),
    ),
    "sgd with momentum": Recipe(
        optimizer="sgd",
        lr=0.1,
        momentum=0.8,
        weight_decay=1e-2,
        groups=(NO_DECAY, GroupRule(name="head", match=Match(kind=("head",)), lr_mult=0.3)),
        schedule=Schedule(kind="cosine", warmup=0.1, floor=0.05),
    ),
    "sgd without momentum": Recipe(optimizer="sgd", lr=0.3, momentum=0.0, schedule=FLAT),
    "clipped": Recipe(lr=1e-2, clip_norm=0.3, betas=(0.5, 0.9)),
    "accumulated": Recipe(lr=1e-2, accumulate=3, clip_norm=0.5),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_built_recipe_trains_like_its_twin_for_200_steps(name: str) -> None:
    trained = train(RECIPES[name], 200)
    assert gap(trained, train_twin(RECIPES[name], 200)) < TOLERANCE
    assert gap(trained, make_model()) > 0.05  # it did train


@settings(max_examples=25, deadline=None)
@given(recipes(params=["head.*", "*.weight", "embed.*"], max_lr=0.05, max_mult=4.0, min_eps=1e-2))
def test_any_recipe_trains_like_its_twin(recipe: Recipe) -> None:
    left, fit = dict(KINDS), []
    for rule in recipe.groups:  # without those that no parameter is left for, which are refused
        taken = {name for name, kind in left.items() if takes(rule, name, kind)}
        fit += [rule] if taken else []
        left = {name: kind for name, kind in left.items() if name not in taken}
    recipe = recipe.model_copy(update={"groups": tuple(fit), "accumulate": min(recipe.accumulate, 2)})
    assert gap(train(recipe, 10), train_twin(recipe, 10)) < 1e-9


def test_the_gradients_of_micro_batches_are_averaged_by_the_twin() -> None:
    model, data = make_model(), batches()
    micro = [next(data) for _ in range(4)]
    summed = copy.deepcopy(model)
    for batch in micro:
        loss(summed, batch).backward()
    twin = Twin(Recipe(optimizer="sgd", lr=1.0, weight_decay=0.0, schedule=FLAT), model, KINDS, 1)
    twin.step([loss(model, batch) for batch in micro])
    with torch.no_grad():
        for param in summed.parameters():
            param -= param.grad / 4
    assert gap(model, summed) < 1e-15


def test_equal_micro_batches_train_like_the_batch_they_make_up() -> None:
    recipe, data, steps = Recipe(lr=1e-2, accumulate=4), batches(), 20
    split, whole = make_model(), make_model()
    twin, whole_twin = Twin(recipe, split, KINDS, steps), Twin(recipe, whole, KINDS, steps)
    for _ in range(steps):
        micro = [next(data) for _ in range(4)]
        twin.step([loss(split, batch) for batch in micro])
        whole_twin.step([loss(whole, (torch.cat([x for x, _ in micro]), torch.cat([y for _, y in micro])))])
    assert gap(split, whole) < TOLERANCE


def test_the_twins_first_adam_steps_are_what_one_computes_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0)
    recipe = Recipe(lr=0.1, betas=(0.9, 0.99), eps=0.5, weight_decay=0.2, schedule=FLAT)
    twin = Twin(recipe, model, {"weight": "rest"}, 2)
    twin.step([3.0 * model.weight.sum()])
    # m_hat = 3 and v_hat = 9, so the step is 0.1 * (3 / (3 + 0.5) + 0.2 * 2)
    after_one = 2.0 - 0.1 * (3.0 / 3.5 + 0.4)
    assert model.weight.item() == pytest.approx(after_one, abs=1e-15)
    twin.step([-1.0 * model.weight.sum()])
    # m = 0.9 * 0.3 - 0.1 = 0.17 and m_hat = 0.17 / 0.19; v = 0.99 * 0.09 + 0.01 = 0.0991 and v_hat = 0.0991 / 0.0199
    after_two = after_one - 0.1 * (0.17 / 0.19 / (math.sqrt(0.0991 / 0.0199) + 0.5) + 0.2 * after_one)
    assert model.weight.item() == pytest.approx(after_two, abs=1e-15)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("cosine", torch.float32),
        ("cosine", torch.float64),
        ("constant", torch.float64),
        ("linear", torch.float32),
        ("linear", torch.float64),
    ],
)
def test_a_recipe_without_groups_is_torchs_adamw_under_transformers_schedule_bit_for_bit(
    kind: str, dtype: torch.dtype
) -> None:
    steps, warmup = 100, 7

    def peer(step: int) -> float:
        if step < warmup:
            return float(step) / float(max(1, warmup))
        if kind == "constant":
            return 1.0
        if kind == "linear":
            return max(0.0, float(steps - step) / float(max(1, steps - warmup)))
        progress = float(step - warmup) / float(max(1, steps - warmup))
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))

    by_hand, data = make_model(dtype), batches()
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=3e-3, betas=(0.8, 0.99), eps=1e-7, weight_decay=0.1)
    scheduler = LambdaLR(optimizer, peer)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(by_hand, next(data)).backward()
        optimizer.step()
        scheduler.step()
    schedule = Schedule.model_validate({"kind": kind, "warmup": {"steps": warmup}})
    recipe = Recipe(lr=3e-3, betas=(0.8, 0.99), eps=1e-7, weight_decay=0.1, schedule=schedule)
    ours = train(recipe, steps, dtype=dtype)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), by_hand.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_the_optimizer_is_torchs_own(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optimizer, _ = Recipe.default().with_knob("optimizer", name).build(make_model(), total_steps=1)
    assert type(optimizer) is kind


def test_every_group_keeps_its_ratio_to_the_recipes_lr_over_the_whole_run() -> None:
    recipe = RECIPES["adamw with a group for everything"]
    optimizer, scheduler = recipe.build(make_model(), total_steps=50)
    for _ in range(60):
        lrs = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert lrs["table"] == pytest.approx(0.5 * lrs["rest"])
        assert lrs["head"] == pytest.approx(3.0 * lrs["rest"])
        optimizer.step()
        scheduler.step()
    assert lrs["rest"] == pytest.approx(recipe.lr * recipe.schedule.floor)


def test_the_optimizers_state_tells_parameters_by_name() -> None:
    optimizer, _ = RECIPES["adamw with a group for everything"].build(make_model(), total_steps=5)
    stored = {group["name"]: group["param_names"] for group in optimizer.state_dict()["param_groups"]}
    assert stored == {
        "table": ["embed.weight"],
        "head": ["head.weight", "head.bias"],
        "no_decay": ["body.bias", "norm.weight", "norm.bias"],
        "rest": ["body.weight"],
    }


def test_a_run_resumed_from_saved_state_ends_where_an_unbroken_one_does() -> None:
    recipe, data = RECIPES["adamw with a group for everything"], batches()
    model = make_model()
    optimizer, scheduler = recipe.build(model, total_steps=30)
    for step in range(30):
        if step == 13:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
            model = make_model()
            optimizer, scheduler = recipe.build(model, total_steps=30)
            for part, state in zip((model, optimizer, scheduler), saved, strict=True):
                part.load_state_dict(state)
        optimizer.zero_grad()
        loss(model, next(data)).backward()
        optimizer.step()
        scheduler.step()
    assert gap(model, train(recipe, 30)) == 0.0


@pytest.mark.parametrize("total", [0, -1])
def test_a_run_of_no_steps_is_refused(total: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Recipe().build(make_model(), total_steps=total)


def test_a_rule_for_parameters_the_model_lacks_is_refused() -> None:
    recipe = Recipe(groups=(GroupRule(name="head", match=Match(params=("classifier.*",))),))
    with pytest.raises(RecipeError, match=r"classifier\.\*"):
        recipe.build(make_model(), total_steps=5)
