"""`adamtune dashboard`, but for optuna-dashboard itself, which tests/test_browser.py opens."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.request import ProxyHandler, build_opener
from wsgiref.simple_server import WSGIServer

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from adamtune import rundir
from adamtune.cli import dashboard
from adamtune.cli.app import run as command
from adamtune.cli.read_only import server
from adamtune.errors import AdamtuneError
from adamtune.search import storage_to_look_at


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one study of one trial in its journal."""
    run = tmp_path / "mine"
    run.mkdir()
    (run / rundir.SPEC).write_text("task: {ref: 'my_task.py:task'}\nhorizon: 300\nstorage: null\n")
    (run / rundir.ENVIRONMENT).write_text("{}")
    storage = JournalStorage(JournalFileBackend(str(run / rundir.JOURNAL)))
    study = optuna.create_study(storage=storage, study_name="mine/lr")
    study.tell(study.ask(), 0.5)
    return run


def test_the_journal_of_a_run_is_read_and_left_as_it_is(run: Path) -> None:
    before = (run / rundir.JOURNAL).read_bytes()
    (study,) = storage_to_look_at(run).get_all_studies()
    assert study.study_name == "mine/lr"
    assert (run / rundir.JOURNAL).read_bytes() == before


def test_a_storage_elsewhere_is_found_by_the_spec_or_as_told(run: Path, tmp_path: Path) -> None:
    (run / rundir.JOURNAL).unlink()
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    optuna.create_study(storage=url, study_name="mine/eps")
    assert storage_to_look_at(run, url).get_all_studies()[0].study_name == "mine/eps"
    (run / rundir.SPEC).write_text(f"storage: '{url}'\n")
    assert storage_to_look_at(run).get_all_studies()[0].study_name == "mine/eps"


def refused(run: Path, url: str | None = None) -> str:
    with pytest.raises(AdamtuneError) as told:
        storage_to_look_at(run, url)
    assert told.value.exit_code == 2
    assert "\n" not in str(told.value)
    return str(told.value)


def test_what_has_no_trials_is_refused_in_a_sentence(run: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "gone").endswith("gone does not exist")
    assert refused(tmp_path).endswith("is no run directory")
    (run / rundir.JOURNAL).write_text('{"op_code": "what?"}\n{}\n')
    assert "cannot be read as Optuna's journal" in refused(run)
    (run / rundir.JOURNAL).unlink()
    assert refused(run).endswith("has no trials yet: it has no study.journal")
    assert "holds no trials" in refused(run, f"sqlite:///{tmp_path / 'empty.db'}")
    (run / rundir.JOURNAL).symlink_to(tmp_path / "empty.db")
    assert "leads out of its run directory" in refused(run)


def test_a_password_is_asked_for_and_never_shown(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / rundir.JOURNAL).unlink()
    (run / rundir.SPEC).write_text("storage: postgresql://me:***@127.0.0.1:1/db\n")
    assert "without the password; give the whole URL with --storage" in refused(run)
    told = refused(run, "postgresql://me:hunter2@127.0.0.1:1/db")
    assert "the storage cannot be opened" in told
    assert "hunter2" not in told + "".join(capfd.readouterr())


def test_without_optuna_dashboard_it_says_how_to_get_it(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    assert command(["dashboard", str(run)]) == 2
    told = "adamtune: optuna-dashboard is not installed; install it with: pip install optuna-dashboard\n"
    assert capsys.readouterr().err == told


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"trials"]


@pytest.mark.parametrize(
    ("method", "status"), [("GET", 200), ("DELETE", 403), ("POST", 403), ("PUT", 403), ("PATCH", 403)]
)
def test_what_is_served_can_only_be_looked_at(method: str, status: int) -> None:
    with server(application, 0) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", serving.server_port, timeout=60)
            connection.request(method, "/api/studies/0")
            answer = connection.getresponse()
            assert (answer.status, answer.read() == b"trials") == (status, status == 200)
            connection.close()
        finally:
            serving.shutdown()
            thread.join()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """`application` in place of optuna-dashboard, which need not be installed."""
    module = ModuleType("optuna_dashboard")
    module.wsgi = lambda storage: application  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optuna_dashboard", module)
    monkeypatch.setattr(dashboard, "find_spec", lambda name: True)


@pytest.mark.usefixtures("stand_in")
def test_the_address_is_a_line_of_json_that_is_out_before_it_serves(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    serve = WSGIServer.serve_forever

    def serve_one(serving: WSGIServer) -> None:
        """In place of serving until Ctrl-C: one request, to the address that was told, and Ctrl-C."""
        said.append(capsys.readouterr().out)
        thread = threading.Thread(target=serve, args=[serving])
        thread.start()
        with build_opener(ProxyHandler({})).open(json.loads(said[0])["address"], timeout=60) as answer:
            said.append(answer.read().decode())
        serving.shutdown()
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(WSGIServer, "serve_forever", serve_one)
    assert command(["dashboard", str(run), "--port", "0", "--json"]) == 0
    line, served = said
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    told = json.loads(line)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/dashboard", told.pop("address"))
    assert told == {"version": 1, "run": str(run)}
    assert served == "trials"
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("stand_in")
def test_a_port_that_is_taken_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert command(["dashboard", str(run), "--port", str(port)]) == 2
    assert f"port {port} cannot be used" in capsys.readouterr().err
    shutil.rmtree(run)
    assert command(["dashboard", str(run)]) == 2
