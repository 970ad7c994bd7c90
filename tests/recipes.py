"""Random recipes for property tests: every field of a Recipe within what it allows."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import get_args

from hypothesis import strategies as st

from adamtune.recipe import GroupRule, Kind, Match, Recipe, Schedule, Switch, WarmupSteps

KINDS: tuple[Kind, ...] = get_args(Kind)


def floats(low: float, high: float, *, below: bool = False) -> st.SearchStrategy[float]:
    """Finite floats from `low` to `high`, without `high` itself if `below`."""
    return st.floats(low, high, exclude_max=below, allow_nan=False)


def betas() -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(floats(0.0, 1.0, below=True), floats(0.0, 1.0, below=True))


def matches(params: Sequence[str]) -> st.SearchStrategy[Match]:
    """By kind, by pattern or both; patterns are drawn from `params`."""
    some_kinds = st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True).map(tuple)
    by_kind = st.builds(Match, kind=some_kinds)
    if not params:
        return by_kind
    some_params = st.lists(st.sampled_from(params), min_size=1, max_size=2, unique=True).map(tuple)
    return by_kind | st.builds(Match, params=some_params) | st.builds(Match, kind=some_kinds, params=some_params)


@st.composite
def group_rules(draw: st.DrawFn, params: Sequence[str], max_mult: float, min_eps: float) -> tuple[GroupRule, ...]:
    names = st.text(string.ascii_letters + "_", min_size=1, max_size=6).filter(lambda name: name != "default")
    rules: list[GroupRule] = []
    taken: set[Kind] = set()
    for name in draw(st.lists(names, max_size=3, unique=True)):
        match = draw(matches(params))
        if match.params is None:
            if taken.issuperset(match.kind or ()):  # a rule that is left nothing is refused
                continue
            taken.update(match.kind or ())
        rules.append(
            GroupRule(
                name=name,
                match=match,
                lr_mult=draw(st.just(1.0) | floats(0.0, max_mult)),
                weight_decay=draw(st.none() | floats(0.0, 1.0)),
                betas=draw(st.none() | betas()),
                eps=draw(st.none() | floats(min_eps, 1.0)),
            )
        )
    return tuple(rules)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    fractions = st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)
    return Schedule.model_validate(
        {
            "kind": draw(st.sampled_from(["constant", "linear", "cosine", "step"])),
            "warmup": draw(floats(0.0, 1.0, below=True) | st.builds(WarmupSteps, steps=st.integers(0, 10_000))),
            "floor": draw(floats(0.0, 1.0)),
            "milestones": tuple(sorted(draw(st.lists(fractions, max_size=4, unique=True)))),
            "gamma": draw(st.floats(1e-6, 1.0)),
        }
    )


def switches(max_lr: float) -> st.SearchStrategy[Switch]:
    return st.builds(
        Switch,
        at=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
        lr=st.floats(0.0, max_lr, exclude_min=True),
        momentum=floats(0.0, 1.0, below=True),
    )


def _provenance() -> st.SearchStrategy[dict[str, object]]:
    words = st.text(string.ascii_letters + " _-.,:#'\"é", max_size=8)
    plain = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | floats(-1e9, 1e9) | words
    nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))
    return st.dictionaries(words, nested, max_size=3)


@st.composite
def recipes(
    draw: st.DrawFn,
    *,
    params: Sequence[str] = ("head.*", "*.weight", "layers.[01].*", "0.bias"),
    max_lr: float = 1e6,
    max_mult: float = 1e3,
    min_eps: float = 0.0,
) -> Recipe:
    """A recipe whose `params` patterns are among those given.

    To train with one, give the patterns of a model at hand and keep `max_lr` small and `min_eps` above zero.
    """
    optimizer = draw(st.sampled_from(["adamw", "adam", "sgd"]))
    return Recipe.model_validate(
        {
            "optimizer": optimizer,
            "lr": draw(st.floats(0.0, max_lr, exclude_min=True)),
            "betas": draw(betas()),
            "eps": draw(floats(min_eps, 1.0)),
            "weight_decay": draw(floats(0.0, 1.0)),
            "momentum": draw(floats(0.0, 1.0, below=True)),
            "groups": draw(group_rules(params, max_mult, min_eps)),
            "schedule": draw(schedules()),
            "clip_norm": draw(st.none() | st.floats(0.0, 1e3, exclude_min=True)),
            "precision": draw(st.sampled_from(["fp32", "bf16", "fp16"])),
            "accumulate": draw(st.integers(1, 64)),
            "switch": None if optimizer == "sgd" else draw(st.none() | switches(max_lr)),
            "provenance": draw(_provenance()),
        }
    )
