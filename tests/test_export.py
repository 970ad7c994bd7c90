from __future__ import annotations

import ast
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adamtune.cli.export import export as export_command
from adamtune.errors import AdamtuneError, ExportError, RecipeError, RunDirError
from adamtune.export import FORMATS, Context, companion_path, export_recipe, recipe_of, write_export
from adamtune.recipe import GroupRule, Match, Precision, Recipe, Schedule, Switch, WarmupSteps
from adamtune.task import Task
from adamtune.trial import Trial, TrialRequest
from recipes import recipes

NASTY = [
    '"""',
    "'''",
    '"" "',
    "\\",
    '\\"""',
    "\n",
    "\r\n    raise SystemExit",
    "\u2028import os",
    "\x00",
    '"""\nimport os\nos.abort()\n"""',
    "{recipe}",
    "{0}",
    "%s",
    "\\N{BELL}",
    "\\u0041",
    "#",
    "é…",
    "\ud800",
]


class RMSNorm(nn.Module):
    """A norm layer of a stranger's own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.pow(2).mean(-1, keepdim=True).sqrt() * self.gain


class Net(nn.Module):
    """Parameters of every kind: embedding, norms of torch and of one's own, biases, a frozen one, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norm = nn.LayerNorm(4)
        self.own = RMSNorm(4)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = self.own(torch.relu(layer(self.norm(h)))) + h * self.frozen
        return self.head(h)


def imported(recipe: Recipe) -> ModuleType:
    """The exported module, as `import` would give it."""
    module = ModuleType("optim_recipe")
    exec(compile(export_recipe(recipe, "python").text, "optim_recipe.py", "exec"), module.__dict__)
    return module


def trained(build: Any, total: int) -> tuple[list[dict[str, Any]], list[list[float]], list[Tensor]]:
    """The groups without their tensors, every group's lr at every step, and the weights after 15 steps."""
    torch.manual_seed(0)
    model = Net()
    optimizer, scheduler = build(model, total_steps=total)
    names = [[name for name, param in model.named_parameters() if any(param is p for p in group["params"])]
             for group in optimizer.param_groups]  # fmt: skip
    groups = [{**group, "params": own} for group, own in zip(optimizer.param_groups, names, strict=True)]
    groups = [dict(group) for group in groups]
    x, y = torch.randint(7, (8, 5)), torch.randint(3, (8, 5))
    lrs = []
    for _ in range(15):
        lrs.append([group["lr"] for group in optimizer.param_groups])
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return [{"class": type(optimizer).__name__}, *groups], lrs, list(model.state_dict().values())


HEAD = GroupRule(name="head", match=Match(params=("head.*",)), lr_mult=0.3, weight_decay=0.1)
SWITCHED = Recipe(lr=1e-2, groups=(HEAD,), switch=Switch(at=0.3, lr=0.1, momentum=0.8))
PATTERNS = ("head.*", "*.weight", "layers.[01].*", "own.gain")


TRAINABLE = recipes(params=PATTERNS, max_lr=0.1, max_mult=3.0, min_eps=1e-8)


@settings(max_examples=40, deadline=None)
@given(TRAINABLE, st.sampled_from([1, 12, 15, 400]))
@example(Recipe.default(), 15)
@example(SWITCHED, 15)
@example(SWITCHED, 1)
def test_an_exported_module_trains_bit_for_bit_as_the_recipe(recipe: Recipe, total: int) -> None:
    assert_trains_alike(recipe, total)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(TRAINABLE, st.sampled_from([1, 12, 15, 400]))
def test_a_thousand_exported_modules_train_bit_for_bit_as_the_recipe(recipe: Recipe, total: int) -> None:
    assert_trains_alike(recipe, total)


def assert_trains_alike(recipe: Recipe, total: int) -> None:
    module = imported(recipe)
    try:
        ours = trained(recipe.build, total)
    except RecipeError:  # a rule whose patterns match nothing, or nothing that is left
        with pytest.raises(ValueError, match=r"match (no parameter of the model|only what groups before it take)"):
            trained(module.build_optimizer, total)
        return
    theirs = trained(module.build_optimizer, total)
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1]
    torch.testing.assert_close(theirs[2], ours[2], rtol=0, atol=0, equal_nan=True)
    assert (
        recipe.clip_norm,
        recipe.precision,
        recipe.accumulate,
    ) == (module.CLIP_NORM, module.PRECISION, module.ACCUMULATE)


def test_groups_by_kind_are_told_as_adamtune_tells_them() -> None:
    rules = tuple(GroupRule(name=kind, match=Match(kind=(kind,))) for kind in ("bias", "norm", "embedding", "head"))
    (_, *groups), _, _ = trained(imported(Recipe(groups=rules)).build_optimizer, 15)
    assert {group["name"]: group["params"] for group in groups} == {
        "bias": ["layers.0.bias", "layers.1.bias", "head.bias"],
        "norm": ["norm.weight", "norm.bias", "own.gain"],
        "embedding": ["embed.weight"],
        "head": ["head.weight"],
        "default": ["layers.0.weight", "layers.1.weight"],
    }


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(kind="constant", warmup=0.0),
        Schedule(kind="linear", warmup=WarmupSteps(steps=3), floor=0.1),
        Schedule(kind="linear", warmup=WarmupSteps(steps=99)),
        Schedule(kind="cosine", warmup=0.2),
        Schedule(kind="step", warmup=0.1, milestones=(0.3, 0.6), gamma=0.5, floor=0.3),
    ],
    ids=lambda schedule: schedule.kind,
)
def test_the_exported_schedule_goes_on_past_the_horizon_as_ours(schedule: Schedule) -> None:
    recipe = Recipe(schedule=schedule)
    for total in (1, 10, 15):
        assert trained(imported(recipe).build_optimizer, total)[1] == trained(recipe.build, total)[1]


STDLIB = sys.stdlib_module_names


@settings(max_examples=30, deadline=None)
@given(recipes())
def test_an_exported_module_imports_torch_and_the_standard_library_only(recipe: Recipe) -> None:
    tree = ast.parse(export_recipe(recipe, "python").text)
    roots = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    roots |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots <= {"torch", *STDLIB}
    assert "torch" in roots


@settings(max_examples=30, deadline=None)
@given(recipes())
def test_an_exported_module_uses_all_it_imports_and_all_it_defines(recipe: Recipe) -> None:
    tree = ast.parse(export_recipe(recipe, "python").text)
    bound = {alias.asname or alias.name for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
             for alias in node.names}  # fmt: skip
    bound |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert bound - used <= {"annotations", "build_optimizer"}


@settings(max_examples=15, deadline=None)
@given(
    recipes(params=("head.*", "*.weight", "norm.*", "module.head.*")),
    st.sampled_from(["compiled", "parallel", "checkpointed"]),
)
@example(Recipe(groups=(HEAD,)), "parallel")
@example(Recipe(groups=(GroupRule(name="head", match=Match(params=("module.head.*",)), lr_mult=0.3),)), "parallel")
def test_an_exported_module_groups_a_wrapped_model_as_the_recipe(recipe: Recipe, wrapper: str) -> None:
    wrap = {"compiled": compiled, "parallel": nn.DataParallel, "checkpointed": checkpointed}[wrapper]
    build = imported(recipe).build_optimizer
    try:
        ours, _ = recipe.build(wrap(Net()), total_steps=5)
    except RecipeError:
        with pytest.raises(ValueError, match=r"match (no parameter of the model|only what groups before it take)"):
            build(wrap(Net()), 5)
        return
    theirs, _ = build(wrap(Net()), 5)
    names = [(group["name"], group["param_names"]) for group in ours.param_groups]
    assert [(group["name"], group["param_names"]) for group in theirs.param_groups] == names


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def checkpointed(model: nn.Module) -> nn.Module:
    """With what torch's activation checkpointing puts into the names below a layer that it wraps."""
    for name, layer in list(model.named_children()):
        model.add_module(name, nn.ModuleDict({"_checkpoint_wrapped_module": layer}))
    return model


@pytest.mark.parametrize("recipe", [Recipe(), Recipe.default()])
def test_an_exported_module_refuses_a_lazy_layer_that_has_seen_no_batch(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"the lazy parameter 0\.weight has no shape yet"):
        imported(recipe).build_optimizer(nn.Sequential(nn.LazyLinear(3)), 5)


class Tables(nn.Module):
    """Two tables, of which one or both have sparse gradients, and maybe a layer behind them."""

    def __init__(self, rows: bool, head: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4, sparse=True)
        self.rows = nn.EmbeddingBag(9, 4, mode="sum", sparse=rows)
        self.head = nn.Linear(4, 2) if head else nn.Identity()

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.table(codes).sum(1) + self.rows(codes))


def trained_on_rows(build: Any, rows: bool, head: bool) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The groups, with the class of the optimizer, and the weights after six steps."""
    torch.manual_seed(0)
    model = Tables(rows, head)
    optimizer, scheduler = build(model, total_steps=8)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randint(9, (3, 2))).square().sum().backward()
        optimizer.step()
        scheduler.step()
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return [{"class": type(optimizer).__name__}, *groups], model.state_dict()


ROWS = recipes(params=("head.*", "*.weight", "table.*", "rows.*"), max_lr=0.1, min_eps=1e-8)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.booleans(), st.booleans())
@example(recipe_of(Path("sparse-embeddings")), False, True)
@example(recipe_of(Path("sparse-embeddings")), True, False)
@example(Recipe(optimizer="sgd", weight_decay=0.1), False, True)
@example(Recipe(groups=(GroupRule(name="rows", match=Match(kind=("embedding",)), weight_decay=0.1),)), True, True)
def test_an_exported_module_trains_tables_with_sparse_gradients_as_the_recipe(
    recipe: Recipe, rows: bool, head: bool
) -> None:
    build = imported(recipe).build_optimizer
    try:
        ours = trained_on_rows(recipe.build, rows, head)
    except RecipeError:  # what torch cannot do with them, or a rule whose patterns match nothing that is left
        with pytest.raises(ValueError, match=r"sparse|match (no parameter of the model|only what groups before it)"):
            trained_on_rows(build, rows, head)
        return
    theirs = trained_on_rows(build, rows, head)
    assert ours[0] == theirs[0]
    torch.testing.assert_close(theirs[1], ours[1], rtol=0, atol=0, equal_nan=True)


def test_an_exported_module_says_what_sparse_gradients_do_not_allow() -> None:
    for recipe, told in (
        (Recipe(clip_norm=1.0), r"torch cannot clip sparse gradients.*; build the tables with sparse=False"),
        (Recipe(switch=Switch(at=0.5, lr=0.1)), "SGD cannot take over from SparseAdam"),
    ):
        with pytest.raises(ValueError, match=told):
            imported(recipe).build_optimizer(Tables(True, True), 5)


def test_an_exported_module_runs_where_adamtune_is_not_installed(tmp_path: Path) -> None:
    write_export(tmp_path / "optim_recipe.py", export_recipe(Recipe.default(), "python").text, force=False)
    code = (
        "import sys\nsys.modules['adamtune'] = None\nimport torch, optim_recipe\n"
        "optimizer, scheduler = optim_recipe.build_optimizer(torch.nn.Linear(2, 2), total_steps=20)\n"
        "print([group['name'] for group in optimizer.param_groups], optimizer.param_groups[0]['initial_lr'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout) == ("", "['no_decay', 'default'] 0.001\n")


def test_a_hand_over_goes_with_the_module_alone(tmp_path: Path) -> None:
    write_export(tmp_path / "optim_recipe.py", export_recipe(SWITCHED, "python").text, force=False)
    code = (
        "import sys\nsys.modules['adamtune'] = None\nimport torch, optim_recipe\n"
        "model = torch.nn.Sequential()\nmodel.head = torch.nn.Linear(2, 2)\n"
        "optimizer, scheduler = optim_recipe.build_optimizer(model, total_steps=10)\n"
        "for _ in range(4):\n"
        "    optimizer.zero_grad()\n    model(torch.ones(1, 2)).sum().backward()\n"
        "    optimizer.step()\n    scheduler.step()\n"
        "    print(sorted(optimizer.state[model.head.weight]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout.splitlines()) == (
        "",
        ["['exp_avg', 'exp_avg_sq', 'step']"] * 3 + ["['momentum_buffer']"],
    )
    for name in ("AdamThenSGD", "HandoverLR"):
        assert name not in export_recipe(SWITCHED.with_knob("switch", None), "python").text


def statements(source: str) -> list[str]:
    """The module's code without its docstrings."""
    tree = ast.parse(source)
    return [ast.dump(node) for node in tree.body[1:]]


def told(**about: Any) -> Recipe:
    return Recipe.default().model_copy(update={"provenance": about})


TEXTS = st.sampled_from(NASTY) | st.text(max_size=20) | st.lists(st.sampled_from(NASTY), max_size=4).map("".join)


@settings(max_examples=80, deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS | st.floats(), TEXTS | st.integers())
def test_no_text_in_the_provenance_gets_out_of_the_docstring(
    task: str, objective: str, run: str, default: object, recommended: object
) -> None:
    about = {"task": task, "objective": objective, "run": run, "default": default, "recommended": recommended}
    source = export_recipe(told(**about, horizon=run), "python").text
    assert statements(source) == statements(export_recipe(Recipe.default(), "python").text)
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring is not None
    assert "Measured by adamtune" in docstring
    assert docstring.startswith("Optimizer recipe, written by adamtune.")
    source.encode()


def test_the_module_says_what_was_measured() -> None:
    about = {"task": "my.tasks:mlp", "horizon": 300, "objective": "loss", "default": 0.2832, "recommended": 0.0928}
    docstring = ast.get_docstring(ast.parse(export_recipe(told(**about), "python").text))
    assert docstring is not None
    assert "on my.tasks:mlp, 300 steps: loss 0.2832 with the default recipe,\n0.0928 with this one" in docstring
    assert "Measured" not in export_recipe(Recipe.default(), "python").text


def shown_loop(module: ModuleType) -> str:
    """The training loop in the module's docstring."""
    (loop,) = re.findall(r"(?:^    .*\n)+", module.__doc__ or "", re.MULTILINE)
    return textwrap.dedent(loop)


def rows(generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """The same 18 batches for every caller."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(18):
        x = torch.randn(8, 6, generator=generator)
        yield x, 20 * x[:, :1]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).float().square().mean()


def ours(recipe: Recipe, total: int) -> list[Tensor]:
    """The weights as adamtune itself trains them."""
    models = []

    def make() -> nn.Module:
        models.append(small_model())
        return models[-1]

    task = Task("rows", make, rows, loss=squared, val_batches=lambda: [])
    trial = Trial.begin(task, TrialRequest(recipe, seed=0, horizon=total), torch.device("cpu"))
    trial.advance(total, evaluate=False)
    assert trial.step == total
    return [param.detach() for param in models[-1].parameters()]


def theirs(recipe: Recipe, total: int) -> list[Tensor]:
    """The weights after the loop in the exported module's docstring."""
    module = imported(recipe)
    model = small_model()
    names = {"model": model, "loss": squared, "batches": rows(), "total_steps": total}
    exec(compile(shown_loop(module), "loop", "exec"), vars(module) | names)
    return [param.detach() for param in model.parameters()]


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_loop_the_module_shows_trains_as_adamtune_does(
    precision: Precision, accumulate: int, clip_norm: float | None
) -> None:
    """In fp16 the gradients of the first steps overflow: they are skipped, and the schedule waits for the next."""
    recipe = Recipe(lr=1e-2, precision=precision, accumulate=accumulate, clip_norm=clip_norm)
    steps = 18 // accumulate
    found = theirs(recipe, steps)
    torch.testing.assert_close(found, ours(recipe, steps), rtol=0, atol=0)
    assert not torch.equal(found[0], next(small_model().parameters()))


def test_the_loop_the_module_shows_has_only_what_the_recipe_needs() -> None:
    assert shown_loop(imported(Recipe())).splitlines() == [
        "optimizer, scheduler = build_optimizer(model, total_steps)",
        "for batch in batches:",
        "    loss(model, batch).backward()",
        "    optimizer.step()",
        "    scheduler.step()",
        "    optimizer.zero_grad()",
    ]
    clipped = Recipe(clip_norm=1.0, precision="fp16", accumulate=3)
    for part in ("clip_grad_norm_", "autocast", "scale", "ACCUMULATE"):
        assert part in shown_loop(imported(clipped))
        assert part not in shown_loop(imported(Recipe()))


@pytest.mark.parametrize("format", ["python", "deepspeed"])
@pytest.mark.parametrize("recipe", [Recipe.default(), Recipe(optimizer="sgd"), Recipe(clip_norm=1.0), SWITCHED])
def test_what_only_sparse_tables_need_stands_at_the_end_under_a_comment(recipe: Recipe, format: str) -> None:
    exported = export_recipe(recipe, format, Context(total_steps=10))
    source = exported.companion or exported.text
    body, _, end = source.partition("\n# From here on: only for models with nn.Embedding(sparse=True)")
    defined = [node.name for node in ast.parse(body).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    at_end = [node.name for node in ast.parse("#" + end).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    needed = ["sparse_tables", "tables_apart", "with_sparse_adam", "AdamBesideSparseAdam"]
    assert at_end == [name for name in needed if name in source]
    assert {"build_optimizer", "lr_multiplier"} <= set(defined)
    assert not set(defined) & set(needed)


@pytest.mark.parametrize("name", ["True_", "import_me", "a-b"])
def test_group_names_and_patterns_are_data(name: str) -> None:
    pattern = "'] + exit() + ['\\\"\n*"
    rules = (GroupRule(name=name, match=Match(params=(pattern, "*weight"))),)
    (_, *groups), _, _ = trained(imported(Recipe(groups=rules)).build_optimizer, 15)
    assert [group["name"] for group in groups] == [name, "default"]


@settings(max_examples=30, deadline=None)
@given(recipes())
def test_exported_yaml_is_the_recipe(recipe: Recipe) -> None:
    assert Recipe.from_yaml(export_recipe(recipe, "yaml").text) == recipe


def test_formats_are_named_where_one_is_not_known() -> None:
    assert {"python", "yaml"} <= set(FORMATS)
    with pytest.raises(ExportError, match="no export format 'yml'; did you mean 'yaml'"):
        export_recipe(Recipe(), "yml")
    with pytest.raises(ExportError, match="no export format 'pytorch'; did you mean 'python'"):
        export_recipe(Recipe(), "pytorch")
    with pytest.raises(ExportError, match=f"known are: {', '.join(sorted(FORMATS))}"):
        export_recipe(Recipe(), "")


def test_a_recipe_is_taken_from_a_run_directory_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 0.5\n")
    assert recipe_of(tmp_path) == recipe_of(path) == Recipe(lr=0.5)
    with pytest.raises(RecipeError, match=r"gone\.yaml: no such file"):
        recipe_of(tmp_path / "gone.yaml")
    (tmp_path / "run").mkdir()
    with pytest.raises(RunDirError, match="is no run directory"):
        recipe_of(tmp_path / "run")
    (tmp_path / "run" / "spec.yaml").touch()
    (tmp_path / "run" / "log.txt").touch()
    with pytest.raises(RunDirError, match="has not finished"):
        recipe_of(tmp_path / "run")


def test_nothing_that_is_there_is_overwritten_unless_asked(tmp_path: Path) -> None:
    target = tmp_path / "optim_recipe.py"
    write_export(target, "one", force=False)
    with pytest.raises(ExportError, match=r"optim_recipe\.py exists; name another file, or replace it with --force"):
        write_export(target, "two", force=False)
    assert target.read_text() == "one"
    write_export(target, "two", force=True)
    assert target.read_text() == "two"
    for force in (False, True):
        with pytest.raises(ExportError, match="is a folder; name the file"):
            write_export(tmp_path, "three", force)
        with pytest.raises(ExportError, match=r"there is no folder .*no to write x\.py in"):
            write_export(tmp_path / "no" / "x.py", "three", force)
    assert [entry.name for entry in tmp_path.iterdir()] == ["optim_recipe.py"]


def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for force in (False, True):
        with pytest.raises(ExportError, match=r"/dev/null is no plain file; .*leave --to out to print"):
            write_export(Path("/dev/null"), "text", force)
        for name in ("x" * 300, "a\0b"):
            with pytest.raises(ExportError, match="no file can have the name"):
                write_export(tmp_path / name, "text", force)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write anywhere
    with pytest.raises(ExportError, match="is read-only; name one to write"):
        write_export(tmp_path / "x.py", "text", False)
    assert not list(tmp_path.iterdir())


def test_a_link_is_written_through(tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to("real.py")
    for force in (False, True):
        write_export(link, str(force), force)
        assert link.is_symlink()
        assert (tmp_path / "real.py").read_text() == str(force)
    with pytest.raises(ExportError, match="exists"):
        write_export(link, "again", False)


def test_a_source_whose_name_is_too_long_is_refused() -> None:
    with pytest.raises(AdamtuneError):
        recipe_of(Path("x" * 300))


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("configs/train.yaml", "configs/train_optimizer.py"),
        ("train-7b.v2.yaml", "train_7b_v2_optimizer.py"),
        ("7b.json", "_7b_optimizer.py"),
        ("config", "config_optimizer.py"),
    ],
)
def test_a_companion_has_a_name_that_can_be_imported(target: str, name: str) -> None:
    assert companion_path(Path(target)) == Path(name)
    assert Path(name).stem.isidentifier()


def test_the_help_names_every_format() -> None:
    option = get_type_hints(export_command, include_extras=True)["format"].__metadata__[0]
    assert [name for name in FORMATS if not re.search(rf"\b{name}\b", option.help)] == []


def test_numbers_are_written_in_full() -> None:
    exact = Recipe(lr=0.1 + 0.2, betas=(1 / 3, math.nextafter(1.0, 0.0)), eps=5e-324)
    default = imported(exact).DEFAULT
    assert (default["lr"], default["betas"], default["eps"]) == (exact.lr, exact.betas, exact.eps)
