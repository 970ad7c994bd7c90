"""Edges of tasks, trials and the probe where something once went wrong."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_task import X as ROWS
from test_task import Y as TARGETS
from test_task import supervised, take
from test_trial import (
    FLAT,
    TASK,
    RefusesNaN,
    X,
    global_chance,
    loss,
    nan_gradient_at,
    start,
    train,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, TensorDataset, WeightedRandomSampler

from adamtune.engines.sequential import SequentialEngine
from adamtune.errors import TaskError, TaskReferenceError
from adamtune.probe import AdamProbe
from adamtune.recipe import Recipe
from adamtune.task import Task, batch_to, load_task
from adamtune.trial import Outcome, TrialRequest

CPU = torch.device("cpu")


# SERIOUS: evaluation draws from the trial's Python/NumPy streams, so evaluating more often changes training
@pytest.mark.parametrize("draw", [random.random, lambda: float(np.random.rand())])
def test_evaluations_that_draw_python_or_numpy_numbers_do_not_change_training(draw) -> None:
    def jittered(model: nn.Module, x: Tensor) -> Tensor:
        return loss(model, x * (1 + 0.1 * draw()))

    task = replace(TASK, loss=jittered)
    often, once = start(task, horizon=10), start(task, horizon=10)
    for rung in (2, 5, 10):
        often.advance(rung)
    once.advance(10)
    assert often.result().train_losses == once.result().train_losses


# 1b the same cause: the validation value of one recipe and seed depends on how far the streams have run
def test_evaluations_at_every_rung_see_the_same_python_chance() -> None:
    trial = start(replace(TASK, metrics={"noise": lambda model, x: torch.tensor(random.random())}))
    assert len({trial.advance(rung).values["noise"] for rung in (1, 2, 10)}) == 1


# SERIOUS: what was measured is lost when a forward raises on NaN weights between inspections
def test_losses_before_a_forward_that_raises_are_kept() -> None:
    result = train(replace(TASK, make_model=RefusesNaN, loss=nan_gradient_at(9)), horizon=40)
    assert result.outcome is Outcome.DIVERGED
    assert len(result.train_losses) == 9  # is 0


# SERIOUS: a model that raises on NaN outputs while its weights are huge but finite kills the sweep
def test_a_distribution_that_refuses_overflown_outputs_is_a_divergence() -> None:
    def nll(model: nn.Module, x: Tensor) -> Tensor:
        return -torch.distributions.Normal(model(x), 1.0).log_prob(x.sum(1, keepdim=True)).mean()

    for seed in range(10):  # some seeds pass through huge but finite weights, others do not
        recipe = Recipe(optimizer="sgd", lr=1e6, schedule=FLAT)
        assert train(replace(TASK, loss=nll), recipe, 60, seed=seed).outcome is Outcome.DIVERGED  # TaskError


# SERIOUS: the record at a rung uses the lr of the *next* update; under cosine to zero the last rung's lr_r is all 0
def test_the_effective_step_recorded_is_that_of_the_step_done() -> None:
    trial = start(TASK, Recipe(lr=1e-2), 10, probe=True)
    record = trial.advance(10).probe
    assert record["default/lr_r/p50"] > 0


# a large group of which only small parameters have state crashes the probe (frozen-by-never-used parameters)
def test_a_large_group_with_little_state_is_recorded() -> None:
    big, used = nn.Parameter(torch.zeros(1_000_000)), nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([big, used])
    used.sum().backward()
    optimizer.step()
    assert AdamProbe(optimizer).record()["group0/r/p50"] == pytest.approx(1.0)  # RuntimeError: quantile() empty


# sparse gradients crash the probe
def test_sparse_adam_is_recorded() -> None:
    table = nn.Embedding(10, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    table(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert "group0/r/p50" in AdamProbe(optimizer).record()  # NotImplementedError: linalg_vector_norm, SparseCPU


# design section 4: "or attach it as the optimizer's step hook"
def test_the_probe_can_be_the_optimizers_step_hook() -> None:
    param = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([param])
    probe = AdamProbe(optimizer)
    optimizer.register_step_post_hook(probe.step)  # called with (optimizer, args, kwargs)
    param.sum().backward()
    optimizer.step()
    assert len(probe.records) == 1


# a RandomSampler with replacement, or a subclass of a standard sampler, is one "of its own" and silently replaced
def test_a_loader_keeps_a_random_sampler_with_replacement() -> None:
    data = TensorDataset(ROWS, TARGETS)
    loader = DataLoader(data, batch_size=12, sampler=RandomSampler(data, replacement=True, num_samples=120))
    assert any(len(set(rows)) < 12 for rows in take(supervised(loader), 10))


def test_a_loader_keeps_a_subclass_of_a_standard_sampler() -> None:
    class EveryThird(SequentialSampler):
        def __iter__(self):
            return iter(range(0, 12, 3))

    data = TensorDataset(ROWS, TARGETS)
    assert take(supervised(DataLoader(data, batch_size=4, sampler=EveryThird(data))), 1) == [[0, 3, 6, 9]]


# a kept sampler or a validation loader with a generator of its own: the same request twice differs
def test_a_sampler_with_its_own_generator_gives_the_same_batches_for_the_same_seed() -> None:
    data = TensorDataset(ROWS, TARGETS)
    sampler = WeightedRandomSampler(torch.ones(12), 12, generator=torch.Generator().manual_seed(0))
    task = supervised(DataLoader(data, batch_size=4, sampler=sampler))
    assert take(task, 3) == take(task, 3)


def test_interleaved_trials_on_a_loader_with_persistent_workers_train_as_alone() -> None:
    data = TensorDataset(X, X.sum(1, keepdim=True))
    pairs = [[at, at + 1] for at in range(0, 64, 2)]
    loader = DataLoader(data, batch_sampler=pairs, num_workers=1, persistent_workers=True)
    task = Task.supervised(TASK.make_model, loader, data, nn.functional.mse_loss)
    alone = train(task, horizon=20).train_losses
    both = [start(task, horizon=20) for _ in range(2)]
    for rung in (5, 10, 20):
        for trial in both:
            trial.advance(rung, evaluate=False)
    assert both[0].result().train_losses == alone


# building the optimizer probes custom norm-like modules outside the trial's RNG
class NoisyGain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain * (1 + random.random() + np.random.rand())


def test_the_callers_random_state_is_left_alone_by_telling_norm_layers() -> None:
    before = global_chance()
    start(replace(TASK, make_model=lambda: nn.Sequential(NoisyGain(), nn.Linear(4, 1))))
    assert global_chance() == before


# batch_to: "named tuples, dicts and objects with .to keep their type"
def test_an_ordered_dict_keeps_its_type() -> None:
    assert isinstance(batch_to(OrderedDict(x=X), CPU), OrderedDict)


def test_a_packed_sequence_moves_with_its_own_to() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    assert batch_to(packed, torch.device("meta")).data.device.type == "meta"  # ValueError, on CUDA too


# messages
def test_an_error_in_the_standard_library_is_placed_in_the_users_file() -> None:
    with pytest.raises(TaskError, match=r"\(test_trial_edges\.py"):  # says (random.py, line 373)
        train(replace(TASK, loss=lambda model, x: random.choice([])))


def test_an_error_in_evaluation_is_not_told_as_a_training_step_past_the_horizon() -> None:
    def explode(model, x):
        raise ValueError("boom")

    with pytest.raises(TaskError) as caught:
        train(replace(TASK, metrics={"bad": explode}), horizon=10)
    assert "training step 11" not in str(caught.value)


def test_a_divergence_seen_in_evaluation_is_not_told_past_the_horizon() -> None:
    result = train(replace(TASK, val_batches=lambda: [X * float("nan")]), horizon=10)
    assert result.message != "diverged at step 11"


def test_a_callable_without_signature_is_a_task_reference_error() -> None:
    with pytest.raises(TaskReferenceError):
        load_task("builtins:dict")  # ValueError: no signature found


# OMP_NUM_THREADS may be a list by OpenMP's own rules
def test_omp_num_threads_may_be_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    SequentialEngine(TASK, CPU).open([TrialRequest(Recipe(), 0, 2)]).advance(2)  # ValueError


# a trial trains past its horizon when asked to
def test_a_trial_never_trains_past_its_horizon() -> None:
    trial = start(horizon=10)
    trial.advance(15)
    assert trial.result().steps == 10  # 15, "completed"


# fp16 that overflows for good skips 167 steps until the scale underflows to zero
def test_fp16_that_overflows_for_good_is_told_before_the_scale_has_run_out() -> None:
    trial = start(replace(TASK, loss=lambda model, x: loss(model, x) * float("inf")), Recipe(precision="fp16"), 1000)
    trial.advance(1000, evaluate=False)
    assert trial.result().steps < 100
