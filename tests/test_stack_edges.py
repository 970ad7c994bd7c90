"""Models, losses and batches at the edge of what can be stacked: the numbers of trials alone, or handed back."""

from __future__ import annotations

import copy
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stacked import CPU, X, alone, assert_same, batches, finish, loss, mlp, requests, stacked, task, width_of
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adamtune.engines.local import LocalBatch
from adamtune.engines.population import PopulationEngine
from adamtune.engines.width import time_alone
from adamtune.errors import TaskError
from adamtune.history import Outcome, TrialRequest
from adamtune.population import NotVectorisable, Population
from adamtune.population.check import check
from adamtune.population.kept import Keeping
from adamtune.recipe import Recipe, Schedule
from adamtune.task import Task

ASKED = requests()
DOOMED = Recipe(optimizer="sgd", lr=1e200, schedule=Schedule(kind="constant", warmup=0.0))


def as_alone(of: Task, asked: list[TrialRequest] = ASKED) -> list[str]:
    """Train by the engine, compare with trials alone; what the engine said."""
    notes: list[str] = []
    with closing(PopulationEngine(of, CPU, on_note=notes.append, always=True, processes=1)) as engine:
        assert_same(finish(engine.open(asked)), alone(of, asked))
    return notes


def local(of: Task, asked: list[TrialRequest] = ASKED) -> tuple[LocalBatch, list[str]]:
    notes: list[str] = []
    return LocalBatch(of, asked, CPU, 8, False, lambda steps: None, notes.append), notes


# --- what a model keeps from one call to the next


class Penalised(nn.Module):
    """Leaves a term for the loss in an attribute."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda penalty: penalty) -> None:
        super().__init__()
        self.body, self.wrap = mlp(), wrap

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        self.left = self.wrap(out.pow(2).mean())
        return out


def with_penalty(read: Callable[[Any], Tensor] = lambda left: left) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, x: loss(model, x) + read(model.left)


LEFT: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "a tensor": (lambda penalty: penalty, lambda left: left),
    "a list": (lambda penalty: [1, penalty], lambda left: left[1]),
    "a dict of tuples": (lambda penalty: {"penalty": (penalty, 1)}, lambda left: left["penalty"][0]),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_a_model_leaves_for_its_loss_is_stacked_and_halved_where_memory_ends(kind: str) -> None:
    wrap, read = LEFT[kind]
    calls, widths = itertools.count(), []

    def full(model: nn.Module, x: Tensor) -> Tensor:
        value = with_penalty(read)(model, x)
        if torch.is_grad_enabled():
            widths.append(width_of(value))
            if next(calls) > 4 and widths[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return value

    batch, notes = local(task(lambda: Penalised(wrap), full))
    assert_same(finish(batch), alone(task(lambda: Penalised(wrap), with_penalty(read)), ASKED))
    assert notes == []
    assert (widths[0], widths[-1]) == (4, 2)


def test_a_model_that_cannot_be_copied_when_memory_ends_is_handed_back() -> None:
    class Single(nn.Sequential):
        copies = 0

        def __deepcopy__(self, memo: Any) -> Single:
            Single.copies += 1
            if Single.copies > 1:
                raise TypeError("no more copies")
            return Single(*(copy.deepcopy(layer, memo) for layer in self))

    def full(model: nn.Module, x: Tensor) -> Tensor:
        value = loss(model, x)
        if width_of(value) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return value

    batch, notes = local(task(lambda: Single(*mlp()), full))
    assert_same(finish(batch), alone(task(), ASKED))
    assert len(notes) == 1
    assert "memory ends at training step 1" in notes[0]


class Running(nn.Module):
    """Keeps a running mean, which is a tensor, in an attribute that is no buffer; by `keep` not as it is."""

    def __init__(self, keep: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.means, self.keep = mlp(), [torch.zeros(())], keep

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        if self.training:
            mean = 0.9 * self.means[0] + 0.1 * out.detach().mean()
            self.means = self.keep(mean)
        return out - self.means[0]


class Box:
    """Holds a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, place: int) -> Tensor:
        return self.tensor


KEPT: dict[str, Callable[[Tensor], Any]] = {
    "list": lambda mean: [mean],
    "tuple": lambda mean: (mean, 0),
    "dict": lambda mean: {0: mean},
    "object": Box,
}


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("lrs", [(1e-3,), (1e-3, 1e-2)])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_tensors_kept_in_a_plain_attribute_are_handed_back_by_name(
    seeds: tuple[int, ...], lrs: tuple[float, ...], kind: str
) -> None:
    notes = as_alone(task(lambda: Running(KEPT[kind])), requests(seeds, lrs))
    assert len(notes) == 1
    assert "one by one: its model reads 'means' of the model (Running)" in notes[0]


def test_tensors_kept_out_of_sight_give_no_wrong_number() -> None:
    hidden = task(lambda: Running(lambda mean: (mean, *range(100))))
    as_alone(hidden)
    batch, notes = local(hidden, [*ASKED, TrialRequest(DOOMED, 0, 24), TrialRequest(DOOMED, 1, 24)])
    batch.advance(5)
    for place in (0, 1, 2):
        batch.prune(place)
    batch.advance(24)
    assert_same(batch.results()[3:4], alone(hidden, ASKED[3:4], (5, 24)))
    assert len(notes) == 1


def register(model: Changing) -> None:
    if not hasattr(model, "kept"):
        model.register_buffer("kept", model.body[0].weight.detach() * 1.0)


def replace_one(model: Changing) -> None:
    model.mean = 0.9 * model.mean + 0.1 * model.body[0].bias.detach().mean()


def delete(model: Changing) -> None:
    model._buffers.pop("mean", None)


def fill(model: Changing) -> None:
    if model.nothing is None:
        model.nothing = model.body[0].weight.detach() * 1.0


def fill_where_it_is_evaluated(model: Changing) -> None:
    if not model.training:
        fill(model)


class Changing(nn.Module):
    """Changes which buffers it has while it is called, from one call on."""

    mean: Tensor
    nothing: Tensor | None

    def __init__(self, change: Callable[[Any], None], call: int) -> None:
        super().__init__()
        self.body, self.change, self.call, self.calls = mlp(), change, call, 0
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls >= self.call:
            self.change(self)
        out: Tensor = self.body(x)
        return out * (1 + sum(buffer.mean() for buffer in self.buffers()))


CHANGED = {
    register: "its model registers 'kept' while it is called",
    replace_one: "its model puts another tensor in place of 'mean'",
    delete: "its model puts another tensor in place of 'mean'",
    fill: "its model registers 'nothing' while it is called",
    fill_where_it_is_evaluated: "its model registers 'nothing' while it is called",
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("call", [1, 7])
@pytest.mark.parametrize("fits", [1.0, math.inf])
def test_other_buffers_than_before_are_handed_back_by_name(
    change: Callable[[Any], None], call: int, fits: float
) -> None:
    of, notes = task(lambda: Changing(change, call)), []
    if call == 1 and change is not fill_where_it_is_evaluated:
        with pytest.raises(NotVectorisable, match=CHANGED[change]):
            check(of, ASKED, CPU)
        return
    batch = LocalBatch(of, ASKED, CPU, 8, False, lambda steps: None, notes.append, fits=fits)
    assert_same(finish(batch), alone(of, ASKED))
    assert CHANGED[change] in notes[-1]


# --- weights that are read elsewhere than where a stack lends them


class Reading(nn.Module):
    """Made in float64, since `double()` takes shared memory apart; `read` gives what is added to its output."""

    def __init__(self, make: Callable[[nn.Linear], Any], read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.body, self.read = mlp().double(), read
        nn.init.zeros_(self.body[0].bias)
        self.seen = make(self.body[0])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out + 0.1 * self.read(self.seen)


class Holding(nn.Module):
    """Has a tensor as a buffer, or as a parameter."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        if isinstance(tensor, nn.Parameter):
            self.kept = tensor
        else:
            self.register_buffer("kept", tensor)


ELSEWHERE: dict[str, tuple[Callable[[nn.Linear], Any], Callable[[Any], Tensor]]] = {
    "a list": (lambda layer: [layer.bias], lambda seen: seen[0].detach().sum()),
    "a buffer on the same memory": (lambda layer: Holding(layer.bias.data), lambda seen: seen.kept.sum()),
    "a parameter on the same memory": (
        lambda layer: Holding(nn.Parameter(layer.bias.data[3:])), lambda seen: seen.kept.sum(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_weights_that_are_read_elsewhere_are_handed_back(kind: str) -> None:
    of = replace(task(), make_model=lambda: Reading(*ELSEWHERE[kind]))
    notes = as_alone(of)
    assert "one by one: in a stack" in notes[0]


class Counting(nn.Module):
    """Counts its calls, in evaluation too, in a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = mlp(), torch.zeros((), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        out: Tensor = self.body(x) * (1 + 1 / self.calls)
        return out


def test_a_model_that_counts_its_calls_in_a_tensor_gives_no_wrong_number() -> None:
    as_alone(task(Counting))


class FirstCall(nn.Module):
    """Is another where it is first evaluated; knows it by a flag or by a mask."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.body, self.by, self.flag = mlp(), by, False
        self.register_buffer("mask", torch.zeros(2, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        if not self.training and self.by == "flag":
            out, self.flag = out + (not self.flag), True
        elif not self.training:
            out = out + ~self.mask.all()
            self.mask.fill_(True)
        return out


@pytest.mark.parametrize("by", ["flag", "mask"])
@pytest.mark.parametrize("metric", [loss, lambda model, x: loss(model, x).item(), lambda model, x: torch.rand(())])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_model_whose_first_evaluation_is_another_is_handed_back(
    seeds: tuple[int, ...], metric: Callable[[nn.Module, Tensor], Any], by: str
) -> None:
    notes = as_alone(replace(task(lambda: FirstCall(by)), metrics={"metric": metric}), requests(seeds))
    assert len(notes) == 2
    assert "again one by one: its model keeps something of what it is evaluated on" in notes[1]


def test_validation_by_a_loader_is_of_all_seeds_at_once_where_it_draws_nothing() -> None:
    def widths(**options: Any) -> set[int]:
        def seen(model: nn.Module, x: Tensor) -> Tensor:
            found.add(width_of(value := loss(model, x)))
            return value

        found: set[int] = set()
        of = replace(task(), metrics={"seen": seen}, val_batches=lambda: DataLoader(X, batch_size=20, **options))
        assert_same(stacked(of, ASKED, width=4), alone(of, ASKED))
        return found

    assert widths() == {1, 4}  # alone and together
    assert widths(shuffle=True) == {1, 2}


@pytest.mark.parametrize(("fits", "most"), [(0.5, 1), (5.0, 2), (9.0, 3), (math.inf, 4)])
@pytest.mark.parametrize("seeds", [(0, 1), (0,)])
def test_no_more_members_are_evaluated_at_once_than_there_is_memory_for(
    seeds: tuple[int, ...], fits: float, most: int
) -> None:
    def noisy(model: nn.Module, x: Tensor) -> Tensor:
        value = loss(model, x)
        if not model.training:
            widths.add(width_of(value))
        return value + torch.rand(()) + random.random() + np.random.random() if seeds == (0,) else value

    widths: set[int] = set()
    of = replace(task(), metrics={"noisy": noisy})
    asked = requests(seeds, (1e-3, 3e-3, 1e-2, 3e-2)[: 4 // len(seeds)])
    found = finish(Population(of, asked, CPU, 4, False, fits=fits))
    assert max(widths) == most  # batches of 20 rows, where a member trains on 8
    assert_same(found, alone(of, asked))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_engine_that_may_take_next_to_no_memory_evaluates_one_by_one(processes: int, tmp_path: Path) -> None:
    def seen(model: nn.Module, x: Tensor) -> Tensor:
        value = loss(model, x)
        with (tmp_path / str(model.training)).open("a") as file:  # read by another process
            file.write(f"{width_of(value)} ")
        return value

    asked = requests((0, 1), (1e-3, 3e-3, 1e-2, 3e-2))
    with closing(PopulationEngine(task(loss=seen), CPU, always=True, memory=0.0, processes=processes)) as engine:
        assert_same(finish(engine.open(asked)), alone(task(), asked))
    widths = {name: set((tmp_path / name).read_text().split()) for name in ("True", "False")}
    assert widths == {"True": {"1", "2"}, "False": {"1"}}


def test_halves_of_a_stack_keep_to_the_memory_too() -> None:
    widths: set[int] = set()

    def seen(model: nn.Module, x: Tensor) -> Tensor:
        value = loss(model, x)
        if not model.training:
            widths.add(width_of(value))
        elif width_of(value) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return value

    population = Population(task(loss=seen), ASKED, CPU, 4, False, fits=1.0)
    assert_same(finish(population), alone(task(), ASKED))
    assert widths == {1}


class CountingOutOfSight(nn.Module):
    """Counts its evaluations where nobody looks."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = mlp(), itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out if self.training else out + 0.1 * next(self.calls)


def test_a_model_that_counts_its_evaluations_out_of_sight_is_not_evaluated_in_portions() -> None:
    hidden = task(CountingOutOfSight)
    assert_same(finish(Population(hidden, ASKED, CPU, 4, False)), alone(hidden, ASKED))
    with pytest.raises(NotVectorisable, match="keeps something of what it is evaluated on"):
        finish(Population(hidden, ASKED, CPU, 4, False, fits=5.0))


def test_of_the_tuples_that_a_model_keeps_in_turn_only_the_last_is_held() -> None:
    model = mlp()
    keeping, kept = Keeping(model), [tuple(range(n)) for n in (2, 3)]
    for one in kept:
        model.kept = one
        keeping.forget_members()
    del one
    assert sys.getrefcount(kept[1]) - sys.getrefcount(kept[0]) == 2  # the model's and its own


def test_what_a_handed_back_batch_held_is_let_go_of() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.steps = mlp(), 0

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x)
            self.steps += self.training
            return 2 * out if self.steps > 5 and out.sum() > 0 else out

    open_now: set[int] = set()

    def counted(generator: torch.Generator) -> Iterator[Tensor]:
        mine = next(number for number in itertools.count() if number not in open_now)
        open_now.add(mine)
        try:
            yield from batches(generator)
        finally:
            open_now.remove(mine)

    batch, notes = local(replace(task(Branching), train_batches=counted))
    batch.advance(5)
    batch.prune(0)
    assert len(open_now) == 2  # one a seed
    batch.advance(10)
    assert len(notes) == 1
    assert len(open_now) == 3  # one a trial that runs, and none of the stacks'
    assert [result.steps for result in batch.results()] == [5, 10, 10, 10]
    assert not open_now


# --- batches that end or raise


def ending(after: int) -> Callable[[torch.Generator], Iterator[Tensor]]:
    return lambda generator: itertools.islice(batches(generator), after)


def raising(after: int) -> Callable[[torch.Generator], Iterator[Tensor]]:
    def drawn(generator: torch.Generator) -> Iterator[Tensor]:
        yield from itertools.islice(batches(generator), after)
        raise ValueError("no more")

    return drawn


@pytest.mark.parametrize("after", [0, 1, 4, 9, 10, 18])
@pytest.mark.parametrize("kind", [ending, raising])
def test_an_error_of_the_batches_comes_when_its_step_is_trained(
    kind: Callable[[int], Callable[[torch.Generator], Iterator[Tensor]]], after: int
) -> None:
    of = replace(task(), train_batches=kind(after))
    rungs = [rung for rung in (1, 3, 10, 12, 18) if rung <= after]
    expected = alone(of, ASKED, rungs)
    with pytest.raises(TaskError) as told:
        alone(of, ASKED, (*rungs, 24))
    with closing(PopulationEngine(of, CPU, always=True, processes=1)) as engine:
        for batch in (Population(of, ASKED, CPU, 8, False), engine.open(ASKED)):
            for rung in rungs:
                assert all(batch.advance(rung))
            with pytest.raises(TaskError) as found:
                batch.advance(24)
            assert str(found.value) == str(told.value)
            assert_kept(batch.results(), expected)


def assert_kept(found: list[Any], expected: list[Any]) -> None:
    """The same rungs, though more steps may have been trained before the error."""
    assert [len(result.rungs) for result in found] == [len(result.rungs) for result in expected]
    for mine, others in zip(found, expected, strict=True):
        for one, other in zip(mine.rungs, others.rungs, strict=True):
            assert one.train_losses == pytest.approx(other.train_losses, rel=1e-9)


def test_batches_that_raise_for_a_diverged_seed_only_end_its_trials() -> None:
    def drawn(generator: torch.Generator) -> Iterator[Tensor]:
        for step in itertools.count():
            if step == 9 and generator.initial_seed() == second:
                raise ValueError("this seed breaks")
            yield X[torch.randint(64, (8,), generator=generator)]

    seeds: list[int] = []
    recorded = replace(task(), train_batches=lambda g: (seeds.append(g.initial_seed()), batches(g))[1])
    alone(recorded, requests((1,), (1e-3,)), (1,))
    second = seeds[0]
    of = replace(task(), train_batches=drawn)
    asked = [*requests(seeds=(0,)), TrialRequest(DOOMED, 1, 24)]
    expected = alone(of, asked)
    assert [result.outcome for result in expected] == [Outcome.COMPLETED, Outcome.COMPLETED, Outcome.DIVERGED]
    assert_same(stacked(of, asked, (7, 24)), expected)


def test_the_time_of_a_step_is_taken_from_those_there_are() -> None:
    assert 0 < time_alone(replace(task(), train_batches=ending(4)), ASKED[0], CPU) < 10
    assert time_alone(replace(task(), train_batches=ending(0)), ASKED[0], CPU) == float("inf")
    diverging = TrialRequest(DOOMED, 0, 24)
    quickest = min(time_alone(task(), ASKED[0], CPU) for _ in range(5))
    assert time_alone(task(), diverging, CPU) > quickest / 10  # and not of the nothing after its divergence


# --- behind a convolution


def images(x: Tensor) -> Tensor:
    """A batch (8, 4) as images (8, 1, 6, 5)."""
    return torch.stack([x * k for k in range(1, 7)], 1).repeat_interleave(2, 2)[:, :, :5].unsqueeze(1)


def behind_a_convolution(*layers: nn.Module) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        body = nn.Sequential(nn.Conv2d(1, 4, 2, padding=1), *copy.deepcopy(layers), nn.Flatten())
        return nn.Sequential(body, nn.Linear(body.eval()(images(X[:2]).float()).shape[1], 1)).train()

    return make


def on_images(model: nn.Module, x: Tensor) -> Tensor:
    return (model(images(x)) - x.sum(1, keepdim=True)).pow(2).mean()


LAYERS: dict[str, tuple[nn.Module, ...]] = {
    "dropout": (nn.Dropout(0.3),),
    "pooling and dropout": (nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3)),
    "dropout of a single column": (nn.MaxPool2d((1, 6)), nn.Dropout(0.3)),
    "dropout of a single channel": (nn.Conv2d(4, 1, 2), nn.Dropout(0.3)),
    "group norm": (nn.GroupNorm(2, 4), nn.ReLU()),
    "group norm without scale": (nn.GroupNorm(2, 4, affine=False),),
    "group norm and dropout": (nn.GroupNorm(4, 4), nn.GELU(), nn.Dropout(0.3)),
    "batch norm and dropout": (nn.BatchNorm2d(4), nn.Dropout(0.3)),
    "batch norm of the batch alone": (nn.BatchNorm2d(4, affine=False, track_running_stats=False), nn.ReLU()),
    "batch norm averaging all": (nn.BatchNorm2d(4, momentum=None), nn.ReLU()),
    "activations in place": (
        nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.LeakyReLU(inplace=True), nn.Conv2d(4, 4, 2), nn.GroupNorm(2, 4),
        nn.SiLU(inplace=True), nn.MaxPool2d(2), nn.ELU(inplace=True),
    ),
    "averages": (nn.SiLU(), nn.AvgPool2d(2, 1), nn.Conv2d(4, 4, 2), nn.GELU(), nn.AdaptiveAvgPool2d(1)),
    "averages of one image size": (nn.AdaptiveAvgPool2d((3, None)), nn.Tanh(), nn.AdaptiveMaxPool2d(1)),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), nn.ReLU()),
    "upsampling": (nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_behind_a_convolution_are_stacked(name: str, width: int) -> None:
    of = task(behind_a_convolution(*LAYERS[name]), on_images)
    asked = requests(seeds=(0,), lrs=(1e-3, 3e-3, 1e-2))
    assert_same(stacked(of, asked, width=width), alone(of, asked))


def test_dropout_of_a_layout_of_the_models_own() -> None:
    class Permuting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.drop, self.last = nn.Linear(1, 4), nn.Dropout(0.3), nn.Linear(120, 1)

        def forward(self, x: Tensor) -> Tensor:
            channels_last = self.first(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            out: Tensor = self.last(self.drop(channels_last).flatten(1))
            return out

    of = task(Permuting, on_images)
    for width in (1, 2):
        assert_same(stacked(of, ASKED, width=width), alone(of, ASKED))


# --- as exact as the tensors


def test_clipping_is_as_exact_as_the_gradients() -> None:
    asked = requests(clip_norm=0.3, optimizer="sgd", momentum=0.0)
    of = task(lambda: nn.Linear(4, 1))
    assert_same(stacked(of, asked), alone(of, asked), 1e-13)


@pytest.mark.parametrize("share", [lambda model, x: len(x) / 7, lambda model, x: torch.tensor(len(x) / 7)])
def test_a_metric_that_is_no_members_tensor(share: Callable[[nn.Module, Tensor], Any]) -> None:
    of = replace(task(), metrics={"share": share})
    assert_same(stacked(of, ASKED), alone(of, ASKED), 1e-14)


# --- weights that are asked whether they train


def decayed(share: float) -> Callable[[nn.Module, Tensor], Tensor]:
    def penalised(model: nn.Module, x: Tensor) -> Tensor:
        return loss(model, x) + share * sum(p.pow(2).sum() for p in model.parameters() if p.requires_grad)

    return penalised


def half_frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize("make_model", [mlp, half_frozen])
@pytest.mark.parametrize("share", [1e-1, 1e-6])
def test_a_penalty_on_the_weights_that_train_however_small(make_model: Callable[[], nn.Module], share: float) -> None:
    of = task(make_model, decayed(share))
    for asked in (ASKED, requests(seeds=(0,))):
        assert_same(stacked(of, asked), alone(of, asked), 1e-12)


def test_such_a_penalty_where_members_are_evaluated_one_by_one() -> None:
    of = replace(task(loss=decayed(0.1)), metrics={"item": lambda model, x: model(x).mean().item()})
    assert_same(stacked(of, ASKED), alone(of, ASKED), 1e-12)


@pytest.mark.parametrize("gap", [1e-8, -1e-3])
def test_in_float64_a_small_difference_is_found(gap: float) -> None:
    def seen(model: nn.Module, x: Tensor) -> Tensor:
        value = loss(model, x)
        return value * (1 + gap) if width_of(value) > 1 else value

    with pytest.raises(NotVectorisable, match="in a stack its first loss is"):
        check(task(loss=seen), ASKED, CPU)


# --- in 16 bits


def in_bf16(*layers: nn.Module, side: float = 0.0) -> Task:
    """Of 8 x 8 images in float32. A stack gives a weight at the side twice its small gradient."""

    class Sided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.side = copy.deepcopy(nn.Sequential(*layers)), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x.unflatten(1, (1, 2, 2)).expand(-1, 3, -1, -1).repeat(1, 1, 4, 4)).flatten(1)
            return out.mean(1, keepdim=True) + side * (1 + (width_of(out) > 1)) * self.side

    data = X.float()
    draw = lambda generator: (data[torch.randint(64, (16,), generator=generator)] for _ in itertools.count())  # noqa: E731
    return Task("toy", Sided, draw, loss, lambda: [data])


class Attending(nn.Module):
    """Over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


NORMED = nn.Flatten(), nn.Linear(192, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1)


@pytest.mark.parametrize("layers", [NORMED, (Attending(),)])
def test_a_gradient_that_is_rounding_only_keeps_no_stack_from_16_bits(layers: tuple[nn.Module, ...]) -> None:
    of, asked = in_bf16(*layers), requests(precision="bf16", lrs=(1e-4, 1e-3))
    assert_same(stacked(of, asked), alone(of, asked), 0.05)


def test_a_gradient_that_16_bits_would_hide_is_seen_to_be_another() -> None:
    of = in_bf16(nn.Conv2d(3, 8, 3), nn.SiLU(), side=1e-4)
    with pytest.raises(NotVectorisable, match="the gradient of the parameter 'side' is another"):
        check(of, requests(precision="bf16"), CPU)


def test_noise_of_the_type_of_an_activation_is_the_same_noise() -> None:
    class Dropped(nn.Module):
        """Rows are dropped as timm's DropPath does."""

        def forward(self, x: Tensor) -> Tensor:
            kept = (0.9 + torch.rand((len(x), 1), dtype=x.dtype)).floor_()
            return x.div(0.9) * kept if self.training else x

    layers = nn.Flatten(), nn.Linear(192, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 8), Dropped()
    of, asked = in_bf16(*layers), requests(precision="bf16", lrs=(1e-4, 1e-3))
    assert_same(stacked(of, asked), alone(of, asked), 0.004)
