from __future__ import annotations

import copy
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import adamtune
from adamtune.errors import ExitCode, SpecError
from adamtune.knobs import KNOBS
from adamtune.recipe import Recipe
from adamtune.spec import STAGES, Bounds, Budget, Objective, Spec, TaskSpec, load_spec, resolve_spec
from recipes import recipes

REPO = Path(__file__).parent.parent
LEAST = 'task: {ref: "a.b:c"}\nhorizon: 300\n'


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Spec]:
    def load(text: str, **overrides: Any) -> Spec:
        path = tmp_path / "spec.yaml"
        path.write_text(text, encoding="utf-8")
        return load_spec(path, overrides)

    return load


@pytest.fixture
def problems(load: Callable[..., Spec]) -> Callable[[str], dict[str, str]]:
    def problems(text: str) -> dict[str, str]:
        with pytest.raises(SpecError) as caught:
            load(text)
        assert caught.value.exit_code is ExitCode.USAGE
        assert caught.value.source.endswith("spec.yaml")
        return {problem.where: problem.what for problem in caught.value.problems}

    return problems


def test_what_a_spec_leaves_out_is_filled_in(load: Callable[..., Spec]) -> None:
    assert load(LEAST) == Spec(
        task=TaskSpec(ref="a.b:c", args={}),
        horizon=300,
        budget=Budget(trials=100),
        seeds=3,
        base=Recipe.default(),
        stages=None,
        objective=Objective(name="loss", direction="minimize"),
        device="auto",
        engine="auto",
        storage=None,
        seed=0,
    )
    assert load(LEAST + "base: null\nstages: auto\nstorage: null\nspace: {lr: null}\n") == load(LEAST)


def test_a_spec_is_frozen(load: Callable[..., Spec]) -> None:
    spec = load(LEAST)
    for part in (spec, spec.task, spec.budget, spec.space, spec.objective):
        for field in type(part).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(part, field, None)


def test_numbers_may_be_typed_without_a_dot(load: Callable[..., Spec]) -> None:
    spec = load(
        'task: {ref: "a.b:c", args: {lr: 1e-3, n: 2E5}}\nhorizon: 300\n'
        "space: {lr: {low: 1e-5, high: 3e-1}, beta2: {low: 9e-1}}\nbase: {lr: 2e-5, eps: 1e-8}\n"
    )
    assert spec.task.args == {"lr": 1e-3, "n": 2e5}
    assert (spec.base.lr, spec.base.eps) == (2e-5, 1e-8)
    assert (spec.knob("lr").low, spec.knob("lr").high, spec.knob("beta2").low) == (1e-5, 0.3, 0.9)


def test_a_knob_is_searched_over_its_default_range_where_the_spec_does_not_narrow_it(load: Callable[..., Spec]) -> None:
    spec = load(LEAST + "space: {lr: {high: 0.5}, warmup: {low: 0.01, high: 0.5}}\n")
    assert (spec.knob("lr").low, spec.knob("lr").high) == (KNOBS["lr"].low, 0.5)
    assert (spec.knob("warmup").low, spec.knob("warmup").high) == (0.01, 0.5)
    assert spec.knob("eps") == KNOBS["eps"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1.5h", 5400),
        ("' 5 m '", 300),
        ("0.5", 0.5),
        ("1e3", 1e3),
    ],
)
def test_a_budget_of_time_may_be_typed_with_its_unit(load: Callable[..., Spec], text: str, seconds: float) -> None:
    assert load(f"{LEAST}budget: {{time: {text}}}").budget == Budget(time=seconds)


def test_overrides_replace_what_the_file_says(load: Callable[..., Spec]) -> None:
    spec = load(LEAST + "seed: 1\n", seed=2, engine="sequential", storage="sqlite:///x.db")
    assert (spec.seed, spec.engine, spec.storage) == (2, "sequential", "sqlite:///x.db")
    with pytest.raises(SpecError, match=r"\$\.engine: must be one of"):
        load(LEAST, engine="warp")


def bounds(name: str) -> st.SearchStrategy[Bounds | None]:
    low, high = max(KNOBS[name].low, 1e-12), KNOBS[name].high
    within = st.floats(low, high)
    both = st.tuples(within, within).filter(lambda ends: ends[0] < ends[1])
    return (
        st.none()
        | both.map(lambda ends: Bounds(low=ends[0], high=ends[1]))
        | st.floats(low, high, exclude_max=True).map(lambda end: Bounds(low=end))
    )


TEXTS = st.text(string.printable + "äß…", max_size=8).filter(lambda text: "\r" not in text)
ARGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def asked_space(stages: list[str] | None) -> st.SearchStrategy[dict[str, Bounds | None]]:
    """Bounds for knobs that some stage searches."""
    names = [name for name in KNOBS if stages is None or name in ("lr", *stages)]
    return st.fixed_dictionaries({}, optional={name: bounds(name) for name in names})


STAGES_AND_SPACE = (st.none() | st.permutations(STAGES).map(lambda names: names[:3])).flatmap(
    lambda stages: st.tuples(st.just(stages), asked_space(stages))
)
SPECS = st.builds(
    lambda stages_and_space, **rest: Spec(stages=stages_and_space[0], space=stages_and_space[1], **rest),
    stages_and_space=STAGES_AND_SPACE,
    task=st.builds(TaskSpec, ref=st.just("a.b:c"), args=st.dictionaries(TEXTS, ARGS, max_size=3)),
    horizon=st.integers(1, 10**9),
    budget=st.builds(Budget, steps=st.integers(1, 10**12), time=st.none() | st.floats(1e-3, 1e9)),
    seeds=st.integers(1, 99),
    base=recipes(),
    objective=st.builds(Objective, name=TEXTS, direction=st.sampled_from(["minimize", "maximize"])),
    device=st.sampled_from(["auto", "cpu", "cuda:1"]),
    engine=st.sampled_from(["auto", "sequential"]),
    storage=st.none() | TEXTS,
    seed=st.integers(0, 10**15),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=SPECS)
def test_a_spec_written_as_yaml_is_read_back_equal_with_nothing_left_to_fill_in(
    load: Callable[..., Spec], spec: Spec
) -> None:
    assert load(spec.to_yaml()) == spec
    plain = yaml.safe_load(spec.to_yaml())
    assert set(plain) == set(Spec.model_fields)
    assert resolve_spec(plain, "spec", Path("nowhere")) == spec


def test_a_resolved_spec_can_be_run_again(load: Callable[..., Spec], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("lr: 0.5\nprovenance: {run: x}\n")
    (tmp_path / "my_task.py").touch()
    text = "task: {ref: 'my_task.py:task'}\nhorizon: 7\nbase: mine.yaml\nstages: [lr]\nspace: {lr: {high: 1}}\n"
    spec = load(text)
    assert load(spec.to_yaml()) == spec


@pytest.mark.parametrize("more", ["", "engine: workers\n", "engine: ray\nstorage: sqlite:///x.db\n"])
def test_nobody_to_train_is_told_at_once(load: Callable[..., Spec], more: str) -> None:
    with pytest.raises(SpecError, match="workers: 0 leaves training to workers elsewhere"):
        load(LEAST + "workers: 0\n" + more)
    assert load(LEAST + "workers: 0\nengine: workers\nstorage: sqlite:///x.db\n").workers == 0
    assert load(LEAST + "workers: auto\n" + more).workers is None


@pytest.mark.parametrize("path", sorted((REPO / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_spec_loads(path: Path) -> None:
    spec = adamtune.load_spec(path)
    assert spec.base == Recipe.default().with_knob("precision", spec.base.precision)
    assert path.read_text().startswith(f"# adamtune sweep configs/{path.name}\n")


@pytest.mark.parametrize(
    ("text", "path", "what"),
    [
        ("", "", "empty"),
        ("[1, 2]", "", "a mapping"),
        ("horizon: 1\ntask: [", "line 2, column 8", "not valid YAML"),
        ("horizon: 1\n\ttask: 2", "line 2, column 1", "not valid YAML"),
        (LEAST + "horizon: 2", "line 3, column 1", "'horizon' stands twice"),
        ("horizon: 1", "$.task", "required"),
        ("task: {ref: 'a.b:c'}", "$.horizon", "required"),
        ("task: a.b:c\nhorizon: 1", "$.task", "a mapping"),
        ("task: {args: {}}\nhorizon: 1", "$.task.ref", "required"),
        ("task: {ref: 3}\nhorizon: 1", "$.task.ref", "a text"),
        ("task: {ref: abc}\nhorizon: 1", "$.task.ref", "write package.module:function"),
        ("task: {ref: 'a/b:c'}\nhorizon: 1", "$.task.ref", "neither a module name nor a path"),
        ("task: {ref: 'gone.py:c'}\nhorizon: 1", "$.task.ref", "no file"),
        ("task: {ref: 'a.b:c', args: 3}\nhorizon: 1", "$.task.args", "a mapping"),
        ("task: {ref: 'a.b:c', arg: 3}\nhorizon: 1", "$.task.arg", "did you mean 'args'?"),
        ("task: {ref: 'a.b:c'}\nhorizon: 0", "$.horizon", "at least 1"),
        (f"task: {{ref: 'a.b:c'}}\nhorizon: 1{'0' * 400}", "$.horizon", "at most"),
        ("task: {ref: 'a.b:c'}\nhorizon: '300'", "$.horizon", "a whole number"),
        ("task: {ref: 'a.b:c'}\nhorizon: 1.5", "$.horizon", "a whole number"),
        ("task: {ref: 'a.b:c'}\nhorizon: yes", "$.horizon", "a whole number"),
        (LEAST + "budget: 40000", "$.budget", "a mapping"),
        (LEAST + "budget: {}", "$.budget", "needs steps, trials or time"),
        (LEAST + "budget: {step: 10}", "$.budget.step", "did you mean 'steps'?"),
        (LEAST + "budget: {steps: 0}", "$.budget.steps", "above 0"),
        (LEAST + "budget: {trials: -1}", "$.budget.trials", "above 0"),
        (LEAST + "budget: {time: 30 minutes}", "$.budget.time", "30m or 2h, not '30 minutes'"),
        (LEAST + "budget: {time: 0s}", "$.budget.time", "above 0"),
        (LEAST + "budget: {time: -5}", "$.budget.time", "above 0"),
        (LEAST + "budget: {time: .nan}", "$.budget.time", "finite"),
        (LEAST + f"budget: {{time: {'9' * 400}h}}", "$.budget.time", "finite"),
        (LEAST + "budget: {time: true}", "$.budget.time", "a number"),
        (LEAST + "seeds: 0", "$.seeds", "at least 1"),
        (LEAST + "seed: -1", "$.seed", "at least 0"),
        (LEAST + "base: gone.yaml", "$.base (gone.yaml)", "no such file"),
        (LEAST + "base: [1]", "$.base", "a mapping"),
        (LEAST + "base: {lr: -1e-3}", "$.base.lr", "above 0"),
        (LEAST + "base: {betas: [0.9, 1.5]}", "$.base.betas[1]", "below 1"),
        (LEAST + "base: {weight_decy: 0}", "$.base.weight_decy", "did you mean 'weight_decay'?"),
        (LEAST + "stages: []", "$.stages", "empty list"),
        (LEAST + "stages: lr", "$.stages", "must be auto or a list"),
        (LEAST + "stages: [lr, eps, lr]", "$.stages", "names a stage twice"),
        (LEAST + "stages: [lr, bata2]", "$.stages[1]", "did you mean 'beta2'?"),
        (LEAST + "stages: [lr, 3]", "$.stages[1]", "known are"),
        (LEAST + "space: {lr: 0.1}", "$.space.lr", "a mapping"),
        (LEAST + "space: {lrr: {low: 1}}", "$.space.lrr", "did you mean 'lr'?"),
        (LEAST + "space: {lr: {lo: 1}}", "$.space.lr.lo", "did you mean 'low'?"),
        (LEAST + "space: {lr: {low: 1, high: 0.1}}", "$.space.lr", "low (1) >= high (0.1)"),
        (LEAST + "space: {lr: {low: 1, high: 1}}", "$.space.lr", "nothing to search; to fix lr, write it"),
        (LEAST + "stages: [lr, eps]\nspace: {eps: {low: 1e-9}, beta2: {low: 0.9}}", "$.space", "bounds for beta2,"),
        (LEAST + "stages: [lr]\nspace: {clip_norm: {high: 5}}", "$.space", "list clip too, or leave the bounds out"),
        (LEAST + "space: {lr: {low: 99}}", "$.space.lr", "low (99) >= high (10)"),
        (LEAST + "space: {lr: {low: -1}}", "$.space.lr", "low must be above 0"),
        (LEAST + "space: {eps: {low: 0}}", "$.space.eps", "log scale"),
        (LEAST + "space: {beta1: {low: -0.5}}", "$.space.beta1", "low must be at least 0"),
        (LEAST + "space: {beta2: {high: 1}}", "$.space.beta2", "high must be below 1"),
        (LEAST + "space: {warmup: {high: 1}}", "$.space.warmup", "high must be below 1"),
        (LEAST + "space: {lr: {high: .inf}}", "$.space.lr.high", "finite"),
        (LEAST + "space: {lr: {high: '1'}}", "$.space.lr.high", "a number"),
        (LEAST + "objective: accuracy", "$.objective", "as in objective: {name: accuracy, direction: maximize}"),
        (LEAST + "budget: 40", "$.budget", "write it as in budget: {trials: 100}"),
        (LEAST + "space: {lr: [1e-5, 0.1]}", "$.space.lr", "write it as in space: {lr: {low: 1.0e-05, high: 0.1}}"),
        ("horizon: 1\ntask: my.py:task", "$.task", "as in task: {ref: 'my_task.py:task', args: {hidden: 64}}"),
        ("task: {ref: a.b:c}", "$.horizon", "required, but not there; write it as in horizon: 300"),
        (LEAST + "objective: {direction: up}", "$.objective.direction", "known are: maximize, minimize"),
        (LEAST + "objective: {direction: max}", "$.objective.direction", "must be one of"),
        (LEAST + "engine: sequental", "$.engine", "did you mean 'sequential'?"),
        (LEAST + "storage: 3", "$.storage", "a text"),
        (LEAST + "device: 0", "$.device", "a text"),
        (LEAST + "sed: 1", "$.sed", "did you mean 'seed'?"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_path_and_the_reason(
    problems: Callable[[str], dict[str, str]], text: str, path: str, what: str
) -> None:
    told = problems(text)
    assert list(told) == [path]
    assert what in told[path]


def test_all_problems_are_told_at_once(problems: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("lr: 0\neps: -1\n")
    told = problems(
        "task: {ref: 'gone.py:c', arg: 1}\nbudget: {steps: 0, time: soon}\nbase: bad.yaml\nstages: [lrr]\n"
        "space: {lr: {low: 1, high: 0.1}, beta2: {high: 1}}\nhorizn: 1\n"
    )
    base = f"$.base ({tmp_path / 'bad.yaml'})"
    rest = ["$.task.arg", "$.budget.steps", "$.budget.time", "$.stages[0]", "$.space.lr", "$.space.beta2", "$.horizn"]
    assert set(told) == {"$.task.ref", base, "$.horizon", *rest}
    assert "$.eps: must be at least 0" in told[base]


def test_a_missing_spec_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"mine\.yaml: no such file"):
        load_spec(tmp_path / "mine.yaml")
    with pytest.raises(SpecError, match="a folder, where a YAML file is expected"):
        load_spec(tmp_path)


def test_files_a_spec_names_are_looked_for_beside_it_and_then_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "specs", tmp_path / "here"
    for folder, lr in ((beside, 0.25), (here, 0.5)):
        folder.mkdir()
        (folder / "both.py").touch()
        (folder / "both.yaml").write_text(f"lr: {lr}\n")
    (here / "only.py").touch()
    (here / "only.yaml").write_text("lr: 0.125\n")
    monkeypatch.chdir(here)
    path = Path("../specs/spec.yaml")

    def loaded(name: str) -> tuple[str, float]:
        path.write_text(f"task: {{ref: '{name}.py:f'}}\nhorizon: 1\nbase: {name}.yaml\n")
        spec = load_spec(path)
        return spec.task.ref, spec.base.lr

    assert loaded("both") == (f"{beside / 'both.py'}:f", 0.25)
    assert loaded("only") == (f"{here / 'only.py'}:f", 0.125)
    assert loaded(str(here / "both")) == (f"{here / 'both.py'}:f", 0.5)


@pytest.mark.parametrize("long", [300, 5000])
def test_a_name_too_long_for_a_file_is_a_spec_error(problems: Callable[[str], dict[str, str]], long: int) -> None:
    assert "no file" in problems(f"task: {{ref: '{'a' * long}.py:f'}}\nhorizon: 1")["$.task.ref"]
    assert problems(f"{LEAST}base: {'a' * long}")


@pytest.mark.parametrize(
    "value", [".inf", ".nan", "2020-01-01", "{1: 2}", "!!binary aGk=", "!!binary /w==", "!!set {a}"]
)
def test_a_task_arg_is_kept_by_spec_yaml_or_refused(load: Callable[..., Spec], value: str) -> None:
    try:
        spec = load(f"task: {{ref: 'a.b:c', args: {{x: {value}}}}}\nhorizon: 1\n")
    except SpecError as error:
        assert all(problem.where.startswith("$.task.args.x") for problem in error.problems)  # noqa: PT017
    else:
        assert repr(load(spec.to_yaml()).task.args) == repr(spec.task.args)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40) | st.text("{}[]:,-&*!#|>'\"?@% \n\tabc019.e", max_size=40) | st.binary(max_size=20))
@example("a: &a [*a]")
@example("? [1, 2]\n: 3")
@example("horizon: !!python/object/apply:os.getpid []")
def test_any_text_is_a_spec_or_a_spec_error(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    with pytest.raises(SpecError) as caught:  # none of these has a task and a horizon
        load_spec(path)
    assert caught.value.problems


WHOLE: dict[str, Any] = {
    "task": {"ref": "a.b:c", "args": {"hidden": 4}},
    "horizon": 300,
    "budget": {"steps": 100, "trials": 5, "time": "30m"},
    "seeds": 3,
    "base": {"lr": 0.1, "betas": [0.9, 0.99], "groups": [{"name": "g", "match": {"kind": ["bias"]}}]},
    "stages": ["lr_range", "lr"],
    "space": {"lr": {"low": 1e-5, "high": 0.3}, "warmup": {"low": 0.0}},
    "objective": {"name": "loss", "direction": "minimize"},
    "device": "cpu",
    "engine": "auto",
    "storage": "sqlite:///x.db",
    "seed": 0,
}
ODD = st.recursive(
    st.sampled_from([None, True, 0, 1, -1, 0.5, 10**400, -(10**400), 1e308, float("nan"), float("inf"), "", "auto"])
    | st.sampled_from(["a.py:b", "a:b", ".", "/", "lr", "beta2", "30m", "1e-3"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*KNOBS, *WHOLE, "low", "ref", "args"]) | st.integers() | st.none(), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every container below `data` with each of its keys."""
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [place for key in keys for place in [(data, key), *places(data[key])]]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_spec_changed_at_random_is_a_spec_or_a_spec_error(tmp_path: Path, data: st.DataObject) -> None:
    mutated = copy.deepcopy(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(mutated)))
        if data.draw(st.booleans()) or isinstance(container, list):
            container[key] = data.draw(ODD)
        else:
            container[data.draw(st.sampled_from([*WHOLE, "lo", "steps", "é"]))] = container.pop(key)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(mutated))
    try:
        spec = load_spec(path)
    except SpecError as error:
        assert error.problems  # noqa: PT017 - either end is fine
    else:
        assert spec.horizon >= 1


def test_a_spec_that_names_a_metric_says_its_direction(tmp_path: Path) -> None:
    """An accuracy that is minimized by default would be tuned for the worst."""
    path = tmp_path / "mine.yaml"
    path.write_text("task: {ref: m:f}\nhorizon: 10\nobjective: {name: accuracy}\n")
    with pytest.raises(
        SpecError, match=r"mine\.yaml: \$\.objective.*accuracy without a direction; add direction: minimize"
    ):
        load_spec(path)
    path.write_text(path.read_text().replace("accuracy}", "accuracy, direction: maximize}"))
    assert load_spec(path).objective.direction == "maximize"
