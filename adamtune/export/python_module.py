"""The recipe as a Python module that needs torch only."""

from __future__ import annotations

import inspect
import pprint
import textwrap
from collections.abc import Sequence
from typing import Any

from adamtune import groups, handover, sparse
from adamtune.export import told
from adamtune.export.format import Context, Format, Settings
from adamtune.export.loop import training_loop
from adamtune.recipe import GroupRule, Recipe, Schedule, Switch, WarmupSteps


def python_module(
    recipe: Recipe,
    *,
    title: str = "Optimizer recipe, written by adamtune. Needs torch only.",
    use: str | None = None,
    imports: Sequence[str] = (),
    more: str = "",
) -> str:
    """Source of a module with `build_optimizer(model, total_steps)`, which builds what `Recipe.build` builds.

    A companion of another format is this module with a `title` of its own, what it needs beside torch (`imports`, one
    line each), what it adds (`more`, source) and how that is used (`use`, for the docstring in place of the training
    loop).
    """
    by_kind = any(rule.match.kind for rule in recipe.groups)
    by_name = any(rule.match.params for rule in recipe.groups)
    parts = [
        _header(recipe, title, use or textwrap.indent(training_loop(recipe), "    ")),
        "\n".join([_imports(recipe, by_kind), *imports]),
        _constants(recipe),
        _build(recipe),
        _multiplier(recipe.schedule),
    ]
    if recipe.switch:
        parts += [_source(handover.AdamThenSGD), _source(handover.HandoverLR)]
    if recipe.groups:
        parts.append(_matching(by_kind, by_name))
    if by_name:
        parts += [_source(part) for part in (groups.own_pattern, groups.own_name, groups.unwrapped)]
    if by_kind:
        parts += [
            _CLASSES_BY_KIND,
            *(
                _source(part)
                for part in (groups.trainable, groups.kinds, groups._acts_as_norm, groups._divides_out_scale)
            ),
        ]
    if more:
        parts.append(more)
    parts += _for_sparse_tables(recipe)
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def _header(recipe: Recipe, title: str, use: str) -> str:
    about = recipe.provenance
    measured = ""
    if about.get("default") is not None and about.get("recommended") is not None:
        measured = (
            f"\n\nMeasured by adamtune on {_plain(about.get('task'))}, {_plain(about.get('horizon'))} steps: "
            f"{_plain(about.get('objective'))} {_plain(about['default'])} with the default recipe,\n"
            f"{_plain(about['recommended'])} with this one (means over fresh seeds)."
        )
    switch = (
        f" After {recipe.switch.at:g} of them the optimizer goes over to SGD by itself.\n" if recipe.switch else " "
    )
    notes = f"total_steps counts optimizer steps.{switch}{told.decay_convention(recipe)}".rstrip()
    return f'''"""{title}{measured}

{use}

{notes}
"""'''


def _plain(value: Any) -> str:
    """Text from a recipe file that is safe inside a docstring."""
    return "".join(c for c in str(value) if c.isprintable() and c not in "\\\"'")


def _imports(recipe: Recipe, by_kind: bool) -> str:
    lines = ["from __future__ import annotations", ""]
    if by_kind:
        lines.append("import copy")
    if recipe.schedule.kind == "cosine" or recipe.switch:
        lines.append("import math")
    stepping = recipe.switch is not None or _has_sparse_adam(recipe)  # with an optimizer's step of its own
    abstract = ["Callable"] * stepping + ["Iterator"] * by_kind
    if abstract:
        lines.append(f"from collections.abc import {', '.join(abstract)}")
    if recipe.groups:
        lines.append("from fnmatch import fnmatchcase")
    if stepping:
        lines.append("from typing import Any")
    lines += ["", "import torch", "from torch import Tensor, nn" if by_kind else "from torch import nn"]
    if by_kind:
        lines.append("from torch.nn.modules.batchnorm import _NormBase")
    lines.append("from torch.optim.lr_scheduler import LambdaLR")
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def _constants(recipe: Recipe) -> str:
    lines = [
        f"CLIP_NORM = {recipe.clip_norm!r}  # total L2 norm of the gradients; None: do not clip",
        f"PRECISION = {recipe.precision!r}  # fp32, or torch.autocast in bf16 or fp16 (with a GradScaler)",
        f"ACCUMULATE = {recipe.accumulate!r}  # batches whose mean gradient makes one optimizer step",
    ]
    if recipe.groups:
        rules = [_rule(recipe, rule) for rule in recipe.groups]
        lines += ["", "# The first rule that matches a parameter takes it; the others take the defaults below."]
        lines.append(f"GROUPS = {pprint.pformat(rules, sort_dicts=False, width=100)}")
    return "\n".join(lines)


def _rule(recipe: Recipe, rule: GroupRule) -> dict[str, Any]:
    settings: dict[str, Any] = {"name": rule.name}
    if rule.match.kind:
        settings["kind"] = list(rule.match.kind)
    if rule.match.params:
        settings["params"] = [groups.unwrapped(pattern) for pattern in rule.match.params]
    settings["settings"] = _settings(recipe, rule)
    return settings


def _settings(recipe: Recipe, rule: GroupRule | None) -> dict[str, Any]:
    own_decay = rule.weight_decay if rule else None
    own_eps = rule.eps if rule else None
    shared = {
        "lr": recipe.lr * (rule.lr_mult if rule else 1.0),
        "weight_decay": recipe.weight_decay if own_decay is None else own_decay,
    }
    if recipe.optimizer == "sgd":
        return shared | {"momentum": recipe.momentum}
    if recipe.after_switch:
        shared["sgd_lr"] = _settings(recipe.after_switch, rule)["lr"]
    betas = (rule.betas if rule else None) or recipe.betas
    return shared | {"betas": betas, "eps": recipe.eps if own_eps is None else own_eps}


def _build(recipe: Recipe) -> str:
    optimizer = told.torch_class(recipe)
    settings = _settings(recipe, None)
    if recipe.groups:
        grouped = "    groups = param_groups(model)"
    else:
        grouped = """    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    groups = [{"name": "default", "params": named, **DEFAULT}]"""
    made = f"""    optimizer = {optimizer}(groups, lr=DEFAULT["lr"])"""
    scheduler = "LambdaLR"
    if recipe.switch:
        first = switch_at_source(recipe.switch, "total_steps")
        momentum = repr(recipe.switch.momentum)
        made = f"""    switch_at = {first}  # SGD's first update
    optimizer = AdamThenSGD(groups, {optimizer}, switch_at, DEFAULT["lr"], DEFAULT["sgd_lr"], momentum={momentum})"""
        scheduler = "HandoverLR"
    if refused := _refused_for_sparse(recipe):
        made = f"""    if sparse_tables(model):
        raise ValueError("{refused}; build the tables with sparse=False")
{made}"""
    elif _has_sparse_adam(recipe):
        made = f"""    tables = sparse_tables(model)
    optimizer = with_sparse_adam(groups, tables) if tables else {optimizer}(groups, lr=DEFAULT["lr"])"""
    else:
        made = f"""    groups = tables_apart(groups, sparse_tables(model))
{made}"""
    return f'''DEFAULT = {settings!r}


def build_optimizer(model: nn.Module, total_steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Optimizer and scheduler for a run of total_steps optimizer steps; call scheduler.step() after every step."""
    lazy = [name for name, param in model.named_parameters() if nn.parameter.is_lazy(param)]
    if lazy:
        raise ValueError(f"the lazy parameter {{lazy[0]}} has no shape yet; run one batch through the model first")
{grouped}
{made}
    return optimizer, {scheduler}(optimizer, lambda step: lr_multiplier(step, total_steps))'''


def switch_at_source(switch: Switch, total_steps: str) -> str:
    """`adamtune.schedule.switch_step` as an expression of the variable that is called `total_steps`."""
    return f"max(1, min(round({switch.at!r} * {total_steps}), {total_steps} - 1))"


def _multiplier(schedule: Schedule) -> str:
    warmup = (
        f"min({schedule.warmup.steps}, total_steps)"
        if isinstance(schedule.warmup, WarmupSteps)
        else f"round({schedule.warmup!r} * total_steps)"
    )
    floor = repr(schedule.floor)
    match schedule.kind:
        case "constant":
            tail = ["return 1.0"]
        case "linear":
            tail = [*_PROGRESS, f"return {floor} + (1.0 - {floor}) * ((span - done) / span)"]
        case "cosine":
            tail = [*_PROGRESS, f"return {floor} + (1.0 - {floor}) * 0.5 * (1.0 + math.cos(math.pi * (done / span)))"]
        case "step":
            milestones = repr(schedule.milestones)
            tail = [
                f"passed = sum(step / total_steps >= fraction for fraction in {milestones})",
                f"return max({floor}, {schedule.gamma!r}**passed)",
            ]
    body = "\n    ".join([f"warmup = {warmup}", "if step < warmup:", "    return step / warmup", *tail])
    return f'''def lr_multiplier(step: int, total_steps: int) -> float:
    """What lr is multiplied by at update `step`, from 0: linear warmup, then {schedule.kind}."""
    {body}'''


_PROGRESS = (
    "span = max(1, total_steps - warmup)",
    "done = min(step, total_steps) - warmup",
)

_CLASSES_BY_KIND = """NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
PROJECTIONS = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)"""


def _matching(by_kind: bool, by_name: bool) -> str:
    kind_of = "kinds(model)" if by_kind else "dict.fromkeys(name for name, _ in named)"
    own_name, rules, own_rules = "name", "GROUPS", ""
    if by_name:
        own_name, rules = "own_name(name, model)", "rules"
        own_rules = """
    rules = [
        rule | {"params": [own_pattern(pattern, model) for pattern in rule["params"]]} if "params" in rule else rule
        for rule in GROUPS
    ]"""
    return f'''def param_groups(model: nn.Module) -> list[dict]:
    """Every trainable parameter in exactly one group."""
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    kind_of = {kind_of}{own_rules}
    members = {{rule["name"]: [] for rule in GROUPS}} | {{"default": []}}
    for name, param in named:
        rule = next((rule for rule in {rules} if takes(rule, {own_name}, kind_of[name])), {{"name": "default"}})
        members[rule["name"]].append((name, param))
    for rule in {rules}:
        if "params" in rule and not any(takes(rule, {own_name}, kind_of[name]) for name, _ in named):
            raise ValueError(f"group {{rule['name']}}: {{rule['params']}} match no parameter of the model")
        if "params" in rule and not members[rule["name"]]:
            raise ValueError(f"group {{rule['name']}}: {{rule['params']}} match only what groups before it take")
    settings = {{rule["name"]: rule["settings"] for rule in GROUPS}} | {{"default": DEFAULT}}
    return [{{"name": name, "params": owned, **settings[name]}} for name, owned in members.items() if owned]


def takes(rule: dict, name: str, kind: str | None) -> bool:
    """Whether a rule matches the parameter called `name`."""
    return ("kind" not in rule or kind in rule["kind"]) and (
        "params" not in rule or any(fnmatchcase(name, pattern) for pattern in rule["params"])
    )'''


def _refused_for_sparse(recipe: Recipe) -> str | None:
    """Why torch cannot train tables with sparse gradients by this recipe; see `adamtune.optim`."""
    if recipe.clip_norm is not None:
        return "torch cannot clip sparse gradients, as those of nn.Embedding(sparse=True) are"
    if recipe.switch is not None:
        return "SGD cannot take over from SparseAdam, which nn.Embedding(sparse=True) needs"
    return None


def _has_sparse_adam(recipe: Recipe) -> bool:
    return recipe.optimizer != "sgd" and not _refused_for_sparse(recipe)


def _for_sparse_tables(recipe: Recipe) -> list[str]:
    parts = [_SPARSE_TABLES]
    if not _refused_for_sparse(recipe):
        parts.append(_tables_apart(recipe))
    if _has_sparse_adam(recipe):
        parts += [_sparse_adam(recipe), _source(sparse.AdamBesideSparseAdam)]
    return parts


_SPARSE_TABLES = '''# From here on: only for models with nn.Embedding(sparse=True) or nn.EmbeddingBag(sparse=True).


def sparse_tables(model: nn.Module) -> set[int]:
    """Ids of the tables whose gradients hold the rows of the batch only, as those of nn.Embedding(sparse=True)."""
    tables = [module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    return {id(table.weight) for table in tables if table.sparse and table.weight.requires_grad}'''


def _tables_apart(recipe: Recipe) -> str:
    decayed = [rule.name for rule in recipe.groups if rule.weight_decay]
    refused = f"""
        if rows and group["name"] in {decayed!r}:
            raise ValueError(f"group {{group['name']}}: torch cannot decay the sparse table {{rows[0][0]}}")"""
    return f'''def tables_apart(groups: list[dict], tables: set[int]) -> list[dict]:
    """The groups with their sparse tables in groups of their own, which do not decay: torch cannot decay them."""
    split = []
    for group in groups:
        dense = [(name, param) for name, param in group["params"] if id(param) not in tables]
        rows = [(name, param) for name, param in group["params"] if id(param) in tables]{refused if decayed else ""}
        if dense:
            split.append({{**group, "params": dense}})
        if rows:
            name = group["name"] + "_sparse" if dense else group["name"]
            split.append({{**group, "name": name, "params": rows, "weight_decay": 0.0}})
    return split'''


def _sparse_adam(recipe: Recipe) -> str:
    optimizer = told.torch_class(recipe)
    return f'''def with_sparse_adam(groups: list[dict], tables: set[int]) -> torch.optim.Optimizer:
    """{optimizer}, and SparseAdam for the sparse tables, which {optimizer} refuses."""
    groups = tables_apart(groups, tables)
    sparse = [id(group["params"][0][1]) in tables for group in groups]
    if all(sparse):
        return torch.optim.SparseAdam(groups, lr=DEFAULT["lr"])
    groups = [{{**group, "sparse": rows}} for group, rows in zip(groups, sparse, strict=True)]
    return AdamBesideSparseAdam(groups, {optimizer}, DEFAULT["lr"])'''


def _source(part: Any) -> str:
    """The very code adamtune classifies parameters and hands over with, under names that read well alone."""
    text = inspect.getsource(part)
    for ours, theirs in (
        ("_acts_as_norm", "acts_as_norm"),
        ("_divides_out_scale", "divides_out_scale"),
        ("_NORMS", "NORMS"),
        ("_EMBEDDINGS", "EMBEDDINGS"),
        ("_PROJECTIONS", "PROJECTIONS"),
        (" -> Kind:", " -> str:"),
        ("dict[str, Kind]", "dict[str, str]"),
    ):
        text = text.replace(ours, theirs)
    return text


def _whole(recipe: Recipe, context: Context) -> Settings:
    return Settings(recipe.to_dict())


FORMAT = Format("python", "a training script with torch alone", "python", _whole, whole=python_module)
