"""Optuna's database storage, for databases that are busy, or go away and come back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError

PATIENCE = 300.0
"""Seconds for which a call is made again before its error is raised: a database server restarts within them."""
_OPENINGS = 20
"""Times to try whether another process has made the tables by now."""

_BUSY = 60
"""Seconds that SQLite waits for another process's lock."""


class PatientStorage(RDBStorage):
    """A database storage whose calls wait until the database answers again, `PATIENCE` seconds at most."""

    def __init__(self, url: str, on_note: Callable[[str], None] = lambda note: None) -> None:
        """Connect; raises at once where that fails. `on_note` hears when the database goes away and comes back."""
        self.on_note = on_note
        self.spent = False
        """Whether the last call's patience has ended: the next ones are made once, until one is answered."""
        if not url.startswith("sqlite"):
            super().__init__(url, engine_kwargs={"pool_pre_ping": True})  # a connection that was closed is made again
            return
        super().__init__(url, engine_kwargs={"connect_args": {"timeout": _BUSY}})
        event.listen(self.engine, "connect", _write_ahead)
        self.remove_session()
        self.engine.dispose()  # the connection that made the tables was made before


def opened(url: str, on_note: Callable[[str], None] = lambda note: None) -> PatientStorage:
    """The storage at `url`, whose tables are made where there are none, also by several processes at once: of those
    that start on an empty database all but one find a table that another has just made (Optuna does not look again).
    """
    for _ in range(_OPENINGS):
        try:
            return PatientStorage(url, on_note)
        except DBAPIError as problem:
            if not any(told in str(problem) for told in ("already exists", "UNIQUE", "duplicate key")):
                raise
        time.sleep(random.uniform(0.1, 0.5))
    return PatientStorage(url, on_note)


def _write_ahead(connection: Any, _: object) -> None:
    """Readers do not wait for the writer, and a write takes 1 ms instead of 20: it is not forced to the disk at once.

    A crash of the machine may lose the last writes, never the file.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _may_pass(url: str, problem: StorageInternalError) -> bool:
    """Whether waiting may help: a server may come back, a lock be given up; a full disk stays full.

    A row that was deleted between being read and being written is asked for again: what has become of it is told then.
    """
    cause = problem.__cause__ or problem
    if isinstance(cause, StaleDataError | ObjectDeletedError):
        return True
    told = str(cause)
    if url.startswith("sqlite"):  # the latter while the file is mended after a process that was killed as it wrote
        return "locked" in told or "locking protocol" in told
    return "No space left" not in told


def _patient(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def again(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        began, away = time.monotonic(), False
        while True:
            try:
                found = call(self, *args, **kwargs)
            except StorageInternalError as problem:
                self.remove_session()
                self.spent = self.spent or time.monotonic() - began > PATIENCE
                if self.spent or not _may_pass(self.url, problem):
                    raise
                if not away:
                    self.on_note("the storage does not answer; waiting for it")
                away = True
                time.sleep(random.uniform(0.1, 1.0))
                continue
            self.spent = False
            if away:
                self.on_note("the storage answers again")
            return found

    return again


_OUTER = (  # what Optuna's cache before it calls
    *("create_new_study", "delete_study", "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name"),
    *("get_study_name_from_id", "get_study_directions", "get_study_user_attrs", "get_study_system_attrs"),
    *("get_all_studies", "_create_new_trial", "_set_trial_param", "set_trial_state_values", "get_trial", "_get_trials"),
    *("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr", "_get_best_trial_id"),
    "get_trial_id_from_study_id_trial_number",
)
for _name in _OUTER:
    setattr(PatientStorage, _name, _patient(getattr(RDBStorage, _name)))
