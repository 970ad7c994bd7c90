"""Trials in stacks have the numbers they have one by one."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stacked import (
    HEAD,
    NO_DECAY,
    X,
    alone,
    assert_same,
    batches,
    doubled,
    loss,
    mlp,
    numbers,
    requests,
    stacked,
    task,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from adamtune.errors import RecipeError
from adamtune.groups import param_groups
from adamtune.history import Outcome, Ramp, TrialRequest
from adamtune.population import every_member, fast_ops, products
from adamtune.recipe import Recipe, Schedule, Switch, WarmupSteps
from adamtune.task import Task
from adamtune.tasks import chars, digits
from recipes import recipes


def briefly(task: Task) -> Task:
    """Judged on the first rows of its validation data, in two batches of unequal size."""
    x, y = next(iter(task.val_batches()))
    return replace(task, val_batches=lambda: [(x[:24], y[:24]), (x[24:40], y[24:40])])


BUILT_IN: dict[str, Callable[[], Task]] = {
    "digits mlp": lambda: briefly(digits.task(hidden=32)),
    "digits cnn": lambda: briefly(digits.task("cnn", hidden=16, batch_size=8)),
    "chars": lambda: chars.task(length=16, width=16, layers=1, batch_size=4),
    "chars with dropout": lambda: chars.task(length=16, width=16, layers=1, batch_size=4, dropout=0.1),
}

PLAIN = Recipe(lr=3e-3)
KNOBS: dict[str, Recipe] = {
    "default": Recipe.default(),
    "lr": Recipe(lr=2e-2),
    "betas": Recipe(lr=3e-3, betas=(0.0, 0.9)),
    "eps and decay": Recipe(lr=3e-3, eps=1e-3, weight_decay=0.5),
    "adam": Recipe(optimizer="adam", lr=3e-3, weight_decay=0.1, schedule=Schedule(kind="linear", warmup=0.2)),
    "sgd": Recipe(optimizer="sgd", lr=3e-2, weight_decay=0.1, schedule=Schedule(kind="constant", warmup=0.0)),
    "sgd without momentum": Recipe(optimizer="sgd", lr=3e-2, momentum=0.0, clip_norm=0.25),
    "groups": Recipe(lr=3e-3, weight_decay=0.3, groups=(NO_DECAY, HEAD)),
    "groups and clipping": Recipe(lr=3e-3, groups=(HEAD, NO_DECAY), clip_norm=0.0625),
    "step decay": Recipe(lr=3e-3, schedule=Schedule(kind="step", warmup=WarmupSteps(steps=3), gamma=0.2)),
    "switch": Recipe(lr=3e-3, weight_decay=0.1, switch=Switch(at=0.5, lr=0.03)),
    "switch, groups and clipping": Recipe(
        optimizer="adam", lr=3e-3, groups=(HEAD, NO_DECAY), clip_norm=0.25, switch=Switch(at=0.2, lr=0.1, momentum=0.5)
    ),
    "switch, without momentum": Recipe(lr=3e-3, switch=Switch(at=0.9, lr=0.05, momentum=0.0)),
    "floor": Recipe(lr=3e-3, schedule=Schedule(kind="cosine", warmup=0.3, floor=0.4)),
}
RAMP = Ramp(start=1e-4, end=1e-2, steps=20)
HORIZON, RUNGS = 20, (6, 20)


def members(accumulate: int = 1) -> list[TrialRequest]:
    """One trial for every knob, most of one seed."""
    asked = [
        TrialRequest(recipe.with_knob("accumulate", accumulate), at % 2 * (at // 4), HORIZON, probe=at % 3 == 0)
        for at, recipe in enumerate(KNOBS.values())
    ]
    last = replace(asked[-1], seed=0)
    ramped = [replace(last, ramp=RAMP), replace(last, ramp=replace(RAMP, group="head"), recipe=asked[7].recipe)]
    return [*asked, *ramped][:: 1 if accumulate == 1 else 2]


@pytest.fixture(params=["torch", "numpy"])
def multiplied_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each library in turn, whichever is the quicker here."""
    monkeypatch.setattr(products, "numpy_is_quicker", lambda: request.param == "numpy")
    monkeypatch.setattr(products, "WORTH", 0)


@pytest.mark.usefixtures("multiplied_by")
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_knob_on_a_built_in_task_in_float64(name: str, accumulate: int) -> None:
    double, asked = doubled(BUILT_IN[name]()), members(accumulate)
    expected = alone(double, asked, RUNGS)
    assert len({tuple(numbers(result)) for result in expected}) == len(asked)  # each knob does something
    assert sum(bool(rung.probe) for result in expected for rung in result.rungs) >= 4
    assert_same(stacked(double, asked, RUNGS, width=5), expected)


@pytest.mark.usefixtures("multiplied_by")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.08)])
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_short_run_to_rounding(name: str, precision: str, tolerance: float) -> None:
    flat = Schedule(kind="constant", warmup=0.0)
    asked = requests(lrs=(1e-4, 1e-2), horizon=12, precision=precision, groups=(NO_DECAY,), schedule=flat)
    unmeasured = replace(BUILT_IN[name](), metrics={})  # one row of another class is more than rounding
    expected = alone(unmeasured, asked, (12,))
    assert_same(stacked(unmeasured, asked, (12,)), expected, tolerance)
    slower, faster = expected[:2]
    assert abs(slower.train_losses[-1] - faster.train_losses[-1]) > 2 * tolerance  # the recipe counts for more


@pytest.mark.parametrize("missing", [(every_member,), (fast_ops,), (every_member, fast_ops)])
@pytest.mark.parametrize("name", BUILT_IN)
def test_where_torch_has_moved_what_it_keeps_to_itself(
    name: str, missing: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in missing:
        monkeypatch.setattr(module, "AVAILABLE", False)
    double, asked = doubled(BUILT_IN[name]()), requests(horizon=12)
    assert_same(stacked(double, asked, (4, 12)), alone(double, asked, (4, 12)))


CLIPS = st.none() | st.floats(2.0**-20, 1e3, width=32)
PATTERNS = ("0.*", "2.weight", "*.bias")


def tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def fits(recipe: Recipe) -> bool:
    """Whether each of its rules has parameters to match."""
    try:
        param_groups(recipe, tiny())
    except RecipeError:
        return False
    return True


@st.composite
def populations(draw: st.DrawFn) -> list[TrialRequest]:
    accumulate = draw(st.integers(1, 3))
    fitting = recipes(params=PATTERNS, max_lr=0.02, max_mult=2.0, min_eps=1e-3).filter(fits)
    drawn = draw(st.lists(fitting, min_size=1, max_size=4))
    return [
        TrialRequest(
            recipe.model_copy(update={"precision": "fp32", "accumulate": accumulate, "clip_norm": draw(CLIPS)}),
            draw(st.integers(0, 2)), 12, probe=draw(st.booleans()),
        )
        for recipe in drawn
    ]  # fmt: skip


@settings(max_examples=15)
@given(populations(), st.integers(1, 4))
def test_random_recipes(asked: list[TrialRequest], width: int) -> None:
    assert_same(stacked(task(tiny), asked, (5, 12), width), alone(task(tiny), asked, (5, 12)), 1e-8)


# --- models


def image(x: Tensor) -> Tensor:
    """(rows, 4) -> (rows, 2, 6, 6)."""
    return torch.einsum("ni,nj->nij", x[:, :2].repeat(1, 6), x[:, 2:].repeat(1, 3)).view(len(x), 2, 6, 6) / 4


class Seen(nn.Module):
    """`body` on what `look` makes of a row."""

    def __init__(self, look: Callable[[Tensor], Tensor], *body: nn.Module) -> None:
        super().__init__()
        self.look, self.body = look, nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.look(x))


def codes(x: Tensor) -> Tensor:
    """(rows, 4) -> class indices (rows, 4) below 10."""
    return (x * 2).long().clamp(-5, 4) + 5


class Tied(nn.Module):
    """An embedding whose matrix is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head, self.out = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False), nn.Linear(10, 1)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.head(self.tokens(codes(x)).mean(1))))


class Frozen(nn.Module):
    """Weights that do not train: one drawn by seed, one the same for all."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn, self.same, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        nn.init.eye_(self.same.weight), nn.init.zeros_(self.same.bias)
        self.drawn.weight.requires_grad_(False), self.same.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.same(self.drawn(x))))


class Unused(nn.Module):
    """A layer that never gets a gradient, and one that does at every third step."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.sometimes, self.step = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 1), 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.used(x)
        if self.training:
            self.step += 1
            if self.step % 3 == 0:
                out = out + self.sometimes(x)
        return out


class Scaled(nn.Module):
    """A scalar among the parameters, and a buffer updated in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 1), nn.Parameter(torch.tensor(1.5))
        self.register_buffer("ema", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x) * self.scale
        if self.training:
            self.ema.mul_(0.9).add_(0.1 * out.detach().mean(0))
        return out - self.ema


class Masked(nn.Module):
    """Attention under masks that are boolean, additive and made from the data."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(1, 12), nn.Linear(16, 1)
        self.register_buffer("bias", torch.arange(16.0).view(4, 4) / 8)
        self.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool).tril())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.unsqueeze(2)).view(-1, 4, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        mixed = functional.scaled_dot_product_attention(q, mixed, v, self.bias)
        own = (x.unsqueeze(2) > x.unsqueeze(1) - 1).unsqueeze(1)
        return self.out((mixed + functional.scaled_dot_product_attention(q, k, v, own)).flatten(1))


class Causal(nn.Module):
    """Attention that does not look ahead, over short sequences and over longer ones, of queries and of keys."""

    def __init__(self, queries: int, keys: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(1, 18), nn.Linear(6 * queries, 1)
        self.queries, self.keys = queries, keys

    def forward(self, x: Tensor) -> Tensor:
        long = torch.stack([x * (place + 1) / 70 for place in range(18)], 1).flatten(1).unsqueeze(2)
        q, k, v = self.qkv(long).unflatten(2, (3, 2, 3)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k, v = q[:, :, : self.queries], k[:, :, : self.keys], v[:, :, : self.keys]
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = functional.scaled_dot_product_attention(mixed, k, v, scale=0.4)
        return self.out(mixed.transpose(1, 2).flatten(1))


class LaidOut(nn.Module):
    """Attention whose result is dropped from and viewed in the layout in which it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(1, 24), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.unsqueeze(2)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.dropout(functional.scaled_dot_product_attention(q, k, v), 0.2, self.training)
        own = functional.dropout(functional.scaled_dot_product_attention(q.contiguous(), k, v), 0.2)
        wide = functional.dropout(functional.scaled_dot_product_attention(q, k, torch.cat([v, q], 3)), 0.2)
        rest = torch.cat([wide.view(len(x), -1), own.view(len(x), -1)], 1)
        return self.out(mixed.transpose(1, 2).view(len(x), -1)) + rest.mean(1, keepdim=True)


class Latents(nn.Module):
    """Attention over keys that all rows have in common, from queries that they have in common, and over the values of
    one head for all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kv, self.out = nn.Linear(4, 24), nn.Linear(6, 1)
        self.queries, self.keys = nn.Parameter(torch.randn(1, 2, 5, 3)), nn.Parameter(torch.randn(2, 2, 3))
        self.values = nn.Parameter(torch.ones(1, 2, 2, 3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).view(-1, 2, 2, 2, 3).unbind(1)
        mixed = functional.scaled_dot_product_attention(self.queries, k, v)
        mixed = functional.scaled_dot_product_attention(mixed, k, v[:, :1])
        mixed = functional.scaled_dot_product_attention(mixed, k, value=self.values.expand(len(x), -1, -1, -1)) + mixed
        return self.out(functional.scaled_dot_product_attention(mixed, self.keys, self.keys).sum(2).flatten(1))


class Halved(nn.Module):
    """Attention in bfloat16, without autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(1, 24), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.unsqueeze(2)).bfloat16().unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.to(x.dtype).transpose(1, 2).flatten(2).mean(1))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    return Seen(lambda x: x.unsqueeze(2).expand(-1, -1, 8), layer, nn.Flatten(), nn.Linear(32, 1))


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 1))


class Residual(nn.Module):
    """As torchvision writes them: activations in place, and an addition in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.shortcut, self.relu, self.head = nn.Conv2d(2, 4, 1), nn.ReLU(inplace=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        images = image(x)
        out = self.norm2(self.second(self.relu(self.norm1(self.first(images)))))
        out += self.shortcut(images)
        scores: Tensor = self.head(self.relu(out).mean((2, 3)))
        return scores


class FrozenNorm(nn.Module):
    """Frozen norms, the statistics of one left alone too; and a bias by keyword that all share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.still = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.group, self.head = nn.GroupNorm(2, 4), nn.Linear(64, 1)
        for norm in (self.norm, self.still, self.group):
            norm.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.still.eval()
        convolved = functional.conv2d(image(x), self.first.weight, bias=torch.full((4,), 0.1, dtype=x.dtype))
        scores: Tensor = self.head(self.group(self.still(self.norm(convolved))).flatten(1))
        return scores


class ByKeyword(nn.Module):
    """Reads tensors that all members share by keyword: a kernel, weights, an attention's value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(2, 2, 3), nn.Linear(36, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernel, square = torch.ones(2, 1, 2, 2, dtype=x.dtype), torch.eye(3, dtype=x.dtype)
        blurred = functional.conv2d(self.first(image(x)), weight=kernel, groups=2)
        turned = functional.linear(blurred, weight=square, bias=torch.ones(3, dtype=x.dtype))
        value = torch.linspace(0, 1, turned.numel(), dtype=x.dtype).view(turned.shape)
        mixed = functional.scaled_dot_product_attention(turned, turned, value=value)
        scores: Tensor = self.head(torch.cat([turned, mixed], 1).flatten(1))
        return scores


class Telling(nn.Module):
    """Attends without what is padded, and reads the weights as well."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.Linear(1, 6), nn.Linear(6, 1)
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.read(x.unsqueeze(2))
        padded = torch.tensor([False, False, False, True]).expand(len(x), 4)
        mixed, weights = self.attend(tokens, tokens, tokens, key_padding_mask=padded)
        scores: Tensor = self.head(mixed).sum(1) + weights.square().sum((1, 2)).unsqueeze(1)
        return scores


def convolved(*body: nn.Module, out: int) -> Callable[[], nn.Module]:
    """Makes CNNs of `body` on images, drawn anew each time, with `out` features at their end."""

    def make() -> nn.Module:
        layers = copy.deepcopy(body)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        return Seen(image, *layers, nn.Flatten(), nn.Linear(out, 1))

    return make


MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)),
    "batch norm averaging all": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 1)
    ),
    "batch norm of images": convolved(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), out=64),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)),
    "dropout2d": convolved(nn.Conv2d(2, 4, 3), nn.Dropout2d(0.4), nn.ReLU(), out=64),
    "activations in place": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 1)),
    "residual block": Residual,
    "frozen norms": FrozenNorm,
    "shared tensors by keyword": ByKeyword,
    "transformer encoder layer": encoder,
    "multi-head attention that tells its weights": Telling,
    "embedding": lambda: Seen(codes, nn.Embedding(10, 5), nn.Flatten(), nn.Linear(20, 1)),
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 1)),
    "group norm": lambda: nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.SiLU(), nn.Linear(8, 1)),
    "tied weights": Tied,
    "frozen parameters": Frozen,
    "parameters without a gradient": Unused,
    "scalar parameter, buffer in place": Scaled,
    "conv1d": lambda: Seen(
        lambda x: x.unsqueeze(1), nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 2, 2, stride=2),
        nn.Flatten(), nn.Linear(4, 1),
    ),
    "conv2d with stride and groups": convolved(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, groups=4), out=16
    ),
    "conv2d same, without bias, dilated": convolved(
        nn.Conv2d(2, 4, 3, padding="same", bias=False), nn.ReLU(), nn.Conv2d(4, 3, 2, bias=False, dilation=2), out=48
    ),
    "max and average pooling": convolved(
        nn.Conv2d(2, 3, 2, padding=1), nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(3, 1, 1), nn.MaxPool2d(2, 1),
        nn.AvgPool2d(2, 1), out=4,
    ),
    "masked attention": Masked,
    "causal attention": lambda: Causal(6, 6),
    "causal attention of few to many": lambda: Causal(3, 5),
    "causal attention over 70": lambda: Causal(70, 70),
    "attention in its layout": LaidOut,
    "attention to what is shared": Latents,
    "attention halved by hand": Halved,
    "layer norm of images": convolved(nn.Conv2d(2, 3, 2), nn.LayerNorm((3, 5, 5), eps=0.1), nn.ReLU(), out=75),
    "layer norm without a bias": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8, bias=False), nn.GELU(), nn.LayerNorm(8, elementwise_affine=False),
        nn.Linear(8, 1),
    ),
    "weight norm": weight_normed,
}  # fmt: skip

FEW = [
    TrialRequest(recipe, seed, 12)
    for seed in (0, 1)
    for recipe in (
        Recipe(lr=1e-2, weight_decay=0.2, groups=(NO_DECAY,)),
        Recipe(lr=2e-3, optimizer="sgd", groups=(HEAD,)),
    )
]


def check_parity(task: Task, tolerance: float = 1e-9, few: Sequence[TrialRequest] = FEW) -> None:
    expected = alone(task, few, (5, 12))
    assert {result.outcome for result in expected} == {Outcome.COMPLETED}
    assert len({tuple(numbers(result)) for result in expected}) == len(few)
    assert_same(stacked(task, few, (5, 12)), expected, tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_a_kind_of_model(name: str) -> None:
    check_parity(task(MODELS[name]))


@pytest.mark.parametrize("filters", [3, 12])
def test_images_of_one_channel_that_all_members_share(filters: int) -> None:
    def make() -> nn.Module:
        convolution = nn.Conv2d(1, filters, 3, padding=1, bias=filters == 3)
        return Seen(lambda x: image(x)[:, :1], convolution, nn.ReLU(), nn.Flatten(), nn.Linear(36 * filters, 1))

    check_parity(task(make), few=[request for request in FEW if request.seed == 0])


# --- tasks


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def dict_batches(x: Tensor) -> Any:
    return {"x": x, "target": {"y": x.sum(1, keepdim=True)}, "scale": 2.0, "name": "train", "mask": None}


def dict_loss(model: nn.Module, batch: Any) -> Tensor:
    out = {"prediction": model(batch["x"])}
    return batch["scale"] * (out["prediction"] - batch["target"]["y"]).abs().mean()


def pair_loss(model: nn.Module, batch: Pair) -> Tensor:
    return functional.huber_loss(model(batch.x), batch.y)


def list_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return loss(model, batch[0]).reshape(1)


def shaped(to: Callable[[Tensor], Any], loss: Callable[[nn.Module, Any], Tensor]) -> Task:
    """The toy task with batches of another shape."""
    return replace(
        task(loss=loss),
        train_batches=lambda generator: map(to, batches(generator)),
        val_batches=lambda: [to(X[:20]), to(X[20:])],
    )


def classes_loss(model: nn.Module, x: Tensor) -> Tensor:
    """Cross entropies of all kinds; some rows do not count."""
    scores = torch.cat([model(x), x], 1)
    classes = (10 * x[:, 0]).long() % 4
    some = torch.where(x[:, 1] > 0.5, -100, classes)
    weighed = functional.cross_entropy(scores, classes, weight=torch.arange(1.0, 6.0, dtype=scores.dtype))
    summed = functional.cross_entropy(scores, classes, reduction="sum")
    shares = functional.cross_entropy(scores, x.repeat(1, 2)[:, :5].softmax(1))
    each = functional.cross_entropy(scores.unsqueeze(2), classes.unsqueeze(1), ignore_index=2)
    own = functional.cross_entropy(scores, classes, ignore_index=1)
    return functional.cross_entropy(scores, some) + weighed + 0.1 * summed + shares + each + own


BATCHES = {
    "classes": shaped(lambda x: x, classes_loss),
    "dict": shaped(dict_batches, dict_loss),
    "named tuple": shaped(lambda x: Pair(x, x.sum(1, keepdim=True)), pair_loss),
    "list": shaped(lambda x: [x, x[:, 0]], list_loss),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_kind_of_batch(kind: str) -> None:
    check_parity(BATCHES[kind])


def test_data_loaders() -> None:
    data = TensorDataset(X, X.sum(1, keepdim=True))
    loaders = DataLoader(data, batch_size=12, shuffle=True), DataLoader(data, batch_size=10)  # 64 rows: uneven ends
    check_parity(Task.supervised(lambda: mlp().double(), *loaders, functional.mse_loss))


def noisy_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
    with torch.no_grad():
        model[0].weight.mul_(1 + random.random()).add_(float(np.random.rand()))
    return model


def noisy_batches(generator: torch.Generator) -> Iterator[Tensor]:
    for x in batches(generator):
        yield x * (1 + 0.1 * random.random()) + 0.1 * float(np.random.randn()) + 0.1 * torch.randn(x.shape)


def noisy_validation() -> list[Tensor]:
    return [X[:10] + float(torch.rand(1)), X[10:] * (1 + random.random())]


@pytest.mark.parametrize("make", [noisy_model, mlp])
def test_chance_from_every_global_generator(make: Callable[[], nn.Module]) -> None:
    check_parity(replace(task(make), train_batches=noisy_batches, val_batches=noisy_validation))


def test_noise_of_the_losss_own_over_several_batches_a_step() -> None:
    def noisy(model: nn.Module, x: Tensor) -> Tensor:
        return loss(model, x + torch.randn(x.shape, dtype=x.dtype)) * (1 + torch.rand(()))

    asked = requests(horizon=12, accumulate=3)
    assert_same(stacked(task(loss=noisy), asked, (5, 12)), alone(task(loss=noisy), asked, (5, 12)))


def test_members_hand_over_each_at_its_own_step() -> None:
    """Also where a layer has a gradient at every third step only, so that momentum meets it late; a ramp never does."""
    asked = [
        TrialRequest(Recipe(lr=1e-2, groups=(HEAD,), switch=Switch(at=at, lr=lr)), seed, 12, probe=True)
        for at, lr in ((0.1, 0.02), (0.3, 0.05), (0.3, 0.1), (0.6, 0.05), (0.99, 0.05))
        for seed in (0, 1)
    ]
    asked += [replace(asked[0], recipe=PLAIN), replace(asked[0], ramp=RAMP)]
    expected = alone(task(Unused), asked, (5, 8, 12))
    assert len({tuple(numbers(result)) for result in expected}) == len(asked)
    assert_same(stacked(task(Unused), asked, (5, 8, 12), width=7), expected)


def kept_apart(model: nn.Module, x: Tensor) -> Tensor:
    """Draws noise from where the global generator stands, which stays there."""
    with torch.random.fork_rng(devices=[]):
        return model(x).mean() + torch.rand(())


def test_a_metric_whose_noise_leaves_the_generator_where_it_was() -> None:
    check_parity(replace(task(), metrics={"noise": kept_apart}))


def test_metrics_that_a_stack_cannot_measure_at_once() -> None:
    metrics = {
        "worst": lambda model, x: (model(x) - x.sum(1, keepdim=True)).abs().max().item(),
        "positive": lambda model, x: 1.0 if model(x).sum() > 0 else 0.5,
        "noise": lambda model, x: torch.rand(()) + random.random(),
        "halved": lambda model, x: loss(model, x) / 2,
    }
    check_parity(replace(task(), metrics=metrics))


def test_a_loss_of_the_weights_themselves() -> None:
    def decayed(model: nn.Module, x: Tensor) -> Tensor:
        return loss(model, x) + 0.1 * sum(param.pow(2).sum() for param in model.parameters())

    check_parity(task(loss=decayed))


def test_a_model_that_keeps_a_part_of_its_loss() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Tensor:
            out = self.body(x)
            self.penalty = out.pow(2).mean()
            return out

    check_parity(task(Penalised, lambda model, x: loss(model, x) + model.penalty))


def test_one_trial_in_a_stack_of_its_own() -> None:
    assert_same(stacked(task(), FEW[:1], (5, 12)), alone(task(), FEW[:1], (5, 12)))


def test_equal_trials_are_equal_in_a_stack() -> None:
    first, second, other = stacked(task(), [FEW[0], FEW[0], FEW[1]], (5, 12))
    assert numbers(first) == numbers(second) != numbers(other)
