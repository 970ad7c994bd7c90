from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamtune.evidence import ERROR, LOOKS, Direction, Verdict, interval, settled, share_of_error, weigh

NAN, INF = math.nan, math.inf
SEEDS = range(100, 105)
INCUMBENT = [1.0, 1.2, 0.9, 1.1, 1.05]


@pytest.mark.parametrize(
    ("count", "quantile"),  # Student's t, 97.5%, from any statistics textbook
    [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (10, 2.262), (30, 2.045), (121, 1.980)],
)
def test_the_interval_is_students_at_95_percent(count: int, quantile: float) -> None:
    values = [3.0 + (-1) ** k for k in range(count)]
    mean = sum(values) / count
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    got = interval(values)
    assert (got.mean, got.count) == (pytest.approx(mean), count)
    assert (got.high - got.mean) / error == pytest.approx(quantile, abs=6e-4)
    assert got.mean - got.low == pytest.approx(got.high - got.mean)


def test_the_interval_of_one_value_is_unbounded_and_of_none_unknown() -> None:
    assert (interval([2.0]).mean, interval([2.0]).low, interval([2.0]).high) == (2.0, -INF, INF)
    assert interval([]).count == 0
    assert math.isnan(interval([]).mean)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_interval_is_unknown_when_any_value_is_not_finite(bad: float) -> None:
    got = interval([1.0, bad, 2.0])
    assert all(map(math.isnan, (got.mean, got.low, got.high)))
    assert got.count == 3


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_the_interval_moves_and_scales_with_its_values(values: list[float], shift: float, scale: float) -> None:
    plain, moved = interval(values), interval([shift + scale * value for value in values])
    assert plain.low <= plain.mean <= plain.high
    for one, other in ((plain.mean, moved.mean), (plain.low, moved.low), (plain.high, moved.high)):
        assert other == pytest.approx(shift + scale * one, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("challenger", "verdict", "told"),
    [
        ([0.5, 0.72, 0.41, 0.58, 0.56], Verdict.CHANGED, "better by evidence: -0.496"),
        ([0.9, 1.3, 0.8, 1.2, 1.0], Verdict.KEPT, "no better by evidence: -0.01"),
        ([1.5, 1.7, 1.4, 1.6, 1.55], Verdict.KEPT, "no better by evidence: +0.5"),
        ([0.1, 0.1, 0.1, NAN, 0.1], Verdict.KEPT, "the challenger diverged on 1 of 5 seeds"),
        ([NAN] * 5, Verdict.KEPT, "the challenger diverged on 5 of 5 seeds"),
        ([0.1, INF, 0.1, NAN, 0.1], Verdict.KEPT, "the challenger diverged on 2 of 5 seeds"),
    ],
)
def test_the_challenger_wins_only_by_evidence(challenger: list[float], verdict: Verdict, told: str) -> None:
    got = weigh(SEEDS, INCUMBENT, challenger, "minimize")
    assert (got.verdict, got.seeds, got.incumbent) == (verdict, tuple(SEEDS), tuple(INCUMBENT))
    assert got.reason.startswith(told)
    assert got.difference.count == sum(map(math.isfinite, challenger))


@pytest.mark.parametrize(
    ("incumbent", "challenger", "verdict", "told"),
    [
        ([NAN] * 5, INCUMBENT, Verdict.CHANGED, "the incumbent diverged on 5 of 5 seeds"),
        ([NAN, *INCUMBENT[1:]], INCUMBENT, Verdict.CHANGED, "the incumbent diverged on 1 of 5 seeds"),
        ([INF, *INCUMBENT[1:]], [9.0, 0.8, 0.8, 0.8, 0.8], Verdict.CHANGED, "the incumbent diverged on 1 of 5"),
        ([NAN, *INCUMBENT[1:]], [0.1, 1.3, 1.0, 1.2, 1.1], Verdict.KEPT, "the challenger is worse on the seeds where"),
        ([NAN, *INCUMBENT[1:]], [*INCUMBENT[:4], NAN], Verdict.KEPT, "the challenger diverged on 1 of 5 seeds"),
        ([NAN] * 5, [NAN] * 5, Verdict.KEPT, "the challenger diverged on 5 of 5 seeds"),
    ],
)
def test_an_incumbent_that_diverges_loses_to_one_that_never_does_and_is_no_worse(
    incumbent: list[float], challenger: list[float], verdict: Verdict, told: str
) -> None:
    got = weigh(SEEDS, incumbent, challenger, "minimize")
    assert got.verdict is verdict
    assert got.reason.startswith(told)


RESULTS = st.floats(-10, 10) | st.just(NAN)


@given(st.lists(st.tuples(RESULTS, RESULTS), min_size=1, max_size=8))
def test_maximizing_is_minimizing_the_negative(pairs: list[tuple[float, float]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    verdicts = {
        weigh(range(len(pairs)), [sign * a for a in one], [sign * b for b in other], direction).verdict
        for sign, direction in ((1, "minimize"), (-1, "maximize"))
    }
    assert len(verdicts) == 1


def test_a_clear_loss_is_no_win_when_maximizing() -> None:
    assert weigh(SEEDS, INCUMBENT, [a - 0.5 for a in INCUMBENT], "maximize").verdict is Verdict.KEPT
    assert weigh(SEEDS, INCUMBENT, [a + 0.5 for a in INCUMBENT], "maximize").verdict is Verdict.CHANGED


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=9), st.sampled_from(["minimize", "maximize"])
)
def test_equal_results_never_change_anything(values: list[float], direction: Direction) -> None:
    got = weigh(range(len(values)), values, values, direction)
    assert got.verdict is Verdict.KEPT


def test_one_pair_of_results_is_no_evidence() -> None:
    assert weigh([0], [1.0], [0.001], "minimize").verdict is Verdict.KEPT


def test_sides_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one value a seed"):
        weigh(SEEDS, INCUMBENT, INCUMBENT[:4], "minimize")


@pytest.mark.parametrize("seeds", [2, 5, 9])
def test_a_challenger_that_is_only_noise_wins_about_one_time_in_forty(seeds: int) -> None:
    chance = random.Random(seeds)
    wins = 0
    for _ in range(2000):
        incumbent = [chance.gauss(1.0, 0.3) for _ in range(seeds)]
        challenger = [value + chance.gauss(0.0, 0.05) for value in incumbent]
        wins += weigh(range(seeds), incumbent, challenger, "minimize").verdict is Verdict.CHANGED
    assert wins / 2000 == pytest.approx(0.025, abs=0.0125)  # 3.5 standard deviations


def test_a_real_but_small_effect_is_found_where_it_is_larger_than_the_noise() -> None:
    chance, wins = random.Random(1), 0
    for _ in range(200):
        incumbent = [chance.gauss(1.0, 0.3) for _ in range(5)]
        wins += weigh(range(5), incumbent, [a - chance.gauss(0.1, 0.05) for a in incumbent], "minimize").verdict is (
            Verdict.CHANGED
        )
    assert wins > 150  # paired: unpaired, the spread between seeds would drown it


def test_an_interval_for_other_seeds_holds_their_mean_19_times_in_20() -> None:
    chance, held, narrow = random.Random(3), 0, 0
    for _ in range(2000):
        values = [chance.gauss(1.0, 0.3) for _ in range(5)]
        later = sum(chance.gauss(1.0, 0.3) for _ in range(10)) / 10
        wide, plain = interval(values, 10), interval(values)
        held += wide.low <= later <= wide.high
        narrow += plain.low <= later <= plain.high
    assert held / 2000 == pytest.approx(0.95, abs=0.017)
    assert narrow < held - 30  # the plain one is for the true mean


def test_the_shares_of_the_error_add_up_to_it() -> None:
    assert share_of_error(1) == ERROR / 2
    assert 0.99 * ERROR < sum(map(share_of_error, range(1, 1000))) < ERROR


def compared(chance: random.Random, gain: float, noise: float, comparison: int) -> tuple[Verdict, int]:
    """One confirmation as sweeps do it: verdict and seeds used."""
    pairs = [(value, value - chance.gauss(gain, noise)) for value in (chance.gauss(1.0, 0.3) for _ in range(LOOKS[-1]))]
    error = share_of_error(comparison) / len(LOOKS)
    for place, look in enumerate(LOOKS):
        here, there = zip(*pairs[:look], strict=True)
        evidence = weigh(range(look), here, there, "minimize", error)
        if settled(evidence, "minimize", LOOKS[place + 1 :], error):
            break
    return evidence.verdict, look


def test_a_sweep_over_knobs_that_do_nothing_seldom_changes_any() -> None:
    chance, changed = random.Random(7), 0
    for _ in range(1000):
        changed += any(compared(chance, 0.0, 0.05, k)[0] is Verdict.CHANGED for k in range(1, 13))
    assert changed / 1000 <= ERROR


def test_clear_cases_take_three_seeds_and_hopeless_ones_no_more() -> None:
    chance = random.Random(11)
    assert {compared(chance, 0.2, 0.002, 3) for _ in range(100)} == {(Verdict.CHANGED, 3)}
    worse = [compared(chance, -0.1, 0.05, 3) for _ in range(100)]
    assert {verdict for verdict, _ in worse} == {Verdict.KEPT}
    assert sum(looks for _, looks in worse) < 350


def test_a_gain_twice_the_noise_is_found_with_more_seeds() -> None:
    chance = random.Random(13)
    found = [compared(chance, 0.1, 0.05, 4) for _ in range(200)]
    assert sum(verdict is Verdict.CHANGED for verdict, _ in found) > 180
    assert max(looks for _, looks in found) > 3


def test_a_challenger_that_diverges_takes_no_more_seeds() -> None:
    evidence = weigh(range(3), [1.0, 1.1, 0.9], [0.5, NAN, 0.4], "minimize")
    assert settled(evidence, "minimize", LOOKS[1:], ERROR)


def test_an_effect_is_told_on_the_scale_of_the_noise() -> None:
    reason = weigh(SEEDS, INCUMBENT, [0.5, 0.72, 0.41, 0.58, 0.56], "minimize").reason
    assert reason == "better by evidence: -0.496 [-0.51, -0.48] over 5 seeds, 32.7 times the noise between seeds"
