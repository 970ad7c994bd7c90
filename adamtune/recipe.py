"""The Recipe: everything about how to optimise a model, per parameter group, with where it came from.

A trial trains a Recipe, a stage turns one into a better one, and the answer of a sweep is one. Recipes are frozen;
`with_knob` returns a changed copy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from adamtune import yaml_text
from adamtune.errors import Problem, RecipeError
from adamtune.shipped import recipe_path

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

VERSION = 1

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite float; whole numbers are taken, texts and truth values are not."""
Whole = Annotated[int, Field(strict=True)]
Beta = Annotated[Number, Field(ge=0.0, lt=1.0)]
Betas = tuple[Beta, Beta]
Kind = Literal["bias", "norm", "embedding", "head", "rest"]
Precision = Literal["fp32", "bf16", "fp16"]


class Frozen(BaseModel):
    """Base of every document we read: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Match(Frozen):
    """Which parameters a rule takes: those that fit every key given."""

    kind: Annotated[tuple[Kind, ...], BeforeValidator(_as_list)] | None = None
    """Kinds as `adamtune.groups` tells them from the owning module."""
    params: Annotated[tuple[str, ...], BeforeValidator(_as_list)] | None = None
    """Shell patterns on the parameter's full name, e.g. `head.*`."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.kind and not self.params:
            raise ValueError("must name kinds (kind: [bias, norm]) or parameters (params: ['head.*'])")
        return self


class GroupRule(Frozen):
    """Settings for the parameters that match; what is not given is the recipe's own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_\-]*$")]
    match: Match
    lr_mult: Annotated[Number, Field(ge=0.0)] = 1.0
    """Multiplies the recipe's lr at every step."""
    weight_decay: Annotated[Number, Field(ge=0.0)] | None = None
    betas: Betas | None = None
    eps: Annotated[Number, Field(ge=0.0)] | None = None


class WarmupSteps(Frozen):
    """A warmup of a fixed number of steps, whatever the horizon."""

    steps: Annotated[Whole, Field(ge=0, le=1_000_000_000)]


def _warmup_form(value: object) -> str:
    return "in_steps" if isinstance(value, Mapping | WarmupSteps) else "fraction"


Warmup = Annotated[
    Annotated[Annotated[Number, Field(ge=0.0, lt=1.0)], Tag("fraction")] | Annotated[WarmupSteps, Tag("in_steps")],
    Discriminator(_warmup_form),
]


class Schedule(Frozen):
    """How lr moves over the horizon, as a multiplier of the recipe's lr; `adamtune.schedule` computes it."""

    kind: Literal["constant", "linear", "cosine", "step"] = "cosine"
    warmup: Warmup = 0.05
    """Linear warmup, as a fraction of the horizon or `{steps: n}`."""
    floor: Annotated[Number, Field(ge=0.0, le=1.0)] = 0.0
    """Where the decay ends, as a fraction of the recipe's lr."""
    milestones: tuple[Annotated[Number, Field(gt=0.0, lt=1.0)], ...] = (0.5, 0.75)
    """`step` only: the fractions of the horizon at which lr is multiplied by `gamma`."""
    gamma: Annotated[Number, Field(gt=0.0, le=1.0)] = 0.1

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"must rise, each fraction once, not {list(value)}")
        return value


class Switch(Frozen):
    """The hand-over from Adam to SGD with momentum within a run, for what generalises better at its end.

    Groups keep their `lr_mult` and `weight_decay`, and the schedule runs on. Momentum starts empty. SGD adds weight
    decay to the gradient, as `torch.optim.SGD` does, so that momentum averages it too.
    """

    to: Literal["sgd"] = "sgd"
    at: Annotated[Number, Field(gt=0.0, lt=1.0)]
    """The fraction of the horizon that Adam takes; `adamtune.schedule.switch_step` rounds it to steps."""
    lr: Annotated[Number, Field(gt=0.0)]
    """SGD's own base lr, in place of the recipe's: lr is then this times `lr_mult` times the schedule's multiplier."""
    momentum: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.9


class Recipe(Frozen):
    """How to optimise: optimizer, schedule and per-group settings. Names and conventions are torch's.

    Weight decay follows torch's optimizer of that name: AdamW's shrinks a weight at each step by lr * weight_decay, lr
    being the scheduled and multiplied one; that of Adam and SGD is added to the gradient.
    """

    version: Whole = VERSION
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[Number, Field(gt=0.0)] = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Annotated[Number, Field(ge=0.0)] = 1e-8
    weight_decay: Annotated[Number, Field(ge=0.0)] = 0.01
    momentum: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.9
    """`sgd` only."""
    groups: tuple[GroupRule, ...] = ()
    """The first rule that matches a parameter takes it."""
    schedule: Schedule = Schedule()
    clip_norm: Annotated[Number, Field(gt=0.0)] | None = None
    """Clip the gradients to this total L2 norm before each step."""
    precision: Precision = "fp32"
    accumulate: Annotated[Whole, Field(ge=1, le=1_000_000)] = 1
    """Batches whose mean gradient makes one step."""
    switch: Switch | None = None
    """`adamw` and `adam` only."""
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    """Where the recipe comes from: plain data, kept as it is."""

    @field_validator("version")
    @classmethod
    def _known_version(cls, value: int) -> int:
        if value != VERSION:
            raise ValueError(f"this adamtune reads recipes of version {VERSION}, not {value}; a newer one may read it")
        return value

    @field_validator("switch")
    @classmethod
    def _from_adam(cls, value: Switch | None, info: ValidationInfo) -> Switch | None:
        if value is not None and info.data.get("optimizer") == "sgd":
            raise ValueError("hands over from Adam to SGD: optimizer must be adamw or adam, not sgd")
        return value

    @field_validator("groups")
    @classmethod
    def _distinct_names(cls, value: tuple[GroupRule, ...]) -> tuple[GroupRule, ...]:
        names = [rule.name for rule in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two groups are called '{name}'; give each its own name")
            if name == "default":
                raise ValueError("'default' is the name of the parameters no rule matches; call the group otherwise")
        return value

    @field_validator("groups")
    @classmethod
    def _none_left_nothing(cls, value: tuple[GroupRule, ...]) -> tuple[GroupRule, ...]:
        """Of rules by kind alone; of those by name `adamtune.groups` says so, with the model at hand."""
        takers: dict[str, str] = {}
        for rule in value:
            if rule.match.kind and not rule.match.params:
                if all(kind in takers for kind in rule.match.kind):
                    kind = rule.match.kind[0]
                    raise ValueError(
                        f"'{rule.name}' is left nothing: '{takers[kind]}', which comes before it, takes every {kind} "
                        f"too; put '{rule.name}' first, or drop one of them"
                    )
                takers |= {kind: rule.name for kind in rule.match.kind if kind not in takers}
        return value

    @classmethod
    def default(cls) -> Recipe:
        """AdamW with torch's values, cosine decay after 5% warmup, no decay on biases and norms."""
        return cls(groups=(GroupRule(name="no_decay", match=Match(kind=("bias", "norm")), weight_decay=0.0),))

    @property
    def after_switch(self) -> Recipe | None:
        """What steps once the switch has come, as a recipe of its own: by SGD. None without a switch."""
        if self.switch is None:
            return None
        own = {"optimizer": self.switch.to, "lr": self.switch.lr, "momentum": self.switch.momentum, "switch": None}
        return self.model_copy(update=own)

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe") -> Recipe:
        """Parse a recipe; raises `RecipeError` with every problem."""
        return _validated(yaml_text.parse(text, source, RecipeError), source)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order people read it, without keys this optimizer or schedule ignores, left at default."""
        data: dict[str, Any] = self.model_dump(mode="json")
        data["provenance"] = self.provenance  # pydantic's JSON has no infinity, YAML has
        unused = ("betas", "eps") if self.optimizer == "sgd" else ("momentum",)
        _drop_defaults(data, Recipe, unused)
        if self.schedule.kind != "step":
            _drop_defaults(data["schedule"], Schedule, ("milestones", "gamma"))
        for rule in data["groups"]:
            rule["match"] = {key: value for key, value in rule["match"].items() if value is not None}
            for key in ("weight_decay", "betas", "eps"):
                if rule[key] is None:
                    del rule[key]
            if rule["lr_mult"] == 1.0:
                del rule["lr_mult"]
        return data

    def to_yaml(self) -> str:
        """The recipe as YAML; `from_yaml` gives back an equal recipe."""
        return yaml_text.dump(self.to_dict())

    def knob(self, name: str) -> Any:
        """The value of one knob, e.g. `lr`, `beta2`, `warmup`, `groups.no_decay.weight_decay`."""
        return self.knobs()[_known(name, self)]

    def knobs(self) -> dict[str, Any]:
        """Every knob and its value; warmup in steps reads `{'steps': n}`, a switch is one knob with four keys."""
        warmup = self.schedule.warmup
        values: dict[str, Any] = {
            "optimizer": self.optimizer,
            "lr": self.lr,
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "momentum": self.momentum,
            "schedule": self.schedule.kind,
            "warmup": warmup.model_dump() if isinstance(warmup, WarmupSteps) else warmup,
            "floor": self.schedule.floor,
            "milestones": self.schedule.milestones,
            "gamma": self.schedule.gamma,
            "clip_norm": self.clip_norm,
            "precision": self.precision,
            "accumulate": self.accumulate,
            "switch": self.switch.model_dump() if self.switch else None,
        }
        for rule in self.groups:
            for key in ("lr_mult", "weight_decay", "betas", "eps"):
                values[f"groups.{rule.name}.{key}"] = getattr(rule, key)
        return values

    def groups_told(self) -> str:
        """The rules in one line for people, e.g. `no_decay: weight_decay 0; head: lr x3`."""
        told = []
        for rule in self.groups:
            settings = [f"lr x{rule.lr_mult:g}"] if rule.lr_mult != 1.0 else []
            own = {"weight_decay": rule.weight_decay, "betas": rule.betas, "eps": rule.eps}
            settings += [
                f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in own.items()
                if value is not None
            ]
            told.append(f"{rule.name}: {', '.join(settings) or 'as the rest'}")
        return "; ".join(told) or "none"

    def with_knob(self, name: str, value: Any) -> Recipe:
        """A copy with one knob changed, validated; `RecipeError` for an unknown knob or a value out of range."""
        _known(name, self)
        data: dict[str, Any] = self.model_dump()
        match name.split("."):
            case ["beta1"]:
                data["betas"] = (value, self.betas[1])
            case ["beta2"]:
                data["betas"] = (self.betas[0], value)
            case ["schedule"]:
                data["schedule"]["kind"] = value
            case ["warmup" | "floor" | "milestones" | "gamma"]:
                data["schedule"][name] = value
            case ["groups", group, key]:
                next(rule for rule in data["groups"] if rule["name"] == group)[key] = value
            case _:
                data[name] = value
        return yaml_text.validate(Recipe, data, f"recipe with {name} = {value}", RecipeError)

    def diff(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """The knobs that differ: name -> (here, there); None where a recipe has no such group."""
        mine, theirs = self.knobs(), other.knobs()
        return {
            name: (mine.get(name), theirs.get(name))
            for name in mine | theirs
            if mine.get(name) != theirs.get(name)
        }  # fmt: skip

    def training_key(self) -> str:
        """A text equal for two recipes that train alike, whatever their provenance; one object while it is in use."""
        return sys.intern(json.dumps(self.model_dump(mode="json", exclude={"provenance", "version"}), sort_keys=True))

    def build(self, model: nn.Module, *, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """The torch optimizer and scheduler for `model` over a run of `total_steps` optimizer steps.

        Call `scheduler.step()` after every `optimizer.step()`. A switch needs nothing of the training loop: the
        optimizer goes over by itself (`adamtune.handover`). Clipping, precision and accumulation belong to the loop:
        read `clip_norm`, `precision` and `accumulate`. Raises `RecipeError` when a group rule with `params` patterns
        matches nothing in `model`.
        """
        from adamtune.optim import build

        return build(self, model, total_steps)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file, or the shipped one of that name.

    Raises `RecipeError` with every problem in it.
    """
    path = recipe_path(path)
    return _validated(yaml_text.read(path, RecipeError), str(path))


def _validated(data: dict[str, Any], source: str) -> Recipe:
    version = data.get("version")
    if isinstance(version, int) and version > VERSION:  # its other keys may well be unknown here: no mistakes to tell
        what = f"this adamtune reads recipes of version {VERSION}, not {version}; a newer one may read it"
        raise RecipeError(source, [Problem("$.version", what)])
    return yaml_text.validate(Recipe, data, source, RecipeError)


def _drop_defaults(data: dict[str, Any], model: type[Frozen], keys: tuple[str, ...]) -> None:
    for key in keys:
        default = model.model_fields[key].default
        if data[key] == (list(default) if isinstance(default, tuple) else default):
            del data[key]


def _known(name: str, recipe: Recipe) -> str:
    if name not in recipe.knobs():
        hint = yaml_text.nearest(name, recipe.knobs())
        raise RecipeError("recipe", [Problem("", f"it has no knob '{name}'; {hint}")])
    return name
