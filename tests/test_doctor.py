"""`adamtune doctor`: every fault is told as what it is, with what to do; a healthy task has none."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from adamtune.cli.app import run

TASKS = Path(__file__).parent / "tasks_for_doctor.py"
OTHERS = Path(__file__).parent / "tasks_for_tests.py"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")


def doctor(capfd: Capture, task: str, *more: str, file: Path = TASKS) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the lines on the task by name."""
    code = run(["doctor", "--task", f"{file}:{task}", "--device", "cpu", "--json", *more])
    said = capfd.readouterr()
    assert said.err == ""
    told: dict[str, Any] = json.loads(said.out)
    assert told["version"] == 1
    assert told["ok"] == (code == 0)
    lines = {line["name"]: line for line in told["task"]}
    assert len(lines) == len(told["task"])
    return code, lines


ALL = ["task", "model", "groups", "device", "batches", "step", "validation", "seeds", "stacks", "speed", "data"]


@pytest.mark.parametrize(
    "task", ["healthy", "noisy", "frozen_part", "frozen_loss", "buffer_instead", "moving_sheets", "rollouts"]
)
def test_a_healthy_task_has_no_fault(task: str, capfd: Capture) -> None:
    code, lines = doctor(capfd, task)
    assert code == 0
    assert list(lines) == ALL
    may_be_noted = {"stacks"} if task in ("frozen_loss", "moving_sheets", "rollouts") else set()
    assert {name for name, line in lines.items() if line["status"] != "ok"} <= may_be_noted, lines
    assert not any(line["remedy"] for name, line in lines.items() if name not in may_be_noted)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("task", ["nested", "packed", "normed_by_hooks"])
def test_nothing_is_said_against_tensors_that_move_in_a_way_of_their_own(task: str, capfd: Capture) -> None:
    code, lines = doctor(capfd, task)
    assert code == 0
    assert lines["device"]["found"] == "cpu; the 2 tensors of a batch move there"
    assert {line["status"] for name, line in lines.items() if name != "stacks"} == {"ok"}, lines


def test_what_is_told_of_a_healthy_task(capfd: Capture) -> None:
    _, lines = doctor(capfd, "healthy", "--arg", "batch_size=8")
    assert lines["model"]["found"] == "Net with 90 parameters to train"
    assert lines["groups"]["found"] == (
        "rest 48 in 1 tensor, bias 10 in 2 tensors, norm 16 in 2 tensors, head 16 in 1 tensor"
    )
    assert lines["device"]["found"] == "cpu; the 2 tensors of a batch move there"
    assert lines["step"]["found"].endswith("it reaches all 6 tensors of parameters")
    assert "accuracy 0." in lines["validation"]["found"]
    assert lines["stacks"]["found"] == "trials can train side by side as one model"
    assert "ms a training step" in lines["speed"]["found"]
    assert "of one seed together" in doctor(capfd, "noisy")[1]["stacks"]["found"]
    assert doctor(capfd, "frozen_part")[1]["model"]["found"] == "Net with 34 parameters to train, 56 frozen"
    assert "batches hold no tensors" in doctor(capfd, "rollouts")[1]["device"]["found"]


def test_a_task_that_changes_directory_or_is_made_only_once_is_sound(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TASKS.parent)
    code, lines = doctor(capfd, "wandering", file=Path(TASKS.name))
    assert (code, lines["data"]["status"]) == (0, "ok")
    monkeypatch.setenv("ADAMTUNE_MADE_ONCE", "")
    monkeypatch.delenv("ADAMTUNE_MADE_ONCE")
    code, lines = doctor(capfd, "made_once")
    assert (code, lines["data"]["status"]) == (0, "note")
    assert "context has already been set" in lines["data"]["found"]


@pytest.mark.parametrize(
    ("task", "name", "found", "remedy"),
    [
        ("own_model", "step", "no parameter gets a gradient", "call the model that it is given"),
        ("nan_loss", "step", "the first loss is nan", "NaN or infinite values in the data"),
        ("nan_gradient", "step", "its gradient is nan", "at zero"),
        ("constant_loss", "step", "every gradient is zero", "constant"),
        ("detached", "step", "has no gradient", "without detach()"),
        ("own_weights", "seeds", "make_model gave 'first.weight' other values", "global random numbers"),
        ("ongoing_batches", "seeds", "the first training batch was another", "begin anew at each call"),
        ("own_noise", "seeds", "the loss of step 1 was", "keep nothing from call to call"),
        ("growing_validation", "seeds", "loss on the validation data was", "val_batches give the same"),
        ("other_split", "data", "its first validation batch was another the second time", "seed what makes or splits"),
        ("no_validation", "validation", "val_batches gave no batch", ""),
        ("failing_validation", "validation", "no such column", "mend the task"),
        ("nan_metric", "validation", "f1 nan", "NaN in the validation data"),
    ],
)
def test_a_fault_that_spoils_a_sweep_is_a_problem(
    task: str, name: str, found: str, remedy: str, capfd: Capture
) -> None:
    code, lines = doctor(capfd, task)
    assert code == 1
    assert lines[name]["status"] == "problem", lines
    assert found in lines[name]["found"]
    assert remedy in lines[name]["remedy"]
    before = ALL[: ALL.index(name)]
    assert {lines[other]["status"] for other in before} == {"ok"}, lines


@pytest.mark.parametrize(
    ("task", "name", "found", "remedy"),
    [
        ("unused_part", "step", "no gradient reaches spare.weight, spare.bias", "requires_grad = False"),
        ("trainable_loss", "step", "reaches 1 parameter outside the model, which no trial trains", "into the model"),
        ("plain_tensor", "device", "keeps first.scale as plain tensors", "in first, make it a buffer"),
        ("sheets", "device", "stay where they are when it moves to a device: batch.x, batch.y", "to(device)"),
        ("deaf_to_seeds", "seeds", "another seed trains just the same", "shuffle by the generator"),
    ],
)
def test_a_fault_that_a_sweep_survives_is_a_warning(
    task: str, name: str, found: str, remedy: str, capfd: Capture
) -> None:
    code, lines = doctor(capfd, task)
    assert code == 0
    assert lines[name]["status"] == "warning"
    assert found in lines[name]["found"]
    assert remedy in lines[name]["remedy"]
    assert {line["status"] for other, line in lines.items() if other not in (name, "stacks")} == {"ok"}


def test_a_fault_is_told_once_and_speed_only_of_what_trains(capfd: Capture) -> None:
    code, lines = doctor(capfd, "one_model")
    assert code == 1
    assert [name for name, line in lines.items() if line["status"] == "problem"] == ["batches"]
    assert "build a new model" in lines["batches"]["remedy"]
    assert list(lines)[-1] == "step"


def test_a_validation_that_fails_is_told_once_and_hides_no_other_fault(capfd: Capture) -> None:
    _, lines = doctor(capfd, "failing_validation")
    assert [name for name, line in lines.items() if "no such column" in line["found"]] == ["validation"]
    assert list(lines)[-1] == "validation"
    _, lines = doctor(capfd, "failing_validation_and_own_weights")
    assert [name for name, line in lines.items() if line["status"] == "problem"] == ["validation", "seeds"]
    assert "make_model gave 'first.weight' other values" in lines["seeds"]["found"]


def test_weights_in_float16_that_diverge_at_once_are_told_why(capfd: Capture) -> None:
    _, lines = doctor(capfd, "half_weights")
    assert lines["validation"]["found"] == "the model diverged at its first step"
    assert "keep the parameters in float32" in lines["validation"]["remedy"]


def test_weights_that_are_the_same_by_every_seed_are_noted(capfd: Capture) -> None:
    code, lines = doctor(capfd, "pinned_weights")
    assert code == 0
    assert lines["seeds"]["status"] == "note"
    assert lines["seeds"]["found"].endswith("others by another seed, but all seeds begin with the same weights")
    assert "take manual_seed out of make_model" in lines["seeds"]["remedy"]


def test_why_trials_cannot_be_stacked_is_named_by_module(capfd: Capture) -> None:
    code, lines = doctor(capfd, "recurrent")
    assert code == 0
    assert lines["stacks"]["status"] == "note"
    assert "trials train one by one: module 'inner' (LSTM)" in lines["stacks"]["found"]


@pytest.mark.parametrize(
    ("task", "last", "found"),
    [
        ("lazy", "model", "the lazy parameter '0.weight' has no shape yet"),
        ("exits", "task", "raised SystemExit: usage: train.py DATA"),
        ("no_parameters", "model", "no trainable parameters"),
        ("raising", "step", "raised ValueError: the toy broke"),
        ("vector_loss", "step", "not a scalar"),
        ("exiting", "step", "ended the process, by exit(0)"),
    ],
)
def test_a_task_that_cannot_be_trained_ends_the_check_there(task: str, last: str, found: str, capfd: Capture) -> None:
    code, lines = doctor(capfd, task, file=OTHERS)
    assert code == 1
    assert list(lines)[-1] == last
    assert lines[last]["status"] == "problem"
    assert found in lines[last]["found"]
    assert "bug" not in lines[last]["found"]


def test_batches_that_end_are_a_problem(capfd: Capture) -> None:
    code, lines = doctor(capfd, "ending", file=OTHERS)
    assert code == 1
    assert lines["batches"]["status"] == "problem"
    assert "train_batches ended at training step 4 of" in lines["batches"]["found"]
    assert "must be endless" in lines["batches"]["remedy"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "gone.py:task"], "no file"),
        (["--task", "task"], "is no task reference"),
        (["--task", f"{TASKS}:gone"], "has no function 'gone'"),
        (["--task", f"{TASKS}:healthy", "--arg", "size=1"], "does not take these task args"),
        (["--task", f"{TASKS}:healthy", "--arg", "size"], "write it as name=value"),
        (["--task", f"{TASKS}:healthy", "--device", "warp"], "the device 'warp' cannot be used"),
        (["--arg", "size=1"], "name it by --task"),
    ],
)
def test_a_bad_reference_is_one_sentence_and_exit_code_2(arguments: list[str], told: str, capfd: Capture) -> None:
    assert run(["doctor", *arguments]) == 2
    said = capfd.readouterr()
    assert told in said.err
    assert said.err.startswith("adamtune: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


# --- the machine


def test_the_machine_is_described(capfd: Capture) -> None:
    assert run(["doctor", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["task"] == []
    lines = {line["name"]: line for line in told["environment"]}
    assert importlib.metadata.version("adamtune") in lines["adamtune"]["found"]
    for package in ("torch", "optuna", "typer", "pyyaml"):
        assert f"{package} {importlib.metadata.version(package)}" in lines["packages"]["found"]
    assert lines["memory"]["found"].endswith("GiB free")
    assert "cores" in lines["cpu"]["found"]
    assert {"cuda", "examples", "ray", "postgres", "transformers", "lightning", "pyarrow"} <= {
        name.split(":")[0] for name in lines
    }


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr("adamtune.doctor.environment.version", pretending(real, {"ray": None, "scikit-learn": "0.1"}))
    assert run(["doctor"]) == 0
    out = capfd.readouterr().out
    assert "note     ray               for engine: ray: ray is missing\n" in out
    assert "\n                        -> pip install 'ray[tune]>=" in out
    assert "-> pip install 'scikit-learn>=1.4'\n" in out


def test_a_package_that_adamtune_needs_and_has_not_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr("adamtune.doctor.environment.version", pretending(real, {"optuna": "4.1", "scipy": None}))
    assert run(["doctor"]) == 1
    out = capfd.readouterr().out
    assert "problem  packages          scipy is missing\n" in out
    assert "optuna 4.1 is here, >=4.5 is needed\n" in out
    assert "-> pip install 'optuna>=4.5'\n" in out


def pretending(real: Any, versions: dict[str, str | None]) -> Any:
    def version(name: str) -> str:
        found = versions.get(name, "")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found or real(name)  # type: ignore[no-any-return]

    return version


def test_the_lines_on_a_task_stand_below_those_on_the_machine(capfd: Capture) -> None:
    assert run(["doctor", "--task", f"{TASKS}:plain_tensor", "--device", "cpu"]) == 0
    out = capfd.readouterr().out
    assert out.index("memory ") < out.index("ok       task ")
    assert "\nwarning  device            the model keeps first.scale as plain tensors, which stay where" in out
    assert "\n                        -> in first, make it a buffer:" in out
    assert "\x1b" not in out


def test_a_terminal_gets_lines_that_fit_it(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert run(["doctor", "--task", f"{TASKS}:unused_part", "--device", "cpu"]) == 0
    out = re.sub("\x1b\\[[0-9;]*m", "", capfd.readouterr().out)
    lines = [line for line in out.splitlines() if "-> pip install" not in line and str(TASKS) not in line]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(" " * 27) for line in lines)
