"""`trial_timeout`: a trial that hangs has failed, and costs nobody else anything."""

from __future__ import annotations

import signal
import time
from contextlib import closing, suppress

import pytest
import torch
from stacked import CPU, alone, assert_same, requests, task
from torch import Tensor, nn
from worker_tasks import at_step, hanging

from adamtune.engines.local import LocalBatch
from adamtune.engines.population import PopulationEngine
from adamtune.engines.processes import Workers
from adamtune.engines.sequential import SequentialEngine
from adamtune.engines.time_limit import TimeIsUp, time_limit
from adamtune.history import Outcome

ASKED = requests()
HUNG = ASKED[-1].seed


def outcomes(batch: LocalBatch) -> list[Outcome]:
    reports = batch.advance(24)
    found = batch.results()
    assert [report is None for report in reports] == [result.outcome is Outcome.FAILED for result in found]
    assert {result.message for result in found} <= {"", "no rung within the trial_timeout of 2 s"}
    good = [place for place, result in enumerate(found) if result.outcome is Outcome.COMPLETED]
    assert_same([found[place] for place in good], alone(task(), [ASKED[place] for place in good], (24,)))
    return [result.outcome for result in found]


EXPECTED = [Outcome.FAILED if request.seed == HUNG else Outcome.COMPLETED for request in ASKED]


@pytest.mark.parametrize("width", [1, 8])
def test_a_hanging_trial_fails_alone_in_and_out_of_a_stack(width: int) -> None:
    noted: list[str] = []
    batch = LocalBatch(hanging(HUNG), ASKED, CPU, width, width > 1, lambda steps: None, noted.append, 2.0)
    assert outcomes(batch) == EXPECTED
    assert set(EXPECTED) == {Outcome.FAILED, Outcome.COMPLETED}


def test_a_hanging_trial_fails_alone_in_a_worker_process() -> None:
    with closing(Workers(hanging(HUNG), CPU, 2)) as workers:
        shares = [list(range(0, len(ASKED), 2)), list(range(1, len(ASKED), 2))]
        batch = workers.open(shares, ASKED, 1, False, lambda steps: None, lambda note: None, 2.0)
        assert outcomes(batch) == EXPECTED  # type: ignore[arg-type]


def test_engines_pass_the_timeout_on() -> None:
    with closing(PopulationEngine(hanging(HUNG), CPU, processes=1, timeout=2.0)) as engine:
        assert outcomes(engine.open(ASKED)) == EXPECTED  # type: ignore[arg-type]
    batch = SequentialEngine(hanging(HUNG), CPU, timeout=2.0).open(ASKED)
    assert outcomes(batch) == EXPECTED  # type: ignore[arg-type]


def test_a_task_that_swallows_exceptions_does_not_swallow_the_limit() -> None:
    def swallowing(model: nn.Module, x: Tensor) -> Tensor:
        if torch.initial_seed() == at_step(ASKED[0].seed, 3):
            with suppress(Exception):
                time.sleep(600)
        return model(x).sum()

    batch = SequentialEngine(task(loss=swallowing), CPU, timeout=2.0).open(ASKED[:1])
    assert batch.advance(24) == [None]
    assert batch.results()[0].outcome is Outcome.FAILED


def test_a_limit_leaves_no_alarm_and_the_callers_handler_behind() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeIsUp), time_limit(0.05):
        time.sleep(10)
    with time_limit(0.05):
        pass
    time.sleep(0.1)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
