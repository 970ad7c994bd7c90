"""The portfolio stage, on losses computed from a formula."""

from __future__ import annotations

import math

import pytest
from formulas import NAN, bench, noise

from adamtune.evidence import ERROR, Verdict
from adamtune.plan import Progress, make_plan, run_plan
from adamtune.recipe import Recipe
from adamtune.search.portfolio import PORTFOLIO, Start
from adamtune.spec import STAGES, Budget, Spec
from adamtune.stages import portfolio
from adamtune.stages.context import BudgetSpent
from adamtune.trial import Outcome

BASE = Recipe(lr=0.01)


def likes_short_memory(recipe: Recipe, seed: int) -> float:
    """beta2 0.95 with much decay is worth 0.3 together and nothing alone."""
    gain = 0.3 if recipe.betas[1] == 0.95 and recipe.weight_decay == 1.0 else 0.0
    return 1.0 - gain + noise(0.5, seed) + noise(0.01, seed, recipe.training_key())


def test_a_recipe_whose_knobs_help_only_together_is_found() -> None:
    lab = bench(likes_short_memory)
    answer = portfolio.run(lab.context, BASE)
    assert answer.verdict is Verdict.CHANGED
    assert answer.reason.startswith("strong decay: better by evidence")
    assert (answer.recipe.betas[1], answer.recipe.weight_decay, answer.recipe.lr) == (0.95, 1.0, BASE.lr)
    assert answer.evidence is not None
    assert not set(answer.evidence.seeds) & set(lab.context.seeds.search)


def test_where_nothing_serves_better_nothing_is_confirmed() -> None:
    lab = bench(lambda recipe, seed: float(recipe.betas != (0.9, 0.999)))
    answer = portfolio.run(lab.context, BASE)
    assert (answer.verdict, answer.recipe) == (Verdict.KEPT, BASE)
    assert "recipes did better on 2 seeds" in answer.reason
    assert {request.seed for request in lab.engine.opened} == set(lab.context.seeds.search)


@pytest.mark.parametrize(("trials", "seeds"), [(50, 1), (500, 2)])
def test_it_costs_what_it_said_and_trains_on_what_promises_most(trials: int, seeds: int) -> None:
    lab = bench(likes_short_memory, horizon=80)
    lab.context.spec = lab.context.spec.model_copy(update={"budget": Budget(trials=trials)})
    answer = portfolio.run(lab.context, BASE)
    race = [record for record in lab.records if record.study.endswith("/race")]
    assert len({record.result.request.seed for record in race}) == seeds
    steps = {record.result.request.recipe.training_key(): record.result.steps for record in race}
    assert sum(record.result.steps for record in race) <= 5 * seeds * 80
    assert max(steps.values()) == 80
    assert min(steps.values()) < 40
    assert lab.context.budget.spent == lab.engine.steps
    assert {record.result.outcome for record in race} == {Outcome.COMPLETED, Outcome.PRUNED}
    scores, outcomes = answer.details["scores"], answer.details["outcomes"]
    assert set(outcomes) == {"completed", "pruned"}
    assert [score == math.inf for score in scores] == [outcome == "pruned" for outcome in outcomes]


def test_what_diverges_leaves_the_race() -> None:
    lab = bench(lambda recipe, seed: NAN if recipe.weight_decay > 0.1 else likes_short_memory(recipe, seed), horizon=80)
    answer = portfolio.run(lab.context, BASE)
    scores = dict(zip(answer.details["candidates"], answer.details["scores"], strict=True))
    assert scores["strong decay"] == math.inf
    outcomes = dict(zip(answer.details["candidates"], answer.details["outcomes"], strict=True))
    assert outcomes["strong decay"] == "diverged"
    assert dict(zip(answer.details["candidates"], answer.details["eighths"], strict=True))["strong decay"] == 1


def test_what_former_runs_taught_is_tried_first() -> None:
    lab = bench(likes_short_memory)
    lab.context.learned = (Start("learned 1", "a former run", {"lr": 0.02, "beta2": 0.95, "weight_decay": 1.0}),)
    answer = portfolio.run(lab.context, BASE)
    assert answer.details["candidates"][0] == "learned 1"
    assert answer.details["sources"][0] == "a former run"
    assert answer.verdict is Verdict.CHANGED
    assert answer.recipe.betas[1] == 0.95


def test_something_comes_to_its_end_however_many_are_proposed() -> None:
    lab = bench(likes_short_memory, horizon=80)
    lab.context.learned = tuple(Start(f"learned {k}", "a run", {"beta1": 0.5 + k / 100}) for k in range(20))
    answer = portfolio.run(lab.context, BASE)
    assert min(answer.details["scores"]) < math.inf
    assert len(answer.details["scores"]) > 10


def test_a_spec_that_narrows_a_knob_is_kept_to() -> None:
    lab = bench(likes_short_memory, space={"weight_decay": {"low": 1e-4, "high": 0.3}})
    portfolio.run(lab.context, BASE)
    assert max(request.recipe.weight_decay for request in lab.engine.opened) <= 0.3


def test_a_budget_that_cannot_pay_for_the_race_trains_nothing_of_it() -> None:
    lab = bench(likes_short_memory, budget=30)
    with pytest.raises(BudgetSpent):
        portfolio.run(lab.context, BASE)
    assert not [record for record in lab.records if record.study.endswith("/race")]


def test_every_start_has_a_source_and_is_a_recipe() -> None:
    assert len({start.name for start in PORTFOLIO}) == len(PORTFOLIO)
    for start in PORTFOLIO:
        assert start.source
        recipe = BASE
        for name, value in start.knobs.items():
            recipe = recipe.with_knob(name, value)
        assert recipe != BASE


def sweep_of_noise(seed: int) -> Recipe:
    """A whole sweep where no recipe is better than another."""
    lab = bench(lambda recipe, s: 1 + noise(0.3, s) + noise(0.1, s, recipe.training_key()), horizon=40, seed=seed,
                stages=list(STAGES))  # fmt: skip
    return run_plan(make_plan(lab.context.spec), lab.context, Progress())


def test_noise_changes_nothing() -> None:
    assert sum(sweep_of_noise(seed) != Recipe() for seed in range(5)) <= 1


@pytest.mark.slow
def test_noise_changes_a_knob_in_no_more_sweeps_than_allowed() -> None:
    changed = [seed for seed in range(100) if sweep_of_noise(100 + seed) != Recipe()]
    assert len(changed) <= 100 * 2 * ERROR


def test_it_is_left_out_where_the_recipe_has_no_betas() -> None:
    spec = Spec.model_validate({"task": {"ref": "a:b"}, "horizon": 10, "base": {"optimizer": "sgd"}})
    assert "betas" in portfolio.missing(spec, ())
