from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from adamtune import yaml_text
from adamtune.errors import DocumentError, ExitCode, SpecError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    weight: float = Field(gt=0.0)
    label: str = ""


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = Field(ge=1)
    items: tuple[Inner, ...] = ()


def refusal(text: str) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        yaml_text.parse(text, "spec.yaml")
    return caught.value


def seconds_to_refuse(text: str) -> float:
    start = time.process_time()
    refusal(text)
    return time.process_time() - start


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("1e-8", 1e-8),
        ("2e-5", 2e-5),
        ("1E5", 1e5),
        ("-3e+2", -300.0),
        ("+1e3", 1e3),
        (".5e1", 5.0),
        ("1.e2", 100.0),
        ("1.5e-3", 1.5e-3),
        ("1_000e2", 1e5),
        ("0.1", 0.1),
        (".inf", float("inf")),
    ],
)
def test_a_float_as_people_type_it_loads_as_a_float(typed: str, meant: float) -> None:
    value = yaml_text.parse(f"x: {typed}", "s")["x"]
    assert type(value) is float
    assert value == meant


@pytest.mark.parametrize("word", ["1e", "e5", "e-5", "1e5x", "1e5.0", "-e1", "1-e5", "v1e5", "'1e5'", '"2e-5"'])
def test_what_only_resembles_a_float_stays_a_string(word: str) -> None:
    assert yaml_text.parse(f"x: {word}", "s")["x"] == word.strip("'\"")


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("-3", -3), ("0x1e5", 0x1E5), ("true", True), ("null", None)])
def test_other_scalars_keep_their_type(text: str, value: object) -> None:
    loaded = yaml_text.parse(f"x: {text}", "s")["x"]
    assert loaded == value
    assert type(loaded) is type(value)


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_of_any_size_is_read_as_itself_however_python_spells_it(number: float) -> None:
    for text in (f"{number!r}", f"{number:.17e}", f"{number:.17E}"):
        assert yaml_text.parse(f"x: {text}", "s") == {"x": number}


@settings(deadline=None)
@given(st.floats(allow_nan=False))
@example(1e-8)
@example(1e16)
@example(-5e-324)
def test_a_dumped_float_is_a_float_to_every_yaml_1_1_reader(number: float) -> None:
    text = yaml_text.dump({"x": number, "xs": [number]})
    assert yaml.safe_load(text) == {"x": number, "xs": [number]}
    assert type(yaml.safe_load(text)["x"]) is float
    assert not set("!'\"") & set(text)  # plain, with neither tag nor quotes


TEXT = st.text(st.characters(codec="ascii"), max_size=8)


@settings(deadline=None)
@given(
    st.dictionaries(
        TEXT,
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
            max_leaves=6,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_dumped_is_read_back_equal_and_in_order(data: dict[str, object]) -> None:
    back = yaml_text.parse(yaml_text.dump(data), "s")
    assert back == data
    assert list(back) == list(data)


def test_a_mapping_of_plain_values_is_dumped_a_key_a_line() -> None:
    assert yaml_text.dump({"lr": 1e-5, "steps": 3}) == "lr: 1.0e-05\nsteps: 3\n"
    assert yaml_text.dump({"lr": 1e-5, "betas": [0.9, 0.99]}) == "lr: 1.0e-05\nbetas: [0.9, 0.99]\n"


@pytest.mark.parametrize("word", ["1e5", "2E-5", ".5e1", "1_0e2"])
def test_a_string_that_looks_like_a_float_is_read_back_as_a_string(word: str) -> None:
    assert yaml_text.parse(yaml_text.dump({"x": word}), "s") == {"x": word}


@pytest.mark.parametrize(
    ("text", "line"),
    [("lr: 1\neps: 2\nlr: 3\n", 3), ("a:\n  b: 1\n  b: 1\n", 3), ("a: [{b: 1},\n  {c: 1, c: 2}]\n", 2)],
)
def test_a_key_given_twice_is_refused_with_its_line(text: str, line: int) -> None:
    (problem,) = refusal(text).problems
    assert problem.where.startswith(f"line {line},")
    assert "twice" in problem.what


def test_a_merged_key_may_be_overridden() -> None:
    assert yaml_text.parse("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n", "s")["b"] == {"x": 3, "y": 2}


def test_a_merge_of_a_merge_may_override_too() -> None:
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\n<<: *b\n"
    assert yaml_text.parse(text, "s") == {"a": {"x": 1}, "b": {"x": 2}, "x": 2}


@pytest.mark.parametrize("opening", ["[{}]", "{{a: {}, b: {}}}"])
def test_an_alias_bomb_is_refused_in_no_time(opening: str) -> None:
    lines = ["v0: &v0 lol"]
    for level in range(1, 40):
        inner = f"*v{level - 1}"
        body = f"[{', '.join([inner] * 9)}]" if opening == "[{}]" else opening.format(inner, inner)
        lines.append(f"v{level}: &v{level} {body}")
    assert seconds_to_refuse("\n".join(lines)) < 1.0


def test_aliases_within_reason_are_fine() -> None:
    assert yaml_text.parse("a: &a [1, 2]\nb: [*a, *a]\n", "s")["b"] == [[1, 2], [1, 2]]


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}"])
def test_a_value_that_contains_itself_is_refused(text: str) -> None:
    refusal(text)


def test_a_text_larger_than_a_megabyte_is_refused_unread() -> None:
    assert "1 MB" in str(refusal("x: " + "a" * yaml_text.MAX_BYTES))
    assert yaml_text.parse("x: " + "a" * 10_000, "s") == {"x": "a" * 10_000}


def test_deep_nesting_is_refused_in_no_time() -> None:
    assert seconds_to_refuse("x: " + "[" * 1_500 + "]" * 1_500) < 0.5


def test_a_long_row_of_digits_is_read_in_no_time() -> None:
    start = time.process_time()
    yaml_text.parse("x: " + "1" * 16_000 + "x", "s")
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: [1,\nc: }", 3), ("a: 1\n\tb: 2\n", 2), ("a: 'open\n", 2), ("a: 1\nb: *nowhere\n", 2), ("a: b: c", 1)],
)
def test_a_syntax_error_names_its_line_and_the_document(text: str, line: int) -> None:
    error = refusal(text)
    assert error.problems[0].where.startswith(f"line {line},")
    assert str(error).startswith("spec.yaml: ")
    assert error.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(("text", "what"), [("", "empty"), ("- 1", "list"), ("just words", "text"), ("3", "number")])
def test_a_document_that_is_no_mapping_is_refused_by_what_it_is(text: str, what: str) -> None:
    assert what in str(refusal(text))


@pytest.mark.parametrize("text", ["x: !!python/object/apply:os.getcwd []", "x: !!python/name:os.system"])
def test_a_tag_that_would_run_code_is_refused(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize("value", ["!!float ''", "!!int ''", "!!bool perhaps", "!!timestamp never"])
def test_a_value_that_does_not_fit_its_tag_is_refused(value: str) -> None:
    refusal(f"x: {value}")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab1e-+._:[]{},#&*!|>'\"%?~<= \n\t\0é"), max_size=40))
def test_any_text_is_a_mapping_or_a_document_error(text: str) -> None:
    try:
        assert isinstance(yaml_text.parse(text, "s"), dict)
    except DocumentError as error:
        assert error.problems  # noqa: PT017 - either end is fine


def test_every_problem_is_told_at_once_with_its_path() -> None:
    text = "count: 0\nitems: [{weight: 1}, {weight: -1}, {label: 3, weight: heavy}, {}]\nother: 1\n"
    with pytest.raises(SpecError) as caught:
        yaml_text.validate(Outer, yaml_text.parse(text, "s"), "s.yaml", SpecError)
    told = {problem.where: problem.what for problem in caught.value.problems}
    assert set(told) == {
        "$.count",
        "$.items[1].weight",
        "$.items[2].label",
        "$.items[2].weight",
        "$.items[3].weight",
        "$.other",
    }
    assert told["$.count"] == "must be at least 1, not 0"
    assert told["$.items[1].weight"].startswith("must be above 0")
    assert "required" in told["$.items[3].weight"]
    assert str(caught.value).startswith("s.yaml has 6 problems:")
    assert all(f"{where}: {what}" in str(caught.value) for where, what in told.items())


def test_an_unknown_key_is_answered_with_the_nearest_of_its_own_level() -> None:
    with pytest.raises(DocumentError) as caught:
        yaml_text.validate(Outer, {"count": 1, "itmes": [], "items": [{"wieght": 1.0, "weight": 1.0}]}, "s")
    told = {problem.where: problem.what for problem in caught.value.problems}
    assert "did you mean 'items'?" in told["$.itmes"]
    assert "did you mean 'weight'?" in told["$.items[0].wieght"]


def test_a_word_near_to_nothing_is_answered_with_all_that_is_known() -> None:
    assert yaml_text.nearest("zzz", ["lr", "eps"]) == "known are: eps, lr"


OPTIMIZERS = ("adam", "adamw", "sgd")


@given(st.data(), st.sampled_from(OPTIMIZERS))
def test_a_word_in_another_case_is_answered_with_itself(data: st.DataObject, word: str) -> None:
    upper = data.draw(st.tuples(*(st.booleans() for _ in word)))
    typed = "".join(letter.upper() if up else letter for letter, up in zip(word, upper, strict=True))
    assert yaml_text.nearest(typed, OPTIMIZERS) == f"did you mean '{word}'?"


def test_validation_returns_the_model() -> None:
    assert yaml_text.validate(Outer, {"count": 2, "items": [{"weight": 1}]}, "s") == Outer(
        count=2, items=(Inner(weight=1.0),)
    )


def test_a_file_is_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("name: Gewöhnung\n", encoding="utf-8")
    assert yaml_text.read(path) == {"name": "Gewöhnung"}


@pytest.mark.parametrize(("content", "what"), [(None, "no such file"), (b"a: \xff\n", "UTF-8")])
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, content: bytes | None, what: str) -> None:
    path = tmp_path / "spec.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=what) as caught:
        yaml_text.read(path, SpecError)
    assert str(path) in str(caught.value)


def test_a_folder_is_not_read_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="folder"):
        yaml_text.read(tmp_path)


@pytest.mark.parametrize("number", ["1:" * 200_000 + "1", "1:" * 200_000 + "1.5", "1" * 400_000, "1_" * 200_000])
def test_a_number_that_would_be_reckoned_for_minutes_is_refused_in_no_time(number: str) -> None:
    began = time.monotonic()
    with pytest.raises(DocumentError, match=r"not readable as YAML: a number of 40000[013] characters"):
        yaml_text.parse(f"a: {number}", "x")
    assert time.monotonic() - began < 5
    assert yaml_text.parse("a: 1:30:00\nb: 1:30.5", "x") == {"a": 5400, "b": 90.5}


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs an endless file")
def test_an_endless_file_is_read_no_further_than_a_megabyte() -> None:
    with pytest.raises(DocumentError, match="larger than 1 MB"):
        yaml_text.read(Path("/dev/zero"))
