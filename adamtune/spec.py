"""The spec: what to tune, for which run, at what cost. YAML in, frozen and fully resolved out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from adamtune import yaml_text
from adamtune.errors import Problem, RecipeError, SpecError, TaskReferenceError
from adamtune.knobs import KNOBS, Knob, stage_of
from adamtune.passwords import left_out, without_passwords
from adamtune.recipe import Frozen, Number, Recipe, Whole, load_recipe
from adamtune.task import TaskReference

StageName = Literal[
    "lr_range",
    "lr",
    "findings",
    "portfolio",
    "beta1",
    "eps",
    "beta2",
    "weight_decay",
    "warmup",
    "schedule",
    "groups",
    "clip",
    "precision",
    "switch",
    "optimizer",
]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""In the order they are asked: lr first, since it dominates."""

FRESH_SEEDS = 5
"""The fewest seeds of the final figures. They are no stage's seeds."""


_MOST = 10**15
"""Beyond it a number is a mistake, and sums of such are no longer exact in floats."""


class TaskSpec(Frozen):
    """Which task, and what its function is called with."""

    ref: str
    args: dict[str, JsonValue] = Field(default_factory=dict)


def _seconds(value: object) -> object:
    """`90`, `90s`, `30m` or `2h` as seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", value)
        if match is None:
            raise ValueError(f"must be a time such as 90s, 30m or 2h, not '{value}'")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    return value


class Budget(Frozen):
    """What the search may spend; the first bound reached stops it."""

    steps: Annotated[Whole, Field(gt=0, le=_MOST)] | None = None
    """Optimizer steps of all trials together, the final comparison included."""
    trials: Annotated[Whole, Field(gt=0, le=_MOST)] | None = None
    """The same in trials of one horizon."""
    time: Annotated[Annotated[Number, Field(gt=0)] | None, BeforeValidator(_seconds)] = None
    """Seconds, or a text such as `30m`, for the search; the final comparison comes on top."""

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if self.steps is None and self.trials is None and self.time is None:
            raise ValueError("needs steps, trials or time")
        return self


class Bounds(Frozen):
    """A narrowing of one knob's range."""

    low: Number | None = None
    high: Number | None = None


class Objective(Frozen):
    """What a recipe is judged by on the validation data: `loss` or a metric of the task."""

    name: str = "loss"
    direction: Literal["minimize", "maximize"] = "minimize"
    """A spec that names a metric must say it: an accuracy minimized by default would be tuned for the worst."""
    time_to: Number | None = None
    """A value of the objective; where given, the result also says after how many steps it was reached."""

    @model_validator(mode="after")
    def _with_its_direction(self) -> Self:
        if self.name != "loss" and "direction" not in self.model_fields_set:
            raise ValueError(f"names the metric {self.name} without a direction; add direction: minimize, or maximize")
        return self


def _auto_or_list(value: object) -> object:
    """None stands for `auto`."""
    if value in (None, "auto"):
        return None
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be auto or a list, not {value!r}; the stages are: {', '.join(STAGES)}")
    if not value:
        raise ValueError(f"an empty list asks nothing; write auto, or some of: {', '.join(STAGES)}")
    return value


def _distinct(value: tuple[StageName, ...] | None) -> tuple[StageName, ...] | None:
    if value is not None and len(set(value)) < len(value):
        raise ValueError(f"names a stage twice: {', '.join(value)}")
    return value


def _auto_or_number(value: object) -> object:
    return None if value == "auto" else value


Stages = Annotated[
    tuple[StageName, ...] | None,
    BeforeValidator(_auto_or_list),
    AfterValidator(_distinct),
    PlainSerializer(lambda value: "auto" if value is None else list(value)),
]


def _searchable(knob: Knob) -> Callable[[Bounds | None], Bounds | None]:
    """A check that `knob`, narrowed, still lies inside what a recipe can hold."""

    def check(bounds: Bounds | None) -> Bounds | None:
        if bounds is not None:
            narrowed = knob.narrowed(bounds.low, bounds.high)
            problems = _outside(narrowed)
            if narrowed.low > narrowed.high:
                problems.insert(0, f"low ({narrowed.low:g}) >= high ({narrowed.high:g})")
            elif narrowed.low == narrowed.high:
                what = f"low and high are both {narrowed.low:g}, which leaves nothing to search; to fix {knob.name}, "
                problems.insert(0, f"{what}write it into base and list the stages without it")
            if problems:
                raise ValueError("; ".join(dict.fromkeys(problems)))
        return bounds

    return check


def _outside(knob: Knob) -> list[str]:
    problems = []
    for end, value in (("low", knob.low), ("high", knob.high)):
        try:
            Recipe.default().with_knob(knob.name, value)
            knob.to_unit(value)
        except RecipeError as error:
            problems.append(f"{end} {error.problems[0].what}")
        except ValueError:
            problems.append(f"{end} must be above 0 to be searched on a log scale, not {value:g}")
    return problems


Space = create_model(
    "Space",
    __base__=Frozen,
    __doc__="The narrowing of each knob that has one.",
    **{name: (Annotated[Bounds | None, AfterValidator(_searchable(knob))], None) for name, knob in KNOBS.items()},  # type: ignore[call-overload]
)


class RayCluster(Frozen):
    """The cluster of `engine: ray`."""

    address: str | None = None
    """As `ray.init` takes it: `auto` for the cluster that this machine is part of; None for one of its own, here."""


class Spec(Frozen):
    """A sweep, fully described. `load_spec` reads one from a file."""

    task: Annotated[TaskSpec, Field(examples=[{"ref": "my_task.py:task", "args": {"hidden": 64}}])]
    horizon: Annotated[Whole, Field(ge=1, le=1_000_000_000, examples=[300])]
    """Optimizer steps of the run the recipe is for."""
    budget: Annotated[Budget, Field(examples=[{"trials": 100}])] = Budget(trials=100)
    seeds: Annotated[Whole, Field(ge=1, le=10_000)] = 3
    """Seeds each candidate is tried on before the best is confirmed on others."""
    base: Recipe = Field(default_factory=Recipe.default)
    """The recipe to start from and to compare with; in the YAML a path, or the name of a shipped one."""
    stages: Stages = None
    """None (`auto` in the YAML): as many as the budget allows."""
    space: Annotated[Space, Field(examples=[{"lr": {"low": 1e-5, "high": 0.1}}])] = Space()
    objective: Annotated[Objective, Field(examples=[{"name": "accuracy", "direction": "maximize"}])] = Objective()
    device: str = "auto"
    engine: Literal["auto", "sequential", "population", "workers", "ray"] = "auto"
    """`auto` takes whatever trains the task fastest here; `population` stacks trials also where that does not pay;
    `workers` trains them one by one in processes of their own, on any machine that reaches the storage; `ray` on a Ray
    cluster."""
    ray: RayCluster = RayCluster()
    workers: Annotated[Annotated[Whole, Field(ge=0)] | None, BeforeValidator(_auto_or_number)] = None
    """Processes to train in on this machine, or on the Ray cluster; None (`auto`): one a GPU or, without any, one a
    core. 0 with `engine: workers`: none, others are started by hand."""
    trial_timeout: Annotated[Number, Field(gt=0)] | None = None
    """Seconds a trial may take from one rung to the next; then it has failed."""
    memory: Annotated[Number, Field(gt=0, le=1)] = 0.6
    """Share of the free memory that trials trained side by side may take."""
    storage: str | None = None
    """An Optuna storage URL; by default a journal file in the run directory. `to_yaml` leaves its password out."""
    seed: Annotated[Whole, Field(ge=0, le=_MOST)] = 0
    """Shifts every seed of the sweep."""

    @field_validator("space")
    @classmethod
    def _asked(cls, space: Any, info: ValidationInfo) -> Any:
        """Bounds of a knob that no stage listed would search are a mistake. lr is moved by nearly every stage."""
        stages = info.data.get("stages")
        given = [name for name in KNOBS if name != "lr" and getattr(space, name) is not None]
        idle = [name for name in given if stages is not None and stage_of(name) not in stages]
        if idle:
            names, asking = ", ".join(idle), ", ".join(stage_of(name) for name in idle)
            raise ValueError(
                f"has bounds for {names}, which none of the stages listed searches; list {asking} too, or leave the "
                "bounds out"
            )
        return space

    @field_validator("storage")
    @classmethod
    def _whole_password(cls, value: str | None) -> str | None:
        if value is not None and left_out(value):
            raise ValueError(
                "its password was left out (***) when it was written down; give the URL with --storage, or write it "
                "without a password and let the database's own settings have it (PostgreSQL: ~/.pgpass or PGPASSWORD)"
            )
        return value

    @model_validator(mode="after")
    def _somebody_trains(self) -> Self:
        if self.workers == 0 and (self.engine != "workers" or self.storage is None):
            raise ValueError(
                "workers: 0 leaves training to workers elsewhere, which needs engine: workers and a storage that they "
                "reach; give both, or leave workers out"
            )
        return self

    def knob(self, name: str) -> Knob:
        """A knob as this spec lets it be searched."""
        bounds = getattr(self.space, name) or Bounds()
        return KNOBS[name].narrowed(bounds.low, bounds.high)

    def to_yaml(self) -> str:
        """The spec with every default filled in, as `spec.yaml` keeps it; the storage's password is `***`."""
        data = self.model_dump(mode="json") | {"base": self.base.to_dict()}
        data["task"]["args"] = self.task.args  # pydantic's JSON has no infinity, YAML has
        if self.storage is not None:
            data["storage"] = without_passwords(self.storage)
        data["space"] = {name: bounds for name, bounds in data["space"].items() if bounds is not None}
        return yaml_text.dump(data)


def load_spec(path: Path, overrides: Mapping[str, Any] | None = None) -> Spec:
    """Read a spec from a YAML file; keys in `overrides` replace those of the file.

    Task and recipe files named in it are looked for beside the spec, then in the working directory. Raises `SpecError`
    with every problem at once.
    """
    if re.search(r"\.py(:\w+)?$", path.name):
        what = "this is Python; name a spec, a YAML file whose task: {ref: ...} says it (adamtune init writes one)"
        raise SpecError(str(path), [Problem("", what)])
    data = {**yaml_text.read(path, SpecError), **(overrides or {})}
    return resolve_spec(data, str(path), path.resolve().parent)


def resolve_spec(data: Mapping[str, Any], source: str, folder: Path) -> Spec:
    """A spec from plain data; relative paths in it are looked for in `folder`, then in the working directory."""
    resolved = dict(data)
    problems: list[Problem] = []

    def attempt(where: str, resolve: Callable[[], Any]) -> Any:
        try:
            return resolve()
        except TaskReferenceError as error:
            problems.append(Problem(where, str(error)))
        except RecipeError as error:
            problems.extend(Problem(f"{where} ({error.source})", str(inner)) for inner in error.problems)
        return None

    task = data.get("task")
    if isinstance(task, dict) and isinstance(task.get("ref"), str):
        reference = attempt("$.task.ref", lambda: TaskReference.parse(task["ref"], [folder]))
        if reference is not None:
            resolved["task"] = task | {"ref": str(reference)}
    base = data.get("base")
    if base is None:
        resolved.pop("base", None)
    elif isinstance(base, str):
        recipe = attempt("$.base", lambda: load_recipe(_find(base, folder)))
        resolved["base"] = recipe if recipe is not None else Recipe.default()
    try:
        spec = yaml_text.validate(Spec, resolved, source, SpecError)
    except SpecError as error:
        raise SpecError(source, [*problems, *error.problems]) from None
    if problems:
        raise SpecError(source, problems)
    return spec


def _find(path: str, folder: Path) -> Path:
    beside = folder / path
    try:
        return beside if beside.is_file() else Path(path)
    except (OSError, ValueError) as problem:  # too long a name, or a NUL in it
        raise RecipeError(path[:60], [Problem("", f"no name a file can have: {problem}"[:120])]) from None
