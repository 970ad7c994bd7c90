"""The storage of a run, for whoever looks at its trials."""

from __future__ import annotations

from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from adamtune import rundir, yaml_text
from adamtune.errors import InputError, RunDirError, SpecError
from adamtune.passwords import left_out
from adamtune.plain_text import plain
from adamtune.search.studies import open_storage


def storage_to_look_at(run: Path, url: str | None = None) -> BaseStorage:
    """The storage that holds the trials of `run`: the journal in it, or the one at `url`, by default its spec's.

    Raises `RunDirError` where the folder is no run or has no trials yet; `InputError` where the storage cannot be
    opened.
    """
    if not rundir.is_run(run):
        raise RunDirError(f"{run} is no run directory" if run.is_dir() else f"{run} does not exist")
    journal = rundir.run_file(run, rundir.JOURNAL)
    if url is None and journal.exists():
        try:
            return JournalStorage(JournalFileBackend(str(journal)))
        except Exception as problem:  # whole lines that make no sense to Optuna
            what = f"{journal} cannot be read as Optuna's journal ({type(problem).__name__}: {plain(problem)[:100]})"
            raise RunDirError(f"{what}; adamtune report {run} reads the tables instead") from problem
    url = url or _of_spec(run)
    if url is None:
        raise RunDirError(f"{run} has no trials yet: it has no {rundir.JOURNAL}")
    if left_out(url):
        raise InputError(f"the spec of {run} names its storage without the password; give the whole URL with --storage")
    storage = open_storage(url, Path())
    if not storage.get_all_studies():
        raise InputError("the storage holds no trials; name the one of the sweep with --storage")
    return storage


def _of_spec(run: Path) -> str | None:
    spec = yaml_text.read(rundir.run_file(run, rundir.SPEC), SpecError)
    named = spec.get("storage")
    return named if isinstance(named, str) else None
