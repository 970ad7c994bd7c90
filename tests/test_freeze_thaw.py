"""Which half-trained recipe to train on next."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamtune.search.freeze_thaw import FreezeThaw, extrapolated


def search(curves: list[list[float]], units: int, length: int, untrained: float = 1.0) -> tuple[list[int], list[int]]:
    """Units each curve got, and the order in which units were given."""
    thaw = FreezeThaw(len(curves), length)
    got, order = [0] * len(curves), []
    for _ in range(units):
        proposal = thaw.next()
        if proposal is None:
            break
        thaw.tell(proposal, curves[proposal][got[proposal]], untrained)
        got[proposal] += 1
        order.append(proposal)
    return got, order


def falling(rate: float, length: int) -> list[float]:
    return [1.0 - rate * math.log(step + 1) for step in range(1, length + 1)]


def test_a_curve_that_falls_by_the_logarithm_is_extrapolated_exactly() -> None:
    curve = [1.0, *falling(0.2, 40)]
    assert extrapolated(curve[:12], 40) == pytest.approx(curve[40])


def test_a_curve_that_rises_promises_what_it_has_reached() -> None:
    assert extrapolated([1.0, 0.5, 0.4, 0.6, 0.7, 0.8, 0.9, 0.9], 50) == 0.4


def test_the_steepest_curve_is_trained_to_its_end_and_the_others_are_left() -> None:
    rates = [0.05, 0.1, 0.02, 0.2, 0.03, 0.08]
    got, _ = search([falling(rate, 20) for rate in rates], 60, 20)
    assert got[3] == 20
    assert all(got[place] < 10 for place in (2, 4))


def test_a_slow_starter_gets_time_when_it_is_proposed_first() -> None:
    slow = [1.0] * 5 + [0.1] * 45
    others = [falling(0.1, 50)] * 5
    assert search([slow, *others], 60, 50)[0][0] > 5
    assert search([*others, slow], 60, 50)[0][5] < 5  # of the last one little is expected


def test_proposals_start_in_their_order_and_ever_more_of_them() -> None:
    _, order = search([falling(0.1, 50)] * 200, 1000, 50)
    started = list(dict.fromkeys(order))
    assert started == list(range(len(started)))
    assert len(set(order[:200])) == pytest.approx(27, abs=2)
    assert len(started) == pytest.approx(100, abs=3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_diverges_is_never_trained_again(bad: float) -> None:
    got, _ = search([[bad] * 10, falling(0.1, 10), falling(0.2, 10)], 100, 10)
    assert got == [1, 10, 10]


def test_it_ends_when_everything_is_trained() -> None:
    got, order = search([falling(0.1, 5)] * 4, 1000, 5)
    assert got == [5] * 4
    assert len(order) == 20


def test_an_unknown_loss_before_training_does_no_harm() -> None:
    assert sum(search([falling(0.1, 5)] * 4, 1000, 5, untrained=math.nan)[0]) == 20


@given(
    st.lists(st.lists(st.floats(-5, 5) | st.just(math.nan), min_size=6, max_size=6), min_size=1, max_size=8),
    st.integers(0, 60),
)
def test_no_curve_gets_more_than_its_length_and_how_long_it_goes_on_changes_nothing(
    curves: list[list[float]], units: int
) -> None:
    got, order = search(curves, units, 6)
    assert max(got) <= 6
    assert order == search(curves, 60, 6)[1][: len(order)]


@pytest.mark.parametrize(("proposals", "length"), [(0, 5), (5, 0)])
def test_nothing_to_search(proposals: int, length: int) -> None:
    with pytest.raises(ValueError, match="needs a proposal"):
        FreezeThaw(proposals, length)
