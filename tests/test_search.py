from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from adamtune.errors import ExitCode, InputError
from adamtune.evidence import Direction
from adamtune.knobs import KNOBS
from adamtune.recipe import Recipe
from adamtune.search import Asked, KnobStudy, close_storage, open_storage
from adamtune.search.patient import PatientStorage
from adamtune.trial import Outcome, TrialRequest, TrialResult

NAN = math.nan
SEEDS = (7, 8, 9)


def study(
    *knobs: str,
    storage: BaseStorage | None = None,
    direction: Direction = "minimize",
    seed: int = 0,
    keep: float = 0.5,
) -> KnobStudy:
    return KnobStudy(storage or InMemoryStorage(), "s", [KNOBS[name] for name in knobs], direction, seed, keep)


def trials_in(storage: BaseStorage) -> list[FrozenTrial]:
    return optuna.load_study(study_name="s", storage=storage).trials


def result(outcome: Outcome = Outcome.COMPLETED, steps: int = 20) -> TrialResult:
    return TrialResult(TrialRequest(Recipe(), seed=7, horizon=20), outcome, steps, (), 0.0)


def kept(values: Sequence[Sequence[float]], keep: float = 0.5, direction: Direction = "minimize") -> list[bool]:
    """Whether each point, whose trials reported the values given, is kept; all its trials must agree."""
    search = study("lr", direction=direction, keep=keep)
    points = [search.ask({"lr": 10.0 ** (place % 7 - 6)}, range(len(row))) for place, row in enumerate(values)]
    for point, row in zip(points, values, strict=True):
        for trial, value in zip(point, row, strict=True):
            search.report(trial, 10, value)
    answers = [{search.should_prune(trial) for trial in point} for point in points]
    assert all(len(answer) == 1 for answer in answers)
    return [answer == {False} for answer in answers]


# --- which points go on at a rung


def test_the_half_that_is_better_in_the_mean_over_seeds_goes_on() -> None:
    values = [[0.1, 0.9], [0.4, 0.4], [0.2, 0.2], [0.6, 0.6]]
    assert kept(values) == [False, True, True, False]
    assert kept(values, direction="maximize") == [True, False, False, True]


def test_of_points_that_are_equal_those_asked_first_go_on() -> None:
    for direction in ("minimize", "maximize"):
        assert kept([[0.5]] * 5, direction=direction) == [True, True, True, False, False]


@pytest.mark.parametrize("points", [1, 2, 3, 9])
def test_never_fewer_than_two_go_on(points: int) -> None:
    assert sum(kept([[float(place)] for place in range(points)], keep=0.01)) == min(points, 2)


def test_a_value_that_is_not_finite_is_the_worst_there_is() -> None:
    for direction in ("minimize", "maximize"):
        assert kept([[NAN], [math.inf], [1e30], [-1e30]], direction=direction) == [False, False, True, True]
        assert kept([[0.0, NAN], [-math.inf, 0.0], [5.0, 5.0], [4.0, 4.0]], direction=direction)[2:] == [True, True]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda seeds: st.lists(st.lists(st.floats(-9, 9), min_size=seeds, max_size=seeds), min_size=1, max_size=8)
    ),
    st.floats(0.01, 1.0),
    st.sampled_from(["minimize", "maximize"]),
)
def test_the_share_asked_for_goes_on_and_none_of_it_is_worse_than_what_stays(
    values: list[list[float]], keep: float, direction: Direction
) -> None:
    stay = kept(values, keep, direction)
    assert sum(stay) == min(len(values), max(2, math.ceil(keep * len(values))))
    sign = 1 if direction == "minimize" else -1
    means = [sign * fmean(row) for row in values]
    best_dropped = min((mean for mean, on in zip(means, stay, strict=True) if not on), default=math.inf)
    assert all(mean <= best_dropped + 1e-9 for mean, on in zip(means, stay, strict=True) if on)


def test_later_rungs_compare_only_the_points_that_reached_them() -> None:
    search = study("lr")
    trials = [search.ask({"lr": 1e-3}, [0])[0] for _ in range(8)]
    assert not any(map(search.should_prune, trials))  # nobody has reported anything
    for value, trial in enumerate(trials):
        search.report(trial, 10, value)
    on = [trial for trial in trials if not search.should_prune(trial)]
    assert on == trials[:4]
    for value, trial in enumerate(on):
        search.report(trial, 20, -value)
    assert [search.should_prune(trial) for trial in on] == [True, True, False, False]


# --- what is asked is what the study holds


def test_a_point_asked_for_is_tried_on_every_seed_and_kept_in_the_study() -> None:
    storage = InMemoryStorage()
    search = study("lr", "beta2", "warmup", storage=storage)
    asked = search.ask({"lr": 3e-3, "beta2": 0.99, "warmup": 0.05}, SEEDS, note="x")
    assert [(trial.number, trial.seed) for trial in asked] == [(0, 7), (1, 8), (2, 9)]
    assert all(trial.values == {"lr": 3e-3, "beta2": 0.99, "warmup": 0.05} for trial in asked)
    for trial in trials_in(storage):
        assert trial.params == {"lr": 3e-3, "one_minus_beta2": pytest.approx(0.01), "warmup": 0.05}
        assert trial.distributions["one_minus_beta2"].log  # type: ignore[attr-defined]
        assert not trial.distributions["warmup"].log  # type: ignore[attr-defined]
        assert trial.user_attrs == {"point": 0, "seed": SEEDS[trial.number], "note": "x"}


def test_some_of_the_knobs_or_none_may_be_asked_for() -> None:
    storage = InMemoryStorage()
    search = study("lr", "eps", storage=storage)
    assert search.ask({"eps": 1e-6}, [1])[0].values == {"eps": 1e-6}
    assert search.ask({}, [1])[0].values == {}
    assert [trial.params for trial in trials_in(storage)] == [{"eps": 1e-6}, {}]


@pytest.mark.parametrize(
    ("knob", "value"),
    [("lr", 1e-9), ("lr", 50.0), ("beta1", 0.0), ("beta2", 0.0), ("beta2", 0.999999), ("eps", 1e-30), ("warmup", 0.9)],
)
def test_a_value_outside_the_range_that_is_searched_can_be_asked_for(knob: str, value: float) -> None:
    search = study(knob)  # warnings are errors here
    inside, outside = search.ask({knob: KNOBS[knob].low}, [0])[0], search.ask({knob: value}, [0, 1])
    assert [trial.values[knob] for trial in outside] == [pytest.approx(value)] * 2
    for trial in (inside, *outside):
        search.report(trial, 10, 0.5)
        search.tell(trial, result(), 0.5)
    (proposed,) = search.ask(None, [0])
    assert KNOBS[knob].low <= proposed.values[knob] <= KNOBS[knob].high


@pytest.mark.parametrize("knob", sorted(KNOBS))
def test_the_ends_of_a_range_can_be_asked_for(knob: str) -> None:
    for end in (KNOBS[knob].low, KNOBS[knob].high):
        assert study(knob).ask({knob: end}, [0])[0].values == {knob: pytest.approx(end, rel=1e-9)}


# --- what the sampler proposes


def proposals(seed: int, points: int = 15) -> list[dict[str, float]]:
    search, found = study("lr", "beta2", seed=seed), []
    for _ in range(points):
        asked = search.ask(None, SEEDS)
        assert {tuple(trial.values.items()) for trial in asked} == {tuple(asked[0].values.items())}
        found.append(dict(asked[0].values))
        for trial in asked:
            search.tell(trial, result(), (math.log10(trial.values["lr"]) + 3) ** 2)
    return found


def test_proposals_follow_from_the_samplers_seed() -> None:
    first = proposals(seed=3)
    assert first == proposals(seed=3)
    assert first != proposals(seed=4)
    for point in first:
        assert all(KNOBS[name].low <= value <= KNOBS[name].high for name, value in point.items())


@given(st.integers(0, 10**15))
@settings(max_examples=10)
@example(2**32 - 1)
@example(2**32)
def test_every_seed_that_a_spec_may_have_has_proposals(seed: int) -> None:
    assert proposals(seed, points=1) == proposals(seed, points=1)


# --- how trials are told


@pytest.mark.parametrize(
    ("outcome", "value", "state"),
    [
        (Outcome.COMPLETED, 0.25, TrialState.COMPLETE),
        (Outcome.COMPLETED, NAN, TrialState.PRUNED),
        (Outcome.COMPLETED, math.inf, TrialState.PRUNED),
        (Outcome.PRUNED, NAN, TrialState.PRUNED),
        (Outcome.PRUNED, 0.1, TrialState.PRUNED),
        (Outcome.DIVERGED, NAN, TrialState.PRUNED),
        (Outcome.FAILED, NAN, TrialState.FAIL),
    ],
)
def test_every_outcome_is_told_to_optuna_and_kept_beside_its_state(
    outcome: Outcome, value: float, state: TrialState
) -> None:
    storage = InMemoryStorage()
    search = study("lr", storage=storage)
    (asked,) = search.ask({"lr": 1e-2}, [7])
    search.tell(asked, result(outcome, steps=12), value)
    (trial,) = trials_in(storage)
    assert trial.state is state
    assert trial.value == (value if state is TrialState.COMPLETE else None)
    attrs = {"point": 0, "seed": 7, "outcome": str(outcome), "steps": 12, "horizon": 20}
    assert trial.user_attrs == attrs


def test_a_diverged_trial_repels_the_sampler() -> None:
    def far(diverge: bool) -> int:
        search = study("lr", seed=0)
        for place in range(12):
            lr = 1e-4 if place % 2 else 1.0
            (asked,) = search.ask({"lr": lr}, [0])
            search.report(asked, 10, NAN if diverge and lr == 1.0 else 0.1)
            search.tell(asked, result(Outcome.DIVERGED if diverge and lr == 1.0 else Outcome.COMPLETED), 0.1)
        return sum(search.ask(None, [0])[0].values["lr"] > 0.1 for _ in range(20))

    assert far(diverge=True) < far(diverge=False)


def test_optuna_alone_reads_the_journal_of_a_study(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    storage = open_storage(None, path)
    search = KnobStudy(storage, "task/seed0/beta2", [KNOBS["beta2"]], "maximize", 0)
    asked = [*search.ask({"beta2": 0.95}, [1, 2]), *search.ask({"beta2": 0.0}, [1], colour="red")]
    for trial in asked:
        search.report(trial, 10, trial.seed / 4)
        search.tell(trial, result(Outcome.COMPLETED if trial.number else Outcome.DIVERGED), 0.5)
    close_storage(storage)

    stock = optuna.load_study(study_name="task/seed0/beta2", storage=JournalStorage(JournalFileBackend(str(path))))
    assert stock.direction is optuna.study.StudyDirection.MAXIMIZE
    assert stock.best_value == 0.5
    assert [trial.state.name for trial in stock.trials] == ["PRUNED", "COMPLETE", "COMPLETE"]
    assert [trial.params["one_minus_beta2"] for trial in stock.trials] == pytest.approx([0.05, 0.05, 1.0])
    assert [trial.user_attrs["seed"] for trial in stock.trials] == [1, 2, 1]
    assert stock.trials[2].user_attrs["colour"] == "red"
    assert [trial.intermediate_values for trial in stock.trials] == [{10: 0.25}, {10: 0.5}, {10: 0.25}]


def test_a_study_is_gone_through_again_from_its_first_trial(tmp_path: Path) -> None:
    def sitting(lrs: Sequence[float], close: int) -> list[Asked]:
        storage = open_storage(None, tmp_path / "j")
        search = KnobStudy(storage, "s", [KNOBS["lr"]], "minimize", 0)
        asked = [trial for lr in lrs for trial in search.ask({"lr": lr}, [0, 1])]
        for trial in asked:
            search.report(trial, 10, trial.values["lr"] + trial.seed)
        for trial in asked[:close]:
            search.tell(trial, result(), 0.5)
        close_storage(storage)
        return asked

    first = sitting([1e-3, 1e-2], close=3)
    assert sitting([1e-3, 1e-2, 1e-1], close=6)[:4] == first
    trials = optuna.load_study(study_name="s", storage=open_storage(None, tmp_path / "j")).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert [trial.intermediate_values[10] for trial in trials] == pytest.approx([1e-3, 1.001, 1e-2, 1.01, 0.1, 1.1])


def test_where_a_study_asks_for_something_else_the_trials_left_open_are_closed(tmp_path: Path) -> None:
    for lrs in ([1e-3, 1e-2, 1e-1], [1e-3, 3e-2]):
        storage = open_storage(None, tmp_path / "j")
        search = KnobStudy(storage, "s", [KNOBS["lr"]], "minimize", 0)
        asked = [trial for lr in lrs for trial in search.ask({"lr": lr}, [0])]
        search.tell(asked[0], result(), 0.5)
        close_storage(storage)
    assert [trial.number for trial in asked] == [0, 3]
    trials = optuna.load_study(study_name="s", storage=open_storage(None, tmp_path / "j")).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "FAIL", "RUNNING"]


class Killed(BaseException):
    pass


WRITES = ("_create_new_trial", "_set_trial_param", "set_trial_state_values", "set_trial_user_attr")


@pytest.mark.parametrize("writes", range(1, 5))
def test_a_study_killed_before_any_write_to_a_database_is_gone_on_with(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, left = f"sqlite:///{tmp_path / 's.db'}", iter(range(writes))

    def dying(write: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if next(left, None) is None:
                raise Killed
            return write(*args, **kwargs)

        return call

    def sitting() -> list[list[Asked]]:
        search = study("lr", storage=open_storage(url, tmp_path))
        return [search.ask({"lr": lr}, SEEDS, label="a") for lr in (1e-3, 1e-2)]

    with monkeypatch.context() as mortal:
        for name in WRITES:
            mortal.setattr(PatientStorage, name, dying(getattr(PatientStorage, name)))
        with pytest.raises(Killed):
            sitting()
    first = sitting()
    assert [trial.number for point in first for trial in point] == list(range(6))
    assert sitting() == first
    trials = trials_in(open_storage(url, tmp_path))
    assert [trial.state.name for trial in trials] == ["RUNNING"] * 6
    assert [trial.user_attrs for trial in trials] == [
        {"point": point, "seed": seed, "label": "a"} for point in (0, 1) for seed in SEEDS
    ]


def test_a_trial_that_was_only_queued_in_a_database_is_closed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    study("lr", storage=open_storage(url, tmp_path))
    optuna.load_study(study_name="s", storage=url).enqueue_trial({"lr": 0.5})
    (asked,) = study("lr", storage=open_storage(url, tmp_path)).ask({"lr": 1e-2}, [0])
    assert asked == Asked(1, {"lr": pytest.approx(1e-2)}, 0)
    assert [trial.state.name for trial in trials_in(open_storage(url, tmp_path))] == ["FAIL", "RUNNING"]


def test_a_storage_url_is_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    KnobStudy(open_storage(url, tmp_path / "unused"), "s", [], "minimize", 0)
    assert optuna.get_all_study_names(url) == ["s"]
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_storage_whose_content_would_be_unpickled_is_refused(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"redis.*://:\*\*\*@host cannot be used: Optuna unpickles"):
        open_storage(f"{scheme}://:hunter2@host", tmp_path / "journal")


@pytest.mark.parametrize("url", ["nonsense", "nosuch://host/db", "sqlite:////no/such/folder/x.db", ""])
def test_a_storage_url_that_is_no_use_is_an_input_error(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the storage cannot be opened: .+; leave `storage` out for a file") as caught:
        open_storage(url, tmp_path / "journal")
    assert caught.value.exit_code is ExitCode.USAGE
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
