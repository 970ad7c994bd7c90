"""Adam, then SGD, as one optimizer."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from test_optim import NO_DECAY, TOLERANCE, batches, gap, loss, make_model, train, train_twin
from torch import nn

from adamtune.groups import param_groups
from adamtune.handover import AdamThenSGD
from adamtune.live_ramp import range_test
from adamtune.optim import optimizer_for
from adamtune.probe import AdamProbe
from adamtune.recipe import GroupRule, Match, Recipe, Schedule, Switch
from adamtune.schedule import multiplier, switch_step

HEAD = GroupRule(name="head", match=Match(kind=("head",)), lr_mult=0.3, betas=(0.8, 0.9), eps=1e-4)
STILL = GroupRule(name="still", match=Match(params=("embed.*",)), lr_mult=0.0)
SWITCHED = Recipe(lr=1e-2, weight_decay=0.05, groups=(NO_DECAY, HEAD), switch=Switch(at=0.4, lr=0.2, momentum=0.8))
RECIPES = {
    "adamw": SWITCHED,
    "adam with L2, stepwise decay": SWITCHED.model_copy(
        update={"optimizer": "adam", "schedule": Schedule(kind="step", warmup=0.1, milestones=(0.3, 0.6), gamma=0.5)}
    ),
    "within the warmup": SWITCHED.model_copy(update={"schedule": Schedule(kind="linear", warmup=0.7, floor=0.2)}),
    "after one step": SWITCHED.with_knob("switch", {"at": 1e-9, "lr": 0.1}),
    "for one step": SWITCHED.model_copy(
        update={"switch": Switch(at=1 - 1e-9, lr=1.0), "schedule": Schedule(kind="constant", warmup=0.0)}
    ),
    "without momentum, clipped": SWITCHED.model_copy(
        update={"switch": Switch(at=0.5, lr=0.3, momentum=0.0), "clip_norm": 0.2}
    ),
    "accumulated, a group held": SWITCHED.model_copy(update={"accumulate": 2, "groups": (STILL, NO_DECAY)}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_like_its_twin_for_200_steps(name: str) -> None:
    trained = train(RECIPES[name], 200)
    assert gap(trained, train_twin(RECIPES[name], 200)) < TOLERANCE
    assert gap(trained, train(RECIPES[name].with_knob("switch", None), 200)) > 1e-3  # and SGD makes a difference


@pytest.mark.parametrize(
    ("at", "total", "first"),
    [(0.4, 30, 12), (0.5, 5, 2), (0.5, 7, 4), (1e-9, 30, 1), (1 - 1e-9, 30, 29), (0.5, 2, 1), (0.1, 2, 1), (0.9, 1, 1)],
)
def test_at_least_one_update_is_adams_and_one_sgds(at: float, total: int, first: int) -> None:
    assert switch_step(Switch(at=at, lr=1.0), total) == first


def test_it_is_torchs_adamw_and_then_a_new_sgd_of_torchs_to_the_bit() -> None:
    after, by_hand, data, steps = SWITCHED.after_switch, make_model(), batches(), 30
    assert after is not None
    stages = {0: SWITCHED, 12: after}
    for step in range(steps):
        if step in stages:
            groups = param_groups(stages[step], by_hand)
            optimizer = optimizer_for(stages[step], groups)
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = own.lr * multiplier(SWITCHED.schedule, step, steps)
        optimizer.zero_grad()
        loss(by_hand, next(data)).backward()
        optimizer.step()
    assert gap(train(SWITCHED, steps), by_hand) == 0.0


def test_lr_is_that_of_whichever_steps_in_its_group_on_one_schedule() -> None:
    optimizer, scheduler = SWITCHED.build(make_model(), total_steps=10)
    for step in range(12):
        base = 1e-2 if step < 4 else 0.2
        expected = [base * mult * multiplier(SWITCHED.schedule, step, 10) for mult in (1.0, 0.3, 1.0)]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected, rel=1e-15)
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        assert optimizer.handed_over == (step >= 4)
        optimizer.step()
        scheduler.step()


def test_adams_state_is_let_go_and_momentum_starts_from_the_first_gradient() -> None:
    model, data = make_model(), batches()
    optimizer, scheduler = SWITCHED.build(model, total_steps=10)
    kept = []
    for _ in range(5):
        optimizer.zero_grad()
        loss(model, next(data)).backward()
        before = model.head.weight.detach().clone()
        optimizer.step()
        scheduler.step()
        kept.append({key for state in optimizer.state.values() for key in state})
    assert kept == [{"step", "exp_avg", "exp_avg_sq"}] * 4 + [{"momentum_buffer"}]
    buffer = optimizer.state[model.head.weight]["momentum_buffer"]
    torch.testing.assert_close(buffer, model.head.weight.grad + 0.05 * before)


class Run:
    """A training script that can be saved and started again."""

    def __init__(self, recipe: Recipe = SWITCHED, steps: int = 30) -> None:
        self.model = make_model()
        self.optimizer, self.scheduler = recipe.build(self.model, total_steps=steps)

    def parts(self) -> list[Any]:
        return [self.model, self.optimizer, self.scheduler]

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        loss(self.model, batch).backward()
        self.optimizer.step()
        self.scheduler.step()


@pytest.mark.parametrize("stop", [0, 5, 11, 12, 13, 25])
def test_a_run_resumed_on_either_side_ends_where_an_unbroken_one_does(stop: int) -> None:
    run, data = Run(), batches()
    for step in range(30):
        if step == stop:
            file = io.BytesIO()
            torch.save([part.state_dict() for part in run.parts()], file)
            file.seek(0)
            run = Run()
            for part, state in zip(run.parts(), torch.load(file, weights_only=True), strict=True):
                part.load_state_dict(state)
        run.step(next(data))
    assert gap(run.model, train(SWITCHED, 30)) == 0.0


@pytest.mark.parametrize("at", [5, 12, 20])
def test_a_run_can_be_put_back_to_a_state_it_has_left(at: int) -> None:
    run, data = Run(), batches()
    seen = [next(data) for _ in range(30)]
    for step, batch in enumerate(seen):
        if step == at:
            saved = copy.deepcopy([part.state_dict() for part in run.parts()])
        run.step(batch)
    for part, state in zip(run.parts(), saved, strict=True):
        part.load_state_dict(state)
    for batch in seen[at:]:
        run.step(batch)
    assert gap(run.model, train(SWITCHED, 30)) == 0.0


@pytest.mark.parametrize("at", [5, 20])
def test_a_copy_trains_on_by_itself(at: int) -> None:
    run, data = Run(), batches()
    for _ in range(at):
        run.step(next(data))
    ahead = copy.deepcopy((run.model, run.optimizer))
    ended = []
    for model, optimizer in (ahead, (run.model, run.optimizer)):
        rest = batches()
        for _ in range(3):
            optimizer.zero_grad()
            loss(model, next(rest)).backward()
            optimizer.step()
        ended.append(model)
    assert gap(*ended) == 0.0


def test_hooks_run_once_a_step_and_a_closure_once() -> None:
    run, data, calls = Run(steps=4), batches(), []
    run.optimizer.register_step_pre_hook(lambda optimizer, *_: calls.append(("before", optimizer)))
    run.optimizer.register_step_post_hook(lambda optimizer, *_: calls.append(("after", optimizer)))
    for _ in range(4):
        batch = next(data)

        def closure(batch: Any = batch) -> torch.Tensor:
            run.optimizer.zero_grad()
            value = loss(run.model, batch)
            value.backward()
            return value

        expected = loss(run.model, batch)
        assert torch.equal(run.optimizer.step(closure), expected)
        run.scheduler.step()
    assert calls == [("before", run.optimizer), ("after", run.optimizer)] * 4
    plain = Run(steps=4)
    data = batches()
    for _ in range(4):
        plain.step(next(data))
    assert gap(plain.model, run.model) == 0.0


@pytest.mark.parametrize("always", [False, True])
def test_an_update_that_a_grad_scaler_skips_is_not_counted(always: bool) -> None:
    """Whether the scheduler steps on all the same or not, as scripts differ in."""
    flat = SWITCHED.model_copy(update={"schedule": Schedule(kind="constant", warmup=0.0)})
    run, data, scaler = Run(flat, 10), batches(), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    reference, seen = Run(flat, 10), []
    for step in range(11):
        batch = next(data)
        overflows = step == 2
        run.optimizer.zero_grad()
        (scaler.scale(loss(run.model, batch)) * (float("inf") if overflows else 1.0)).backward()
        scaler.step(run.optimizer)
        scaler.update()
        if always or not overflows:
            run.scheduler.step()
        if not overflows:
            reference.step(batch)
        seen.append((run.optimizer.handed_over, run.optimizer.param_groups[0]["lr"]))
    assert seen == [(False, 1e-2)] * 4 + [(True, 0.2)] * 7  # by one later than the fourth
    assert gap(run.model, reference.model) < 1e-12


def test_a_group_added_later_is_stepped_by_both() -> None:
    run, data = Run(steps=10), batches()
    extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    run.step(next(data))
    run.optimizer.add_param_group({"params": [("extra", extra)], "lr": 0.1})
    run.scheduler.base_lrs.append(0.1)
    run.scheduler.lr_lambdas.append(lambda step: 1.0)
    values = []
    for _ in range(5):
        run.optimizer.zero_grad()
        (loss(run.model, next(data)) + extra.sum()).backward()
        run.optimizer.step()
        run.scheduler.step()
        values.append(extra.tolist())
    assert run.optimizer.handed_over
    assert set(run.optimizer.state[extra]) == {"momentum_buffer"}
    assert len({tuple(value) for value in values}) == 5


def test_the_groups_are_shared_and_named() -> None:
    optimizer, _ = SWITCHED.build(make_model(), total_steps=5)
    assert isinstance(optimizer, AdamThenSGD)
    assert [group["name"] for group in optimizer.param_groups] == ["no_decay", "head", "default"]
    assert optimizer.state_dict()["param_groups"][1]["param_names"] == ["head.weight"]


@pytest.mark.parametrize("before", [5, 12, 20])
def test_a_range_test_within_a_run_neither_hands_over_nor_moves_it(before: int) -> None:
    run, data = Run(), batches()
    stepped = []
    for _ in range(before):
        run.step(next(data))
    handle = run.optimizer.register_step_post_hook(lambda optimizer, *_: stepped.append(optimizer.handed_over))
    range_test(run.model, run.optimizer, loss, lambda: batches(), steps=30, start=1e-4, end=1e-2)
    handle.remove()
    assert set(stepped) == {before >= 12}
    for _ in range(30 - before):
        run.step(next(data))
    assert gap(run.model, train(SWITCHED, 30)) == 0.0


@pytest.mark.parametrize("before", [5, 20])
def test_a_probe_made_on_either_side_counts_from_the_updates_made(before: int) -> None:
    run, data = Run(), batches()
    for _ in range(before):
        run.step(next(data))
    probe = AdamProbe(run.optimizer, run.model)
    run.step(next(data))
    probe.step()
    assert probe.records[-1][0] == before + 1
