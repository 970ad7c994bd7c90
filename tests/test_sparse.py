"""Tables with sparse gradients: torch's SparseAdam beside Adam, and what is not asked of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adamtune.errors import RecipeError
from adamtune.groups import param_groups
from adamtune.history import Outcome, TrialRequest
from adamtune.probe import AdamProbe
from adamtune.recipe import GroupRule, Match, Recipe, Schedule, Switch
from adamtune.sparse import AdamBesideSparseAdam
from adamtune.spec import Spec, TaskSpec
from adamtune.stages import REGISTRY
from adamtune.task import Task
from adamtune.trial import Trial

NO_DECAY = GroupRule(name="no_decay", match=Match(kind=("bias", "norm")), weight_decay=0.0)
RECIPE = Recipe(lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9), groups=(NO_DECAY,), schedule=Schedule(kind="constant"))


class Rows(nn.Module):
    def __init__(self, sparse: bool = True) -> None:
        super().__init__()
        self.rows = nn.Embedding(12, 4, sparse=sparse)
        self.head = nn.Linear(4, 2)

    def forward(self, codes: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rows(codes))
        return logits


def made() -> Rows:
    torch.manual_seed(0)
    return Rows()


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        codes = torch.randint(12, (3,), generator=generator)
        yield codes, codes % 2


def train(model: Rows, optimizers: list[torch.optim.Optimizer], steps: Iterator[tuple[Tensor, Tensor]]) -> None:
    for codes, target in steps:
        model.zero_grad()
        functional.cross_entropy(model(codes), target).backward()
        for optimizer in optimizers:
            optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_it_is_torchs_adam_and_torchs_sparse_adam_to_the_bit(kind: str) -> None:
    recipe = RECIPE.model_copy(update={"optimizer": kind, "schedule": Schedule(kind="constant", warmup=0.0)})
    model, twin = made(), made()
    optimizer, _ = recipe.build(model, total_steps=30)
    adam = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    by_hand = [
        adam([{"params": [twin.head.weight], "weight_decay": 0.1}, {"params": [twin.head.bias], "weight_decay": 0.0}],
             lr=1e-2, betas=(0.8, 0.9)),
        torch.optim.SparseAdam([twin.rows.weight], lr=1e-2, betas=(0.8, 0.9)),
    ]  # fmt: skip
    train(model, [optimizer], batches(30))
    train(twin, by_hand, batches(30))
    assert same(model, twin)
    assert not same(model, made())


def test_a_model_of_sparse_tables_alone_gets_sparse_adam() -> None:
    optimizer, _ = RECIPE.build(nn.Embedding(3, 2, sparse=True), total_steps=5)
    assert type(optimizer) is torch.optim.SparseAdam


def test_a_run_resumed_from_its_state_ends_where_an_unbroken_one_does() -> None:
    data = list(batches(20))
    model = made()
    optimizer, _ = RECIPE.build(model, total_steps=20)
    train(model, [optimizer], iter(data[:9]))
    other = copy.deepcopy(model)
    again, _ = RECIPE.build(other, total_steps=20)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again_too = copy.deepcopy(again)
    assert isinstance(again_too, AdamBesideSparseAdam)
    for each, stepping in ((model, optimizer), (other, again)):
        train(each, [stepping], iter(data[9:]))
    assert same(model, other)


def test_rows_that_no_batch_held_stay_where_they_were() -> None:
    model = made()
    before = model.rows.weight.detach().clone()
    optimizer, _ = RECIPE.model_copy(update={"schedule": Schedule(warmup=0.0)}).build(model, total_steps=9)
    codes = torch.tensor([2, 5])
    train(model, [optimizer], iter([(codes, codes % 2)] * 5))
    moved = (model.rows.weight != before).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == [2, 5]


def test_the_schedule_moves_the_lr_of_both() -> None:
    optimizer, scheduler = RECIPE.model_copy(update={"schedule": Schedule(kind="linear", warmup=0.0)}).build(
        made(), total_steps=4
    )
    assert isinstance(optimizer, AdamBesideSparseAdam)
    optimizer.step(lambda: 0.0)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0075] * 3)


def test_a_table_has_a_group_of_its_own_without_decay() -> None:
    found = {group.name: (group.names, group.weight_decay, group.sparse) for group in param_groups(RECIPE, made())}
    assert found == {
        "no_decay": (("head.bias",), 0.0, False),
        "default": (("head.weight",), 0.1, False),
        "default_sparse": (("rows.weight",), 0.0, True),
    }
    ruled = RECIPE.model_copy(update={"groups": (GroupRule(name="tables", match=Match(kind="embedding"), lr_mult=3),)})
    tables = next(group for group in param_groups(ruled, made()) if group.name == "tables")
    assert (tables.names, tables.lr, tables.sparse) == (("rows.weight",), pytest.approx(0.03), True)


def test_what_torch_cannot_do_with_sparse_gradients_is_refused_by_name() -> None:
    decayed = GroupRule(name="tables", match=Match(kind="embedding"), weight_decay=0.1)
    refused = {
        "$.groups.tables.weight_decay: the gradients of 'rows.weight' are sparse": {"groups": (decayed,)},
        "$.clip_norm: torch cannot clip sparse gradients": {"clip_norm": 1.0},
        "$.switch: SGD cannot take over from SparseAdam": {"switch": Switch(at=0.5, lr=0.1)},
    }
    for told, change in refused.items():
        with pytest.raises(RecipeError) as caught:
            RECIPE.model_copy(update=change).build(made(), total_steps=10)
        assert told in str(caught.value)
        RECIPE.model_copy(update=change).build(Rows(sparse=False), total_steps=10)


def test_stages_that_would_need_it_say_why_they_do_not_ask() -> None:
    spec = Spec(task=TaskSpec(ref="a:b"), horizon=100, base=RECIPE)
    reasons = {name: REGISTRY[name].missing(spec, param_groups(RECIPE, made())) for name in REGISTRY}
    told = {name: reason for name, reason in reasons.items() if "sparse" in reason}
    assert told == {
        "clip": "the model has tables with sparse gradients, which torch cannot clip",
        "switch": "the model has tables with sparse gradients, of which SGD keeps ever longer momenta",
        "optimizer": "the model has tables with sparse gradients, of which SGD keeps ever longer momenta",
    }
    dense = param_groups(RECIPE, Rows(sparse=False))
    assert not any("sparse" in stage.missing(spec, dense) for stage in REGISTRY.values())


def test_the_probe_measures_both_as_far_as_they_went() -> None:
    recipe = RECIPE.model_copy(update={"eps": 0.05, "schedule": Schedule(kind="constant", warmup=0.0)})
    model = made()
    optimizer, _ = recipe.build(model, total_steps=9)
    train(model, [optimizer], batches(5))
    before = model.rows.weight.detach().clone()
    every = torch.arange(12)
    train(model, [optimizer], iter([(every, every % 2)]))
    went = (model.rows.weight.detach() - before).abs().max()
    record = AdamProbe(optimizer, model, percentiles=(100,)).record()
    assert record["default_sparse/lr_r/p100"] == pytest.approx(float(went), rel=1e-4)


def test_a_trial_trains_a_sparse_model() -> None:
    x = torch.arange(12)
    task = Task.supervised(Rows, (x, x % 2), (x, x % 2), functional.cross_entropy, batch_size=4)
    trial = Trial(task, TrialRequest(RECIPE.with_knob("lr", 0.1), 0, 60, probe=True), torch.device("cpu"))
    first, last = trial.advance(1), trial.advance(60)
    assert trial.outcome is Outcome.COMPLETED
    assert first is not None
    assert last is not None
    assert last.values["loss"] < 0.5 * first.values["loss"]
    assert "default_sparse/r/p50" in last.probe
