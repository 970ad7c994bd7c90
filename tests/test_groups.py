from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adamtune.errors import RecipeError
from adamtune.groups import DEFAULT, kinds, param_groups, trainable
from adamtune.recipe import GroupRule, Match, Recipe

D = 8


class Vector(nn.Module):
    """A leaf with one vector, `gain`, that starts at `start`; each subclass says what it does with it."""

    def __init__(self, start: float = 1.0, size: int = D) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((size,), start))


class RMS(Vector):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


class OnePlusRMS(Vector):
    """Gemma's way: the gain starts at zero and one is added."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + self.gain)


class HandMadeLayerNorm(Vector):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) * self.gain + self.shift


class FusedNorm(Vector):
    """Refuses an input of another dtype than its own."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (D,), self.gain)


class BatchStatisticsNorm(Vector):
    """Divides by what the batch shows while training, by a constant in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.std(0, keepdim=True) if self.training else 1.0) * self.gain


class CountingNorm(RMS):
    """Keeps a count in a buffer and draws random numbers, as batch statistics and stochastic layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        torch.rand(3)
        return super().forward(x)


class Scale(Vector):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Gate(Vector):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * self.gain


class Constant(Vector):
    def forward(self, x: Tensor) -> Tensor:
        return self.gain.expand_as(x)


class Picky(Vector):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not such an input")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, D)
        self.body = nn.Linear(D, D)
        self.lm_head = nn.Linear(D, 16, bias=False)
        self.lm_head.weight = self.embed.weight


LEAVES: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "linear": (lambda: nn.Linear(D, D), {"weight": "matrix", "bias": "bias"}),
    "conv": (lambda: nn.Conv1d(D, D, 3), {"weight": "matrix", "bias": "bias"}),
    "embedding": (lambda: nn.Embedding(4, D), {"weight": "embedding"}),
    "bag": (lambda: nn.EmbeddingBag(4, D), {"weight": "embedding"}),
    "layer norm": (lambda: nn.LayerNorm(D), {"weight": "norm", "bias": "norm"}),
    "group norm": (lambda: nn.GroupNorm(2, D), {"weight": "norm", "bias": "norm"}),
    "batch norm": (lambda: nn.BatchNorm1d(D), {"weight": "norm", "bias": "norm"}),
    "rms norm": (lambda: nn.RMSNorm(D), {"weight": "norm"}),
    "custom norm": (RMS, {"gain": "norm"}),
    "scale": (Scale, {"gain": "bias"}),
    "prelu": (nn.PReLU, {"weight": "bias"}),
    "gru": (
        lambda: nn.GRU(D, D),
        {"weight_ih_l0": "rest", "weight_hh_l0": "rest", "bias_ih_l0": "bias", "bias_hh_l0": "bias"},
    ),
    "attention": (
        lambda: nn.MultiheadAttention(D, 2, add_bias_kv=True),
        {
            "in_proj_weight": "rest",
            "in_proj_bias": "bias",
            "bias_k": "bias",
            "bias_v": "bias",
            "out_proj.weight": "matrix",
            "out_proj.bias": "bias",
        },
    ),
    "no parameters": (nn.Tanh, {}),
}
"""Each leaf with the kinds of its parameters; a `matrix` is the head or among the rest, by where it stands."""


@st.composite
def models(draw: st.DrawFn) -> tuple[nn.Module, dict[str, str]]:
    """A nest of modules, some used twice, some parameters frozen; and the expected kind of each trainable one."""
    expected: dict[int, str] = {}
    made: list[nn.Module] = []

    def leaf(name: str) -> nn.Module:
        make, own = LEAVES[name]
        module = make()
        for path, kind in own.items():
            expected[id(module.get_parameter(path))] = kind
        made.append(module)
        return module

    def build(shape: Any) -> nn.Module:
        if isinstance(shape, str):
            return draw(st.sampled_from(made)) if shape == "again" and made else leaf(shape.replace("again", "linear"))
        parts = [build(inner) for inner in shape]
        if draw(st.booleans()):
            return nn.Sequential(*parts)
        return nn.ModuleDict({f"part{place}": part for place, part in enumerate(parts)})

    names = st.sampled_from([*LEAVES, "again"])
    nests = st.recursive(names, lambda inner: st.lists(inner, min_size=1, max_size=3))
    model = build(draw(st.lists(nests, max_size=5)))
    for param in model.parameters():
        param.requires_grad_(draw(st.integers(0, 4)) > 0)
    return model, {name: expected[id(param)] for name, param in model.named_parameters() if param.requires_grad}


def groups(model: nn.Module, *rules: GroupRule) -> dict[str, set[str]]:
    return {group.name: set(group.names) for group in param_groups(Recipe(groups=rules), model)}


def rule(name: str, **match: Any) -> GroupRule:
    return GroupRule(name=name, match=Match.model_validate(match))


@settings(deadline=None)
@given(models())
def test_a_parameters_kind_depends_on_its_owner_wherever_that_is_nested(case: tuple[nn.Module, dict[str, str]]) -> None:
    model, expected = case
    found = kinds(model)
    assert found.keys() == expected.keys()
    for name, kind in found.items():
        assert kind == expected[name] or (expected[name] == "matrix" and kind in ("head", "rest"))
    assert sum(kind == "head" for kind in found.values()) <= 1


RULES = (
    rule("no_decay", kind=["bias", "norm"]),
    rule("biases", kind=["bias", "rest"]),
    rule("heads", kind="head"),
    rule("tables", kind=["embedding"]),
)


@settings(deadline=None)
@given(models(), st.permutations(RULES), st.integers(0, len(RULES)))
def test_every_trainable_parameter_is_in_exactly_one_group(
    case: tuple[nn.Module, dict[str, str]], rules: list[GroupRule], count: int
) -> None:
    model, expected = case
    if not expected:
        with pytest.raises(RecipeError, match="no trainable parameter"):
            param_groups(Recipe(groups=tuple(rules[:count])), model)
        return
    made = param_groups(Recipe(groups=tuple(rules[:count])), model)
    assert sorted(name for group in made for name in group.names) == sorted(expected)
    assert {id(param) for group in made for param in group.params} == {
        id(param) for param in model.parameters() if param.requires_grad
    }
    assert sum(group.tensors for group in made) == len(expected)
    assert sum(group.parameters for group in made) == sum(param.numel() for _, param in trainable(model))
    assert all(group.names for group in made)
    for group in made:
        for name, param in zip(group.names, group.params, strict=True):
            assert model.get_parameter(name) is param


@pytest.mark.parametrize(
    "norm",
    [
        RMS(),
        RMS(0.0),
        OnePlusRMS(0.0),
        OnePlusRMS(-1.0),
        HandMadeLayerNorm(),
        RMS().half(),
        FusedNorm().bfloat16(),
        BatchStatisticsNorm().eval(),
        RMS(size=700),
    ],
)
def test_a_custom_norm_is_known_by_what_it_does(norm: nn.Module) -> None:
    found = kinds(nn.Sequential(nn.Linear(D, D), norm, nn.Linear(D, D)))
    assert {found[f"1.{name}"] for name, _ in norm.named_parameters()} == {"norm"}


@pytest.mark.parametrize("module", [Scale(), Scale(0.0), Gate(), Constant(), Picky(), nn.PReLU(D)])
def test_a_vector_that_does_not_divide_out_the_scale_is_no_norm(module: nn.Module) -> None:
    found = kinds(nn.Sequential(nn.Linear(D, D), module))
    assert {found[f"1.{name}"] for name, _ in module.named_parameters()} == {"bias"}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(D), nn.InstanceNorm1d(D, affine=True), nn.SyncBatchNorm(D)])
def test_torchs_norms_are_known_by_type(norm: nn.Module) -> None:
    assert set(kinds(norm).values()) == {"norm"}


def test_a_norm_over_channels_that_come_first_is_known_by_what_it_does() -> None:
    class ConvNeXtNorm(Vector):
        def forward(self, x: Tensor) -> Tensor:
            x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True) + 1e-6)
            return self.gain[:, None, None] * x

    assert kinds(nn.Sequential(nn.Conv2d(3, D, 3), ConvNeXtNorm()))["1.gain"] == "norm"


def test_telling_kinds_leaves_the_random_state_and_the_model_alone() -> None:
    norm = CountingNorm()
    model = nn.Sequential(nn.Linear(D, D), norm, Scale(0.5)).eval()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert kinds(model)["1.gain"] == "norm"
    assert torch.equal(torch.get_rng_state(), random_state)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not norm.training
    assert all(param.grad is None for param in model.parameters())


def test_telling_kinds_does_not_run_the_users_hooks() -> None:
    norm, seen = RMS(), []
    norm.register_forward_hook(lambda *_: seen.append(1))
    kinds(nn.Sequential(nn.Linear(D, D), norm))
    assert not seen


def test_a_lazy_layer_that_has_seen_no_batch_is_refused() -> None:
    with pytest.raises(RecipeError):
        param_groups(Recipe.default(), nn.Sequential(nn.LazyLinear(D)))


def test_tied_weights_count_once_and_as_embedding() -> None:
    model = Tied()
    assert kinds(model) == {"embed.weight": "embedding", "body.weight": "rest", "body.bias": "bias"}
    found = groups(model, rule("head", kind="head"), rule("table", kind="embedding"))
    assert found == {"table": {"embed.weight"}, DEFAULT: {"body.weight", "body.bias"}}


def test_a_weight_tied_to_a_later_embedding_is_an_embedding_too() -> None:
    first, table = nn.Linear(D, 4, bias=False), nn.Embedding(4, D)
    table.weight = first.weight
    assert kinds(nn.Sequential(first, nn.Linear(D, D, bias=False), table)) == {
        "0.weight": "embedding",
        "1.weight": "rest",
    }


def test_two_linear_layers_that_share_a_weight_count_it_once() -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 2))
    model[1].weight = model[0].weight
    (group,) = param_groups(Recipe(), model)
    assert group.names == ("0.weight", "0.bias", "1.bias", "2.weight", "2.bias")


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, 2)), "2.weight"),
        (nn.Sequential(nn.Conv2d(3, D, 3), nn.Conv2d(D, 2, 1)), "1.weight"),
        (nn.Sequential(nn.GRU(D, D), nn.Linear(D, 2), nn.LayerNorm(2), Scale()), "1.weight"),
        (nn.Sequential(nn.Embedding(4, D), nn.Linear(D, 2)), "1.weight"),
        (nn.ModuleDict({"head": nn.Linear(D, 2), "body": nn.Linear(D, D)}), "body.weight"),
        (nn.Sequential(nn.Linear(D, 2)), None),
        (nn.Sequential(nn.Linear(D, D), nn.GRU(D, D)), None),
        (nn.Sequential(nn.Linear(D, D), nn.Embedding(4, D)), None),
        (Tied(), None),
    ],
)
def test_the_head_is_the_last_matrix_if_a_projection_owns_it_alone(model: nn.Module, head: str | None) -> None:
    assert [name for name, kind in kinds(model).items() if kind == "head"] == ([head] if head else [])


def test_frozen_parameters_are_in_no_group() -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, 2))
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    assert kinds(model) == {"1.weight": "norm", "1.bias": "norm", "2.bias": "bias"}
    assert groups(model, rule("head", kind="head")) == {DEFAULT: {"1.weight", "1.bias", "2.bias"}}


def test_the_first_matching_rule_takes_a_parameter_and_groups_keep_the_order_of_rules() -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.Linear(D, 2))
    last, biases, never = rule("last", params="1.*"), rule("biases", kind="bias"), rule("never", kind="head")
    assert groups(model, last, biases) == {"last": {"1.weight", "1.bias"}, "biases": {"0.bias"}, DEFAULT: {"0.weight"}}
    assert groups(model, biases, last)["last"] == {"1.weight"}
    assert "never" not in groups(model, last, never)
    assert list(groups(model, biases, last)) == ["biases", "last", DEFAULT]


def test_a_rule_takes_what_fits_all_its_keys_and_any_of_its_patterns() -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 2))
    assert groups(model, rule("g", kind=["bias"], params=["0.*", "2.*"]))["g"] == {"0.bias", "2.bias"}
    assert groups(model, rule("g", params=["[01].weight"]))["g"] == {"0.weight", "1.weight"}


def test_patterns_that_match_nothing_are_refused_all_at_once_by_group_and_pattern() -> None:
    rules = (rule("head", params="haed.*"), rule("ok", params="0.*"), rule("no", kind="norm", params=["0.bias"]))
    with pytest.raises(RecipeError) as caught:
        groups(nn.Sequential(nn.Linear(D, D)), *rules)
    told = {problem.where: problem.what for problem in caught.value.problems}
    assert list(told) == ["$.groups.head.match", "$.groups.no.match"]
    assert "haed.*" in told["$.groups.head.match"]
    assert "0.weight" in told["$.groups.head.match"]


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_a_rule_that_names_a_tied_weight_by_its_other_name_is_told_the_one_to_name(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    model = nn.ModuleDict({"emb": nn.Embedding(5, D), "lm_head": nn.Linear(D, 5, bias=False)})
    model["lm_head"].weight = model["emb"].weight
    told = r"\['lm_head\.\*'\] match 'lm_head\.weight', which is tied to 'emb\.weight' .*; name that one"
    with pytest.raises(RecipeError, match=told):
        groups(wrap(model), rule("last", params="lm_head.*"))
    with pytest.raises(RecipeError, match="of kind norm match no parameter"):
        groups(wrap(model), rule("last", params="lm_head.*", kind="norm"))


def test_rules_that_name_only_what_rules_before_them_take_are_refused_with_both_names_and_a_parameter() -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.Linear(D, 2))
    rules = (
        rule("last", params="1.*"),
        rule("bias_of_last", params="1.bias"),
        rule("rest", params=["0.*", "1.weight"]),
    )
    with pytest.raises(RecipeError) as caught:
        groups(model, *rules)
    (problem,) = caught.value.problems
    assert problem.where == "$.groups.bias_of_last.match"
    assert "'1.bias' matches 'last' too, which comes before 'bias_of_last'; put 'bias_of_last' first" in problem.what
    kept = groups(model, rules[1], rules[0], rules[2])
    assert kept == {"bias_of_last": {"1.bias"}, "last": {"1.weight"}, "rest": {"0.weight", "0.bias"}}
    with pytest.raises(RecipeError, match=r"'0.bias' matches 'biases' too, which comes before 'mine'"):
        groups(model, rule("biases", kind="bias"), rule("mine", params="*.bias"))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(D, D, bias=False)
        self.head = nn.Linear(D, 2, bias=False)


class OwnModule(nn.Module):
    """Holds a model as `module`, as DistributedDataParallel does, and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Body()


@pytest.mark.parametrize(
    ("wrapped", "before"),
    [
        (lambda: torch.compile(Body(), backend="eager"), "_orig_mod."),
        (lambda: nn.DataParallel(Body()), "module."),
        (lambda: torch.compile(nn.DataParallel(Body()), backend="eager"), "_orig_mod.module."),
        (lambda: nn.DataParallel(torch.compile(Body(), backend="eager")), "module._orig_mod."),
        (lambda: nn.ModuleDict({"_fsdp_wrapped_module": Body()}), "_fsdp_wrapped_module."),
        (lambda: nn.ModuleDict({"_checkpoint_wrapped_module": Body()}), "_checkpoint_wrapped_module."),
    ],
)
def test_patterns_match_the_names_of_a_model_before_it_was_wrapped(
    wrapped: Callable[[], nn.Module], before: str
) -> None:
    inner, head = f"{before}module.weight", f"{before}head.weight"
    assert groups(wrapped(), rule("last", params="head.*")) == {"last": {head}, DEFAULT: {inner}}
    assert groups(wrapped(), rule("inner", params="module.*")) == {"inner": {inner}, DEFAULT: {head}}
    assert groups(wrapped(), rule("last", params=head)) == {"last": {head}, DEFAULT: {inner}}
    with pytest.raises(RecipeError, match=r"match no parameter of the model, which has e\.g\. module\.weight, head"):
        groups(wrapped(), rule("none", params="tail.*"))


def test_names_of_a_compiled_model_are_patterns_too_and_a_module_of_ones_own_keeps_its_name() -> None:
    found = groups(Body(), rule("last", params="_orig_mod.head.weight"))
    assert found == {"last": {"head.weight"}, DEFAULT: {"module.weight"}}
    with pytest.raises(RecipeError, match="match no parameter"):
        groups(OwnModule(), rule("last", params="head.*"))


def test_a_kind_the_model_does_not_have_is_fine() -> None:
    assert groups(nn.Linear(D, D), rule("tables", kind="embedding")) == {DEFAULT: {"weight", "bias"}}


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(RecipeError, match="no trainable parameter"):
        param_groups(Recipe(), nn.Linear(D, D).requires_grad_(False))


def test_a_group_has_its_rules_settings_and_the_recipes_for_the_rest() -> None:
    recipe = Recipe(
        lr=0.01,
        betas=(0.8, 0.9),
        eps=1e-6,
        weight_decay=0.1,
        groups=(
            GroupRule(
                name="biases", match=Match(kind=("bias",)), lr_mult=0.0, weight_decay=0.0, betas=(0.0, 0.0), eps=0.0
            ),
            GroupRule(name="head", match=Match(kind=("head",)), lr_mult=3.0),
        ),
    )
    found = {
        group.name: (group.lr, group.weight_decay, group.betas, group.eps)
        for group in param_groups(recipe, nn.Sequential(nn.Linear(D, D), nn.Linear(D, 2)))
    }
    assert found["biases"] == (0.0, 0.0, (0.0, 0.0), 0.0)
    assert found["head"] == (pytest.approx(0.03), 0.1, (0.8, 0.9), 1e-6)
    assert found[DEFAULT] == (0.01, 0.1, (0.8, 0.9), 1e-6)
