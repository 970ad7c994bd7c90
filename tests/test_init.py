"""`adamtune init`: what it writes runs as it is."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adamtune.cli.app import run

Capture = pytest.CaptureFixture[str]
LEAVING = ["\x03", "\x04"]  # Ctrl-C, Ctrl-D


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: not the folder that is written to."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))  # tasks put their folder on it
    return folder


def runs_as_it_is(kind: str, folder: Path, capfd: Capture) -> None:
    """The commands that init names do what it says, and the recipe found is no worse than the default."""
    assert run(["init", str(folder), "--kind", kind]) == 0
    commands = re.findall(r"^  adamtune (.*)$", capfd.readouterr().out, re.M)
    assert [command.split()[0] for command in commands] == ["doctor", "lr-find", "sweep"]
    for command in commands:
        assert run([*shlex.split(command), "--json"]) == 0, command
    capfd.readouterr()
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["default"]["mean"] > result["recommended"]["mean"]
    assert result["wall_seconds"] < 300  # a minute on two idle cores is meant
    assert sorted(path.name for path in folder.iterdir() if path.suffix) == ["spec.yaml", "task.py"]


def test_plain_pytorch_runs_as_it_is(tmp_path: Path, capfd: Capture) -> None:
    runs_as_it_is("pytorch", tmp_path / "my model", capfd)


@pytest.mark.consumers
@pytest.mark.filterwarnings("ignore")  # transformers' and Lightning's own
@pytest.mark.parametrize("kind", ["transformers", "lightning"])
def test_the_kinds_of_other_libraries_run_as_they_are(kind: str, tmp_path: Path, capfd: Capture) -> None:
    pytest.importorskip(kind)
    runs_as_it_is(kind, tmp_path / kind, capfd)


@pytest.mark.consumers
@pytest.mark.filterwarnings("ignore")
def test_the_lightning_module_trains_under_its_trainer_too(tmp_path: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from torch.utils.data import DataLoader

    assert run(["init", str(tmp_path), "--kind", "lightning"]) == 0
    made: dict[str, object] = {"__name__": "task"}
    exec(compile((tmp_path / "task.py").read_text(), "task.py", "exec"), made)
    module = made["Classifier"](8)  # type: ignore[operator]
    train, _ = made["make_data"]()  # type: ignore[operator]
    before = module.loss(next(iter(DataLoader(train, 64)))).item()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    pl.Trainer(max_steps=300, max_epochs=-1, accelerator="cpu", **quiet).fit(module, DataLoader(train, 64))
    assert module.loss(next(iter(DataLoader(train, 64)))).item() < before


def test_without_a_terminal_the_defaults_are_taken(elsewhere: Path, capfd: Capture) -> None:
    assert run(["init"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("wrote task.py\nwrote spec.yaml\n")
    assert "  adamtune lr-find task.py:task --horizon 100\n" in out
    assert "  adamtune sweep spec.yaml --run-dir run\n" in out
    assert 'name="pytorch"' in (elsewhere / "task.py").read_text()


def test_what_was_written_is_told_as_json_and_nothing_is_asked(
    elsewhere: Path, capfd: Capture, on_a_terminal: Callable[..., tuple[int, str]]
) -> None:
    assert run(["init", "new", "--kind", "lightning", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert list(told) == ["version", "kind", "horizon", "written", "commands"]
    assert (told["version"], told["kind"], told["horizon"]) == (1, "lightning", 100)
    assert told["written"] == ["new/task.py", "new/spec.yaml"]
    assert told["commands"][2] == "adamtune sweep new/spec.yaml --run-dir new/run"
    assert all(Path(path).exists() for path in told["written"])
    code, shown = on_a_terminal("", "--json")
    assert (code, json.loads(shown)["kind"]) == (0, "pytorch")


def test_the_horizon_given_is_that_of_spec_and_commands(elsewhere: Path, capfd: Capture) -> None:
    assert run(["init", "--horizon", "2500", "--kind", "transformers"]) == 0
    assert "lr-find task.py:task --horizon 2500\n" in capfd.readouterr().out
    assert re.search(r"^horizon: 2500 ", (elsewhere / "spec.yaml").read_text(), re.M)


@pytest.mark.parametrize("name", ["task.py", "spec.yaml"])
def test_a_file_that_is_there_is_kept_unless_by_force(name: str, elsewhere: Path, capfd: Capture) -> None:
    (elsewhere / name).write_text("mine")
    assert run(["init"]) == 2
    assert capfd.readouterr().err == (
        f"adamtune: {name} is there already; name another folder, or replace it by --force\n"
    )
    assert [path.name for path in elsewhere.iterdir()] == [name]
    assert (elsewhere / name).read_text() == "mine"
    assert run(["init", "--force"]) == 0
    assert (elsewhere / name).read_text() != "mine"


def test_a_link_to_nowhere_and_a_file_in_the_folders_place_are_refused(elsewhere: Path, capfd: Capture) -> None:
    (elsewhere / "task.py").symlink_to(elsewhere / "gone.py")
    assert run(["init"]) == 2
    assert "task.py is there already" in capfd.readouterr().err
    (elsewhere / "file").write_text("")
    for folder in ("file", "file/in/it"):
        assert run(["init", folder]) == 2
        assert "file is a file; name a folder" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_told(elsewhere: Path, capfd: Capture) -> None:
    elsewhere.chmod(0o500)
    assert run(["init"]) == 1
    assert "cannot be written" in capfd.readouterr().err


@pytest.fixture
def on_a_terminal(elsewhere: Path) -> Callable[[str], tuple[int, str]]:
    """Run `adamtune init` on a terminal of its own, typing `answers`; its exit code and what the terminal showed."""

    def typing(answers: str, *options: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()

        def at_it() -> None:
            """So that Ctrl-C, typed there, is a signal to it."""
            os.setsid()
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        command = [sys.executable, "-m", "adamtune", "init", *options]
        process = subprocess.Popen(command, cwd=elsewhere, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=at_it)
        os.close(theirs)
        shown, left = "", answers.splitlines(keepends=True)
        try:
            while True:
                while not select.select([ours], [], [], 1.0)[0]:
                    # As a person would, again: a Ctrl-C before it reads is noticed at the next key only.
                    if answers in LEAVING and not left:
                        os.write(ours, answers.encode())
                if not (part := os.read(ours, 4096)):
                    break
                shown += part.decode().replace("\r\n", "\n")
                if left and shown.endswith("]: "):  # it asks
                    time.sleep(0.2)  # and now reads, mostly
                    os.write(ours, left.pop(0).encode())
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        return process.wait(timeout=60), shown

    return typing


def test_on_a_terminal_it_asks_and_asks_again(on_a_terminal: Callable[..., tuple[int, str]], elsewhere: Path) -> None:
    code, shown = on_a_terminal("keras\nLightning\nmany\n1,500\n")
    assert code == 0, shown
    assert "Error: keras is none of pytorch, transformers, lightning" in shown
    assert "Error: many is no number of steps" in shown
    assert "lr-find task.py:task --horizon 1500" in shown
    assert "LightningModule" in (elsewhere / "task.py").read_text()


def test_on_a_terminal_what_is_given_is_not_asked(on_a_terminal: Callable[..., tuple[int, str]]) -> None:
    code, shown = on_a_terminal("", "--yes")
    assert (code, "?" in shown) == (0, False)
    code, shown = on_a_terminal("\n", "--kind", "pytorch", "--force")
    assert (code, shown.count("?")) == (0, 1)


@pytest.mark.parametrize("key", LEAVING)
def test_who_leaves_at_a_question_has_nothing_written(
    key: str, on_a_terminal: Callable[..., tuple[int, str]], elsewhere: Path
) -> None:
    code, shown = on_a_terminal(key)
    assert code == 130
    assert "adamtune: interrupted" in shown
    assert list(elsewhere.iterdir()) == []
