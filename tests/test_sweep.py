from __future__ import annotations

import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import adamtune
from adamtune import rundir
from adamtune.errors import AdamtuneError, InputError, NothingLearned, RunDirError, SpecError, TaskError
from adamtune.plan import Progress
from adamtune.recipe import Recipe
from adamtune.report.terminal import print_result
from adamtune.rundir import next_run_dir, read_result, write_atomically
from adamtune.spec import STAGES, Budget, Objective, Spec, TaskSpec, load_spec
from adamtune.sweeps import SweepResult, sweep

REPO = Path(__file__).parent.parent
TIMID = Recipe.default().with_knob("lr", 1e-4)


def spec(task: str = "separable", **options: Any) -> Spec:
    """A sweep of a second: few seeds and a short horizon, from a learning rate far too small."""
    args = options.pop("args", {})
    defaults = {"horizon": 40, "seeds": 2, "base": TIMID, "budget": Budget(trials=200), "stages": ["lr_range", "lr"]}
    return Spec.model_validate({"task": TaskSpec(ref=f"tasks_for_tests:{task}", args=args)} | defaults | options)


class Steps(Progress):
    count = 0

    def on_steps(self, steps: int) -> None:
        self.count += steps


class Run:
    """A sweep done, and what it left behind."""

    def __init__(self, path: Path, spec: Spec) -> None:
        self.path, self.told = path, Steps()
        self.result: SweepResult = sweep(spec, path, self.told)
        self.json = json.loads((path / "result.json").read_text())
        self.trials, self.curves, self.probe = (pd.read_csv(path / f"{n}.csv") for n in ("trials", "curves", "probe"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every stage asked that logistic regression can have: it has one group of weights."""
    return Run(tmp_path_factory.mktemp("whole") / "run", spec(stages=None, budget=Budget(trials=400)))


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same spec and seed twice."""
    one, other = (Run(tmp_path_factory.mktemp("twin") / "run", spec(seed=3)) for _ in range(2))
    return one, other


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what a sweep leaves behind


def test_every_file_that_the_readme_of_runs_lists_is_there_and_nothing_else(whole: Run) -> None:
    table = (REPO / "runs" / "README.md").read_text()
    listed = {name for row in re.findall(r"^\| (`.+?) \|", table, re.M) for name in re.findall(r"`(.+?)`", row)}
    assert {entry.name for entry in whole.path.iterdir()} - {".lock"} == listed
    assert len(listed) == 12
    assert all((whole.path / name).stat().st_size for name in listed)


MEASURED = {"mean", "ci95", "seeds", "values", "diverged"}


def test_result_json_says_what_the_design_promises(whole: Run) -> None:
    result = whole.json
    assert set(result) == {
        *("version", "task", "horizon", "objective", "steps_used", "wall_seconds", "default", "recommended"),
        *("difference", "changed", "stages", "findings", "recipe"),
    }
    assert result == rundir.jsonable(whole.result.to_dict()) == read_result(whole.path)
    for side in ("default", "recommended"):
        assert set(result[side]) == MEASURED
        low, high = result[side]["ci95"]
        assert low < result[side]["mean"] < high
        assert (result[side]["seeds"], len(result[side]["values"]), result[side]["diverged"]) == (5, 5, 0)
    assert [stage["stage"] for stage in result["stages"]] == [name for name in STAGES if name != "groups"]
    for stage in result["stages"]:
        assert set(stage) == {"stage", "question", "verdict", "reason", "before", "after", "evidence", "details"}
        assert stage["verdict"] in {"measured", "changed", "kept", "unasked"}
        assert stage["reason"]
        if stage["verdict"] == "changed":
            assert set(stage["evidence"]) == {"seeds", "incumbent", "challenger", "difference"}


def test_the_recommended_recipe_beats_the_default_on_fresh_seeds(whole: Run) -> None:
    default, recommended = whole.json["default"], whole.json["recommended"]
    assert recommended["mean"] < 0.75 * default["mean"]
    assert recommended["ci95"][1] < default["ci95"][0]
    assert whole.json["difference"]["ci95"][1] < 0
    assert whole.json["changed"]["lr"] == {"default": 1e-4, "recommended": whole.result.recipe.lr}


def test_seeds_that_search_confirm_and_judge_are_disjoint(whole: Run) -> None:
    fresh = set(whole.trials.query("stage == 'final'")["seed"])
    rest = set(whole.trials.query("stage != 'final'")["seed"])
    confirm = {seed for stage in whole.json["stages"] if stage["evidence"] for seed in stage["evidence"]["seeds"]}
    assert (len(fresh), len(confirm), len(rest - confirm)) == (5, 5, 2)
    assert confirm < rest
    assert not fresh & rest
    assert whole.result.recipe.provenance["fresh_seeds"] == sorted(fresh)


def test_every_training_step_is_counted_once_everywhere(whole: Run) -> None:
    used = whole.json["steps_used"]
    assert whole.trials["steps"].sum() == whole.told.count == whole.result.steps_used == used
    assert whole.result.recipe.provenance["steps_used"] == used
    storage = JournalStorage(JournalFileBackend(str(whole.path / "study.journal")))
    summaries = optuna.get_all_study_summaries(storage)
    trials = [trial for s in summaries for trial in optuna.load_study(study_name=s.study_name, storage=storage).trials]
    assert sum(trial.user_attrs["steps"] for trial in trials) == used
    assert all(trial.state.is_finished() for trial in trials)


def test_trials_and_curves_and_probe_are_tables_of_the_same_trials(whole: Run) -> None:
    key = ["study", "trial"]
    assert not whole.trials.duplicated(key).any()
    shared = [*key, "stage", "seed"]
    for table in (whole.curves, whole.probe):
        assert len(table.merge(whole.trials, on=shared)) == len(table) > 0
    assert not whole.curves.duplicated([*key, "step"]).any()
    last = whole.curves.loc[whole.curves.groupby(key)["step"].idxmax()].merge(whole.trials, on=shared)
    assert len(last) == len(whole.trials)
    assert (last["step"] == last["steps"]).all()
    done = last.query("outcome == 'completed' and stage != 'lr_range'")
    assert (done["steps"] == done["horizon"]).all()
    assert (done["loss"] == done["value"]).all()
    assert last.query("outcome != 'completed'")["value"].isna().all()
    assert set(whole.trials["outcome"]) <= {"completed", "pruned", "diverged"}


def test_the_final_figures_are_those_of_the_final_trials(whole: Run) -> None:
    final = whole.trials.query("stage == 'final'").sort_values("seed")
    for side, lr in (("default", 1e-4), ("recommended", whole.result.recipe.lr)):
        values = final[final["lr"] == lr]["value"]
        assert list(values) == whole.json[side]["values"]
        assert values.mean() == pytest.approx(whole.json[side]["mean"])


def test_the_recipe_loads_and_builds_in_a_training_repo(whole: Run) -> None:
    recipe = adamtune.load_recipe(whole.path / "recipe.yaml")
    assert recipe == whole.result.recipe
    assert whole.json["recipe"] == recipe.to_dict()
    optimizer, scheduler = recipe.build(torch.nn.Linear(8, 2), total_steps=40)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[-1]["initial_lr"] == recipe.lr
    knobs = recipe.provenance["knobs"]
    assert isinstance(knobs, dict)
    assert list(knobs) == [name for name in STAGES if name not in ("lr_range", "groups")]
    assert recipe.provenance["run"] == "run"


def test_spec_yaml_is_the_spec_and_runs_again(whole: Run) -> None:
    assert load_spec(whole.path / "spec.yaml") == whole.result.spec


def test_the_log_tells_every_stage_and_trial(whole: Run) -> None:
    log = (whole.path / "log.txt").read_text()
    assert len(re.findall(r"^\S+Z \w+: trial ", log, re.M)) == len(whole.trials)
    for stage in whole.json["stages"]:
        assert f"{stage['stage']}: {stage['verdict']}: {stage['reason']}" in log
    assert f"done: {whole.json['steps_used']} steps" in log
    environment = json.loads((whole.path / "environment.json").read_text())
    assert environment["packages"]["torch"] == version("torch")
    assert environment["device"] == "cpu"


# --- the same again


def test_the_same_spec_and_seed_give_the_same_recipe_and_result(twins: tuple[Run, Run]) -> None:
    one, other = twins
    assert (one.path / "recipe.yaml").read_bytes() == (other.path / "recipe.yaml").read_bytes()
    assert {**one.json, "wall_seconds": 0} == {**other.json, "wall_seconds": 0}
    pd.testing.assert_frame_equal(one.trials.drop(columns="seconds"), other.trials.drop(columns="seconds"))
    pd.testing.assert_frame_equal(one.curves, other.curves)


def test_another_seed_uses_other_seeds(twins: tuple[Run, Run], whole: Run) -> None:
    assert not set(twins[0].trials["seed"]) & set(whole.trials["seed"])


# --- other ways to ask


def test_a_metric_can_be_maximized(tmp_path: Path) -> None:
    objective = Objective(name="accuracy", direction="maximize")
    run = Run(tmp_path / "run", spec(horizon=20, objective=objective))
    assert run.json["recommended"]["mean"] > run.json["default"]["mean"] + 0.05
    assert run.json["difference"]["ci95"][0] > 0
    assert run.trials.query("outcome == 'completed'")["value"].between(0, 1).all()


def test_steps_to_a_target_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At rungs an eighth of the run apart; a target the default never reaches is told as such."""
    objective = Objective(time_to=0.5)
    run = Run(tmp_path / "run", spec(objective=objective))
    default, recommended = run.json["default"], run.json["recommended"]
    assert (default["steps_to"], default["median_steps_to"]) == ([None] * 5, None)
    curves = run.curves[(run.curves["stage"] == "final") & (run.curves["loss"] <= 0.5)]
    assert recommended["steps_to"] == curves.groupby("seed")["step"].min().tolist()
    assert 0 < recommended["median_steps_to"] < 40
    print_result(run.json, run.path)
    assert f"never by default, {recommended['median_steps_to']:.0f} steps recommended" in capsys.readouterr().out


def test_a_default_that_diverges_is_told_and_left(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", spec(stages=["lr"], horizon=20, base=Recipe(lr=1e4)))
    default = run.json["default"]
    assert (default["mean"], default["ci95"], default["values"], default["diverged"]) == (
        None,
        [None] * 2,
        [None] * 5,
        5,
    )
    assert run.json["recommended"]["mean"] < 0.7
    assert run.result.recipe.lr < 10
    assert "the incumbent diverged on 3 of 3 seeds" in run.json["stages"][0]["reason"]


def test_weight_decay_is_changed_where_a_model_overfits(tmp_path: Path) -> None:
    base = Recipe.default().with_knob("lr", 0.03)
    run = Run(tmp_path / "run", spec("overfitting", stages=["weight_decay"], horizon=100, base=base))
    (decay,) = run.json["stages"]
    assert decay["verdict"] == "changed"
    assert decay["after"] > 5 * decay["before"]
    assert run.json["difference"]["ci95"][1] < 0


def test_when_the_time_is_spent_the_default_stays_and_is_still_measured(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", spec(budget=Budget(time=1e-6)))
    assert [stage["verdict"] for stage in run.json["stages"]] == ["unasked"] * 2
    assert run.json["default"] == run.json["recommended"]
    assert run.json["changed"] == {}
    assert run.json["steps_used"] == 5 * 40  # one recipe, trained once
    assert adamtune.load_recipe(run.path / "recipe.yaml").lr == TIMID.lr


def test_without_a_name_a_run_gets_the_next_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = spec(stages=["eps"], horizon=2)
    assert sweep(quick).run_dir == Path("runs/sweep-1").resolve()
    (tmp_path / "quick.yaml").write_text(quick.to_yaml())
    assert adamtune.sweep("quick.yaml").run_dir == Path("runs/quick-1").resolve()
    for name in ("quick-7", "quick-x", "quick-07-2", "quicker-9", "quick-²", "quick[1]-3"):
        (tmp_path / "runs" / name).mkdir()
    assert next_run_dir("quick") == Path("runs/quick-8")
    assert next_run_dir("quick[1]") == Path("runs/quick[1]-4")


def test_runs_may_share_one_storage_but_not_one_name_in_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'all.db'}"
    quick = spec(stages=["eps"], horizon=2, storage=url)
    for name in ("one", "two"):
        sweep(quick, tmp_path / name)
        assert not (tmp_path / name / "study.journal").exists()
    studies = optuna.get_all_study_names(url)
    assert {name.split("/")[0] for name in studies} == {"one", "two"}
    with pytest.raises(InputError, match="already holds studies of a run called 'one'; name another"):
        sweep(quick, tmp_path / "elsewhere" / "one")
    assert optuna.get_all_study_names(url) == studies
    assert not (tmp_path / "elsewhere").exists()


def test_a_task_that_changes_the_working_directory_moves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there", "here/former"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    quick = spec("wandering", args={"to": str(tmp_path / "there")}, stages=["eps"], horizon=2)
    assert sweep(quick, "one", learn_from=["former"]).run_dir == tmp_path / "here" / "one"
    monkeypatch.chdir(tmp_path / "here")
    sweep(quick.model_copy(update={"storage": "sqlite:///all.db"}), "two")
    assert not list((tmp_path / "there").iterdir())
    assert {path.name for path in (tmp_path / "here").iterdir()} >= {"one", "two", "all.db"}
    assert "result.json" in contents(tmp_path / "here" / "two")


def test_a_run_in_the_working_directory_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert sweep(spec(stages=["eps"], horizon=2), ".").recipe.provenance["run"] == "mine"
    studies = JournalStorage(JournalFileBackend("study.journal")).get_all_studies()
    assert {study.study_name.split("/")[0] for study in studies} == {"mine"}


def test_workers_find_their_jobs_whatever_stands_in_the_name_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "a?b=%20 c#{d}"
    quick = spec(stages=["eps"], horizon=2, engine="workers", workers=1)
    sweep(quick.model_copy(update={"task": TaskSpec(ref=f"{REPO / 'tests' / 'tasks_for_tests.py'}:separable")}), path)
    assert [folder.name for folder in tmp_path.iterdir()] == [path.name]


# --- what goes wrong


@pytest.mark.parametrize("task", ["nan", "exploding"])
def test_when_every_trial_diverges_nothing_is_recommended(task: str, tmp_path: Path) -> None:
    with pytest.raises(NothingLearned, match=r"check the (task's data and )?loss") as caught:
        sweep(spec(task), tmp_path / "run")
    assert "diverge" in str(caught.value) or "not finite" in str(caught.value)
    left = {entry.name for entry in (tmp_path / "run").iterdir()}
    assert not left & {"recipe.yaml", "result.json", "report.html"}
    trials = pd.read_csv(tmp_path / "run" / "trials.csv")
    assert len(trials) > 0
    assert not (trials["outcome"] == "completed")[trials["horizon"] == 40].any()
    assert "ended by NothingLearned" in (tmp_path / "run" / "log.txt").read_text()


def test_a_metric_that_is_never_finite_is_named(tmp_path: Path) -> None:
    objective = Objective(name="gain", direction="maximize")
    with pytest.raises(
        NothingLearned, match="the metric 'gain' is not finite in any trial on the 5 fresh seeds"
    ) as told:
        sweep(spec("unmeasured", stages=["eps"], horizon=2, objective=objective), tmp_path / "run")
    assert "diverged" not in str(told.value)


def test_a_metric_that_is_not_finite_on_some_seeds_is_no_divergence(tmp_path: Path) -> None:
    objective = Objective(name="gain", direction="maximize")
    run = Run(tmp_path / "run", spec("unmeasured_at_times", stages=["eps"], horizon=2, objective=objective))
    for measured in (run.json["default"], run.json["recommended"]):
        assert 0 < measured["values"].count(None) < 5
        assert (measured["mean"], measured["diverged"]) == (None, 0)
    print_result(run.json, run.path)


def test_a_task_that_raises_midway_leaves_the_trials_measured_until_then(tmp_path: Path) -> None:
    told = Steps()
    told_where = r"task 'separable' raised ValueError: the toy broke .* at (the evaluation after )?training step \d+"
    with pytest.raises(TaskError, match=told_where):
        sweep(spec("raising", args={"after": 1000}), tmp_path / "run", told)
    trials = pd.read_csv(tmp_path / "run" / "trials.csv")
    assert set(trials["stage"]) <= {"lr_range", "lr", "final"}
    assert len(trials) > 10
    assert trials["steps"].sum() <= told.count
    curves = pd.read_csv(tmp_path / "run" / "curves.csv")
    assert len(curves.merge(trials, on=["study", "trial"])) == len(curves) >= len(trials)
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert "ended by TaskError" in (tmp_path / "run" / "log.txt").read_text()


def test_what_a_race_has_trained_is_kept_when_one_of_its_trials_raises(tmp_path: Path) -> None:
    told = Steps()
    with pytest.raises(TaskError):
        sweep(spec("raising", args={"after": 150}, horizon=20, stages=["lr"]), tmp_path / "run", told)
    trials = pd.read_csv(tmp_path / "run" / "trials.csv")
    assert (trials["outcome"] == "completed").any()
    assert 0 < told.count - 20 < trials["steps"].sum()


def test_a_report_that_cannot_be_drawn_does_not_cost_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def undrawable(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("adamtune.sweeps.report_html", undrawable)
    with pytest.raises(ZeroDivisionError):
        sweep(spec(stages=["eps"], horizon=2), tmp_path / "run")
    assert read_result(tmp_path / "run")["recommended"]["seeds"] == 5
    left = {entry.name for entry in (tmp_path / "run").iterdir()}
    assert "recipe.yaml" in left
    assert not left & {"report.html", rundir.CHECKPOINTS}
    assert "ended by ZeroDivisionError" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"task": "no_such"}, AdamtuneError, "has no function 'no_such'"),
        ({"task": "no_task"}, AdamtuneError, "returned a str"),
        ({"task": "no_parameters"}, TaskError, "has no trainable parameters"),
        ({"args": {"paus": 1}}, InputError, "does not take these task args"),
        ({"objective": Objective(name="acuracy", direction="maximize")}, SpecError, "did you mean 'accuracy'?"),
        ({"device": "warp"}, InputError, "the device 'warp' cannot be used"),
        ({"storage": "nonsense"}, InputError, "the storage cannot be opened"),
        ({"budget": Budget(steps=100)}, InputError, "the budget of 100 steps is too small"),
        ({"base": Recipe.from_yaml("groups: [{name: g, match: {params: 'hed.*'}}]")}, InputError, "match no parameter"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    options: dict[str, Any], error: type[Exception], told: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(told)):
        sweep(spec(**options), tmp_path / "deep" / "run")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def held_elsewhere(path: Path) -> Iterator[int]:
    """Another process holds the run directory; its number."""
    code = (
        "import pathlib, sys; from adamtune.rundir import RunDir\n"
        "with RunDir(pathlib.Path(sys.argv[1])).claimed() as run:\n"
        "    run.write('spec.yaml', 'mine'); print('held', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder.pid
        holder.communicate()


def test_a_run_directory_in_use_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "run") as holder:
        before = contents(tmp_path)
        with pytest.raises(RunDirError, match=rf"in use by another sweep, process {holder} on {platform.node()}; wait"):
            sweep(spec(), tmp_path / "run")
        assert contents(tmp_path) == before
    with pytest.raises(RunDirError, match="expected at the top, not a text; name another run"):  # the holder has gone
        sweep(spec(), tmp_path / "run")


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (
            {"spec.yaml": "a: 1", "result.json": "{}"},
            "already holds a finished run; name another with --run-dir, or delete it",
        ),
        (
            {"spec.yaml": "a: 1", "environment.json": "{}"},
            r"an unfinished run of another spec \(.*\); name another with --run-dir, or delete it",
        ),
        ({"spec.yaml": "a: 1"}, "already holds other files; name a folder of the run's own with --run-dir, such as "),
        ({"thesis.tex": "..."}, "already holds other files; name a folder of the run's own with --run-dir, such as "),
    ],
)
def test_a_run_directory_that_holds_anything_is_refused_and_left_as_it_is(
    there: dict[str, str], told: str, tmp_path: Path
) -> None:
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(RunDirError, match=told):
        sweep(spec(), tmp_path)
    assert contents(tmp_path) == before | ({".lock": b""} if "environment.json" in there else {})


def test_a_finished_run_is_not_overwritten(whole: Run) -> None:
    before = contents(whole.path)
    with pytest.raises(RunDirError, match="already holds a finished run"):
        sweep(spec(), whole.path)
    assert contents(whole.path) == before


def test_a_run_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(RunDirError, match="is a file; name a folder with --run-dir"):
        sweep(spec(), tmp_path / "run")
    with pytest.raises(RunDirError, match="cannot be made"):
        sweep(spec(), tmp_path / "run" / "below")


def test_an_empty_folder_is_taken_and_the_lock_of_a_dead_process_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    sweep(spec(stages=["eps"], horizon=2), tmp_path)
    assert (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (None, "does not exist"),
        ({}, "is no run directory: it has no result.json"),
        ({"spec.yaml": ""}, "is no run directory: it has no result.json"),
        (
            {"spec.yaml": "", "environment.json": "{}"},
            r"has not finished: it has no result.json yet; adamtune report (\S+run) shows how far it came, "
            r"adamtune sweep \1/spec.yaml --run-dir \1 goes on with it",
        ),
        ({"result.json": "{"}, "cannot be read as a result"),
        ({"result.json": "[]"}, "cannot be read as a result"),
        ({"result.json": "{}"}, "it holds no sweep result"),
        ({"result.json": '{"stages": []}'}, "it holds no sweep result"),
    ],
)
def test_a_folder_without_a_result_is_told_apart(files: dict[str, str] | None, told: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if files is not None:
        run.mkdir()
        for name, text in files.items():
            (run / name).write_text(text)
    with pytest.raises(RunDirError, match=told):
        read_result(run)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_atomically(path, "old")
    assert path.stat().st_mode & 0o444 == 0o444
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    with pytest.raises(AdamtuneError, match=r"x\.txt cannot be written: Not a directory"):
        write_atomically(path / "x.txt", "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


def test_numbers_that_json_cannot_say_become_null() -> None:
    assert rundir.jsonable({1: (math.nan, math.inf, 1.5), "x": None}) == {"1": [None, None, 1.5], "x": None}


@pytest.mark.slow
def test_digits_reaches_two_fifths_of_the_defaults_loss(tmp_path: Path) -> None:
    result = sweep(load_spec(REPO / "configs" / "digits.yaml"), tmp_path / "run")
    default, recommended = result.conclusion.default.summary, result.conclusion.recommended.summary
    assert default.mean == pytest.approx(0.29, abs=0.03)
    assert recommended.mean <= 0.40 * default.mean
    assert result.wall_seconds < 180
