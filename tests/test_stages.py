"""Stages decide; they are tried here on an engine that trains nothing and computes every loss from a formula."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from formulas import NAN, Bench, Formula, bench, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from adamtune.errors import InputError, NothingLearned, TrialFailed
from adamtune.evidence import LOOKS, Verdict
from adamtune.plan import Progress, conclude, make_plan, run_plan
from adamtune.recipe import Recipe, Schedule, WarmupSteps
from adamtune.schedule import warmup_steps
from adamtune.spec import STAGES, Budget, Objective, Spec, TaskSpec
from adamtune.stages import REGISTRY, lr, lr_range
from adamtune.stages.choose import Question, choose, numbers
from adamtune.stages.context import CONFIRM_SEEDS, BudgetSpent, Seeds, StageAnswer, StageContext
from adamtune.stages.factorial import notches
from adamtune.stages.lr import ladder
from adamtune.stages.lr_bracket import bracket, for_horizon
from adamtune.stages.lr_curve import RangeStatus, read_curve, smooth
from adamtune.stages.lr_range import range_test
from adamtune.stages.lr_response import Response, optimum
from adamtune.trial import Outcome, Ramp, TrialRequest

# --- reading a range test


DECADES = 5
LRS = [1e-6 * 10 ** (k / 60) for k in range(60 * DECADES + 1)]


def valley(lr: float) -> float:
    """Falls from 2.3 to 0.3 around lr 3e-3; rises steeply beyond 3e-2."""
    return 2.3 - 2 / (1 + (3e-3 / lr) ** 2) + (lr / 3e-2) ** 3


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.floats(1.0, 20.0))
def test_smoothing_is_the_bias_corrected_average_in_closed_form(losses: list[float], window: float) -> None:
    beta = 1 - 1 / window
    for at, got in enumerate(smooth(losses, window)):
        weights = [beta ** (at - k) for k in range(at + 1)]
        mean = math.fsum(w * x for w, x in zip(weights, losses, strict=False)) / math.fsum(weights)
        assert got == pytest.approx(mean, rel=1e-9, abs=1e-9)


def test_smoothing_by_one_step_or_less_changes_nothing_and_nan_is_skipped() -> None:
    losses = [3.0, 1.0, 2.0]
    assert smooth(losses, 1) == smooth(losses, 0.2) == losses
    assert smooth([3.0, NAN, 1.0, math.inf], 1) == [3.0, 3.0, 1.0, 1.0]
    first, second = smooth([NAN, 5.0], 10)
    assert math.isnan(first)
    assert second == pytest.approx(5.0)


@pytest.mark.parametrize("window", [1, 3, 10])
@pytest.mark.parametrize("scale", [0.0, 0.05])
def test_a_clear_valley_has_a_band_around_its_fall(window: float, scale: float) -> None:
    curves = [[valley(lr) + noise(scale, lr, seed) for lr in LRS] for seed in range(3)]
    curve = read_curve(LRS, curves, window)
    assert curve.status is RangeStatus.OK
    assert curve.band is not None
    assert 3e-4 < curve.band[0] < 2e-3 < 8e-3 < curve.band[1] < 3e-2
    assert len(curve.lrs) == len(curve.losses) == len(curve.low) == len(curve.high) == len(LRS)
    assert all(low <= loss <= high for low, loss, high in zip(curve.low, curve.losses, curve.high, strict=True))


@pytest.mark.parametrize("window", [1, 3, 10])
def test_the_suggestions_stand_in_their_known_order(window: float) -> None:
    curve = read_curve(LRS, [[valley(lr) for lr in LRS]], window)
    rules = curve.suggestions
    assert curve.band is not None
    assert curve.band[0] < rules["steepest"] < curve.band[1] == rules["lowest"]
    assert rules["valley"] < rules["lowest"]
    assert rules["minimum/10"] == pytest.approx(rules["lowest"] / 10)
    assert rules["lowest"] == pytest.approx(min(LRS, key=valley), rel=0.2)
    assert rules["steepest"] == pytest.approx(3e-3, rel=0.15)  # where a logistic in log lr is steepest


def test_the_lag_of_the_smoothing_is_taken_off() -> None:
    drop = [2.0] * 100 + [1.0] * 100
    for window in (1, 5, 20):
        curve = read_curve(LRS[:200], [drop], window)
        assert curve.suggestions["steepest"] <= LRS[100]
        assert curve.suggestions["steepest"] == pytest.approx(LRS[100 - round(window - 1)], rel=0.1)


@pytest.mark.parametrize(
    ("curve", "reason"),
    [
        ([2.3 + 0.01 * k for k in range(301)], "only rises along the ramp"),
        ([2.3 * 1.05**k for k in range(40)], "only rises along the ramp"),
        ([NAN, *([1.0] * 300)], "not finite at the very first step"),
        ([math.inf], "not finite at the very first step"),
        ([], "not finite at the very first step"),
        ([2.0, 1.0, 0.5], "breaks away after 3 steps"),
    ],
)
def test_a_loss_that_rises_or_is_never_finite_has_no_band(curve: list[float], reason: str) -> None:
    got = read_curve(LRS, [curve] * 2, 3)
    assert (got.status, got.band, got.suggestions) == (RangeStatus.DIVERGING, None, {})
    assert reason in got.reason
    assert len(got.lrs) == len(got.losses) <= len(curve)


@pytest.mark.parametrize("steps", [20, 100, 300])
@pytest.mark.parametrize("seeds", [1, 3])
def test_noise_without_a_fall_has_no_band(steps: int, seeds: int) -> None:
    lrs = LRS[:: len(LRS) // steps][:steps]
    found = collections.Counter[RangeStatus]()
    for run in range(100):
        curves = [[2.3 + noise(0.1, run, seed, step) for step in range(steps)] for seed in range(seeds)]
        got = read_curve(lrs, curves, max(1, steps / 30))
        found[got.status] += 1
        assert (got.band is None) == (got.status is not RangeStatus.OK)
    assert found[RangeStatus.FLAT] + found[RangeStatus.NOISY] >= 95
    assert steps < 300 or found[RangeStatus.FLAT] > 80  # so many steps show that there is no fall worth seeing


@pytest.mark.parametrize("steps", [20, 100, 300])
def test_noise_does_not_hide_a_clear_fall(steps: int) -> None:
    lrs = LRS[:: len(LRS) // steps][:steps]
    for run in range(50):
        curve = [valley(lr) + noise(0.1, run, step) for step, lr in enumerate(lrs)]
        assert read_curve(lrs, [curve], max(1, steps / 30)).status is RangeStatus.OK


@pytest.mark.parametrize("window", [1, 10])
def test_a_constant_loss_is_flat(window: int) -> None:
    assert read_curve(LRS, [[2.3] * 300] * 3, window).status is RangeStatus.FLAT


def test_a_noisy_rise_is_no_fall() -> None:
    for run in range(50):
        curves = [[2.3 + step / 100 + noise(0.1, run, seed, step) for step in range(300)] for seed in range(3)]
        assert read_curve(LRS, curves, 10).status is RangeStatus.DIVERGING


def test_seeds_that_fall_at_different_learning_rates_are_noisy() -> None:
    early = [valley(lr * 100) for lr in LRS]
    late = [valley(lr / 30) for lr in LRS]
    got = read_curve(LRS, [early, late], 3)
    assert (got.status, got.band) == (RangeStatus.NOISY, None)
    assert "the seeds differ" in got.reason


def test_the_band_is_where_every_seed_falls() -> None:
    alone = [read_curve(LRS, [[valley(lr * shift) for lr in LRS]], 1).band for shift in (1.0, 2.0)]
    both = read_curve(LRS, [[valley(lr * shift) for lr in LRS] for shift in (1.0, 2.0)], 1).band
    assert alone[0] is not None
    assert alone[1] is not None
    assert both == (alone[0][0], alone[1][1])


def test_curves_of_unequal_length_are_read_up_to_the_shortest() -> None:
    whole = [valley(lr) for lr in LRS]
    cut = read_curve(LRS, [whole, whole[:270], whole[:280]], 3)
    assert cut == read_curve(LRS[:270], [whole[:270]] * 3, 3)
    assert len(cut.lrs) == 270


def test_the_curve_is_the_median_over_seeds_between_the_lowest_and_the_highest() -> None:
    whole = [valley(lr) for lr in LRS]
    curve = read_curve(LRS, [[loss + shift for loss in whole] for shift in (-0.1, 0.0, 5.0)], 1)
    assert curve.losses == pytest.approx(whole)
    assert curve.low == pytest.approx([loss - 0.1 for loss in whole])
    assert curve.high == pytest.approx([loss + 5.0 for loss in whole])


# --- the range test itself


def test_the_range_test_stops_once_its_loss_has_climbed_back() -> None:
    lab = bench(lambda recipe, seed: valley(recipe.lr) + 0.01 * seed)
    test = range_test(lab.context, Recipe(), Ramp(1e-6, 10.0, 420))
    assert test.curve.status is RangeStatus.OK
    assert {result.outcome for result in test.results} == {Outcome.PRUNED}
    assert len(test.curve.lrs) < 330
    assert lab.context.budget.spent == lab.engine.steps == sum(result.steps for result in test.results)
    assert [record.stage for record in lab.records] == ["lr_range"] * 2


def test_a_loss_still_falling_at_the_end_of_the_ramp_is_followed_on_and_one_that_has_turned_is_not() -> None:
    falling = bench(lambda recipe, seed: valley(recipe.lr / 100))
    curve = range_test(falling.context, Recipe(), Ramp(1e-6, 1e-1, 300)).curve
    assert curve.lrs[299] == pytest.approx(1e-1)
    assert curve.band is not None
    assert 0.5 < curve.band[1] < 3.0
    turned = bench(lambda recipe, seed: 1 + 0.1 * abs(math.log10(recipe.lr / 3e-3)))
    assert len(range_test(turned.context, Recipe(), Ramp(1e-6, 1e-1, 300)).curve.lrs) == 300


def test_a_range_test_that_diverges_ends_there_and_is_read_up_to_there() -> None:
    lab = bench(lambda recipe, seed: valley(recipe.lr) if recipe.lr < 5e-2 else NAN)
    test = range_test(lab.context, Recipe(), Ramp(1e-6, 1.0, 300))
    assert {result.outcome for result in test.results} == {Outcome.DIVERGED}
    assert test.curve.status is RangeStatus.OK
    assert max(test.curve.lrs) < 5e-2


def test_a_task_whose_loss_is_never_finite_ends_the_range_stage() -> None:
    lab = bench(lambda recipe, seed: NAN)
    with pytest.raises(NothingLearned, match="not finite at the very first step; check the task's data and loss"):
        lr_range.run(lab.context, Recipe())


def test_the_range_stage_stays_inside_the_space_of_the_spec() -> None:
    lab = bench(lambda recipe, seed: valley(recipe.lr), space={"lr": {"low": 1e-4, "high": 1e-2}})
    answer = lr_range.run(lab.context, Recipe())
    assert answer.verdict is Verdict.MEASURED
    assert answer.recipe == Recipe()
    assert answer.details["lrs"][0] == pytest.approx(1e-4)


@pytest.mark.parametrize(("low", "high"), [(5e-8, 1e-6), (1e-7, 5e-7), (2e-3, 5e-3), (0.2, 5.0), (1.0, 1.001)])
def test_the_range_of_the_spec_may_lie_anywhere(low: float, high: float) -> None:
    space = {"lr": {"low": low, "high": high}}
    lab = bench(bowl(math.sqrt(low * high)), horizon=40, stages=["lr_range", "lr"], space=space)
    recipe = run_plan(make_plan(lab.context.spec), lab.context, Progress())
    for request in lab.engine.opened:
        if request.ramp is not None:
            assert low * 0.999 <= request.ramp.start < request.ramp.end
        elif request.recipe != Recipe():
            assert low * 0.999 <= request.recipe.lr <= high * 1.001
    assert recipe.lr == pytest.approx(math.sqrt(low * high), rel=0.1)


# --- the lr of least loss


def response(lrs: Sequence[float], f: Callable[[float], float]) -> Response:
    return Response(20, tuple(lrs), tuple(f(math.log10(lr)) for lr in lrs))


@given(st.floats(-5, -1), st.floats(0.01, 10), st.floats(-5, 5), st.sampled_from([0.25, 0.5]))
def test_the_optimum_of_a_parabola_in_log_lr_is_exact(low: float, curvature: float, shift: float, step: float) -> None:
    lrs = [10 ** (low + step * (k - 3.3)) for k in range(8)]
    in_log_loss = optimum(response(lrs, lambda x: math.exp(shift + curvature * (x - low) ** 2)))
    assert math.log10(in_log_loss) == pytest.approx(low, abs=1e-6)
    negative = optimum(response(lrs, lambda x: curvature * ((x - low) ** 2 - 20)))
    assert math.log10(negative) == pytest.approx(low, abs=1e-6)


def test_the_optimum_is_the_best_tried_where_there_is_nothing_to_fit() -> None:
    lrs = [1e-3, 1e-2, 1e-1, 1.0]
    for scores, best in [
        ((1.0, 2.0, 3.0, 4.0), 1e-3),
        ((4.0, 3.0, 2.0, 1.0), 1.0),
        ((2.0, 1.0, math.inf, math.inf), 1e-2),
        ((math.inf, 1.0, 2.0, 3.0), 1e-2),
        ((1.0, 1.0, 1.0, 1.0), 1.0),
        ((math.inf, math.inf, math.inf, math.inf), 1e-3),
    ]:
        assert optimum(Response(20, tuple(lrs), scores)) == best


@given(st.lists(st.floats(0, 10) | st.just(math.inf), min_size=1, max_size=9))
def test_the_optimum_lies_between_the_neighbours_of_the_best(scores: list[float]) -> None:
    lrs = [10 ** (k / 2 - 5) for k in range(len(scores))]
    got = Response(20, tuple(lrs), tuple(scores))
    near = lrs[max(0, got.best - 1) : got.best + 2]
    assert near[0] * 0.999 <= optimum(got) <= near[-1] * 1.001
    assert not got.at_low_end or scores[0] == min(scores)
    assert not got.at_high_end or scores[-1] == min(scores)


def bowl(best: float, curvature: float = 1.0) -> Formula:
    """Least at lr `best`, a little different by seed."""
    return lambda recipe, seed: 1 + curvature * math.log10(recipe.lr / best) ** 2 + noise(1e-3, seed)


@pytest.mark.parametrize("best", [1e-6, 1e-4, 1e-2, 1.0])
def test_the_ladder_widens_until_the_best_is_no_longer_at_an_end(best: float) -> None:
    lab = bench(bowl(best))
    found = ladder(lab.context, "lr", Recipe(), [3e-3, 1e-2, 3e-2], 20, 0.5, lab.context.spec.knob("lr"))
    assert not found.at_low_end
    assert not found.at_high_end
    assert list(found.lrs) == sorted(set(found.lrs))
    assert optimum(found) == pytest.approx(best, rel=1e-2)
    assert lab.context.budget.spent == lab.engine.steps


@pytest.mark.parametrize(("best", "end"), [(1e-9, "low"), (1e3, "high")])
def test_the_ladder_stops_at_the_limits_and_says_so(best: float, end: str) -> None:
    lab = bench(bowl(best), space={"lr": {"low": 1e-4, "high": 1.0}})
    limits = lab.context.spec.knob("lr")
    found = ladder(lab.context, "lr", Recipe(), [1e-3, 1e-2, 1e-1], 20, 0.5, limits)
    assert found.at_low_end == (end == "low")
    assert found.at_high_end == (end == "high")
    assert (found.lrs[0] if end == "low" else found.lrs[-1]) == pytest.approx(getattr(limits, end))
    assert all(limits.low * 0.999 <= lr <= limits.high * 1.001 for lr in found.lrs)


@pytest.mark.parametrize(("best", "widened"), [(1e-6, 1e-3), (1.0, 1e-1)])
def test_the_ladder_leaves_no_hole_where_it_may_try_but_one_more(best: float, widened: float) -> None:
    lab = bench(bowl(best))
    lrs = [10**-2.5, 1e-2, 10**-1.5]
    found = ladder(lab.context, "lr", Recipe(), lrs, 20, 0.5, lab.context.spec.knob("lr"), most=4)
    assert found.lrs == pytest.approx(sorted([*lrs, widened]))


def test_the_ladder_goes_down_where_all_it_tried_diverged() -> None:
    lab = bench(lambda recipe, seed: bowl(1e-6)(recipe, seed) if recipe.lr < 1e-5 else NAN)
    found = ladder(lab.context, "lr", Recipe(), [1e-3, 1e-2], 20, 0.5, lab.context.spec.knob("lr"))
    assert optimum(found) == pytest.approx(1e-6, rel=0.2)


def test_a_ladder_on_which_everything_diverges_recommends_nothing() -> None:
    lab = bench(lambda recipe, seed: NAN)
    with pytest.raises(NothingLearned, match=r"all \d+ trials diverged, at every learning rate from 1e-07 to 0.01"):
        ladder(lab.context, "lr", Recipe(), [1e-3, 1e-2], 20, 0.5, lab.context.spec.knob("lr"))
    assert {record.result.outcome for record in lab.records} == {Outcome.DIVERGED}
    assert len(lab.records) == len(lab.engine.opened)


@pytest.mark.parametrize("diverging_seed", [0, 1])
def test_a_learning_rate_that_diverges_on_one_seed_is_not_the_best(diverging_seed: int) -> None:
    def formula(recipe: Recipe, seed: int) -> float:
        return NAN if recipe.lr > 5e-3 and seed == diverging_seed else bowl(1e-2)(recipe, seed)

    lab = bench(formula)
    found = ladder(lab.context, "lr", Recipe(), [1e-3, 10**-2.5, 1e-2], 20, 0.5, lab.context.spec.knob("lr"))
    assert found.lrs[found.best] == pytest.approx(10**-2.5)
    assert {lr: how for lr, how in zip(found.lrs, found.outcomes, strict=True) if lr > 5e-3} == {1e-2: "diverged"}
    assert found.to_dict()["outcomes"][found.best] == "completed"


@pytest.mark.parametrize("best", [2e-5, 1e-3, 0.04, 3.0])
@pytest.mark.parametrize("ranged", [True, False])
def test_the_lr_stage_finds_the_best_from_any_start(best: float, ranged: bool) -> None:
    def formula(recipe: Recipe, seed: int) -> float:
        return 1 - 1 / (1 + math.log10(recipe.lr / best) ** 2) + noise(0.01, seed) + noise(1e-4, seed, recipe.lr)

    lab = bench(formula, horizon=100)
    if ranged:
        lab.context.answers["lr_range"] = lr_range.run(lab.context, Recipe())
    answer = lr.run(lab.context, Recipe(lr=1e-3))
    assert answer.recipe.lr == pytest.approx(best, rel=0.1)
    assert (answer.before, answer.after) == (1e-3, answer.recipe.lr)
    assert answer.verdict is (Verdict.KEPT if best == 1e-3 else Verdict.CHANGED)
    assert [len(part["lrs"]) for part in answer.details["responses"]] == [
        len(part["scores"]) for part in answer.details["responses"]
    ]
    for part in answer.details["responses"]:
        assert [how == "completed" for how in part["outcomes"]] == list(map(math.isfinite, part["scores"]))


@pytest.mark.parametrize("trials", [20, 1000])
@pytest.mark.parametrize("warmup", [200, 5000])
def test_short_trials_warm_up_for_the_share_of_the_run_that_a_warmup_in_steps_is(trials: int, warmup: int) -> None:
    base = Recipe(schedule=Schedule(warmup=WarmupSteps(steps=warmup)))
    lab = bench(knobs_too, budget=1000 * trials, horizon=1000)
    lab.context.spec = lab.context.spec.model_copy(update={"budget": Budget(trials=trials)})
    answer = lr.run(lab.context, base)
    shares = {r.horizon: warmup_steps(r.recipe.schedule, r.horizon) / r.horizon for r in lab.engine.opened}
    assert set(shares) == {250, 1000}
    assert set(shares.values()) == {min(1, warmup / 1000)}
    assert answer.recipe.schedule == base.schedule


def test_a_range_test_that_shows_nothing_does_not_mislead_the_lr_stage() -> None:
    lab = bench(bowl(0.02), horizon=100)
    lab.engine.short_formula, lab.engine.short_below = lambda recipe, seed: noise(1.0, seed, recipe.lr), 10_000
    lab.context.answers["lr_range"] = ranged = lr_range.run(lab.context, Recipe())
    assert ranged.details["status"] is not RangeStatus.OK
    assert ranged.details["centre"] is None
    lab.engine.short_formula = None
    assert lr.run(lab.context, Recipe()).recipe.lr == pytest.approx(0.02, rel=0.1)


def test_the_lr_stage_says_when_the_best_lies_at_the_end_of_what_may_be_searched() -> None:
    lab = bench(bowl(1.0), horizon=100, space={"lr": {"low": 1e-4, "high": 1e-2}})
    answer = lr.run(lab.context, Recipe())
    assert answer.recipe.lr == 1e-2
    assert "the best lies at the upper end of what was searched" in answer.reason


@pytest.mark.parametrize("best", [1e-4, 1e-3, 0.3])
def test_the_lr_stage_keeps_to_its_cost_and_learns_something_where_short_trials_mislead(best: float) -> None:
    def lab(budget: float) -> Bench:
        made = bench(bowl(best), budget=budget, horizon=100, stages=["lr"], base=Recipe(lr=5.0))
        made.engine.short_formula = bowl(1e-2)
        return made

    planned = make_plan(lab(math.inf).context.spec).stages[0].steps
    for budget in (math.inf, planned):
        one = lab(budget)
        recipe = run_plan(make_plan(one.context.spec), one.context, Progress())
        assert one.context.answers["lr"].verdict is Verdict.CHANGED
        assert abs(math.log10(recipe.lr / best)) < 2  # the best of those it could pay for
        assert one.engine.steps <= planned


# --- lr and other knobs together, where the budget is small


def small(formula: Formula, **spec: Any) -> Bench:
    """A budget of twenty trials, ten of which the last comparison will need."""
    lab = bench(formula, budget=10_000, horizon=1000, **spec)
    lab.context.spec = lab.context.spec.model_copy(update={"budget": Budget(trials=20)})
    lab.context.answers["lr_range"] = lr_range.run(lab.context, Recipe())
    return lab


def knobs_too(recipe: Recipe, seed: int) -> float:
    """Less momentum is better, more decay worse, beta2 of no account; lr matters most."""
    gain = 0.1 * (recipe.betas[0] == 0.8) - 0.1 * (recipe.weight_decay == 0.1)
    return 2 + bowl(0.02)(recipe, seed) - gain + noise(1e-4, seed, recipe.training_key())


def test_a_small_budget_asks_about_betas_and_decay_together_with_lr() -> None:
    lab = small(knobs_too)
    answer = lr.run(lab.context, Recipe())
    assert answer.verdict is Verdict.CHANGED
    assert abs(math.log10(answer.recipe.lr / 0.02)) < 0.3
    assert (answer.recipe.betas[0], answer.recipe.weight_decay) == (0.8, 0.01)
    assert "with beta1 0.8" in answer.reason
    cells = [cell["changes"] for cell in answer.details["factorial"]]
    assert sorted(map(len, cells[:8])) == [0, 2, 2, 2, 2, 2, 2, 4]
    for name in ("beta1", "beta2", "weight_decay", "warmup"):
        assert sum(name in cell for cell in cells[:8]) == 4
    assert len(cells) == len({str(cell) for cell in cells}) <= 9
    assert lab.engine.steps == lab.context.budget.spent <= 10_000


@pytest.mark.parametrize("spec", [{"stages": ["lr_range", "lr"]}, {"base": Recipe(optimizer="sgd")}])
def test_lr_is_asked_alone_where_the_spec_says_so_or_there_are_no_betas(spec: dict[str, Any]) -> None:
    lab = small(knobs_too, **spec)
    incumbent = lab.context.spec.base
    answer = lr.run(lab.context, incumbent)
    assert set(incumbent.diff(answer.recipe)) == {"lr"}
    assert "factorial" not in answer.details


def test_no_knob_is_moved_out_of_the_specs_range_nor_beyond_what_is_known() -> None:
    bounded = Spec(task=TaskSpec(ref="a:b"), horizon=8, space={"beta1": {"low": 0.85}, "beta2": {"low": 0.9}})
    assert notches(bounded, Recipe()) == {"beta2": 0.99, "weight_decay": 0.1, "warmup": 0.15}
    free = Spec(task=TaskSpec(ref="a:b"), horizon=8)
    assert notches(free, Recipe(betas=(0.6, 0.95), weight_decay=0.1, schedule=Schedule(warmup=0.1))) == {}
    in_steps = Schedule(warmup=WarmupSteps(steps=2))
    assert notches(free, Recipe(weight_decay=0.0, schedule=in_steps)) == {"beta1": 0.8, "beta2": 0.99}


def test_knobs_that_short_trials_praise_wrongly_do_not_pass_the_confirmation() -> None:
    def over_the_run(recipe: Recipe, seed: int) -> float:
        return 1 + 5 * (recipe.betas != (0.9, 0.999)) + noise(1e-3, seed) + 0.5 * math.log10(recipe.lr / 1e-3) ** 2

    lab = small(over_the_run)
    lab.engine.short_formula = knobs_too
    answer = lr.run(lab.context, Recipe())
    assert answer.verdict is Verdict.KEPT
    assert answer.recipe == Recipe()


def test_a_combination_that_diverges_speaks_against_its_levels() -> None:
    def diverging(recipe: Recipe, seed: int) -> float:
        if recipe.betas == (0.8, 0.999):
            return math.nan
        return knobs_too(recipe, seed) - 0.1 * (recipe.betas[1] == 0.99)

    answer = lr.run(small(diverging).context, Recipe())
    assert (answer.recipe.betas, answer.recipe.weight_decay) == ((0.9, 0.99), 0.01)


def test_knobs_that_help_but_not_all_together_are_left() -> None:
    def two_at_most(recipe: Recipe, seed: int) -> float:
        moved = (recipe.betas[0] == 0.8) + (recipe.betas[1] == 0.99) + (recipe.weight_decay == 0.1)
        return 2 + bowl(0.02)(recipe, seed) + (0.0, -0.1, -0.4, 0.05)[moved]

    answer = lr.run(small(two_at_most).context, Recipe())
    assert set(Recipe().diff(answer.recipe)) == {"lr"}


def test_the_only_comparison_that_a_budget_can_pay_for_takes_all_the_error() -> None:
    def alike(recipe: Recipe, seed: int) -> float:
        return 1 - 0.04 * (recipe.lr == 0.02) + 0.014 * (seed % 3 - 1) * (recipe.lr == 0.02)

    lab = bench(alike, budget=8 * 6)
    # Over three seeds t is 4.9: the one-sided 2.5% lies at 4.3, half of it at 6.2.
    assert lab.context.confirm("lr", Recipe(), Recipe(lr=0.02)).verdict is Verdict.CHANGED
    again = lab.context.confirm("lr", Recipe(), Recipe(lr=0.02))  # costs nothing, and there is no error left for it
    assert (again.verdict, len(again.seeds)) == (Verdict.KEPT, 3)


def test_a_comparison_without_a_test_leaves_its_error_to_the_next() -> None:
    def lab(budget: float) -> Bench:
        return bench(lambda recipe, seed: NAN if recipe.lr == 1.0 else -(recipe.lr == 0.02), budget=budget)

    diverging, poor = lab(9 * 8), lab(5 * 8)
    assert diverging.context.confirm("lr", Recipe(), Recipe(lr=1.0)).reason == "the challenger diverged on 4 of 4 seeds"
    with pytest.raises(BudgetSpent):
        poor.context.confirm("lr", Recipe(), Recipe(lr=0.02))
    poor.context.budget.steps = 6 * 8
    for each in (diverging, poor):
        assert each.context.confirm("lr", Recipe(), Recipe(lr=0.02)).verdict is Verdict.CHANGED


# --- a bracket of short trials


def lr_of(lr: float) -> Recipe:
    return Recipe(lr=lr)


@pytest.mark.parametrize("offset", [-1.2, -0.6, 0.0, 0.4, 1.1])
def test_a_bracket_closes_around_the_best_within_its_trials(offset: float) -> None:
    lab = bench(bowl(1e-2))
    found = bracket(lab.context, lr_of, 1e-2 * 10**offset, 20, 6, lab.context.spec.knob("lr"))
    assert found.closed
    assert optimum(found.response) == pytest.approx(1e-2, rel=0.03)
    assert len(lab.engine.opened) <= 7  # one of them only evaluates the untrained model
    assert lab.context.budget.spent == lab.engine.steps <= 6 * 20


@pytest.mark.parametrize(("low", "high", "centre"), [(1e-3, 1.0, 1.2e-3), (1e-5, 0.1, 0.09)])
def test_a_bracket_that_begins_at_a_limit_looks_to_the_other_side(low: float, high: float, centre: float) -> None:
    lab = bench(bowl(1e-2), space={"lr": {"low": low, "high": high}})
    found = bracket(lab.context, lr_of, centre, 20, 6, lab.context.spec.knob("lr"))
    assert found.closed
    assert optimum(found.response) == pytest.approx(1e-2, rel=0.03)
    assert all(low <= request.recipe.lr <= high for request in lab.engine.opened[1:])  # the first trains nothing


def broken_above(best: float) -> Formula:
    """A bowl; a decade above its best every run has broken, by less the higher its lr."""
    return lambda recipe, seed: bowl(best)(recipe, seed) if recipe.lr < 10 * best else 100 + best / recipe.lr


@pytest.mark.parametrize("trials", [2, 6])
def test_a_bracket_without_a_score_below_the_untrained_models_goes_to_lower_learning_rates(trials: int) -> None:
    lab = bench(broken_above(1e-3))
    lab.engine.untrained = 50.0
    found = bracket(lab.context, lr_of, 2e-2, 20, trials, lab.context.spec.knob("lr"))
    assert min(found.response.scores) < 50
    assert found.response.lrs[0] < 1e-2
    assert lab.engine.steps <= trials * 20
    assert found.closed == (trials == 6)
    assert found.cut_short == (trials == 2)


def test_a_bracket_that_cannot_close_is_left_open() -> None:
    lab = bench(bowl(1e-2))
    assert not bracket(lab.context, lr_of, 1e-6, 20, 6, lab.context.spec.knob("lr")).closed
    assert lab.engine.steps == 6 * 20
    with pytest.raises(NothingLearned, match="all 6 trials diverged"):
        bracket(bench(lambda recipe, seed: NAN).context, lr_of, 1e-2, 20, 6, lab.context.spec.knob("lr"))


def test_an_estimate_falls_with_the_horizon_and_is_inside_its_interval() -> None:
    same, longer = for_horizon(1e-2, 100, 100), for_horizon(1e-2, 100, 1000)
    assert same.lr == 1e-2
    assert longer.lr < same.lr
    for estimate in (same, longer):
        assert estimate.low < estimate.lr < estimate.high
    assert longer.high / longer.low > same.high / same.low


# --- choosing one knob's value


VALUES = (0.9, 0.95, 0.98, 0.99)


def choose_value(context: StageContext, knob: str, incumbent: Recipe, values: Sequence[float]) -> StageAnswer:
    """As the stages that ask for one number."""
    ask = Question(knob, "?", [context.spec.knob(knob)])
    return choose(context, ask, incumbent, numbers(knob, incumbent, values))


def by_beta2(effects: dict[float, float], pair_noise: float) -> Formula:
    """1, plus the seed's own level, plus what a beta2 is worth, plus noise that recipe and seed do not share."""

    def loss(recipe: Recipe, seed: int) -> float:
        beta2 = recipe.betas[1]
        return 1 + noise(0.5, seed) + effects.get(beta2, 0.0) + noise(pair_noise, seed, beta2)

    return loss


def test_a_value_that_is_really_better_is_chosen() -> None:
    lab = bench(by_beta2({0.95: -0.3, 0.98: -0.1}, 0.02))
    answer = choose_value(lab.context, "beta2", Recipe(), VALUES)
    assert (answer.verdict, answer.before, answer.after) == (Verdict.CHANGED, 0.999, 0.95)
    assert answer.recipe == Recipe().with_knob("beta2", 0.95)
    assert answer.evidence is not None
    assert answer.evidence.seeds == lab.context.seeds.confirm[: len(answer.evidence.seeds)]
    assert len(answer.evidence.seeds) < 12  # it is clear before
    assert answer.evidence.difference.mean == pytest.approx(-0.3, abs=0.05)
    assert answer.reason.startswith("beta2 0.95: better by evidence")


def test_error_is_not_kept_for_seeds_that_the_budget_cannot_pay() -> None:
    """A gain of about ten standard errors on three seeds: enough for one look, too little for the first of four."""

    def lab(budget: float) -> Bench:
        return bench(lambda recipe, seed: 1 - (0.1 + noise(0.015, seed)) * (recipe.lr == 0.02), budget=budget)

    poor, rich = lab(6 * 8), lab(math.inf)
    few = poor.context.confirm("lr", Recipe(), Recipe(lr=0.02))
    many = rich.context.confirm("lr", Recipe(), Recipe(lr=0.02))
    assert (few.verdict, len(few.seeds)) == (Verdict.CHANGED, 3)
    assert many.verdict is Verdict.CHANGED
    assert len(many.seeds) > 3
    assert len(lab(9 * 8).context.confirm("lr", Recipe(), Recipe(lr=0.02)).seeds) == 4  # all it can pay for
    with pytest.raises(BudgetSpent):
        lab(5 * 8).context.confirm("lr", Recipe(), Recipe(lr=0.02))


def test_when_nothing_is_better_on_the_search_seeds_nothing_more_is_spent() -> None:
    lab = bench(by_beta2(dict.fromkeys(VALUES, 0.2), 0.0))
    answer = choose_value(lab.context, "beta2", Recipe(), VALUES)
    assert (answer.verdict, answer.recipe, answer.evidence) == (Verdict.KEPT, Recipe(), None)
    assert "none of 0.9, 0.95, 0.98, 0.99 did better on 2 seeds" in answer.reason
    assert {request.seed for request in lab.engine.opened} == set(lab.context.seeds.search)
    assert answer.details["incumbent_score"] < min(answer.details["scores"])


def test_nothing_to_choose_from_keeps_the_incumbent() -> None:
    assert choose_value(bench(by_beta2({}, 0.0)).context, "beta2", Recipe(), ()).verdict is Verdict.KEPT


def test_half_of_the_values_are_dropped_at_half_the_horizon() -> None:
    lab = bench(by_beta2({value: 0.1 * place for place, value in enumerate(VALUES)}, 0.0))
    answer = choose_value(lab.context, "beta2", Recipe(), VALUES)
    ended = {r.result.request.recipe.betas[1]: (r.result.outcome, r.result.steps) for r in lab.records}
    assert ended == {
        **dict.fromkeys((0.999, 0.9, 0.95), (Outcome.COMPLETED, 8)),
        **dict.fromkeys((0.98, 0.99), (Outcome.PRUNED, 4)),
    }
    assert answer.details["scores"][2:] == [math.inf, math.inf]
    assert answer.details["outcomes"] == ["completed", "completed", "pruned", "pruned"]
    assert answer.details["incumbent_outcome"] == "completed"
    assert lab.context.budget.spent == lab.engine.steps


def test_a_value_that_diverges_is_never_chosen_and_an_incumbent_that_diverges_is_left() -> None:
    lab = bench(by_beta2({0.9: NAN, 0.95: -0.1}, 0.0))
    assert choose_value(lab.context, "beta2", Recipe(), (0.9, 0.95)).after == 0.95
    lab = bench(by_beta2({0.999: NAN, 0.9: NAN}, 0.1))
    answer = choose_value(lab.context, "beta2", Recipe(), (0.9, 0.95))
    assert (answer.verdict, answer.after) == (Verdict.CHANGED, 0.95)
    assert "the incumbent diverged on 3 of 3 seeds" in answer.reason


def test_a_metric_is_maximized_where_the_spec_says_so() -> None:
    objective = Objective(name="score", direction="maximize")
    lab = bench(by_beta2({0.95: 0.3, 0.98: 5.0, 0.9: -0.3}, 0.02), objective=objective)
    assert choose_value(lab.context, "beta2", Recipe(), (0.9, 0.95, 0.98)).after == 0.98


def test_the_winners_curse_does_not_fool_it() -> None:
    changed = tried = 0
    for run in range(200):
        lab = bench(lambda recipe, seed, run=run: noise(1, run, seed) + noise(0.1, run, seed, recipe.betas[1]))
        answer = choose_value(lab.context, "beta2", Recipe(), VALUES)
        tried += answer.evidence is not None
        changed += answer.verdict is Verdict.CHANGED
    assert tried > 120  # the best of four equals looked better than the incumbent on the search seeds
    assert changed <= 10


def test_a_learning_rate_that_makes_no_difference_is_kept() -> None:
    changed = 0
    for run in range(60):
        lab = bench(lambda recipe, seed, run=run: 1 + noise(0.1, run, seed, recipe.lr), horizon=40)
        changed += lr.run(lab.context, Recipe()).verdict is Verdict.CHANGED
    assert changed <= 4


# --- one context: what is trained, what it costs


def test_the_incumbent_is_not_trained_twice_on_a_seed() -> None:
    lab = bench(by_beta2({0.95: -0.01}, 0.0))
    for stage, values, verdict in (("beta2", VALUES, "changed"), ("eps", (1e-6, 1e-4), "kept")):
        assert choose_value(lab.context, stage, Recipe(), values).verdict == verdict
    mine = [request.seed for request in lab.engine.opened if request.recipe == Recipe()]
    assert sorted(mine) == sorted(lab.context.seeds.search + lab.context.seeds.confirm[:3])
    keys = [(request.recipe.training_key(), request.seed) for request in lab.engine.opened]
    assert len(set(keys)) == len(keys)


def test_a_recipe_measured_again_is_not_trained_again_whatever_its_provenance() -> None:
    lab = bench(by_beta2({}, 0.1))
    first = lab.context.measure("lr", Recipe(), [3, 4])
    told = Recipe(provenance={"run": "x"})
    assert lab.context.measure("eps", told, [4, 3]) == first[::-1]
    assert len(lab.engine.opened) == 2
    lab.context.measure("eps", told, [4, 5])
    assert [request.seed for request in lab.engine.opened] == [3, 4, 5]


def test_a_score_is_a_mean_loss_and_infinite_where_anything_is_missing() -> None:
    context = bench(by_beta2({}, 0.0)).context
    assert context.score([1.0, 2.0]) == 1.5
    assert context.score([]) == context.score([1.0, NAN]) == math.inf
    upwards = bench(by_beta2({}, 0.0), objective=Objective(name="score", direction="maximize")).context
    assert upwards.score([1.0, 2.0]) == -1.5
    assert upwards.score([1.0, NAN]) == math.inf


@given(st.integers(1, 9), st.integers(0, 10**6), st.integers(5, 9))
def test_seeds_that_search_confirm_and_judge_are_disjoint_and_shift_with_the_specs_seed(
    seeds: int, seed: int, fresh: int
) -> None:
    spec = Spec(task=TaskSpec(ref="a:b"), horizon=1, seeds=seeds, seed=seed)
    mine, next_ones = Seeds.of(spec, fresh), Seeds.of(spec.model_copy(update={"seed": seed + 1}), fresh)
    assert (len(mine.search), len(mine.confirm), len(mine.fresh)) == (seeds, 12, fresh)
    every = [*mine.search, *mine.confirm, *mine.fresh, *next_ones.search, *next_ones.confirm, *next_ones.fresh]
    assert len(set(every)) == len(every)


def test_the_budget_is_asked_before_anything_is_trained() -> None:
    lab = bench(by_beta2({}, 0.0), budget=100)
    lab.context.measure("lr", Recipe(), range(12))
    with pytest.raises(BudgetSpent, match="8 more steps do not fit the budget of 100"):
        lab.context.measure("lr", Recipe(lr=0.5), [0])
    assert lab.engine.steps == lab.context.budget.spent == 96
    lab.context.measure("lr", Recipe(), range(12))  # known, so it costs nothing


def test_a_deadline_stops_the_search_between_trials() -> None:
    lab = bench(by_beta2({}, 0.0))
    lab.context.measure("lr", Recipe(), [0])
    lab.context.budget.deadline = 0.0
    with pytest.raises(BudgetSpent, match="the time is spent"):
        lab.context.measure("lr", Recipe(), [1])
    assert len(lab.records) == 1


# --- a trial that fails


def confirming(lab: Bench, recipe: Recipe, request: TrialRequest) -> bool:
    return request.recipe == recipe and request.seed == lab.context.seeds.confirm[1]


def test_a_challenger_whose_trial_fails_loses_and_the_reason_says_so() -> None:
    lab = bench(by_beta2({0.99: -0.3}, 0.02))
    lab.engine.fails = lambda request: confirming(lab, Recipe().with_knob("beta2", 0.99), request)
    answer = choose_value(lab.context, "beta2", Recipe(), VALUES)
    assert (answer.verdict, answer.recipe) == (Verdict.KEPT, Recipe())
    assert "the challenger failed on 1 of 3 seeds" in answer.reason


def test_a_candidate_whose_trial_fails_is_not_chosen_nor_trained_again() -> None:
    lab = bench(by_beta2({0.99: -0.3, 0.95: -0.2}, 0.02))
    best = Recipe().with_knob("beta2", 0.99)
    lab.engine.fails = lambda request: request.recipe == best
    answer = choose_value(lab.context, "beta2", Recipe(), VALUES)
    assert (answer.verdict, answer.after) == (Verdict.CHANGED, 0.95)
    assert answer.details["outcomes"][VALUES.index(0.99)] == "failed"
    assert len(lab.trained(recipe=best)) == len(lab.context.seeds.search)


@pytest.mark.parametrize("on", ["search", "confirm"])
def test_where_a_trial_of_the_incumbent_fails_the_error_names_it_and_the_remedy(on: str) -> None:
    lab = bench(by_beta2({0.99: -0.3}, 0.02))
    seed = getattr(lab.context.seeds, on)[1]
    lab.engine.fails = lambda request: request.recipe == Recipe() and request.seed == seed
    with pytest.raises(TrialFailed, match=rf"beta2: the trial with seed {seed} failed after 0 of 8 .* trial_timeout"):
        choose_value(lab.context, "beta2", Recipe(), VALUES)
    assert len(lab.records) == len(lab.engine.opened)


@pytest.mark.parametrize("failing", ["default", "recommended"])
def test_a_trial_of_the_last_comparison_that_fails_is_no_divergence(failing: str) -> None:
    recipes = {"default": Recipe(), "recommended": Recipe(lr=0.5)}
    lab = bench(by_beta2({}, 0.0))
    lab.engine.fails = lambda request: request.recipe == recipes[failing]
    with pytest.raises(TrialFailed, match="final: the trial with seed 20000 failed"):
        conclude(lab.context, recipes["recommended"], Progress())


def test_a_range_test_goes_on_without_a_seed_whose_trial_failed() -> None:
    lab, sound = (bench(lambda recipe, seed: valley(recipe.lr), seeds=count) for count in (2, 1))
    lab.engine.fails = lambda request: request.seed == lab.context.seeds.search[1]
    ramp = Ramp(1e-6, 1e-1, 300)
    assert range_test(lab.context, Recipe(), ramp).curve == range_test(sound.context, Recipe(), ramp).curve
    lab.engine.fails = lambda request: True
    with pytest.raises(TrialFailed, match="lr_range: the trial with seed 0 failed"):
        range_test(lab.context, Recipe(), ramp)


def test_where_no_short_trial_completes_and_one_failed_nobody_is_told_that_all_diverged() -> None:
    lab = bench(lambda recipe, seed: NAN)
    lab.engine.fails = lambda request: request.recipe.lr < 1e-4
    with pytest.raises(TrialFailed, match="lr: the trial with seed 0 failed"):
        lr.run(lab.context, Recipe())


# --- a metric that is not finite beside a sound loss

SCORE = Objective(name="score", direction="minimize")


@pytest.mark.parametrize("without", ["challenger", "incumbent"])
def test_a_metric_that_is_not_finite_in_a_confirmation_is_told_as_such(without: str) -> None:
    lab = bench(by_beta2({0.99: -0.3}, 0.02), objective=SCORE)
    recipe = Recipe() if without == "incumbent" else Recipe().with_knob("beta2", 0.99)
    lab.engine.unscored = lambda request: confirming(lab, recipe, request)
    answer = choose_value(lab.context, "beta2", Recipe(), VALUES)
    assert answer.verdict is (Verdict.KEPT if without == "challenger" else Verdict.CHANGED)
    assert f"the {without} had no finite score (let the metric return a number) on 1 of 3 seeds" in answer.reason
    assert "diverged" not in answer.reason


def bracketed(context: StageContext, recipe: Recipe) -> object:
    return bracket(context, lr_of, recipe.lr, 20, 6, context.spec.knob("lr"))


@pytest.mark.parametrize("search", [lr.run, bracketed])
def test_a_metric_that_is_finite_in_no_trial_of_a_search_is_told_with_the_remedy(
    search: Callable[[StageContext, Recipe], object],
) -> None:
    lab = bench(lambda recipe, seed: valley(recipe.lr), objective=SCORE)
    lab.engine.unscored = lambda request: True
    with pytest.raises(NothingLearned, match=r"the metric 'score' is not finite .* return a number") as told:
        search(lab.context, Recipe())
    assert "diverged" not in str(told.value)


# --- a whole plan


class Answers(Progress):
    """The verdicts told, and the steps spent by then."""

    def __init__(self, lab: Bench) -> None:
        self.verdicts: dict[str, Verdict] = {}
        self.spent: dict[str, int] = {}
        self._lab = lab

    def on_answer(self, answer: StageAnswer) -> None:
        self.verdicts[answer.stage] = answer.verdict
        self.spent[answer.stage] = self._lab.context.budget.spent


def everything(recipe: Recipe, seed: int) -> float:
    """A bowl in lr with a valley's shape, a gain from beta2, a loss from a large eps, none from warmup."""
    lr_part = 1 - 1 / (1 + math.log10(recipe.lr / 0.02) ** 2)
    beta_part = 0.2 * abs(math.log10((1 - recipe.betas[1]) / 0.02))
    return 1 + lr_part + beta_part + recipe.eps * 100 + noise(0.2, seed) + noise(1e-3, seed, recipe.training_key())


def test_a_plan_asks_in_order_and_each_stage_starts_from_the_recipe_before() -> None:
    asked = [stage for stage in STAGES if stage != "portfolio"]  # which may find what the others would
    lab = bench(everything, horizon=40, stages=asked, budget=1e9)
    told = Answers(lab)
    recipe = run_plan(make_plan(lab.context.spec), lab.context, told)
    assert list(told.verdicts) == asked
    assert recipe.lr == pytest.approx(0.02, rel=0.1)
    assert recipe.betas[1] == 0.98
    assert (recipe.eps, recipe.schedule.warmup) == (1e-8, 0.05)
    answers = lab.context.answers
    assert [answers[name].verdict for name in ("lr", "beta2", "warmup")] == ["changed", "changed", "kept"]
    assert (answers["beta2"].before, answers["beta2"].after) == (0.999, 0.98)
    assert {request.seed for request in lab.engine.opened} <= {*lab.context.seeds.search, *lab.context.seeds.confirm}


def test_every_step_of_every_trial_is_counted_once() -> None:
    lab = bench(everything, horizon=40, stages=list(STAGES))
    run_plan(make_plan(lab.context.spec), lab.context, Progress())
    assert lab.context.budget.spent == lab.engine.steps == sum(record.result.steps for record in lab.records)
    assert len(lab.records) == len(lab.engine.opened)


def test_a_stage_the_budget_cannot_pay_for_keeps_the_incumbent_unasked() -> None:
    def planned(budget: float) -> tuple[Bench, Answers, Recipe]:
        lab = bench(everything, budget=budget, horizon=40, stages=["lr", "eps", "beta2"])
        told = Answers(lab)
        return lab, told, run_plan(make_plan(lab.context.spec), lab.context, told)

    _, rich, wanted = planned(math.inf)
    assert list(rich.verdicts.values()) == ["changed", "kept", "changed"]
    budget = rich.spent["eps"] + 100  # eps asks for more than its pruned trials take
    lab, poor, recipe = planned(budget)
    assert list(poor.verdicts.values()) == ["changed", "kept", "unasked"]
    assert recipe == wanted.with_knob("beta2", 0.999)
    assert f"do not fit the budget of {budget}" in lab.context.answers["beta2"].reason
    assert lab.engine.steps == lab.context.budget.spent == rich.spent["eps"]


def test_a_budget_spent_before_the_first_question_leaves_the_base_recipe() -> None:
    lab = bench(everything, budget=10, horizon=40, stages=["lr", "eps"])
    told = Answers(lab)
    assert run_plan(make_plan(lab.context.spec), lab.context, told) == lab.context.spec.base
    assert list(told.verdicts.values()) == ["unasked"] * 2
    assert lab.engine.steps == 0


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("horizon", [1, 2, 7, 40])
def test_a_stage_costs_no_more_than_it_said_but_for_confirmations_that_are_unclear(stage: str, horizon: int) -> None:
    lab = bench(everything, horizon=horizon, base=Recipe(lr=0.01))
    if stage != "lr_range":
        lab.context.answers["lr_range"] = lr_range.run(lab.context, Recipe(lr=0.01))
    before = lab.engine.steps
    answer = REGISTRY[stage].run(lab.context, Recipe(lr=0.01))  # type: ignore[index]
    assert answer.stage == stage
    unclear = (LOOKS[-1] - CONFIRM_SEEDS) * len(
        {r.recipe.training_key() for r in lab.engine.opened if r.seed >= 10_000}
    )
    assert lab.engine.steps - before <= REGISTRY[stage].cost(lab.context.spec) + unclear * horizon  # type: ignore[index]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 5), st.integers(1, 400))
def test_what_auto_plans_begins_with_lr_and_the_budget_could_pay_for_each_stage(
    horizon: int, seeds: int, trials: int
) -> None:
    spec = Spec(task=TaskSpec(ref="a:b"), horizon=horizon, seeds=seeds, budget=Budget(trials=trials))
    try:
        plan = make_plan(spec)
    except InputError as error:
        assert "is too small" in str(error)  # noqa: PT017 - either end is fine
    else:
        names = [stage.name for stage in plan.stages]
        assert names[:2] == ["lr_range", "lr"]
        assert plan.steps <= plan.budget
        first = sum(stage.steps for stage in plan.stages[:2]) + plan.final_steps
        assert all(first + stage.steps <= plan.budget for stage in plan.stages[2:])
