"""The pieces of `benchmarks.search` on a toy task; nothing is timed."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from tasks_for_tests import separable

from adamtune.engines import make_engine
from adamtune.evidence import interval
from adamtune.history import Outcome, RungReport, TrialRequest, TrialResult
from adamtune.recipe import Recipe
from adamtune.spec import TaskSpec
from benchmarks.search import (
    ASHA,
    OURS,
    Found,
    Job,
    Run,
    Swept,
    compare,
    plain,
    ratio,
    summary,
    sweep_budgets,
    table,
    worse,
)
from benchmarks.search_peers import ALGOPERF, PEERS, SPACE, ConstantEpoch, FixedList, distributions, recipe_of, rungs
from benchmarks.search_race import Judge, Kept, Runner, best_known, race, reached

HORIZON = 16
TOY = TaskSpec(ref="tasks_for_tests:separable")
CPU = torch.device("cpu")


def result(recipe: Recipe, loss: float, steps: int = HORIZON) -> TrialResult:
    """A completed trial that ended with this validation loss; one of fewer steps was pruned."""
    outcome = Outcome.COMPLETED if steps == HORIZON else Outcome.PRUNED
    rung = RungReport(steps, (), {"loss": loss})
    return TrialResult(TrialRequest(recipe, 0, HORIZON), outcome, steps, (rung,), 0.0)


# --- the space


def test_the_space_is_the_six_knobs_and_its_ends_are_recipes() -> None:
    assert [knob.name for knob in SPACE] == ["lr", "beta1", "beta2", "eps", "weight_decay", "warmup"]
    ends = {name: (one.low, one.high) for name, one in distributions().items()}
    assert ends["one_minus_beta1"] == pytest.approx((0.02, 0.5))
    assert ends["one_minus_beta2"] == pytest.approx((10**-3.5, 0.3))
    assert [name for name, one in distributions().items() if not one.log] == ["warmup"]
    for side in (0, 1):
        recipe = recipe_of({name: end[side] for name, end in ends.items()})
        assert recipe.lr == (1e-5, 1.0)[side]
        assert recipe.betas == pytest.approx(((0.98, 1 - 10**-3.5), (0.5, 0.7))[side])
        assert recipe.groups == Recipe.default().groups


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_with_the_same_seed_asks_for_the_same_first_recipe_inside_the_space(name: str) -> None:
    one, other = (PEERS[name](3, HORIZON, 20).ask()[0] for _ in range(2))
    assert one == other
    if name != "AlgoPerf's five":
        assert PEERS[name](4, HORIZON, 20).ask()[0] != one
        for knob in SPACE:
            assert knob.low - 1e-9 <= one.knob(knob.name) <= knob.high + 1e-9


# --- what counts


@pytest.mark.parametrize(
    ("curve", "spent", "expected"),
    [
        ([], 50, (None, False)),
        ([(10, 2.0), (20, 1.0)], 50, (20, True)),
        ([(10, 2.0), (20, 1.0)], 24, (20, False)),  # not settled yet
        ([(10, 1.0), (15, 2.0), (30, 1.0)], 50, (30, True)),  # it left again
        ([(10, 1.0), (15, 1.1), (30, 2.0)], 50, (10, True)),  # it left later than what is asked
        ([(10, math.inf)], 50, (None, False)),
    ],
)
def test_the_target_is_reached_where_answers_come_within_and_stay(
    curve: list[tuple[int, float]], spent: int, expected: tuple[int | None, bool]
) -> None:
    assert reached(curve, spent, target=1.1, stays=10) == expected


def test_an_answer_is_the_best_completed_trial_and_every_step_counts() -> None:
    peer = PEERS["TPE+Hyperband"](0, HORIZON, 20)
    for loss, steps in ((1.0, HORIZON), (0.1, 4), (0.5, HORIZON), (0.7, HORIZON)):
        peer.tell([result(recipe, loss, steps) for recipe in peer.ask()])
    assert peer.spent == 3 * HORIZON + 4
    assert [answer.steps for answer in peer.answers] == [HORIZON, 2 * HORIZON + 4]  # the pruned one is none


def test_hyperband_drops_a_trial_that_is_worse_at_a_rung() -> None:
    peer = PEERS["TPE+Hyperband"](0, HORIZON, 20)
    dropped = 0
    for number in range(12):
        recipes = peer.ask()
        steps = HORIZON
        for rung, step in enumerate(rungs(HORIZON)[:-1], start=1):
            if peer.drop(rung, [float(number)]):  # each worse than all before
                dropped, steps = dropped + 1, step
                break
        peer.tell([result(recipes[0], float(number), steps)])
    assert dropped >= 8
    assert len(peer.answers) == 1


def test_constant_epoch_spends_its_budgets_and_keeps_the_best_three() -> None:
    peer = ConstantEpoch(seed=0, horizon=HORIZON, budgets=[5, 10])
    early, losses = rungs(HORIZON)[0], {}
    while recipes := peer.ask():
        for recipe in recipes:
            losses.setdefault(recipe.training_key(), float(len(losses) % 7) + len(losses) / 1000)
        shown = [losses[recipe.training_key()] for recipe in recipes]
        dropped = peer.drop(1, shown)
        assert peer.drop(2, [math.nan] * len(recipes)) == []
        if dropped:
            assert dropped == list(range(len(recipes)))
            peer.tell([result(recipe, loss, early) for recipe, loss in zip(recipes, shown, strict=True)])
        else:
            assert shown == sorted(losses.values())[:3]
            peer.tell([result(recipe, loss) for recipe, loss in zip(recipes, shown, strict=True)])
            assert peer.spent == len(losses) * early + 3 * (HORIZON - early)
    assert [answer.steps / HORIZON for answer in peer.answers] == pytest.approx([5, 10], abs=0.2)
    assert all(answer.steps <= budget * HORIZON for answer, budget in zip(peer.answers, (5, 10), strict=True))


def test_algoperfs_points_are_tried_in_order() -> None:
    peer, tried = FixedList(ALGOPERF), []
    while recipes := peer.ask():
        tried += recipes
    assert [recipe.lr for recipe in tried] == [point["lr"] for point in ALGOPERF]
    assert tried[2].betas == pytest.approx((0.86374424257, 0.6291854735396584))


# --- on a task


@pytest.fixture(scope="module")
def judge() -> Any:
    with closing(make_engine("sequential", separable(), CPU)) as engine:
        yield Judge(engine, HORIZON, range(100, 103), {})


def test_a_recipe_is_judged_once_on_the_fresh_seeds(judge: Judge) -> None:
    default = Recipe.default()
    losses = judge.losses(default)
    with closing(make_engine("sequential", separable(), CPU)) as engine:
        batch = engine.open([TrialRequest(default, seed, HORIZON) for seed in range(100, 103)])
        batch.advance(HORIZON)
        assert losses == [one.final() for one in batch.results()]
    assert judge.mean(default) == pytest.approx(sum(losses) / 3)
    assert judge.losses(default.model_copy(update={"provenance": {"run": "x"}})) is losses
    assert judge.mean(Recipe(lr=1e30)) == math.inf


def test_the_best_known_is_better_than_most_and_measured_on_the_fresh_seeds(judge: Judge) -> None:
    with closing(make_engine("sequential", separable(), CPU)) as engine:
        best, recipe = best_known(engine, judge, HORIZON, 16)
    assert best == judge.mean(recipe) < judge.mean(Recipe.default())


def test_a_race_counts_the_steps_that_the_engine_trained(judge: Judge) -> None:
    cap = 6 * HORIZON
    trained = 0

    def count(steps: int) -> None:
        nonlocal trained
        trained += steps

    runners = [Runner(name, 1, PEERS[name](1, HORIZON, 6), 7, cap, 0) for name in PEERS if name != "constant epoch"]
    with closing(make_engine("sequential", separable(), CPU, count)) as engine:
        ended = list(race(engine, judge, runners, HORIZON, target=-math.inf, least=cap))
    assert {runner.name for runner in ended} == {runner.name for runner in runners}
    assert sum(runner.peer.spent for runner in runners) == trained
    for runner in runners:
        assert runner.peer.answers
        full = 4 * HORIZON if runner.name == "AlgoPerf's five" else cap
        assert full <= runner.peer.spent < full + 2 * HORIZON
    hyperband = next(runner for runner in runners if runner.name == "TPE+Hyperband").peer
    assert hyperband.spent % HORIZON or len(hyperband.answers) < 6


def test_a_race_ends_where_an_answer_has_settled(judge: Judge) -> None:
    runner = Runner("random", 1, PEERS["random"](1, HORIZON, 50), 7, 50 * HORIZON, 3 * HORIZON)
    with closing(make_engine("sequential", separable(), CPU)) as engine:
        assert list(race(engine, judge, [runner], HORIZON, target=math.inf, least=0)) == [runner]
    assert runner.peer.spent == 4 * HORIZON


def test_a_whole_comparison_is_kept_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.search.SMALL", 1)  # which no sweep can do with
    methods = ("random", "constant epoch", "TPE+Hyperband", "AlgoPerf's five", OURS)
    job = Job("toy", TOY, HORIZON, (1,), methods, cap=6, budgets=(1,), random_trials=12, fresh=3)
    found = compare(job, tmp_path)
    assert set(found.runs) == set(methods)
    assert found.best < found.default
    text, [refused] = table(found), found.sweeps[1]
    assert "budget" in refused.told
    assert f"adamtune, seed 1, budget 1: {refused.told}" in text
    assert found.runs[OURS] == [Run((), 0, None)]
    assert all(name in text for name in methods)
    assert json.loads(json.dumps(plain(found)))["sweeps"]["1"][0]["told"] == refused.told

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("benchmarks.search_race._wave", fail)
    monkeypatch.setattr("benchmarks.search.best_known", fail)
    again = compare(job, tmp_path)
    assert {name: again.runs[name] for name in PEERS if name in methods} == {
        name: found.runs[name] for name in PEERS if name in methods
    }


def test_a_sweep_is_judged_on_the_fresh_seeds_and_counted_as_it_says(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.search.SMALL", 1)
    job = Job("toy", TOY, HORIZON, (1,), (OURS,), budgets=(120, 500))
    refused, swept = sweep_budgets(job, judge, math.inf, seed=1)
    assert (refused.budget, refused.steps, refused.loss) == (1, 0, math.inf)
    assert (swept.budget, swept.told) == (120, "")  # within, so that no larger one is tried
    assert 10 * HORIZON < swept.steps <= 120 * HORIZON
    assert swept.loss < judge.mean(Recipe.default())
    assert swept.against_default.mean == pytest.approx(swept.loss - judge.mean(Recipe.default()))
    assert not worse(swept)
    assert worse(Swept(20, 10, 1.0, interval([0.1, 0.11, 0.12])))
    assert worse(Swept(20, 10, math.inf, interval([math.nan])))


def test_ratios_are_bounds_where_the_peer_did_not_get_there() -> None:
    def found(**reached: int | None) -> Found:
        runs = {name: [Run(((10, 1.0),), 100, steps)] for name, steps in reached.items()}
        return Found(Job("toy", TOY, 10, (1,), cap=20), 1.0, Recipe(), 2.0, runs, {})

    assert ratio(found(adamtune=40, TPE=80, GP=50), ["TPE", "GP"]) == ("GP", 0.8, False)
    assert ratio(found(adamtune=40, TPE=None), ["TPE"]) == ("TPE", 0.2, True)
    assert math.isnan(ratio(found(adamtune=None, TPE=80), ["TPE"])[1])
    assert ratio(found(adamtune=40), ["TPE"])[0] == "-"


def test_the_goals_leave_out_a_task_whose_default_is_within_the_target() -> None:
    def found(default: float) -> Found:
        runs = {"adamtune": [Run(((10, 1.0),), 10, 10)], "TPE": [Run(((200, 1.0),), 200, 200)]}
        swept = Swept(20, 10, 1.0, interval([0.1, 0.11, 0.12]))
        return Found(Job("toy", TOY, 10, (1,)), 1.0, Recipe(), default, runs, {1: [swept]})

    text = summary([found(1.04), found(1.06)])
    assert "at most 0.1 of plain TPE's: on 1 of 1 tasks" in text
    assert "worse than the default in 2 of 2 sweeps (goal: 0), 1.000 of best known" in text


def test_what_is_kept_under_other_settings_is_not_used(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "x.json", {"horizon": 1})
    kept.part("fresh")["key"] = [1.0, math.nan]
    kept.save()
    assert Kept(tmp_path / "x.json", {"horizon": 1}).part("fresh")["key"][0] == 1.0
    assert Kept(tmp_path / "x.json", {"horizon": 2}).part("fresh") == {}


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")
def test_rays_reports_are_counted() -> None:
    asked = {**TOY.model_dump(), "horizon": HORIZON, "seed": 1, "trial_seed": 7, "cap": 6 * HORIZON}
    command = [sys.executable, "-m", "benchmarks.search_ray", json.dumps(asked)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PYTHONPATH": "tests", "PATH": "/usr/bin:/bin"}
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert 6 * HORIZON <= found["spent"] < 10 * HORIZON
    assert found["trials"] >= 6
    steps = [at for at, _ in found["answers"]]
    assert steps
    assert steps == sorted(steps)
    for _, params in found["answers"]:
        recipe_of(params)
    assert ASHA not in PEERS
