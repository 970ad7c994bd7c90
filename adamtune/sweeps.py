"""A sweep from spec to recipe: the plan carried out in a run directory, everything written down on the way."""

from __future__ import annotations

import dataclasses
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.storages import BaseStorage

from adamtune import rundir, yaml_text
from adamtune.diagnosis import Told, counted, without_asked
from adamtune.diagnosis.trials import observed
from adamtune.engines import Engine, FinishedTrials, make_engine, make_ray, make_workers, pick_device
from adamtune.engines.width import time_alone
from adamtune.environment import changes, environment
from adamtune.errors import Problem, RunDirError, SpecError, UnwritableError
from adamtune.evidence import Interval, Verdict
from adamtune.groups import ParamGroup, param_groups
from adamtune.plan import (
    Conclusion,
    Measured,
    Plan,
    Progress,
    conclude,
    final_steps,
    fresh_seeds,
    make_plan,
    run_plan,
)
from adamtune.randomness import RandomState
from adamtune.recipe import Recipe
from adamtune.report.html import report_html
from adamtune.report.tables import curves_table, probe_table, table_lines, trials_table
from adamtune.rundir import RunDir
from adamtune.search import close_storage, open_storage, refuse_known_run, sqlite_url, storage_faults_told, whole_url
from adamtune.search.former_runs import learned_starts
from adamtune.spec import Spec, load_spec
from adamtune.stages.context import Budget, Seeds, StageAnswer, StageContext, TrialRecord
from adamtune.stages.costs import budget_steps
from adamtune.task import Task, load_task
from adamtune.task_calls import must_return, new_model, with_named_groups
from adamtune.trial import RungReport, TrialRequest
from adamtune.yaml_text import nearest

RESULT_VERSION = 1


@dataclass(frozen=True)
class SweepResult:
    """What a sweep ends with; `result.json` is this as plain data."""

    spec: Spec
    recipe: Recipe
    """The recommended recipe, with its provenance."""
    conclusion: Conclusion
    answers: Mapping[str, StageAnswer]
    findings: tuple[Told, ...]
    """What the rules find in the recommended recipe's trials on the fresh seeds."""
    steps_used: int
    """Training steps of all trials, the last comparison included."""
    wall_seconds: float
    run_dir: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain data, versioned."""
        return {
            "version": RESULT_VERSION,
            "task": self.spec.task.model_dump(),
            "horizon": self.spec.horizon,
            "objective": self.spec.objective.model_dump(exclude_none=True),
            "steps_used": self.steps_used,
            "wall_seconds": round(self.wall_seconds, 3),
            "default": _measured_dict(self.conclusion.default),
            "recommended": _measured_dict(self.conclusion.recommended),
            "difference": _interval_dict(self.conclusion.evidence.difference),
            "changed": {
                name: {"default": before, "recommended": after}
                for name, (before, after) in self.spec.base.diff(self.recipe).items()
            },
            "stages": [answer_dict(answer) for answer in self.answers.values()],
            "findings": [told.to_dict() for told in self.findings],
            "recipe": self.recipe.to_dict(),
        }


class _Notes(Progress):
    """Keeps every trial of the sweep, writes the log, and passes everything on."""

    def __init__(self, run: RunDir, audience: Progress) -> None:
        self.records: list[TrialRecord] = []
        self.engine: Engine | None = None
        self._run, self._audience = run, audience

    def on_plan(self, plan: Plan, groups: Sequence[ParamGroup]) -> None:
        stages = ", ".join(f"{stage.name} (<= {stage.steps} steps)" for stage in plan.stages)
        self._run.log(f"plan: {stages}, final ({plan.final_steps} steps)")
        for group in groups:
            self._run.log(f"group {group.name}: {group.tensors} tensors, {group.parameters} parameters")
        self._audience.on_plan(plan, groups)

    def on_stage(self, name: str, question: str) -> None:
        self._run.log(f"{name}: {question}")
        self._audience.on_stage(name, question)

    def on_steps(self, steps: int) -> None:
        self._audience.on_steps(steps)

    def on_begin(self, requests: Sequence[TrialRequest]) -> None:
        self._audience.on_begin(requests)

    def on_rung(self, requests: Sequence[TrialRequest], reports: Sequence[RungReport | None]) -> None:
        self._audience.on_rung(requests, reports)

    def on_end(self, requests: Sequence[TrialRequest]) -> None:
        self._audience.on_end(requests)

    def on_note(self, note: str) -> None:
        self._run.log(note)
        self._audience.on_note(note)

    def on_trial(self, record: TrialRecord) -> None:
        self.records.append(record)
        result, request = record.result, record.result.request
        value = f"{record.value:.5g}" if math.isfinite(record.value) else result.message or "-"
        self._run.log(
            f"{record.stage}: trial {record.study}#{record.number} seed {request.seed} "
            f"{result.outcome} after {result.steps} of {request.horizon} steps: {value}"
        )
        self._audience.on_trial(record)

    def on_answer(self, answer: StageAnswer) -> None:
        self._run.log(f"{answer.stage}: {answer.verdict}: {answer.reason}")
        self._audience.on_answer(answer)
        self.write_so_far()

    def on_findings(self, findings: Sequence[Told]) -> None:
        for told in findings:
            seeds = f" ({told.seeds} of {told.of} seeds)" if told.of > 1 else ""
            self._run.log(f"{told.finding.severity}: {told.finding.told}{seeds}")
        self._audience.on_findings(findings)

    def write_so_far(self) -> None:
        """The trials so far, as tables; how they train, and what was measured for it, for who goes on with the run."""
        for name, table in ((rundir.TRIALS, trials_table), (rundir.CURVES, curves_table), (rundir.PROBE, probe_table)):
            self._run.write_lines(name, table_lines(table, self.records))
        if self.engine is not None:
            self._run.write_json(rundir.ENGINE, self.engine.facts())


@must_return()
def sweep(
    spec: Spec | str | Path,
    run_dir: str | Path | None = None,
    progress: Progress | None = None,
    learn_from: Sequence[str | Path] = (),
    stop: Callable[[], bool] = lambda: False,
) -> SweepResult:
    """Tune what `spec` (or the YAML file of that path) says, leaving every file of the run in `run_dir`.

    Without a `run_dir` it is runs/NAME-N, the first N free. `progress` hears of everything as it happens.
    Recipes that did well in the runs below the folders `learn_from` are the first that the stage `portfolio` tries.

    A `run_dir` that holds an unfinished run of the same spec is gone on with: trials that ended are not trained again,
    and the result is that of a run without interruption (`engine: sequential`: to the bit). `stop` is asked after every
    rung whether to interrupt the sweep there, by KeyboardInterrupt.

    Raises `InputError` before anything is written when the spec, its task, device or directory cannot be used;
    `TaskError` when the task fails in training; `NothingLearned` when there is nothing to recommend. Whatever ends it,
    the trials measured until then are in the run directory.
    """
    began = time.monotonic()
    name = "sweep" if isinstance(spec, Spec) else Path(spec).stem
    run_dir = Path(run_dir) if run_dir is not None else rundir.next_run_dir(name)
    spec = spec if isinstance(spec, Spec) else load_spec(Path(spec))
    told: list[str] = []
    run, url = RunDir(run_dir), whole_url(spec.storage)  # before the task is loaded, which may change directory
    learned = learned_starts([Path(folder) for folder in learn_from], run.path, told.append)
    spec, task, device, groups = _task_of(spec)
    plan = make_plan(spec, groups)
    if url is not None and not run.file(rundir.SPEC).exists():
        refuse_known_run(open_storage(url, Path()), run.name)
    with storage_faults_told(spec.storage), ExitStack() as held:
        held.enter_context(run.claimed())
        notes = _Notes(run, progress or Progress())
        if run.resumed:
            _same_spec(spec, run)
            told += changes(run.path, environment(device, spec.task.ref))
        else:
            run.write_json(rundir.ENVIRONMENT, environment(device, spec.task.ref))
            run.write(rundir.SPEC, f"# adamtune sweep {rundir.SPEC}\n{spec.to_yaml()}")
        finished = FinishedTrials(run.file(rundir.FINISHED))
        if run.resumed:
            told.append(f"resumed: {len(finished)} trials have ended before, in {finished.seconds_before:.0f} s")
        storage = open_storage(url, run.file(rundir.JOURNAL), notes.on_note)
        held.callback(close_storage, storage)
        engine = held.enter_context(closing(_engine(spec, task, device, storage, url, run, notes)))
        notes.engine = engine
        context = StageContext(
            spec=spec,
            engine=engine,
            storage=storage,
            budget=Budget(budget_steps(spec) - final_steps(spec)),
            seeds=Seeds.of(spec, fresh_seeds(spec)),
            on_trial=notes.on_trial,
            name=run.name,
            groups=groups,
            learned=learned,
            finished=finished,
            stop=stop,
            watch=notes,
        )
        began -= finished.seconds_before
        if spec.budget.time is not None:
            context.budget.deadline = began + spec.budget.time
        notes.on_plan(dataclasses.replace(plan, seconds_before=finished.seconds_before), groups)
        for note in told:
            notes.on_note(note)
        with _last_words(run, notes), storage_faults_told(spec.storage):
            recipe = run_plan(plan, context, notes)
            conclusion = conclude(context, recipe, notes)
            last = context.measure(rundir.FINAL, recipe, context.seeds.fresh)  # known by now
            found = without_asked(counted([observed(trial, groups) for trial in last]), context.verdicts)
            recipe = recipe.model_copy(update={"provenance": _provenance(context, conclusion, run.name)})
            seconds = time.monotonic() - began
            result = SweepResult(
                spec, recipe, conclusion, context.answers, found, context.budget.spent, seconds, run.path
            )
            run.write(rundir.RECIPE, recipe.to_yaml())
            notes.write_so_far()  # the report reads it
            told_as = rundir.jsonable(result.to_dict())
            close_storage(storage)
            shutil.rmtree(run.file(rundir.CHECKPOINTS), ignore_errors=True)  # of trials that failed
            try:
                page = report_html(run.path, told_as)
            except Exception:  # a bug in a drawing, which must not cost the result
                run.write_json(rundir.RESULT, told_as)
                raise
            run.write(rundir.REPORT, page)
            run.log(f"done: {context.budget.spent} steps in {seconds:.1f} s")
            run.write_json(rundir.RESULT, told_as)  # last: a run that has it is finished
    return result


@must_return()
def plan_of(spec: Spec) -> Plan:
    """The plan of a sweep, with the time of a step: a few are trained and thrown away.

    Raises what `sweep` raises before it trains.
    """
    spec, task, device, groups = _task_of(spec)
    plan = make_plan(spec, groups)
    alone = spec.base.model_copy(update={"accumulate": 1})  # a step of thousands of batches would be timed for minutes
    seconds = spec.base.accumulate * time_alone(task, TrialRequest(alone, spec.seed, spec.horizon), device)
    return dataclasses.replace(plan, seconds_per_step=seconds if math.isfinite(seconds) else math.nan)


def _task_of(spec: Spec) -> tuple[Spec, Task, torch.device, list[ParamGroup]]:
    """The task, the device, and the param groups that the base recipe makes of the model.

    With the spec, whose base recipe has the groups that the task names.
    """
    task = load_task(spec.task.ref, spec.task.args)
    _check_objective(spec, task)
    device = pick_device(spec.device)
    with RandomState(spec.seed).active(device):
        model = new_model(task)
        spec = spec.model_copy(update={"base": with_named_groups(spec.base, task, model)})
        return spec, task, device, param_groups(spec.base, model)


def _engine(
    spec: Spec, task: Task, device: torch.device, storage: BaseStorage, url: str | None, run: RunDir, notes: Progress
) -> Engine:
    if spec.engine == "ray":
        return make_ray(spec, device, notes.on_steps, notes.on_note)
    if spec.engine != "workers":
        on_steps, on_note, processes = notes.on_steps, notes.on_note, spec.workers
        known = None
        with suppress(RunDirError, OSError, ValueError):  # of a sitting that was killed there is none
            known = rundir.read_json(run.path, rundir.ENGINE)
        return make_engine(
            spec.engine, task, device, on_steps, on_note, spec.memory, processes, spec.trial_timeout, known
        )
    if url is None:  # jobs need a storage that many processes write to
        work = run.file(rundir.WORK)
        for left in (work, *(work.with_name(f"{work.name}{end}") for end in ("-wal", "-shm", "-journal"))):
            left.unlink(missing_ok=True)  # jobs of an earlier sitting are of no use, and may be damaged
        url = sqlite_url(work)
        storage = open_storage(url, Path(), notes.on_note)
    return make_workers(spec, task, device, storage, url, run, notes.on_steps, notes.on_note)


@contextmanager
def _last_words(run: RunDir, notes: _Notes) -> Iterator[None]:
    """Whatever ends it early, leave the tables complete and the log saying how it ended, and how trials were trained.

    Where the disk is full that is left out: what ended it is what is told.
    """
    try:
        yield
    except BaseException as end:
        with suppress(UnwritableError):
            run.log(f"ended by {type(end).__name__}: {end}")
        with suppress(UnwritableError):
            notes.write_so_far()
        raise


def _same_spec(spec: Spec, run: RunDir) -> None:
    """Raise `RunDirError` unless the run was begun with this spec; what only says how to train may differ."""
    try:
        begun = yaml_text.read(run.file(rundir.SPEC), SpecError)
    except SpecError as problem:
        raise RunDirError(f"{problem}; name another run directory with --run-dir, or delete this one") from problem
    wanted = yaml_text.parse(spec.to_yaml(), rundir.SPEC, SpecError)
    free = {"engine", "memory", "device", "workers", "trial_timeout", "ray"}
    other = sorted(key for key in begun | wanted if key not in free and begun.get(key) != wanted.get(key))
    if other:
        what = f"an unfinished run of another spec (it differs in {', '.join(other)}); name another with --run-dir"
        raise RunDirError(f"the run directory {run.typed} holds {what}, or delete it")


def _check_objective(spec: Spec, task: Task) -> None:
    names = {"loss", *task.metrics}
    if spec.objective.name not in names:
        what = f"the task '{task.name}' has no metric '{spec.objective.name}'; {nearest(spec.objective.name, names)}"
        what += "" if task.metrics else "; a Task takes others as metrics={name: function}"
        raise SpecError("spec", [Problem("$.objective.name", what)])


def _provenance(context: StageContext, conclusion: Conclusion, run: str) -> dict[str, Any]:
    evidence = conclusion.evidence
    provenance: dict[str, Any] = rundir.jsonable(
        {
            "run": run,
            "task": context.spec.task.ref,
            "horizon": context.horizon,
            "objective": context.spec.objective.name,
            "default": _round(conclusion.default.summary.mean),
            "recommended": _round(conclusion.recommended.summary.mean),
            "fresh_seeds": list(evidence.seeds),
            "steps_used": context.budget.spent,
            "knobs": {
                answer.stage: {"verdict": str(answer.verdict), "reason": answer.reason}
                for answer in context.answers.values()
                if answer.verdict is not Verdict.MEASURED
            },
        }
    )
    return provenance


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _measured_dict(measured: Measured) -> dict[str, Any]:
    told: dict[str, Any] = _interval_dict(measured.summary) | {
        "seeds": measured.summary.count,
        "values": list(measured.values),
        "diverged": measured.diverged,
    }
    if measured.steps_to:
        told |= {"steps_to": list(measured.steps_to), "median_steps_to": statistics.median(measured.steps_to)}
    return told


def _interval_dict(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "ci95": [interval.low, interval.high]}


def answer_dict(answer: StageAnswer) -> dict[str, Any]:
    """A stage's answer as plain data."""
    evidence = answer.evidence
    return {
        "stage": answer.stage,
        "question": answer.question,
        "verdict": str(answer.verdict),
        "reason": answer.reason,
        "before": answer.before,
        "after": answer.after,
        "evidence": evidence
        and {
            "seeds": list(evidence.seeds),
            "incumbent": list(evidence.incumbent),
            "challenger": list(evidence.challenger),
            "difference": _interval_dict(evidence.difference),
        },
        "details": dict(answer.details),
    }
