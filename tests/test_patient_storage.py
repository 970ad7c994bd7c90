"""A database that goes away and comes back."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from adamtune.errors import InputError
from adamtune.search import open_storage, patient


class Away:
    """A method of the storage that fails some times before it works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> None:
        self.left, self.calls, works = times, 0, getattr(RDBStorage, name)

        def call(storage: RDBStorage, *args: object, **kwargs: object) -> object:
            self.calls += 1
            if self.left:
                self.left -= 1
                raise StorageInternalError("database is locked")
            return works(storage, *args, **kwargs)

        monkeypatch.setattr(patient.PatientStorage, name, patient._patient(call))
        monkeypatch.setattr("time.sleep", lambda seconds: None)


def test_a_call_is_made_again_until_the_database_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[str] = []
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", tmp_path, noted.append)
    study = optuna.create_study(storage=storage)
    away = Away(monkeypatch, "set_trial_state_values", 5)
    study.tell(study.ask(), 1.0)
    assert away.calls == 6
    assert noted == ["the storage does not answer; waiting for it", "the storage answers again"]
    assert [trial.value for trial in study.trials] == [1.0]


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path / 'a.db'}", tmp_path))
    Away(monkeypatch, "set_trial_state_values", -1)
    monkeypatch.setattr(patient, "PATIENCE", -1.0)
    with pytest.raises(StorageInternalError):
        study.tell(study.ask(), 1.0)


def test_after_patience_has_ended_calls_are_made_once_until_one_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", tmp_path)
    trial = optuna.create_study(storage=storage).ask()._trial_id
    away = Away(monkeypatch, "set_trial_state_values", 5)
    for seconds, calls in ((-1.0, 1), (300.0, 2)):
        monkeypatch.setattr(patient, "PATIENCE", seconds)
        with pytest.raises(StorageInternalError):
            storage.set_trial_state_values(trial, TrialState.FAIL)
        assert away.calls == calls
    storage.get_all_studies()  # is answered
    storage.set_trial_state_values(trial, TrialState.FAIL)
    assert away.calls == 6


def test_a_row_deleted_while_it_was_written_is_no_failure_of_the_storage(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    storage = open_storage(url, tmp_path)
    study = optuna.create_study(storage=storage)._study_id
    storage.set_study_user_attr(study, "worker/1", 1)
    deleting = sqlite3.connect(tmp_path / "a.db", isolation_level=None, check_same_thread=False)
    deleting.execute("BEGIN IMMEDIATE")  # from here on the write below waits
    for table in ("study_user_attributes", "study_directions", "studies"):
        deleting.execute(f"DELETE FROM {table} WHERE study_id = ?", (study,))
    end = threading.Timer(0.5, deleting.execute, ("COMMIT",))
    end.start()
    with pytest.raises(KeyError):  # the study has gone: a worker takes it for the sweep's end
        storage.set_study_user_attr(study, "worker/1", 2)
    end.join()
    deleting.close()


@pytest.mark.parametrize(
    ("url", "told", "passes"),
    [
        ("sqlite:///a.db", "database is locked", True),
        ("sqlite:///a.db", "locking protocol", True),
        ("sqlite:///a.db", "database or disk is full", False),
        ("postgresql://db/a", "server closed the connection unexpectedly", True),
        ("postgresql://db/a", 'could not extend file "base/1": No space left on device', False),
    ],
)
def test_what_does_not_pass_is_not_waited_for(url: str, told: str, passes: bool) -> None:
    assert patient._may_pass(url, StorageInternalError(told)) == passes


def test_sqlite_writes_ahead_and_stock_tools_read_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    study = optuna.create_study(storage=open_storage(url, tmp_path), study_name="s")
    study.tell(study.ask(), 2.0)
    assert optuna.load_study(study_name="s", storage=url).best_value == 2.0
    with (tmp_path / "a.db").open("rb") as file:
        assert file.read(20)[18] == 2  # the file format's version for write-ahead logging


def test_many_may_start_on_an_empty_database_at_once(tmp_path: Path) -> None:
    """As workers of a cluster do that are started beside the sweep: one makes the tables, the others find them."""
    together, failed = threading.Barrier(8), []

    def start() -> None:
        together.wait()
        try:
            open_storage(f"sqlite:///{tmp_path / 'new.db'}", tmp_path).get_all_studies()
        except InputError as problem:
            failed.append(problem)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
