from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd
import pytest
from typer.models import CommandInfo

from adamtune import export
from adamtune.cli import completing
from adamtune.cli.app import app, run
from adamtune.rundir import RunDir
from adamtune.spec import Spec

TASKS = Path(__file__).parent / "tasks_for_tests.py"
COMMANDS = [(command.callback.__name__).replace("_", "-") for command in app.registered_commands if command.callback]
GROUPS = [group.name for group in app.registered_groups if group.name]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.err == ""
        data = json.loads(self.out)
        assert isinstance(data, dict)
        return data


Cli = Callable[..., Said]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run one command in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # tasks put their folder on it
    monkeypatch.setenv("COLUMNS", "100")

    def cli(*arguments: object, debug: bool = False) -> Said:
        code = run([str(argument) for argument in arguments], debug)
        return Said(code, *capfd.readouterr())

    return cli


@pytest.fixture(scope="session")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of specs that is not the working directory."""
    return tmp_path_factory.mktemp("specs")


@pytest.fixture
def spec(specs: Path) -> Callable[..., Path]:
    def spec(task: str = "separable", rest: str = "", args: str = "") -> Path:
        text = f"task: {{ref: '{TASKS}:{task}', args: {{{args}}}}}\nhorizon: 20\nbudget: {{trials: 300}}\nseeds: 2\n"
        path = specs / "spec.yaml"
        path.write_text(text + (rest or "stages: [eps]\n"))
        return path

    return spec


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "spec.yaml"
    path.write_text(f"task: {{ref: '{TASKS}:separable'}}\nhorizon: 20\nbudget: {{trials: 300}}\nstages: [eps]\n")
    assert run(["sweep", str(path), "--run-dir", str(folder / "run"), "--json"]) == 0
    return folder / "run"


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def assert_refused(said: Said, told: str, code: int = 2, lines: int = 1) -> None:
    """One clear sentence on stderr, nothing else."""
    assert said.code == code, said.err
    assert said.err.startswith("adamtune: ")
    assert told in said.err
    assert "Traceback" not in said.err
    assert "has a bug" not in said.err
    assert said.err.endswith("\n")
    assert said.err.count("\n") == lines
    assert said.out == ""


# --- help


def test_help_names_every_command_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom adamtune.cli.app import run\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pandas', 'optuna', 'plotly', 'plotext', 'sklearn', 'pydantic', 'yaml'}\n"
        "assert run(['--help']) == 0\nprint('loaded:', heavy & set(sys.modules))\n"
        f"for command in {COMMANDS + GROUPS}: assert run([command, '--help']) == 0\n"
        "print('loaded:', heavy & set(sys.modules) - {'pydantic'})"  # typer itself loads it, for a command's own help
    )
    done = python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("loaded: set()") == 2
    for name in COMMANDS + GROUPS:
        assert f"\n  {name} " in done.stdout
        assert f"Example: adamtune {name} " in done.stdout
    assert [*COMMANDS, *GROUPS] == [
        "init",
        "doctor",
        "lr-find",
        "sweep",
        "show",
        "report",
        "dashboard",
        "compare",
        "diagnose",
        "export",
        "worker",
        "recipes",
    ]


@pytest.mark.parametrize("words", [*([name] for name in COMMANDS + GROUPS), ["recipes", "show"]], ids=" ".join)
def test_the_help_of_every_command_ends_with_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--help"]) == 0
    told = capsys.readouterr().out
    example = told.rstrip().rpartition("\n\n")[2]
    assert " ".join(example.split()).startswith(f"Example: adamtune {words[0]} ")
    assert told.count("Example: ") == 1
    assert told.index("Options:") < told.index("Example: ")


@pytest.mark.parametrize("command", app.registered_commands, ids=COMMANDS)
def test_every_argument_of_a_command_has_help(command: CommandInfo) -> None:
    assert command.callback is not None
    for name, annotated in get_type_hints(command.callback, include_extras=True).items():
        assert name == "return" or annotated.__metadata__[0].help, name


def test_the_module_is_the_command_line(tmp_path: Path) -> None:
    installed = python("-c", "import adamtune; print(adamtune.__version__)", cwd=tmp_path).stdout
    assert re.match(r"\d+\.\d+", installed)
    done = python("-m", "adamtune", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"adamtune {installed}", "")
    for place in (["--debug", "show", "gone"], ["show", "gone", "--debug"]):
        done = python("-m", "adamtune", *place, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("Traceback")
        assert done.stderr.endswith("\nadamtune: gone does not exist\n")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("adamtune sw", ["sweep"]),
        ("adamtune do", ["doctor"]),
        ("adamtune init --kind ", ["pytorch", "transformers", "lightning"]),
        ("adamtune recipes s", ["show"]),
        ("adamtune recipes show fi", ["fine-tune"]),
        ("adamtune export runs/x --format t", ["timm", "torchtune"]),
        ("adamtune sweep --engine ", ["auto", "sequential", "population", "workers", "ray"]),
        ("adamtune lr-find --engine p", ["population"]),
        ("adamtune doctor --ta", ["--task", "--task-arg"]),
    ],
)
def test_shell_completion_answers_and_says_nothing_else(typed: str, offered: list[str], tmp_path: Path) -> None:
    place = str(len(typed.split(" ")) - 1)
    asked = {"_ADAMTUNE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": place}
    completed = subprocess.run(
        [sys.executable, "-m", "adamtune"],
        cwd=tmp_path,
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (completed.returncode, completed.stdout.split(), completed.stderr) == (0, offered, "")


def test_the_words_that_are_completed_are_all_there_are() -> None:
    assert list(completing.FORMATS) == list(export.FORMATS)
    assert get_args(get_type_hints(Spec)["engine"]) == completing.ENGINES


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_what_show_completion_prints_completes_in_bash(tmp_path: Path) -> None:
    command = tmp_path / "adamtune"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adamtune "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(adamtune --show-completion)" && complete -p adamtune >/dev/null || exit 1\n'
        "COMP_WORDS=(adamtune com); COMP_CWORD=1; _adamtune_completion adamtune; echo ${COMPREPLY[@]}\n"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "SHELL": "/bin/bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "compare\n", "")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m adamtune lr-find --help | head -c 1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


# --- bad input


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("task: [", "line 1, column 8: not valid YAML"),
        ("a: 1\nb: [1,\n", "line 3, column 1: not valid YAML"),
        ("", "empty"),
        ("task: {ref: 'a.b:c'}\nhorizon: 1\nsed: 1", "$.sed: unknown key; did you mean 'seed'?"),
        ("task: {ref: 'a.b:c'}\nhorizon: 1\nbase: {lr: -1e-3}", "$.base.lr: must be above 0, not -0.001"),
        ("task: {ref: 'a.b:c'}\nhorizon: 1\nbase: {betas: [0.9, 1]}", "$.base.betas[1]: must be below 1"),
        ("task: {ref: 'a.b:c'}\nhorizon: 1\nspace: {beta2: {high: 1.5}}", "$.space.beta2: high must be below 1"),
        ("task: {ref: 'a.b:c'}\nhorizon: 1\nspace: {lr: {low: 1, high: 0.1}}", "$.space.lr: low (1) >= high (0.1)"),
        ("task: {ref: 'a.b:c'}\nhorizon: 1\nstages: []", "$.stages: an empty list asks nothing; write auto"),
        ("task: {ref: 'gone.py:c'}\nhorizon: 1", "$.task.ref: no file"),
        ("task: {ref: 'a.b.c'}\nhorizon: 1", "$.task.ref: 'a.b.c' is no task reference; write package.module:function"),
        ("task: {ref: 'a.b:c'}\nhorizon: 100", "the task a.b:c does not import: there is no module 'a'"),
        (f"task: {{ref: '{TASKS}:gone'}}\nhorizon: 100", "has no function 'gone'; "),
        (f"task: {{ref: '{TASKS}:seprable'}}\nhorizon: 100", "did you mean 'separable'?"),
        (f"task: {{ref: '{TASKS}:no_task'}}\nhorizon: 100", "returned a str; it must return an adamtune.Task"),
        (f"task: {{ref: '{TASKS}:separable', args: {{p: 1}}}}\nhorizon: 100", "does not take these task args: got an"),
        (f"task: {{ref: '{TASKS}:separable'}}\nhorizon: 99\nobjective: {{name: acc}}", "acc without a direction; add"),
        (
            f"task: {{ref: '{TASKS}:separable'}}\nhorizon: 99\nobjective: {{name: acc, direction: maximize}}",
            "no metric 'acc'; ",
        ),
        (
            f"task: {{ref: '{TASKS}:separable'}}\nhorizon: 99\nbudget: {{steps: 9}}",
            "the budget of 9 steps is too small",
        ),
        (f"task: {{ref: '{TASKS}:separable'}}\nhorizon: 99\ndevice: warp", "the device 'warp' cannot be used"),
        (f"task: {{ref: '{TASKS}:separable'}}\nhorizon: 99\nstorage: warp", "the storage cannot be opened"),
    ],
)
def test_a_spec_that_cannot_be_used_is_answered_with_one_sentence_and_nothing_is_written(
    cli: Cli, specs: Path, tmp_path: Path, text: str, told: str
) -> None:
    path = specs / "bad.yaml"
    path.write_text(text)
    assert_refused(cli("sweep", path), told)
    assert list(tmp_path.iterdir()) == []


def test_several_problems_are_told_in_one_go_each_with_its_path(cli: Cli, specs: Path, tmp_path: Path) -> None:
    path = specs / "bad.yaml"
    path.write_text("horizon: 0\nstages: [lr, beta3]\nbudgt: 1\n")
    said = cli("sweep", path)
    assert_refused(said, f"{path} has 4 problems:\n", lines=5)
    for where in ("$.task: required", "$.horizon: must be", "$.stages[1]: must be one of", "$.budgt: unknown key; did"):
        assert f"\n  {where}" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["swep"], "No such command 'swep'. Did you mean 'sweep'?"),
        (["sweep"], "Missing argument 'spec'"),
        (["sweep", "gone.yaml"], "gone.yaml: no such file"),
        (["sweep", "."], "a folder, where a YAML file is expected"),
        (["sweep", "gone.yaml", "--nope"], "No such option: --nope"),
        (["sweep", "gone.yaml", "--seed", "x"], "--seed"),
        (["sweep", "SPEC", "--engine", "warp"], "engine: must be one of"),
        (["sweep", "SPEC", "--seed", "-1"], "seed: must be at least 0"),
        (["sweep", "SPEC", "--storage", "nonsense"], "the storage cannot be opened"),
        (["lr-find"], "Missing argument 'task'"),
        (["lr-find", "separable"], "'separable' is no task reference"),
        (["lr-find", "no.such:task"], "there is no module 'no'"),
        (["lr-find", "no/such.py:task"], "no file "),
        (["lr-find", "TASK", "--steps", "5"], "steps must be at least 10, not 5"),
        (["lr-find", "TASK", "--seeds", "0"], "seeds must be at least 1, not 0"),
        (["lr-find", "TASK", "--horizon", "0"], "horizon must be at least 1, not 0"),
        (["lr-find", "TASK", "--budget", "1"], "budget must be at least"),
        (["lr-find", "TASK", "--start", "0"], "start must be above 0 and below end"),
        (["lr-find", "TASK", "--start", "1", "--end", "1e-3"], "start must be above 0 and below end"),
        (["lr-find", "TASK", "--end", "nan"], "start must be above 0 and below end"),
        (["lr-find", "TASK", "--device", "warp"], "the device 'warp' cannot be used"),
        (["lr-find", "TASK", "--recipe", "gone.yaml"], "gone.yaml: no such file"),
        (["lr-find", "TASK", "--plot", "no/such.html"], "--plot no/such.html: name a file in a folder that exists"),
        (["lr-find", "TASK", "--plot", "."], "name a file in a folder that exists"),
        (["lr-find", "TASK", "--task-arg", "pause"], "--task-arg pause: write it as name=value"),
        (["lr-find", "TASK", "--task-arg", "=3"], "--task-arg =3: write it as name=value"),
        (["lr-find", "TASK", "--task-arg", "pause=["], "--task-arg pause: line 1"),
        (["lr-find", "TASK", "--task-arg", "paus=1"], "it takes: pause"),
        (["init", "--kind", "tensorflow"], "Invalid value for '--kind': 'tensorflow' is not one of 'pytorch'"),
        (["show", "gone"], "gone does not exist"),
        (["show", "/"], "is no run directory: it has no result.json"),
        (
            ["export", "gone"],
            "gone: no such file, and no recipe of that name comes with adamtune; known are: default, fi",
        ),
        (["export", "fine-tun"], "no recipe of that name comes with adamtune; did you mean 'fine-tune'?"),
        (["compare", "default", "recurent"], "no recipe of that name comes with adamtune; did you mean 'recurrent'?"),
        (["lr-find", "TASK", "--recipe", "recurent"], "did you mean 'recurrent'?"),
        (["recipes", "show", "fine-tun"], "did you mean 'fine-tune'?"),
        (["recipes", "show", "../default"], "no recipe of that name comes with adamtune"),
        (["recipes", "show"], "Missing argument 'name'"),
        (["export", "/"], "is no run directory: it has no result.json"),
        (["export", "RUN", "--format", "pyton"], "there is no export format 'pyton'; did you mean 'python'?"),
        (["export", "RUN", "--to", "/"], "is a folder; name the file to write with --to"),
        (["export", "RUN", "--to", "no/x.py"], "there is no folder no to write x.py in"),
        (["sweep", str(TASKS)], "this is Python; name a spec, a YAML file"),
        (["sweep", "my_task.py:task"], "this is Python; name a spec, a YAML file"),
        (["show", str(TASKS)], "tasks_for_tests.py is a file; name the run directory of a sweep"),
        (["export", "RUN", "--format", "hf", "--to", "hf.json"], "hf is written as YAML, which hf.json does not look"),
        (["export", "RUN", "--format", "yaml", "--to", "a.py"], "yaml is written as YAML, which a.py does not look"),
        (["export", "RUN", "--format", "megatron", "--to", "a.json"], "as command line arguments, which a.json"),
        (["export", "RUN", "--to", str(TASKS)], "exists; name another file, or replace it with --force"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_answered_with_one_sentence_and_nothing_is_written(
    cli: Cli, spec: Callable[..., Path], finished: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    stands_for = {"SPEC": spec(), "TASK": f"{TASKS}:separable", "RUN": finished}
    before = TASKS.read_bytes()
    assert_refused(cli(*(stands_for.get(argument, argument) for argument in arguments)), told)
    assert list(tmp_path.iterdir()) == []
    assert TASKS.read_bytes() == before


def test_a_run_directory_that_is_taken_is_answered_with_one_sentence(
    cli: Cli, spec: Callable[..., Path], finished: Path, tmp_path: Path
) -> None:
    assert_refused(cli("sweep", spec(), "--run-dir", finished), "already holds a finished run; name another")
    with RunDir(tmp_path / "mine").claimed():
        told = f"mine is in use by another sweep, process {os.getpid()} on {platform.node()}; wait for it"
        assert_refused(cli("sweep", spec(), "--run-dir", "mine"), told)
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("task", "args", "told"),
    [
        ("raising", "", "task 'separable' raised ValueError: the toy broke (tasks_for_tests.py, line "),
        ("raising", "after: 30", ") at training step "),
        ("exiting", "after: 30", "task 'separable' raised SystemExit: 0 (tasks_for_tests.py, line "),
        ("exits", "", ":exits raised SystemExit: usage: train.py DATA (tasks_for_tests.py, line "),
        ("ending", "", "task 'separable': train_batches ended at training step 4 of "),
        ("vector_loss", "", "the loss at training step 1 is a tensor of shape (16,), not a scalar; return the mean"),
        ("no_parameters", "", "task 'separable' fails at step 0: its model has no trainable parameters"),
        ("nan", "", "check the loss for overflow"),
        ("exploding", "", "check the loss for overflow"),
    ],
)
def test_a_task_that_fails_is_answered_with_one_sentence_that_names_it(
    cli: Cli, spec: Callable[..., Path], tmp_path: Path, task: str, args: str, told: str
) -> None:
    assert_refused(cli("sweep", spec(task, "stages: [lr]", args), "--run-dir", "run", "--json"), told, code=1)
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    if told != "check the loss for overflow":  # to lr-find that is an answer
        given = ["--task-arg", args.replace(": ", "=")] if args else []
        assert_refused(cli("lr-find", f"{TASKS}:{task}", "--steps", "40", *given), told, code=1)


def test_debug_adds_the_traceback(cli: Cli, tmp_path: Path) -> None:
    said = cli("lr-find", f"{TASKS}:raising", debug=True)
    assert said.code == 1
    assert said.err.startswith("Traceback")
    assert "ValueError: the toy broke" in said.err
    assert said.err.splitlines()[-1].startswith("adamtune: task 'separable' raised ValueError: the toy broke")
    assert "Traceback" not in cli("lr-find", f"{TASKS}:raising").err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ZeroDivisionError("oh"),
            1,
            "adamtune has a bug here (ZeroDivisionError: oh); run it again with --debug and report that",
        ),
    ],
)
def test_whatever_else_ends_a_command_is_told_in_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: str
) -> None:
    def broken(folder: Path) -> None:
        raise error

    monkeypatch.setattr("adamtune.rundir.runs_in", broken)
    assert cli("show") == Said(code, "", f"adamtune: {told}\n")


# --- results as JSON, for scripts


LR_FIND_KEYS = {
    *("version", "task", "status", "reason", "suggestion", "interval", "band", "suggestions", "steps_used", "horizon"),
    *("seeds", "seconds", "curve", "response", "stopped", "group"),
}
SWEEP_KEYS = {
    *("version", "task", "horizon", "objective", "steps_used", "wall_seconds", "default", "recommended", "difference"),
    *("changed", "stages", "findings", "recipe"),
}


def test_lr_find_prints_json(cli: Cli, tmp_path: Path) -> None:
    said = cli("lr-find", "adamtune.tasks.digits:task", "--horizon", "120", "--task-arg", "hidden=64", "--json")
    assert said.code == 0
    found = said.json
    assert set(found) == LR_FIND_KEYS
    assert (found["version"], found["task"], found["horizon"]) == (1, "digits-mlp", 120)
    assert found["interval"][0] < found["suggestion"] < found["interval"][1]
    assert 1e-3 < found["suggestion"] < 1
    assert found["band"][0] < found["band"][1]
    assert set(found["suggestions"]) == {"steepest", "valley", "minimum/10", "lowest"}
    assert 0 < found["steps_used"] <= 120
    assert len(found["curve"]["lrs"]) == len(found["curve"]["losses"])
    assert list(tmp_path.iterdir()) == []


def test_lr_find_without_an_answer_prints_json_too_and_fails(cli: Cli) -> None:
    said = cli("lr-find", f"{TASKS}:nan", "--json")
    assert said.code == 1
    found = said.json
    assert set(found) == LR_FIND_KEYS
    assert (found["status"], found["suggestion"], found["interval"], found["band"]) == ("diverging", None, None, None)


def test_lr_find_tells_people_the_answer_with_its_curve(cli: Cli, tmp_path: Path) -> None:
    said = cli("lr-find", f"{TASKS}:separable", "--steps", "60", "--seeds", "1", "--plot", "curve.html")
    assert (said.code, said.err) == (0, "")
    for name in ("band:", "steepest:", "valley:", "minimum/10:", "suggestion:", "interval:", "cost:"):
        assert f"\n{name}" in said.out
    assert "for 60 steps" in said.out
    assert "</html>" in (tmp_path / "curve.html").read_text()


def test_sweep_prints_the_json_it_wrote_and_show_prints_it_again(
    cli: Cli, spec: Callable[..., Path], tmp_path: Path
) -> None:
    said = cli("sweep", spec(), "--seed", "5", "--json")
    assert said.code == 0
    assert set(said.json) == SWEEP_KEYS
    run_dir = Path("runs/spec-1")
    assert said.json == json.loads((run_dir / "result.json").read_text())
    assert cli("show", run_dir, "--json").json == said.json
    assert cli("show", "--json").json == {"version": 1, "runs": {str(run_dir): said.json}, "unfinished": []}
    assert pd.read_csv(run_dir / "trials.csv")["seed"].min() == 5 * 30_000
    assert "seed: 5\n" in (run_dir / "spec.yaml").read_text()


@pytest.mark.parametrize("command", ["lr-find", "sweep", "dry run", "doctor"])
def test_what_a_task_prints_is_not_in_the_json(cli: Cli, spec: Callable[..., Path], command: str) -> None:
    said = {
        "lr-find": lambda: cli("lr-find", f"{TASKS}:chatty", "--steps", "20", "--seeds", "1", "--json"),
        "sweep": lambda: cli("sweep", spec("chatty", "stages: [eps]\nengine: sequential\n"), "--json"),
        "dry run": lambda: cli("sweep", spec("chatty"), "--dry-run", "--json"),
        "doctor": lambda: cli("doctor", "--task", f"{TASKS}:chatty", "--json"),
    }[command]()
    assert isinstance(json.loads(said.out), dict)
    assert "hello from the task\n" in said.err
    assert "hello from a batch\n" in said.err


def test_sweep_and_show_tell_people_the_answer(cli: Cli, spec: Callable[..., Path]) -> None:
    said = cli("sweep", spec(), "--run-dir", "here")
    shown = cli("show", "here")
    assert said.code == shown.code == 0
    assert said.out == shown.out
    for start in ("default:     loss 0.", "recommended: loss 0.", "ratio:       ", "recipe:      here/recipe.yaml"):
        assert f"\n{start}" in said.out
    for told in ("run directory: here", "stages: eps, then default against recommended; at most ", "eps: Should small"):
        assert told in said.err
    assert cli("show").out.startswith("no runs in runs/; adamtune init writes a task and a spec to start from, ")


def test_what_has_no_number_is_told_alike_by_sweep_and_show(cli: Cli, spec: Callable[..., Path]) -> None:
    """A target that is never reached, and a default that diverges."""
    rest = "stages: [lr]\nobjective: {time_to: 1.0e-9}\nbase: wild.yaml\n"
    (path := spec(rest=rest)).with_name("wild.yaml").write_text("lr: 1.0e+4\n")
    said = cli("sweep", path, "--run-dir", "here")
    assert said.out == cli("show", "here").out
    assert "never by default, never recommended" in said.out
    assert "default:     loss diverged on 5 of 5 fresh seeds" in said.out


@pytest.mark.parametrize("folder", ["[red]x", "a[/b]"])
def test_a_run_directory_with_brackets_is_told_as_it_is(cli: Cli, spec: Callable[..., Path], folder: str) -> None:
    said = cli("sweep", spec(), "--run-dir", folder)
    assert said.code == 0
    assert said.err.startswith(f"run directory: {folder}\n")
    assert said.out.endswith(f"recipe:      {folder}/recipe.yaml\n")


def test_show_lists_the_runs_of_the_working_directory(cli: Cli, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(finished)
    (tmp_path / "runs" / "no run").mkdir()
    (tmp_path / "runs" / "README.md").touch()
    assert cli("show").err == ""
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "result.json").write_text("{")
    said = cli("show")
    assert said.code == 0
    assert said.err.startswith("adamtune: left out: runs/broken/result.json cannot be read as a result")
    assert [line.split()[0] for line in said.out.splitlines()] == ["run", "runs/mine"]
    (tmp_path / "runs" / "broken" / "result.json").unlink()
    for name in ("spec.yaml", "environment.json"):  # what a sweep writes first
        (tmp_path / "runs" / "broken" / name).touch()
    shutil.copytree(tmp_path / "runs", tmp_path / "elsewhere", symlinks=True)
    for folder, said in (("runs", cli("show")), ("elsewhere", cli("show", "elsewhere"))):
        assert [line.split()[0] for line in said.out.splitlines()[:2]] == ["run", f"{folder}/mine"]
        assert said.out.splitlines()[2] == f"not finished: {folder}/broken"
        assert "adamtune sweep RUN/spec.yaml --run-dir RUN goes on with it" in said.out
    listed = cli("show", "elsewhere", "--json").json
    assert (list(listed["runs"]), listed["unfinished"]) == (["elsewhere/mine"], ["elsewhere/broken"])


def test_the_folder_that_init_wrote_is_not_taken_for_a_run(cli: Cli, finished: Path, tmp_path: Path) -> None:
    assert cli("init", "mine").code == 0
    before = sorted(tmp_path.rglob("*"))
    for command in (["show", "mine"], ["report", "mine"], ["export", "mine"], ["compare", "mine", "mine"]):
        said = cli(*command)
        assert (said.code, said.err) == (2, "adamtune: mine is no run directory: it has no result.json\n"), command
    said = cli("sweep", "mine/spec.yaml", "--run-dir", "mine")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "adamtune: the run directory mine already holds other files; name a folder of the run's own with --run-dir, "
        "such as mine/run\n"
    )
    assert sorted(tmp_path.rglob("*")) == before
    shutil.copytree(finished, tmp_path / "mine" / "run")
    assert cli("report", "mine").err.endswith("it has no result.json; did you mean mine/run?\n")
    assert cli("show", "mine").out.splitlines()[1].split()[0] == "mine/run"


def test_a_dry_run_prints_the_plan_and_writes_nothing(cli: Cli, spec: Callable[..., Path], tmp_path: Path) -> None:
    plan = cli("sweep", spec(rest="stages: [lr, warmup]"), "--dry-run", "--json").json
    assert set(plan) == {"version", "stages", "final_steps", "steps", "budget_steps", "seconds_per_step"}
    assert [stage["stage"] for stage in plan["stages"]] == ["lr", "warmup"]
    assert all(set(stage) == {"stage", "question", "steps"} for stage in plan["stages"])
    assert plan["steps"] == plan["final_steps"] + sum(stage["steps"] for stage in plan["stages"])
    assert (plan["final_steps"], plan["budget_steps"]) == (200, 6000)
    assert 0 < plan["seconds_per_step"] < 1
    said = cli("sweep", spec(rest="stages: [lr, warmup]"), "--dry-run")
    assert (said.code, said.err) == (0, "")
    assert f"about {plan['steps']:,} steps in all; budget: 6,000 steps; stages are asked as far as it goes" in said.out
    assert re.search(r"about [\d.]+ (s|min) one trial at a time, less side by side; a step takes [\d.]+ ms", said.out)
    assert "left out" not in said.out  # what is not listed is not wanted
    small = spec(rest="stages: auto\n")
    small.write_text(small.read_text().replace("{trials: 300}", "{trials: 24}"))
    assert re.search(
        r"left out, as the budget is too small for them: .*beta2, weight_decay", cli("sweep", small, "--dry-run").out
    )
    timed = spec(rest="stages: [lr]")
    timed.write_text(timed.read_text().replace("{trials: 300}", "{time: 5m}"))
    assert cli("sweep", timed, "--dry-run", "--json").json["budget_steps"] is None
    assert list(tmp_path.iterdir()) == []


def test_export_prints_or_writes(cli: Cli, finished: Path, tmp_path: Path) -> None:
    printed = cli("export", finished)
    assert (printed.code, printed.err) == (0, "")
    compile(printed.out, "recipe", "exec")
    written = cli("export", finished, "--format", "python", "--to", "recipe.py")
    assert (written.code, written.out, written.err) == (0, "wrote recipe.py\n", "")
    assert (tmp_path / "recipe.py").read_text() == printed.out
    assert cli("export", finished, "--format", "yaml").out == (finished / "recipe.yaml").read_text()
    assert_refused(cli("export", finished, "--to", "recipe.py"), "recipe.py exists; name another file")
    assert cli("export", finished / "recipe.yaml", "--to", "recipe.py", "--force").code == 0


# --- interrupted


def test_ctrl_c_leaves_what_was_measured_and_says_where(spec: Callable[..., Path], tmp_path: Path) -> None:
    path = spec(args="pause: 0.002", rest="stages: [lr]\n")
    path.write_text(path.read_text().replace("horizon: 20", "horizon: 100").replace("seeds: 2", "seeds: 1"))
    # A child of a shell's background job is born deaf to SIGINT, and a test may be one.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from adamtune.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "sweep", str(path), "--run-dir", "run"]
    pipe, log = subprocess.PIPE, tmp_path / "run" / "log.txt"
    with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as child:
        for _ in range(3000):
            if child.poll() is not None or (log.exists() and ": trial " in log.read_text()):
                break
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, "")
    assert "stopping after this rung" in err
    assert err.endswith(f"what has been measured is in run; adamtune sweep {path} --run-dir run goes on from there\n")
    assert "Traceback" not in err
    assert len(pd.read_csv(tmp_path / "run" / "trials.csv")) > 0
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert "ended by KeyboardInterrupt" in log.read_text()


def test_ctrl_c_while_the_task_loads_says_that_nothing_was_begun(cli: Cli, tmp_path: Path) -> None:
    press = "os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "t.py").write_text(f"import os, signal\ndef task():\n    {press}\n    {press}\n    {press}\n")
    (tmp_path / "s.yaml").write_text("task: {ref: 't.py:task'}\nhorizon: 20\nbudget: {trials: 30}\n")
    said = cli("sweep", "s.yaml", "--run-dir", "run")
    assert said.code == 130
    assert said.err.endswith("adamtune: interrupted; nothing was begun\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", ["²", "two", "-1", "1.5"])
def test_a_number_of_workers_that_is_none_is_told_as_the_specs(
    workers: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec.yaml").write_text('task: {ref: "adamtune.tasks.digits:task"}\nhorizon: 2\n')
    assert run(["sweep", str(tmp_path / "spec.yaml"), "--workers", workers]) == 2
    assert "$.workers" in capfd.readouterr().err
