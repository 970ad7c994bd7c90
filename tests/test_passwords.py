"""A storage's password is in no file, no message and no output of ours; and a sweep goes on without it there."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamtune.cli.app import run as command
from adamtune.errors import AdamtuneError, InputError, SpecError
from adamtune.passwords import left_out, without_passwords, without_those_of
from adamtune.rundir import RunDir
from adamtune.search import open_storage
from adamtune.search.patient import PatientStorage
from adamtune.spec import Spec, load_spec

TASKS = Path(__file__).parent / "tasks_for_tests.py"
SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://me:{SECRET}@host:5432/db", "postgresql://me:***@host:5432/db"),
        (f"postgresql+psycopg2://me:{SECRET}@host/db?sslmode=require", "postgresql+psycopg2://me:***@host/db?sslmode=require"),
        (f"mysql://me:p@ss{SECRET}@host/db", "mysql://me:***@host/db"),
        (f"mysql://me:p/ss:{SECRET}@host/db", "mysql://me:***@host/db"),
        (f"mysql://:{SECRET}@host/db", "mysql://:***@host/db"),
        (f"postgresql://host/db?user=me&password={SECRET}", "postgresql://host/db?user=me&password=***"),
        (f"postgresql://host/db?sslPassword={SECRET}&x=1", "postgresql://host/db?sslPassword=***&x=1"),
        (f"--storage=postgresql://me:{SECRET}@host/db", "--storage=postgresql://me:***@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        ("sqlite:////a/b:c@d.db", "sqlite:////a/b:c@d.db"),
        ("no url at all, 12:30 me@host", "no url at all, 12:30 me@host"),
    ],
)  # fmt: skip
def test_a_password_is_hidden_wherever_a_url_has_it(url: str, shown: str) -> None:
    assert without_passwords(url) == shown
    assert without_passwords(f"failed: {url} is down") == f"failed: {shown} is down"
    assert without_passwords(shown) == shown


def test_a_drivers_message_is_shown_without_the_password_however_it_quotes_it() -> None:
    told = "no host 'ss%20word@host', tried 'p' and 'ss word' for me: p@ss%20word"
    assert "word" not in without_those_of("postgresql://me:p@ss%20word@host/db", told)
    assert without_those_of("postgresql://me@host/db", told) == told


def make_spec(storage: str, **changes: Any) -> Spec:
    data = {"task": {"ref": f"{TASKS}:separable"}, "horizon": 2, "seeds": 2, "budget": {"trials": 300}}
    return Spec.model_validate(data | {"stages": ["eps"], "storage": storage} | changes)


def test_a_spec_written_down_has_no_password_and_says_so_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(make_spec(f"postgresql://me:{SECRET}@host/db").to_yaml())
    assert SECRET not in path.read_text()
    with pytest.raises(SpecError, match=r"\$\.storage: its password was left out .* give the URL with --storage"):
        load_spec(path)
    assert (
        load_spec(path, {"storage": f"postgresql://me:{SECRET}@host/db"}).storage == f"postgresql://me:{SECRET}@host/db"
    )
    path.write_text(make_spec("postgresql://me@host/db").to_yaml())
    assert load_spec(path).storage == "postgresql://me@host/db"
    assert left_out("postgresql://me:***@host/db")


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Stands for a server: whatever URL is asked for, its trials go to a file."""

    def connect(url: str, on_note: Callable[[str], None]) -> PatientStorage:
        return PatientStorage(f"sqlite:///{tmp_path / 'server.db'}", on_note)

    monkeypatch.setattr("adamtune.search.patient.PatientStorage", connect)
    monkeypatch.chdir(tmp_path)
    return connect


def texts_below(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_sweep_leaves_its_storages_password_nowhere(
    database: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"postgresql://me:{SECRET}@host/db"
    spec = tmp_path / "mine" / "s.yaml"
    spec.parent.mkdir()
    spec.write_text(make_spec("x").to_yaml().replace("storage: x", f"storage: {url}"))
    arguments = ["sweep", str(spec), "--run-dir", "r", "--storage", url]
    monkeypatch.setattr(sys, "argv", ["adamtune", *arguments])
    for more in (["--json"], []):
        assert command([*arguments[:3], f"r{len(more)}", *arguments[4:], *more]) == 0
    said = capsys.readouterr()
    left = texts_below(tmp_path / "r0") + texts_below(tmp_path / "r1")
    assert SECRET not in left + said.out + said.err
    assert left.count("postgresql://me:***@host/db") == 8  # spec.yaml, environment.json, and both in the report
    again = command(["sweep", "r0/spec.yaml", "--run-dir", "r2"])
    assert again == 2
    assert "its password was left out" in capsys.readouterr().err


def test_an_interrupted_sweep_goes_on_with_the_url_given_again(
    database: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(make_spec("x", horizon=10).to_yaml().replace("storage: x\n", ""))
    arguments = ["sweep", "s.yaml", "--run-dir", "r", "--storage", f"postgresql://me:{SECRET}@host/db"]
    with monkeypatch.context() as pressed:
        pressed.setattr("adamtune.plan.conclude", _interrupted)
        pressed.setattr("adamtune.sweeps.conclude", _interrupted)
        assert command(arguments) == 130
    said = capsys.readouterr()
    assert "adamtune sweep s.yaml --run-dir r --storage 'postgresql://me:***@host/db' goes on from there" in said.err
    assert SECRET not in said.out + said.err + texts_below(tmp_path / "r")
    assert command([*arguments[:-1], "postgresql://me:correcthorse@host/db"]) == 0  # the password may differ
    assert "correcthorse" not in texts_below(tmp_path / "r")
    assert command([*arguments[:3], "r3", *arguments[4:]]) == 0


def _interrupted(*_: object) -> object:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@localhost:1/db",
        f"postgresql://me:{SECRET}@localhost:port/db",
        f"postgresql://me:a@{SECRET}@localhost:1/db",
        f"postgresql://me:a:{SECRET}@local:host/db",
        f"sqlite://me:{SECRET}@/x",
        f"nonsense+x://me:{SECRET}@host/db",
    ],
)
def test_a_storage_that_cannot_be_opened_is_told_without_its_password(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="the storage cannot be opened") as caught:
        open_storage(url, tmp_path / "journal")
    assert SECRET not in str(caught.value)
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(make_spec("x").to_yaml().replace("storage: x", f"storage: '{url}'"))
    for debug in (False, True):
        assert command(["sweep", "s.yaml", "--run-dir", "r"], debug) == 2
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
        assert ("Traceback" in said.err) == debug


def test_the_log_has_no_password_whoever_writes_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.log(f"ended by Oh: postgresql://me:{SECRET}@host/db is down\nsecond line")
    assert (
        (tmp_path / "log.txt").read_text().endswith(" ended by Oh: postgresql://me:***@host/db is down\\nsecond line\n")
    )


def test_a_database_that_may_not_grow_is_told_and_the_sweep_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(make_spec("sqlite:///all.db", horizon=10).to_yaml())
    open_storage("sqlite:///all.db", Path()).remove_session()
    size = Path("all.db").stat().st_size
    script = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 4096}, resource.RLIM_INFINITY))\n"
        "import sys; from adamtune.cli.app import run; sys.exit(run(['sweep', 's.yaml', '--run-dir', 'r', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("adamtune: the storage sqlite:///all.db failed: (sqlite3.OperationalError) ")
    assert done.stderr.endswith("; mend that, then adamtune sweep s.yaml --run-dir r goes on from there\n")
    assert done.stderr.count("\n") == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert command(["sweep", "s.yaml", "--run-dir", "r"]) == 0


def test_what_is_raised_is_one_of_ours() -> None:
    with pytest.raises(AdamtuneError):
        open_storage("nonsense", Path())
