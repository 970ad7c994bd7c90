"""Specs, recipes and results changed at random: their text byte by byte, their data node by node."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from adamtune import yaml_text
from adamtune.knobs import KNOBS
from adamtune.recipe import load_recipe
from adamtune.shipped import shipped_names, shipped_path

TASK = f"{Path(__file__).with_name('fuzz_task.py')}:task"

SPECS: list[dict[str, Any]] = [
    {"task": {"ref": TASK}, "horizon": 100, "budget": {"trials": 100}},
    {
        "task": {"ref": TASK, "args": {"hidden": 4, "names": ["a", "b"]}},
        "horizon": 300,
        "budget": {"steps": 40000, "trials": 500, "time": "30m"},
        "seeds": 3,
        "base": {
            "lr": 3e-3,
            "betas": [0.9, 0.99],
            "groups": [{"name": "no_decay", "match": {"kind": ["bias", "norm"]}, "weight_decay": 0.0}],
            "schedule": {"kind": "cosine", "warmup": {"steps": 10}, "floor": 0.1},
            "clip_norm": 1.0,
            "switch": {"to": "sgd", "at": 0.8, "lr": 0.05},
        },
        "stages": ["lr_range", "lr", "beta2", "warmup", "clip"],
        "space": {"lr": {"low": 1e-5, "high": 0.3}, "warmup": {"low": 0.0, "high": 0.2}},
        "objective": {"name": "accuracy", "direction": "maximize", "time_to": 0.9},
        "device": "cpu",
        "engine": "auto",
        "memory": 0.5,
        "storage": "sqlite:///x.db",
        "seed": 5,
    },
    {"task": {"ref": TASK}, "horizon": 50, "budget": {"steps": 20000}, "base": "fine-tune", "stages": "auto"},
]

RECIPES: list[dict[str, Any]] = [
    *(load_recipe(shipped_path(name)).to_dict() for name in shipped_names()),
    {
        "version": 1,
        "groups": [
            {"name": "head", "match": {"params": ["3.*"]}, "lr_mult": 3.0, "betas": [0.8, 0.95], "eps": 1e-6},
            {"name": "embedding", "match": {"kind": "embedding"}, "lr_mult": 0.5},
        ],
        "schedule": {"kind": "step", "milestones": [0.3, 0.6], "gamma": 0.2},
        "precision": "bf16",
        "accumulate": 2,
        "provenance": {"run": "r", "default": 0.5, "recommended": 0.25, "horizon": 300, "task": "a.py:b"},
    },
]

_WORDS = [
    *KNOBS,
    "ref",
    "args",
    "low",
    "high",
    "kind",
    "params",
    "match",
    "name",
    "steps",
    "groups",
    "schedule",
    "time",
]
_WORDS += ["lr_range", "auto", "population", "minimize", "cosine", "sgd", "adamw", "bf16", "bias", "head.*", "default"]

_ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 100, 10**9, 10**18, 10**400, -(10**400), 0.5, -0.0, 1e-320, 1e308, 1e-8),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "1e-3", "30m", "-5s", "1e400", "\0", "\x1b[31m", "é"),
    *("../../etc/passwd", "/", ".", "~", "a.b:c", "a.py:b", ":", "os:getpid", "cuda", "cuda:9", "meta", "mps", "cpu:0"),
    *("[red]", "{0}", "%s", "${HOME}", "*", "[", "**", "(a+)+$", "2020-01-01", b"\xff", [], {}, [[]], {"": None}),
    "x" * 500,
]  # fmt: skip

_SNIPPETS = [
    "&a ",
    "*a",
    "!!python/object/apply:os.system ['true']",
    "!!binary aGk=",
    "<<: ",
    "? ",
    "- ",
    ": ",
    "{",
    "}",
]
_SNIPPETS += [
    "[",
    "]",
    ",",
    "#",
    "|",
    ">",
    "'",
    '"',
    "\n",
    "\t",
    "---\n",
    "...\n",
    "%YAML 9.9\n",
    "\0",
    "\ufeff",
    "é",
    "!!",
]
_SNIPPETS += [
    "!!float ",
    "!!int ''",
    "!!set {a}",
    "1e-8",
    "0x1F",
    "0o7",
    "1:30",
    ".inf",
    ".nan",
    "~",
    "9" * 50,
    "\u2028",
]


_CHANGES = [1, 1, 1, 1, 2, 3, 5]


def changed(data: dict[str, Any], chance: random.Random) -> str:
    """`data` as YAML, with a change or a few, in the data or in the text."""
    if chance.random() < 0.7:
        mutated = copy.deepcopy(data)
        for _ in range(chance.choice(_CHANGES)):
            _change_data(mutated, chance)
        return _as_text(mutated)
    text = yaml_text.dump(data)
    for _ in range(chance.choice(_CHANGES)):
        text = _change_text(text, chance)
    return text


def _as_text(data: Any) -> str:
    try:
        return yaml_text.dump(data)
    except yaml.YAMLError:
        return yaml.dump(data)  # bytes in odd places
    except (ValueError, TypeError):
        return repr(data)


def change_json(data: dict[str, Any], chance: random.Random) -> str:
    """`data` as JSON, changed likewise."""
    if chance.random() < 0.7:
        mutated = copy.deepcopy(data)
        for _ in range(chance.choice(_CHANGES)):
            _change_data(mutated, chance)
        return json.dumps(mutated, default=str)
    text = json.dumps(data)
    for _ in range(chance.choice(_CHANGES)):
        text = _change_text(text, chance)
    return text


def _places(data: Any) -> list[tuple[Any, Any]]:
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [place for key in keys for place in [(data, key), *_places(data[key])]]


def _change_data(data: dict[str, Any], chance: random.Random) -> None:
    places = _places(data)
    if not places:
        return
    container, key = chance.choice(places)
    ways: list[Callable[[], object]] = [
        lambda: _put(container, key, copy.deepcopy(chance.choice(_ODD))),
        lambda: _put(container, key, chance.choice(_WORDS)),
        *[lambda: _put(container, key, _nudged(container[key], chance))] * 4,  # most of which stay valid
        lambda: _put(container, key, copy.deepcopy(chance.choice(places)[0])),
        lambda: container.pop(key),
        lambda: _put(container, chance.choice(_WORDS), container[key]) if isinstance(container, dict) else None,
        lambda: _put(container, key, [container[key]] * chance.randint(0, 4)),
        lambda: _put(container, key, {chance.choice(_WORDS): container[key]}),
    ]
    chance.choice(ways)()


def _put(container: Any, key: Any, value: Any) -> None:
    container[key] = value


def _nudged(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return str(value)[:1000]
    return value * chance.choice([-1, 0.5, 10, 1e3, 1e-3])


def _change_text(text: str, chance: random.Random) -> str:
    place, other = sorted(chance.randint(0, len(text)) for _ in range(2))
    lines = text.splitlines(keepends=True) or [""]
    line = chance.randrange(len(lines))
    ways: list[Callable[[], str]] = [
        lambda: text[:place] + chance.choice(_SNIPPETS) + text[place:],
        lambda: text[:place] + text[place + chance.randint(1, 4) :],
        lambda: text[:place] + chr(chance.choice([*range(1, 127), 0x85, 0x2028, 0xFEFF, 0x1F600])) + text[place + 1 :],
        lambda: "".join([*lines[:line], lines[line], *lines[line:]]),
        lambda: "".join([*lines[:line], " " * chance.randint(1, 4) + lines[line], *lines[line + 1 :]]),
        lambda: text[:other],
        lambda: text[:place] + text[other:] + text[place:other],
    ]
    return chance.choice(ways)()
