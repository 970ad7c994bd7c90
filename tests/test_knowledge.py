"""What is believed before anything is tried, and what former searches teach."""

from __future__ import annotations

import pytest

from adamtune.knobs import KNOBS
from adamtune.search.knowledge import KnownTask, ordered
from adamtune.search.prior import ADAM, Belief, Prior

PRIOR = Prior(ADAM)
BEST = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.997, "eps": 1e-6}


def at(**knobs: float) -> dict[str, float]:
    return BEST | knobs


def test_density_falls_with_decades_on_either_side() -> None:
    assert PRIOR.log_density(BEST) == pytest.approx(0.0)
    assert PRIOR.log_density(at(lr=3e-4)) == pytest.approx(PRIOR.log_density(at(lr=3e-2)))
    assert PRIOR.log_density(at(lr=3e-5)) < PRIOR.log_density(at(lr=3e-4)) < 0


def test_an_eps_too_small_to_matter_is_as_good_as_the_mean() -> None:
    assert PRIOR.log_density(at(eps=1e-12)) == 0.0
    assert PRIOR.log_density(at(eps=1e-2)) < -1


def test_betas_are_judged_by_their_averaging_length() -> None:
    belief = Belief(KNOBS["beta1"], 0.9, 0.5)
    assert belief.distance(0.99) == pytest.approx(-2)
    assert belief.distance(0.0) == pytest.approx(2)


def test_the_best_believed_comes_first_and_ties_keep_their_place() -> None:
    assert PRIOR.ordered([at(lr=1.0), at(eps=1e-9), at(eps=1e-8), at(lr=1e-2)]) == [1, 2, 3, 0]


def test_each_point_adds_to_those_before() -> None:
    """Two points serve two tasks each for itself; a third is second best on both and comes after them."""
    a, b, both, useless = at(lr=1e-3), at(lr=1e-2), at(beta1=0.5), at(beta1=0.98)
    points = [useless, both, b, a]
    tasks = [KnownTask(points, [1.0, 0.4, 0.9, 0.0]), KnownTask(points, [1.0, 0.4, 0.0, 0.9])]
    order = ordered(tasks, PRIOR)
    assert order[0] == both  # alone it serves both best
    assert {order[1]["lr"], order[2]["lr"]} == {1e-3, 1e-2}
    assert order[3] == useless


def test_a_point_tried_elsewhere_counts_where_it_is_near() -> None:
    near, far = at(lr=1.1e-2), at(lr=1.0)
    tasks = [KnownTask([at(lr=1e-2), far], [0.0, 0.9]), KnownTask([near, at(lr=1e-4)], [0.0, 0.8])]
    order = ordered(tasks, PRIOR)
    assert order[0]["lr"] in (1e-2, 1.1e-2)
    assert order[-1] in (far, at(lr=1e-4))


def test_among_equals_the_better_believed_comes_first() -> None:
    task = KnownTask([at(lr=1.0), at(lr=3e-3), at(lr=1e-2)], [0.0, 0.0, 0.0])
    assert [point["lr"] for point in ordered([task], PRIOR)] == [3e-3, 1e-2, 1.0]


def test_nothing_known_proposes_nothing() -> None:
    assert ordered([], PRIOR) == []
    assert ordered([KnownTask([], [])], PRIOR) == []
