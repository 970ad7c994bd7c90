from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from adamtune import load_recipe
from adamtune.cli.app import run
from adamtune.comparison import compare
from adamtune.errors import RecipeError, SpecError
from adamtune.export import export_recipe, recipe_of
from adamtune.groups import param_groups
from adamtune.recipe import Recipe
from adamtune.shipped import recipe_path, shipped_names, shipped_path
from adamtune.spec import load_spec, resolve_spec

TOP = Path(__file__).parent.parent
NAMES = [
    *("default", "fine-tune", "from-scratch", "mixed-precision", "recurrent", "reinforcement-learning"),
    *("sparse-embeddings", "vision-sgd"),
]
TASK = {"ref": f"{TOP / 'tests' / 'tasks_for_tests.py'}:separable"}


class Everything(nn.Module):
    """A model with parameters of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(self.rnn(self.body(self.embed(x)))[0]))
        return out


def test_these_recipes_are_shipped_and_are_those_at_the_top() -> None:
    assert shipped_names() == NAMES
    assert [path.stem for path in sorted((TOP / "recipes").glob("*.yaml"))] == NAMES
    for name in NAMES:
        assert shipped_path(name).read_bytes() == (TOP / "recipes" / f"{name}.yaml").read_bytes()
        assert f"| `{name}` |" in (TOP / "recipes" / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_trains_a_model_of_any_kind(name: str) -> None:
    recipe = load_recipe(name)
    torch.manual_seed(0)
    for model in (Everything(), nn.Linear(3, 1)):
        optimizer, scheduler = recipe.build(model, total_steps=20)
        assert optimizer.param_groups
        optimizer.zero_grad()
        model(torch.tensor([[1, 2, 3]]) if isinstance(model, Everything) else torch.ones(2, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
        assert all(param.isfinite().all() for param in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_each_value_of_a_shipped_recipe_says_where_it_comes_from(name: str) -> None:
    recipe = load_recipe(name)
    about, source = recipe.provenance["about"], recipe.provenance["source"]
    assert isinstance(about, str)
    assert isinstance(source, dict)
    assert "\n" not in about
    assert len(about) < 110
    knobs = recipe.knobs()
    used = {"lr", "beta1", "beta2", "eps", "weight_decay", "schedule", "warmup"}
    plain = Recipe().knobs()
    used |= {knob for knob, value in knobs.items() if not knob.startswith("groups.") and value != plain[knob]}
    used |= {
        knob
        for knob, value in knobs.items()
        if knob.startswith("groups.") and value != (1.0 if "mult" in knob else None)
    }
    assert used - {"optimizer"} <= set(source) <= set(knobs)
    assert all(isinstance(text, str) and len(text) > 10 for text in source.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_survives_being_written(name: str) -> None:
    recipe = load_recipe(name)
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert yaml.safe_load(shipped_path(name).read_text())["lr"] == recipe.lr  # a float to a YAML 1.1 reader
    compile(export_recipe(recipe, "python").text, name, "exec")


def test_the_shipped_default_is_the_default() -> None:
    assert load_recipe("default").training_key() == Recipe.default().training_key()


def test_fine_tuning_spreads_lr_from_embeddings_to_head() -> None:
    made = {group.name: group for group in param_groups(load_recipe("fine-tune"), Everything())}
    lrs = {name: group.lr for name, group in made.items()}
    assert lrs["embedding"] < lrs["default"] < lrs["head"]
    assert made["no_decay"].weight_decay == 0.0 < made["default"].weight_decay
    assert {"norm.weight", "body.bias"} <= set(made["no_decay"].names)


# --- names


def test_a_name_is_taken_wherever_a_recipe_file_is(tmp_path: Path) -> None:
    path = shipped_path("recurrent")
    assert recipe_path("recurrent") == recipe_path(Path("recurrent")) == path
    assert recipe_of(Path("recurrent")) == load_recipe("recurrent") == load_recipe(path)
    spec = resolve_spec({"task": TASK, "horizon": 20, "base": "recurrent"}, "spec", tmp_path)
    assert spec.base == load_recipe("recurrent")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({"task": TASK, "horizon": 20, "base": "vision-sgd"}))
    assert load_spec(tmp_path / "spec.yaml").base == load_recipe("vision-sgd")
    knobs = compare(Path("default"), Path("from-scratch")).knobs
    assert knobs["lr"] == (0.001, 6e-4)
    assert compare(Path("default"), shipped_path("default")).knobs == {}


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recurrent").write_text("lr: 0.5\n")
    assert load_recipe("recurrent") == Recipe(lr=0.5)
    beside = tmp_path / "specs"
    beside.mkdir()
    (beside / "default").write_text("lr: 0.7\n")
    assert resolve_spec({"task": TASK, "horizon": 20, "base": "default"}, "spec", beside).base == Recipe(lr=0.7)
    (tmp_path / "default").mkdir()  # a folder is no recipe file
    assert load_recipe("default").lr == 0.001


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("fine-tun", "no such file, and no recipe of that name comes with adamtune; did you mean 'fine-tune'?"),
        ("zzz", f"known are: {', '.join(NAMES)}"),
        ("fine-tune.yaml", "fine-tune.yaml: no such file"),
        ("my/fine-tune", "my/fine-tune: no such file"),
        ("..", "a folder, where a YAML file is expected"),
        ("", "a folder, where a YAML file is expected"),
        ("x" * 5000, "cannot be read"),
        ("a\0b", r"'a\x00b': no such file"),
    ],
)
def test_what_is_neither_file_nor_name_is_refused_in_one_sentence(
    reference: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(reference)
    assert told in str(caught.value)


def test_a_spec_with_an_unknown_base_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"\$\.base \(recurent\): no such file, .*did you mean 'recurrent'"):
        resolve_spec({"task": TASK, "horizon": 20, "base": "recurent"}, "spec", tmp_path)


# --- commands


def test_recipes_lists_names_and_purposes(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(str(load_recipe(name).provenance["about"]) in line for name, line in zip(NAMES, lines, strict=True))
    assert run(["recipes", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert set(listed) == {"version", "recipes"}
    assert listed["version"] == 1
    assert [set(entry) for entry in listed["recipes"]] == [{"name", "about"}] * len(NAMES)
    assert [entry["name"] for entry in listed["recipes"]] == NAMES


def test_recipes_show_prints_the_file_with_its_comments(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", "fine-tune"]) == 0
    assert capfd.readouterr().out == (TOP / "recipes" / "fine-tune.yaml").read_text()
    assert run(["recipes", "show", "fine-tune", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == load_recipe("fine-tune").to_dict()


def test_export_and_compare_take_names(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "fine-tune", "--format", "yaml"]) == 0
    assert Recipe.from_yaml(capfd.readouterr().out) == load_recipe("fine-tune")
    assert run(["compare", "default", "vision-sgd", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["knobs"]["optimizer"] == {"a": "adamw", "b": "adam"}


def test_lr_find_takes_a_name(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "20", "--seeds", "1", "--no-refine", "--json", "--recipe", "recurrent"]
    assert run(["lr-find", TASK["ref"], *options]) in (0, 1)  # 1: no lr to trust, after so few steps
    assert json.loads(capfd.readouterr().out)["steps_used"] > 0


# --- an installed package


@pytest.mark.slow
def test_a_wheel_has_the_recipes(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "*.egg-info", ".hypothesis", "runs", "__pycache__", ".*cache"
    )
    shutil.copytree(TOP, tmp_path / "clone", symlinks=True, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*pip, str(tmp_path / "clone")], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
        assert not [name for name in packed.namelist() if name.startswith(("recipes/", "tests/"))]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "adamtune", "recipes"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == NAMES
    where = "import adamtune; print(adamtune.__file__)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert found.stdout.startswith(str(tmp_path / "site"))
