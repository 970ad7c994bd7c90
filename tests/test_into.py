from __future__ import annotations

import io
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from consumers import RECIPES
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from adamtune.cli.app import run
from adamtune.errors import AdamtuneError, DocumentError, ExitCode, ExportError
from adamtune.export import FORMATS, Context, Format, Settings, export_into, export_recipe
from adamtune.export.edits import edit
from adamtune.export.into import edit_file
from adamtune.recipe import Recipe

NEW = {"lr": 1e-05, "betas": (0.9, 0.98), "optimizer": {"name": "adamw", "eps": 1e-08}}
GROUPS = {"groups": [{"name": "head", "lr": 0.1}, {"name": "rest"}]}


def yaml_edit(text: str, values: Mapping[str, Any] = NEW) -> str:
    return edit(text, values, "yaml", "train.yaml").text


def json_edit(text: str, values: Mapping[str, Any] = NEW) -> str:
    return edit(text, values, "json", "train.json").text


def refused(text: str, values: Mapping[str, Any] = NEW) -> str:
    with pytest.raises((ExportError, DocumentError)) as caught:
        edit(text, values, "yaml", "train.yaml")
    assert caught.value.exit_code is ExitCode.USAGE
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what an edit leaves


def test_comments_order_quotes_spacing_and_markers_stay() -> None:
    before = """\
# how we train
---
lr:      1e-4   # tuned by hand
optimizer:   {name: 'adam',eps:   1.0e-8}  # inline


seed: 0x1F          # hex
path: "C:\\\\data"
betas:
  - 0.9   # first
  - 0.999 # second
notes: >
  folded,
  and long
# the end
...
"""
    after = yaml_edit(before)
    changes = {
        "lr:      1e-4   # tuned by hand": "lr:      1.0e-05   # tuned by hand",
        "{name: 'adam',eps:   1.0e-8}": "{name: 'adamw',eps:   1.0e-8}",
        "  - 0.999 # second": "  - 0.98 # second",
    }
    for old, new in changes.items():
        before = before.replace(old, new)
    assert after == before


def test_new_keys_come_last_in_their_mapping_at_its_indentation() -> None:
    before = "model:\n    size: 3\noptimizer:\n    name: adamw   # kept\n    # of the optimizer\n\ndata: x\n"
    assert yaml_edit(before, NEW | GROUPS) == (
        "model:\n    size: 3\noptimizer:\n    name: adamw   # kept\n    eps: 1.0e-08\n"
        "    # of the optimizer\n\ndata: x\n"
        "lr: 1.0e-05\nbetas: [0.9, 0.98]\ngroups:\n- {name: head, lr: 0.1}\n- {name: rest}\n"
    )


@pytest.mark.parametrize("text", ["", "# a comment\n", "# a comment", "---\n"])
def test_a_file_that_says_nothing_gets_the_settings_below_what_it_has(text: str) -> None:
    after = yaml_edit(text)
    assert after.startswith(text)
    assert yaml.safe_load(after) == {"lr": 1e-05, "betas": [0.9, 0.98], "optimizer": {"name": "adamw", "eps": 1e-08}}


def test_line_ends_and_a_missing_last_one_stay() -> None:
    assert yaml_edit("a: 1\r\nlr: 2\r\n", {"lr": 0.5, "eps": 0.1}) == "a: 1\r\nlr: 0.5\r\neps: 0.1\r\n"
    assert yaml_edit("a: 1\nlr: 2", {"lr": 0.5, "eps": 0.1}) == "a: 1\nlr: 0.5\neps: 0.1"
    assert yaml_edit("\ufeffa: 1\nlr: 2\n", {"lr": 0.5}) == "\ufeffa: 1\nlr: 0.5\n"


def test_a_comment_behind_the_last_entry_in_braces_keeps_its_line_end() -> None:
    before = "lr: {\r\n  x: 1 # c\r\n }\r\n"
    assert yaml_edit(before, {"lr": {"X": 2}}) == "lr: {\r\n  x: 1, # c\r\n  X: 2\r\n }\r\n"


def test_a_list_is_replaced_as_a_whole() -> None:
    assert yaml_edit("betas: [0.9, 0.99,  0.999]  # three\n", {"betas": [0.5, 0.6]}) == "betas: [0.5, 0.6]  # three\n"
    before = "groups:\n- lr: 1   # a\n  x: [1,\n      2]\n- lr: 2\n# c\nz: 1\n"
    assert yaml_edit(before, {"groups": [0.5]}) == "groups: [0.5]\n# c\nz: 1\n"
    after = yaml_edit("a: {groups: [1], b: 2}\n", {"a": GROUPS})
    assert after == "a: {groups: [{name: head, lr: 0.1}, {name: rest}], b: 2}\n"


def test_a_mapping_in_braces_keeps_its_form() -> None:
    assert yaml_edit("a: {}\n", {"a": {"lr": 1.0}}) == "a: {lr: 1.0}\n"
    assert yaml_edit("a: {b: 1, c: 2, } # x\n", {"a": {"lr": 1.0}}) == "a: {b: 1, c: 2, lr: 1.0, } # x\n"
    before = "a: {\n  b: 1, # one\n  c: 2 # two\n}\n"
    assert yaml_edit(before, {"a": {"lr": 1.0}}) == "a: {\n  b: 1, # one\n  c: 2, # two\n  lr: 1.0\n}\n"
    before = "a: {\n  b: 1, # one\n}\n"
    assert yaml_edit(before, {"a": {"lr": 1.0}}) == "a: {\n  b: 1, # one\n  lr: 1.0,\n}\n"


def test_json_is_edited_in_its_own_form() -> None:
    before = '{\n\t"lr": 1,\n\t"optimizer": {\n\t\t"eps":1E-8\n\t},\n\t"x": "a\\/b"\n}'
    assert json_edit(before, NEW | GROUPS) == (
        '{\n\t"lr": 1e-05,\n\t"optimizer": {\n\t\t"eps":1E-8,\n\t\t"name": "adamw"\n\t},\n\t"x": "a\\/b",\n'
        '\t"betas": [0.9, 0.98],\n\t"groups": [\n\t\t{\n\t\t\t"name": "head",\n\t\t\t"lr": 0.1\n\t\t},\n'
        '\t\t{\n\t\t\t"name": "rest"\n\t\t}\n\t]\n}'
    )
    assert json_edit('{"lr":1,"b":[1,2]}', {"lr": 0.5, "eps": 0.1}) == '{"lr":0.5,"b":[1,2], "eps": 0.1}'
    assert json_edit("{}\n", {"lr": 0.5}) == '{\n  "lr": 0.5\n}\n'


def test_the_file_says_which_keys_it_lacked_and_which_had_other_values() -> None:
    found = edit("lr: 1\noptimizer: {eps: 1e-8}\nclip:\nnone: null\n", NEW | {"clip": 1.0, "none": 1.0}, "yaml", "f")
    assert found.added == ("$.betas", "$.optimizer.name", "$.clip") or set(found.added) == {
        "$.betas", "$.optimizer.name", "$.clip"
    }  # fmt: skip
    assert found.replaced == ("$.lr", "$.none")


@pytest.mark.parametrize(("old", "new"), [("1e-4", 1e-4), ("1", 1.0), ("[0.9, 0.98]", (0.9, 0.98)), ("'a'", "a")])
def test_a_value_that_is_there_already_keeps_its_spelling(old: str, new: Any) -> None:
    assert yaml_edit(f"x:  {old}  # c\n", {"x": new}) == f"x:  {old}  # c\n"


@pytest.mark.parametrize(("old", "new"), [("true", 1), ("1", True), ("'1e-4'", 1e-4), ("'1'", 1), ("yes", "yes")])
def test_a_value_of_another_type_is_another_value(old: str, new: Any) -> None:
    after = yaml.safe_load(yaml_edit(f"x: {old}\n", {"x": new}))["x"]
    assert (after, type(after)) == (new, type(new))


@pytest.mark.parametrize(
    "before", ["a: 1\nb: |+\n  kept\n\n\n", "b: |+\n  kept\n\n", "b: |\n  kept", "a: 1\nc:\n  b: |+\n    kept\n\n"]
)
def test_a_block_of_text_at_the_end_keeps_its_line_ends(before: str) -> None:
    after = yaml_edit(before, {"lr": 0.5})
    assert yaml.safe_load(after) == yaml.safe_load(before) | {"lr": 0.5}
    assert after.replace("lr: 0.5\n", "") == before


# --- anchors, aliases and merges


def test_an_alias_is_replaced_where_it_stands_only() -> None:
    assert yaml_edit("base: &b 0.1\nlr: *b  # ours\n", {"lr": 0.5}) == "base: &b 0.1\nlr: 0.5  # ours\n"


def test_a_key_that_a_merge_brings_is_overridden_here_only() -> None:
    before = "base: &b {lr: 0.1, n: 1}\nopt:\n  <<: *b\n  k: 1\n"
    found = edit(before, {"opt": {"lr": 0.5, "n": 1}}, "yaml", "f")
    assert found.text == before + "  lr: 0.5\n"
    assert found.replaced == ("$.opt.lr",)
    assert yaml.safe_load(found.text)["base"]["lr"] == 0.1


def test_an_anchor_that_nothing_uses_stays() -> None:
    assert yaml_edit("lr: &lr 0.1\n", {"lr": 0.5}) == "lr: &lr 0.5\n"
    assert yaml_edit("a: &a\n  lr: 0.1\n", {"a": {"lr": 0.5}}) == "a: &a\n  lr: 0.5\n"


@pytest.mark.parametrize(
    "text",
    [
        "lr: &x 0.1\nmax_lr: *x\n",
        "optimizer: &x {eps: 1}\nother: *x\n",
        "optimizer: &x\n  eps: 1\nother:\n  <<: *x\n",
        "base: &x {eps: 1}\noptimizer: *x\n",
        "betas: [&x 0.9, 0.999]\nother: *x\n",
        "all: &x {optimizer: {eps: 1}}\noptimizer: &y {name: b}\no: *y\n",
    ],
)
def test_what_is_said_elsewhere_too_is_not_changed(text: str) -> None:
    told = refused(text)
    assert "the anchor &" in told
    assert "write the values out there first" in told
    assert "train.yaml: $." in told


def test_a_mapping_that_a_merge_brings_is_not_hidden() -> None:
    told = refused("base: &b {optimizer: {lr: 1, momentum: 0.9}}\n<<: *b\n", {"optimizer": {"lr": 0.5}})
    assert "$.optimizer comes from a merge (<<)" in told


def test_a_shared_value_that_need_not_change_is_no_obstacle() -> None:
    assert yaml_edit("lr: &x 0.1\nmax_lr: *x\n", {"lr": 0.1, "eps": 1.0}) == "lr: &x 0.1\nmax_lr: *x\neps: 1.0\n"


# --- bad input


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\n", "train.yaml: line 2, column 1: not valid YAML"),
        ("a:\n\tb: 1\n", "line 2, column 1: not valid YAML: a tab stands where YAML takes blanks only"),
        ("a: 1\n---\nb: 2\n", "train.yaml: line 2, column 1: a second document starts (---)"),
        ("- a\n", "a mapping (key: value) is expected at the top"),
        ("word\n", "a mapping (key: value) is expected at the top"),
        ("lr: 1\nlr: 2\n", "the key 'lr' stands twice"),
        ("lr: *gone\n", "found undefined alias"),
        ("optimizer: adamw\n", "$.optimizer holds no mapping (key: value), which the recipe needs there"),
        ("optimizer: [1]\n", "$.optimizer holds no mapping"),
        ("lr: {a: 1}\n", "$.lr holds a mapping, and the recipe says 1e-05 there"),
        ("? a\n: 1\n", "is written in a way that cannot be edited safely; edit it by hand"),
        ("a: &a [*a]\n", "contains itself"),
        ("x: 1\n" * 250_000, "larger than 1 MB"),
    ],
)
def test_a_text_that_cannot_be_edited_is_refused_in_one_sentence(text: str, told: str) -> None:
    assert told in refused(text)


@pytest.mark.parametrize("text", ["", "{", '{"a": 1,}', "[1]", "null", "{'a': 1}", "[" * 100_000])
def test_a_json_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match=r"train\.json: "):
        json_edit(text)


# --- any text

words = st.text("abcXYZ_", min_size=1, max_size=5)
scalars = st.sampled_from(
    [
        "1",
        "1e-4",
        "0.5",
        "-3",
        "true",
        "yes",
        "null",
        "~",
        "''",
        "'a b'",
        '"c # d"',
        "plain text",
        "0x1F",
        "1_000",
        ".5",
    ]
)
spaces = st.sampled_from([" ", "  ", "    "])
comments = st.sampled_from(["", "", " # note", "   #x"])


@st.composite
def mappings(draw: st.DrawFn, depth: int = 0) -> list[str]:
    """Lines of a block mapping in many styles."""
    lines = []
    for key in draw(st.lists(words | st.sampled_from(["lr", "opt", "betas"]), min_size=1, max_size=4, unique=True)):
        if draw(st.integers(0, 4)) == 0:
            lines.append(draw(st.sampled_from(["", "  ", "# between", "    # far"])))
        style = draw(st.sampled_from(["scalar", "scalar", "empty", "flow", "flow list", "list", "literal", "block"]))
        match style:
            case "scalar":
                lines.append(f"{key}:{draw(spaces)}{draw(scalars)}{draw(comments)}")
            case "empty":
                lines.append(f"{key}:{draw(comments)}")
            case "flow":
                inner = draw(
                    st.sampled_from(["", "lr: 1", "lr: 2,x: [1, 2]", " x: {y: 1} , ", "\n  lr: 3,\n  x: 1 # c\n "])
                )
                lines += f"{key}: {{{inner}}}{draw(comments)}".split("\n")
            case "flow list":
                lines.append(f"{key}: {draw(st.sampled_from(['[]', '[1,  2]', '[ {a: 1} ]']))}{draw(comments)}")
            case "list":
                dash = draw(st.sampled_from(["- ", "  - ", "  -   "]))
                lines += [f"{key}:{draw(comments)}", *(f"{dash}{draw(scalars)}{draw(comments)}" for _ in range(2))]
            case "literal":
                lines += [f"{key}: {draw(st.sampled_from(['|', '>', '|-']))}", "   some  text", "   # more"]
            case "block":
                if depth < 2:
                    pad = draw(st.sampled_from([" ", "  ", "    "]))
                    inner_lines = draw(mappings(depth + 1))
                    lines += [f"{key}:{draw(comments)}", *(pad + line for line in inner_lines)]
                else:
                    lines.append(f"{key}: 1")
    return lines


@st.composite
def texts(draw: st.DrawFn) -> str:
    lines = draw(mappings())
    if draw(st.booleans()):
        lines = [draw(st.sampled_from(["# top", "---", "%YAML 1.1\n---"])), *lines]
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return end.join(lines).replace("\n", end).replace("\r\r", "\r") + draw(st.sampled_from([end, "", end * 2]))


values = st.recursive(
    st.sampled_from([1e-05, 0.5, 1, True, None, "adamw", "1e-5", "a: b", (0.9, 0.98), [], [{"name": "x", "lr": 1e-8}]]),
    lambda inner: st.dictionaries(words | st.sampled_from(["lr", "betas"]), inner, min_size=1, max_size=3),
    max_leaves=4,
)
wishes = st.dictionaries(words | st.sampled_from(["lr", "opt", "betas"]), values, min_size=1, max_size=4)


def put(data: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What the edit should lead to, the plain way."""
    for key, value in wanted.items():
        if isinstance(value, dict):
            below = data.get(key)
            data[key] = put(dict(below) if isinstance(below, dict) else {}, value)
        else:
            data[key] = list(value) if isinstance(value, tuple) else value
    return data


def tried(text: str, wanted: Mapping[str, Any]) -> str | None:
    """The edited text; None where the edit is refused, which it may be only for what a person can see."""
    try:
        return yaml_edit(text, wanted)
    except ExportError as problem:
        if "holds no mapping" not in str(problem) and "holds a mapping" not in str(problem):
            raise
        return None


@settings(max_examples=150, deadline=None)
@given(texts(), wishes)
def test_lines_that_hold_no_key_concerned_stay_byte_for_byte(text: str, wanted: dict[str, Any]) -> None:
    after = tried(text, wanted)
    assume(after is not None)
    assert after is not None
    rest = iter(after.replace("\r\n", "\n").split("\n"))
    for line in unconcerned(text.replace("\r\n", "\n").split("\n"), all_keys(wanted)):
        assert any(line == other for other in rest), (line, after)
    assert after.count("\n") == after.count("\r\n") or "\r\n" not in text
    assert "\r\n" not in after or "\r\n" in text


def unconcerned(lines: list[str], keys: set[str]) -> list[str]:
    """The lines that belong to no key of that name, by their indentation."""
    found = []
    above: list[tuple[int, str]] = []
    for line in lines:
        column = len(line) - len(line.lstrip())
        start = re.match(r" *([a-zA-Z_]+):", line)
        if line.strip() and (start or not line.lstrip().startswith(("-", "}", "#"))):
            above = [(at, key) for at, key in above if at < column]
        if start:
            above.append((column, start[1]))
        if line.strip() and not any(key in keys for _, key in above):
            found.append(line)
    return found


def all_keys(wanted: Mapping[str, Any]) -> set[str]:
    return set(wanted) | {key for value in wanted.values() if isinstance(value, dict) for key in all_keys(value)}


@settings(max_examples=150, deadline=None)
@given(texts(), wishes)
def test_an_edited_text_says_the_settings_and_all_it_said_before(text: str, wanted: dict[str, Any]) -> None:
    after = tried(text, wanted)
    assume(after is not None)
    assert after is not None
    data = yaml.safe_load(text)
    again = yaml.safe_load(after)
    assert loosely(again) == loosely(put(data, wanted))
    assert yaml_edit(after, wanted) == after


@settings(max_examples=60, deadline=None)
@given(texts(), wishes)
def test_another_yaml_reader_takes_it_for_the_same(text: str, wanted: dict[str, Any]) -> None:
    after = tried(text.replace("%YAML 1.1", "# "), wanted)
    assume(after is not None)
    reader = YAML(typ="safe", pure=True)
    before = reader.load(io.StringIO(text.replace("%YAML 1.1", "# ")))
    assert loosely(reader.load(io.StringIO(after))) == loosely(put(before, wanted))


def loosely(data: Any) -> Any:
    """`1e-4` is a text to a YAML 1.1 reader; one that already says the number is left alone."""
    if isinstance(data, dict):
        return {key: loosely(value) for key, value in data.items()}
    if isinstance(data, list):
        return [loosely(value) for value in data]
    return float(data) if data in ("1e-4", "1e-5") else data


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(words, plain, max_size=4), wishes, st.sampled_from([None, 2, 4, "\t"]))
def test_an_edited_json_file_is_json_that_says_the_settings(
    data: dict[str, Any], wanted: dict[str, Any], indent: int | str | None
) -> None:
    text = json.dumps(data, indent=indent)
    try:
        after = json_edit(text, wanted)
    except ExportError as problem:
        if "holds no mapping" not in str(problem) and "holds a mapping" not in str(problem):
            raise
        return
    assert json.loads(after) == put(data, wanted)


# --- files


@pytest.mark.parametrize(
    ("name", "context", "before", "after"),
    [
        ("hf", Context(60, version=4), {"adafactor": True}, {"adafactor": False}),
        ("axolotl", Context(60), {"jagged_restart_steps": 9, "jagged_restart_warmup_steps": 2,
         "jagged_restart_anneal_steps": 1}, dict.fromkeys(("jagged_restart_steps", "jagged_restart_warmup_steps",
         "jagged_restart_anneal_steps"))),
    ],
)  # fmt: skip
def test_a_second_optimizer_or_restarts_in_a_file_are_put_out(
    tmp_path: Path, name: str, context: Context, before: dict[str, Any], after: dict[str, Any]
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(before))
    said = yaml.safe_load(export_into(Recipe(), name, path, context).text)
    assert {key: said[key] for key in before} == after


ADAMW = {"_target_": "torch.optim.AdamW", "lr": 0.5}
NODES = [
    ("opt: {_target_: torch.optim.SGD, lr: 1, nesterov: true}\n", ADAMW, ["$.opt.nesterov"]),
    ("base: &b {nesterov: true}\nopt:\n  <<: *b\n  _target_: torch.optim.SGD\n", ADAMW, ["$.opt.nesterov"]),
    (
        "opt:\n  class_path: SGD\n  init_args: {lr: 1, momentum: 0.9, dampening: 0}\n",
        {"class_path": "AdamW", "init_args": {"lr": 0.5}},
        ["$.opt.init_args.momentum", "$.opt.init_args.dampening"],
    ),
    (
        "opt: {type: WarmupLR, params: {warmup_min_lr: 0}}\n",
        {"type": "WarmupCosineLR", "params": {"total_num_steps": 9}},
        ["$.opt.params.warmup_min_lr"],
    ),
    (
        "opt: {_target_: torch.optim.Adam, lr: 1, fused: true, decoupled_weight_decay: true}\n",
        ADAMW,
        ["$.opt.decoupled_weight_decay"],
    ),
    ("opt: {_target_: apex.optimizers.AdamW, fused: true}\n", ADAMW, ["$.opt.fused"]),
    ("opt: {_component_: StepLR, step_size: 3}\n", {"_component_": "cosine"}, ["$.opt.step_size"]),
]


@pytest.mark.parametrize(("text", "node", "stay"), NODES)
def test_arguments_of_another_class_are_refused_by_name(text: str, node: dict[str, Any], stay: list[str]) -> None:
    told = re.escape(f"would stay under the new one: {', '.join(stay)}; delete them there first")
    with pytest.raises(ExportError, match=told):
        yaml_edit(text, {"opt": node})


@pytest.mark.parametrize(
    "text",
    [
        "opt: {_target_: torch.optim.AdamW, fused: true}\n",
        "opt: {_target_: torch.optim.adamw.AdamW, fused: true}\n",
        "opt: {_target_: adamw, fused: true}\n",
        "opt: {_target_: torch.optim.Adam, lr: 1, fused: true, foreach: false, amsgrad: true}\n",
        "opt: {_target_: torch.optim.SGD, lr: 1, _convert_: all}\n",
        "opt: {fused: true}\n",
    ],
)
def test_arguments_that_the_class_takes_and_hydras_own_keys_stay(text: str) -> None:
    before = yaml.safe_load(text)["opt"]
    assert yaml.safe_load(yaml_edit(text, {"opt": ADAMW}))["opt"] == before | ADAMW


def test_accelerates_own_settings_stay_and_are_added_only_where_they_are_missing(tmp_path: Path) -> None:
    own = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    for before, after in (
        (own, own),
        ({}, {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 0}}),
    ):
        path = tmp_path / "ds.json"
        path.write_text(json.dumps(before))
        found = export_into(Recipe(), "accelerate", path, Context(60)).edit
        assert found is not None
        assert found.replaced == ()
        said = json.loads(found.after)
        assert {key: said[key] for key in own} == after


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text("# ours\nlr: 0.1 # old\nmodel: big\n")
    return path


def into(path: Path, **values: Any) -> Any:
    return edit_file(path, Settings(values), "yaml")


def test_nothing_is_written_before_asked_and_then_the_old_file_is_kept(target: Path) -> None:
    before = target.read_bytes()
    found = into(target, lr=0.5)
    assert found.diff == (
        f"--- {target}\n+++ {target} (edited)\n@@ -1,3 +1,3 @@\n # ours\n-lr: 0.1 # old\n+lr: 0.5 # old\n model: big\n"
    )
    with pytest.raises(ExportError, match=r"has other values for \$\.lr; replace them with --force"):
        found.write(force=False)
    assert os.listdir(target.parent) == ["train.yaml"]
    assert found.write(force=True) == target.with_name("train.yaml.bak")
    assert target.read_text() == "# ours\nlr: 0.5 # old\nmodel: big\n"
    assert target.with_name("train.yaml.bak").read_bytes() == before


def test_no_backup_is_ever_overwritten(target: Path) -> None:
    target.with_name("train.yaml.bak").write_text("precious")
    kept = [into(target, lr=lr).write(force=True).name for lr in (0.2, 0.3, 0.4)]
    assert kept == ["train.yaml.bak.1", "train.yaml.bak.2", "train.yaml.bak.3"]
    assert target.with_name("train.yaml.bak").read_text() == "precious"
    assert "lr: 0.3" in target.with_name("train.yaml.bak.3").read_text()


def test_keys_that_are_only_added_need_no_force(target: Path) -> None:
    into(target, eps=1e-8).write(force=False)
    assert target.read_text() == "# ours\nlr: 0.1 # old\nmodel: big\neps: 1.0e-08\n"


def test_a_link_stays_one_and_the_mode_stays(target: Path, tmp_path: Path) -> None:
    target.chmod(0o640)
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "current.yaml"
    link.symlink_to(target)
    assert into(link, lr=0.5).write(force=True) == target.with_name("train.yaml.bak")
    assert link.is_symlink()
    assert "lr: 0.5" in target.read_text()
    for path in (target, target.with_name("train.yaml.bak")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_line_ends_survive_on_disk(target: Path) -> None:
    target.write_bytes(b"lr: 0.1\r\nb: 1\r\n")
    into(target, lr=0.5).write(force=True)
    assert target.read_bytes() == b"lr: 0.5\r\nb: 1\r\n"
    assert target.with_name("train.yaml.bak").read_bytes() == b"lr: 0.1\r\nb: 1\r\n"


def test_a_file_changed_meanwhile_is_left_alone(target: Path) -> None:
    found = into(target, lr=0.5)
    target.write_text("lr: 0.7\n")
    with pytest.raises(ExportError, match="changed by something else meanwhile"):
        found.write(force=True)
    assert os.listdir(target.parent) == ["train.yaml"]


def test_a_full_disk_leaves_the_file_and_says_so(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    before = target.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(AdamtuneError, match="cannot be written: No space left on device"):
        into(target, lr=0.5).write(force=True)
    assert target.read_bytes() == before


def test_a_place_that_cannot_be_written_is_refused(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ExportError, match="it or its folder is read-only"):
        into(target, lr=0.5).write(force=True)
    assert os.listdir(target.parent) == ["train.yaml"]


def a_huge_file(path: Path) -> None:
    with path.open("wb") as out:
        out.truncate(100_000_000)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "does not exist; --into edits a file that is there, --to writes a new one"),
        (Path.mkdir, "is a folder; name the file to edit with --into"),
        (os.mkfifo, "is no plain file"),
        (lambda path: path.symlink_to(path.with_name("gone")), "does not exist"),
        (lambda path: path.symlink_to(path), "f.yaml"),
        (lambda path: path.write_bytes(b"lr: \xff\n"), "is not a UTF-8 text"),
        (lambda path: path.write_bytes("lr: 1\n".encode("utf-16")), "is not a UTF-8 text"),
        (a_huge_file, "is larger than 1 MB, so it is hardly a configuration"),
        (lambda path: path.write_text("lr: [\n"), "f.yaml: line 2, column 1: not valid YAML"),
    ],
)
def test_a_target_that_is_no_configuration_is_refused(make: Callable[[Path], Any], told: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    make(path)
    with pytest.raises((ExportError, DocumentError)) as caught:
        into(path, lr=0.5)
    assert told in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_name_no_file_can_have_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(ExportError):
            into(tmp_path / name, lr=0.5)


def test_the_ending_says_whether_it_is_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"lr": 1}')
    (tmp_path / "config").write_text('{"lr": 1}')
    assert into(tmp_path / "a.json", eps="x").after == '{"lr": 1, "eps": "x"}'
    assert into(tmp_path / "config", eps="x").after == '{"lr": 1, eps: x}'
    assert edit_file(tmp_path / "config", Settings({"eps": "x"}), "json").after == '{"lr": 1, "eps": "x"}'


def test_keys_that_would_say_otherwise_are_neutralised_where_they_are_there() -> None:
    neutral = {"lr_groups": None, "warmup_ratio": None, "cooldown": 0}
    before = "warmup_ratio: 0.1 # old\nlr_groups:\n  - name: a\n    lr: 1\ncooldown: 0\n"
    found = edit(before, {"lr": 0.5}, "yaml", "f", neutral)
    assert found.text == "warmup_ratio: null # old\nlr_groups: null\ncooldown: 0\nlr: 0.5\n"
    assert set(found.replaced) == {"$.warmup_ratio", "$.lr_groups"}
    assert edit("a: 1\n", {"lr": 0.5}, "yaml", "f", neutral).text == "a: 1\nlr: 0.5\n"
    with pytest.raises(ExportError, match=r"\$\.lr_groups holds a mapping.*change it by hand"):
        edit("lr_groups: {a: 1}\n", {"lr": 0.5}, "yaml", "f", neutral)


def test_a_setting_that_stays_beside_those_set_is_named() -> None:
    found = edit("optimizer: {eps: 1, amsgrad: true}\nother: 1\n", NEW, "yaml", "f")
    assert found.left == ("$.optimizer.amsgrad",)
    merged = edit("base: &b {amsgrad: true}\noptimizer: {<<: *b, eps: 1}\n", NEW, "yaml", "f")
    assert merged.left == ("$.optimizer.amsgrad",)


# --- the format's settings, and the command


UNREAD = {"adam_beta1", "adam_beta2", "adam_epsilon", "momentum", "opt_betas", "opt_eps"} | {
    "decay_rate", "decay_milestones", "min_lr", "amp_dtype", "zero_allow_untested_optimizer",
}  # fmt: skip
"""What an optimizer, a schedule or a precision does not look at, but another one does."""
KEYED = [name for name, format in FORMATS.items() if format.syntax in ("yaml", "json") and not format.whole]
CONTEXTS = [Context(60), Context(60, steps_per_epoch=10)]


@pytest.mark.parametrize("name", KEYED)
def test_a_file_of_one_recipe_edited_for_another_says_nothing_of_the_first(name: str) -> None:
    """At the top; within a mapping what stays is named."""
    format = FORMATS[name]
    syntax = "json" if format.syntax == "json" else "yaml"
    refused = 0
    for first, second, context in itertools.product(RECIPES[:20] + RECIPES[-4:], RECIPES[-8:], CONTEXTS):
        settings = format.settings(second, context)
        try:
            found = edit(export_recipe(first, name, context).text, settings.values, syntax, "f", settings.neutral)
        except ExportError:  # a mapping that the second has nothing for
            refused += 1
            continue
        said = json.loads(found.text) if syntax == "json" else yaml.safe_load(found.text)
        assert said.keys() >= settings.values.keys()
        for key in said.keys() - settings.values.keys() - UNREAD:
            assert said[key] == settings.neutral.get(key, "nothing"), key
        differing = {key for key, value in settings.values.items() if said[key] != json.loads(json.dumps(value))}
        assert differing <= {path.split(".")[1] for path in found.left}
    assert refused < len(RECIPES) * 8


TOY = Format("toy", "a toy", "yaml", lambda recipe, context: Settings({"optim": {"lr": recipe.lr, "eps": recipe.eps}}))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "toy", TOY)


@pytest.fixture
def command(
    toy: None, target: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(target.parent)
    (target.parent / "recipe.yaml").write_text("lr: 2.0e-05\n")

    def command(*options: str) -> tuple[int, str, str]:
        code = run(["export", "recipe.yaml", "--format", "toy", *options])
        return (code, *capfd.readouterr())

    return command


Command = Callable[..., tuple[int, str, str]]


def test_a_format_is_put_in_under_its_own_keys(toy: None, target: Path) -> None:
    found = export_into(Recipe(lr=2e-5), "toy", target, Context())
    assert found.text == target.read_text() + "optim: {lr: 2.0e-05, eps: 1.0e-08}\n"
    with pytest.raises(ExportError, match=r"python is neither YAML nor JSON, .*formats it can: yaml"):
        export_into(Recipe(), "python", target)
    with pytest.raises(ExportError, match="no export format 'tyo'"):
        export_into(Recipe(), "tyo", target)


def test_a_dry_run_prints_the_change_and_writes_nothing(command: Command, target: Path) -> None:
    before = target.read_bytes()
    code, out, err = command("--into", "train.yaml", "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("--- train.yaml\n+++ train.yaml (edited)\n@@ ")
    assert "\n model: big\n+optim: {lr: 2.0e-05, eps: 1.0e-08}\n" in out
    assert target.read_bytes() == before
    assert sorted(os.listdir(target.parent)) == ["recipe.yaml", "train.yaml"]


def test_the_change_is_shown_then_written_and_a_second_time_there_is_none(command: Command, target: Path) -> None:
    code, out, err = command("--into", "train.yaml")
    assert (code, err) == (0, "")
    assert out.startswith("--- train.yaml\n")
    assert out.endswith("wrote train.yaml; as it was before: train.yaml.bak\n")
    assert command("--into", "train.yaml") == (0, "train.yaml says all of this already\n", "")
    assert command("--into", "train.yaml", "--dry-run")[1] == "train.yaml says all of this already\n"
    assert not target.with_name("train.yaml.bak.1").exists()


def test_values_that_are_there_are_replaced_with_force_only(command: Command, target: Path) -> None:
    target.write_text("optim:\n  lr: 1   # mine\n  eps: 1\n")
    code, out, err = command("--into", "train.yaml")
    assert code == 2
    assert "-  lr: 1   # mine\n" in out
    assert err == "adamtune: train.yaml has other values for $.optim.lr, $.optim.eps; replace them with --force\n"
    assert not target.with_name("train.yaml.bak").exists()
    assert command("--into", "train.yaml", "--force")[0] == 0
    assert target.read_text() == "optim:\n  lr: 2.0e-05   # mine\n  eps: 1.0e-08\n"
    target.write_text("optim: {amsgrad: true}\n")
    assert command("--into", "train.yaml", "--dry-run")[2] == "left as they are, and in force: $.optim.amsgrad\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--into", "train.yaml", "--to", "x"], "give one of them"),
        (["--dry-run"], "name that file with --into"),
        (["--into", "gone.yaml"], "gone.yaml does not exist"),
        (["--into", "train.yaml", "--format", "python"], "python is neither YAML nor JSON"),
    ],
)
def test_options_that_do_not_go_together_are_refused(command: Command, options: list[str], told: str) -> None:
    code, out, err = command(*options)
    assert (code, out) == (2, "")
    assert err.startswith("adamtune: ")
    assert told in err


def test_a_companion_in_the_way_is_found_before_anything_is_written(
    command: Command, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adamtune.export import Unsaid

    speechless = Settings({"lr": 0.5}, (Unsaid("eps", "is not said"),))
    format = Format("toy", "a toy", "yaml", lambda *_: speechless, companion=lambda *_: "x = 1\n")
    monkeypatch.setitem(FORMATS, "toy", format)
    beside = target.with_name("train_optimizer.py")
    beside.write_text("mine")
    target.write_text("a: 1\n")
    code, _, err = command("--into", "train.yaml", "--companion")
    assert code == 2
    assert "toy cannot say eps: is not said\n" in err
    assert "train_optimizer.py exists" in err
    assert target.read_text() == "a: 1\n"
    beside.unlink()
    code, out, _ = command("--into", "train.yaml", "--companion")
    assert code == 0
    assert out.endswith("wrote train_optimizer.py\n")
    assert (target.read_text(), beside.read_text()) == ("a: 1\nlr: 0.5\n", "x = 1\n")
