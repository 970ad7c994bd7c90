"""Model -> named param groups. Every trainable parameter lands in exactly one; tied weights count once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter

from adamtune.errors import Problem, RecipeError
from adamtune.recipe import Betas, GroupRule, Kind, Match, Recipe

DEFAULT = "default"
"""Name of the group of parameters no rule matches."""

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_PROJECTIONS = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class ParamGroup:
    """One param group as torch will get it: names, tensors and the settings they share."""

    name: str
    names: tuple[str, ...]
    params: tuple[nn.Parameter, ...]
    lr: float
    weight_decay: float
    betas: Betas
    eps: float
    kinds: tuple[Kind, ...]
    """The kind of each parameter, in the order of `names`."""
    own_names: tuple[str, ...]
    """The names by which rules match, each the `own_name` of that in `names`."""
    sparse: bool = False
    """Whether its gradients are sparse, as those of `nn.Embedding(sparse=True)` are. See `adamtune.sparse`; torch's
    SparseAdam has no weight decay, nor can its SGD decay them, so theirs is 0."""

    @property
    def tensors(self) -> int:
        """How many tensors it holds."""
        return len(self.params)

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(param.numel() for param in self.params)


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and tensor of each parameter that asks for a gradient, in torch's order, tied weights once."""
    return ((name, param) for name, param in model.named_parameters() if param.requires_grad)


def own_name(name: str, model: nn.Module) -> str:
    """A parameter's name in the user's own model, where `model` is that model compiled or made parallel."""
    name = unwrapped(name)
    outermost = getattr(model, "_orig_mod", model)
    parallel = isinstance(outermost, (nn.parallel.DistributedDataParallel, nn.DataParallel))
    return name.removeprefix("module.") if parallel else name


def unwrapped(name: str) -> str:
    """A parameter's name without what torch.compile, FSDP and activation checkpointing put into it."""
    for wrapper in ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."):
        name = name.replace(wrapper, "")
    return name


def own_pattern(pattern: str, model: nn.Module) -> str:
    """A pattern as one of names that are each the `own_name`; where it fits none, it may begin as `model` has them."""
    names = [own_name(name, model) for name, _ in model.named_parameters(remove_duplicate=False)]
    spellings = (unwrapped(pattern), own_name(pattern, model))
    return next((one for one in spellings if any(fnmatchcase(name, one) for name in names)), pattern)


def in_own_names(recipe: Recipe, model: nn.Module) -> Recipe:
    """The recipe with every pattern of its rules as `own_pattern` has it."""
    rules = []
    for rule in recipe.groups:
        params = rule.match.params and tuple(own_pattern(pattern, model) for pattern in rule.match.params)
        rules.append(rule.model_copy(update={"match": rule.match.model_copy(update={"params": params})}))
    return recipe.model_copy(update={"groups": tuple(rules)})


def kinds(model: nn.Module) -> dict[str, Kind]:
    """The kind of every trainable parameter, by name.

    - `embedding`: owned by an `nn.Embedding` or `nn.EmbeddingBag`, also where another module shares the tensor
    - `norm`: owned by a normalisation layer, recognised by type or, for custom ones, by behaviour: a module of vectors
      only whose output does not change when its input is scaled
    - `bias`: an offset (`bias`, `in_proj_bias`, `bias_hh_l0`), and any other vector or scalar outside a norm (gains,
      temperatures): like biases they act per channel, and decaying them is not customary
    - `head`: the matrix of the last registered module that owns one, if that is a linear or convolution layer, not tied
      to an embedding and not the model's only matrix
    - `rest`: everything else
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    last_matrix: tuple[nn.Module, nn.Parameter] | None = None
    matrices: set[int] = set()
    for module in model.modules():
        for name, param in module.named_parameters(recurse=False):
            owners.setdefault(id(param), []).append((module, name))
            if param.ndim >= 2:
                last_matrix = (module, param)
                matrices.add(id(param))
    head: nn.Parameter | None = None
    if last_matrix is not None and isinstance(last_matrix[0], _PROJECTIONS) and len(matrices) > 1:
        head = last_matrix[1]
    norms: dict[nn.Module, bool] = {}

    def kind(param: nn.Parameter) -> Kind:
        owned = owners[id(param)]
        if any(isinstance(module, _EMBEDDINGS) for module, _ in owned):
            return "embedding"
        for module, _ in owned:
            if module not in norms:
                norms[module] = isinstance(module, _NORMS) or _acts_as_norm(module)
        if any(norms[module] for module, _ in owned):
            return "norm"
        if param.ndim < 2 or any("bias" in name.split("_") for _, name in owned):
            return "bias"
        return "head" if param is head else "rest"

    return {name: kind(param) for name, param in trainable(model)}


def _acts_as_norm(module: nn.Module) -> bool:
    """Whether a custom leaf module of vectors divides out the scale of its input.

    Tried on a copy, with its vectors set to one and the caller's random state left alone.
    """
    own = list(module.named_parameters(recurse=False))
    vectors = [param for _, param in own if param.ndim == 1]
    if not vectors or len(vectors) < len(own) or any(True for _ in module.children()):
        return False
    if type(module).__module__.startswith("torch.nn.") or vectors[0].is_meta:
        return False
    size = vectors[0].numel()
    return any(_divides_out_scale(module, vectors[0], shape) for shape in ((4, 3, size), (4, size, 5, 5)))


def _divides_out_scale(module: nn.Module, like: Tensor, shape: tuple[int, ...]) -> bool:
    try:
        probe = copy.deepcopy(module).train()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for param in probe.parameters():
                param.fill_(1.0)
            source = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
            # forward(), not a call: the copy still has the owner's hooks.
            small, large = probe.forward(source), probe.forward(source * 64)
            varies = small.std() > 1e-3
            return bool(varies and torch.allclose(small, large, rtol=1e-2, atol=1e-2))
    except Exception:  # whatever a stranger's module raises on such an input, it is then no plain norm layer
        return False


def param_groups(recipe: Recipe, model: nn.Module) -> list[ParamGroup]:
    """The param groups `recipe` makes of `model`: one a rule that matches anything, in rule order, then `default`.

    Tables with sparse gradients that lie in one group with other parameters have a group of their own behind it, called
    as it is with `_sparse` at the end. Rules match by `own_name`, and their patterns may be of either spelling; a
    group's `names` are those that `model` has.

    Raises `RecipeError` when the model has no trainable parameter or an uninitialised one, when a rule with `params`
    patterns matches none, or only what rules before it take (a rule by kind alone may: not every model has embeddings),
    or when one with a weight decay of its own takes a table with sparse gradients.
    """
    kind_of = kinds(model)
    if not kind_of:
        raise RecipeError("recipe", [Problem("", "the model has no trainable parameter, so there is nothing to tune")])
    lazy = next((name for name, param in trainable(model) if isinstance(param, UninitializedParameter)), None)
    if lazy is not None:
        what = f"the lazy parameter '{lazy}' has no shape yet; run one batch through the model first"
        raise RecipeError("recipe", [Problem("", what)])
    recipe = in_own_names(recipe, model)
    members: dict[str, list[tuple[str, nn.Parameter]]] = {rule.name: [] for rule in recipe.groups}
    members[DEFAULT] = []
    for name, param in trainable(model):
        members[group_of(recipe, own_name(name, model), kind_of[name])].append((name, param))
    _refuse_idle(recipe, model, {own_name(name, model): kind for name, kind in kind_of.items()})
    rules = {rule.name: rule for rule in recipe.groups}
    sparse = {id(module.weight) for module in model.modules() if isinstance(module, _EMBEDDINGS) and module.sparse}
    made = []
    for name, owned in members.items():
        dense = [(param, tensor) for param, tensor in owned if id(tensor) not in sparse]
        rows = [(param, tensor) for param, tensor in owned if id(tensor) in sparse]
        for part in filter(None, (dense, rows)):
            kinds_owned = tuple(kind_of[param] for param, _ in part)
            own_names = tuple(own_name(param, model) for param, _ in part)
            group = _group(recipe, name, rules.get(name), part, kinds_owned, own_names)
            made.append(_of_rows(group, rules.get(name), apart=bool(dense)) if part is rows else group)
    return made


def _of_rows(group: ParamGroup, rule: GroupRule | None, apart: bool) -> ParamGroup:
    """The group as one of tables with sparse gradients, `apart` from another of its name."""
    if rule is not None and rule.weight_decay:
        what = (
            f"the gradients of '{group.names[0]}' are sparse, and torch's SparseAdam and SGD cannot decay such a table"
        )
        what += "; set the group's weight_decay to 0, or build the table with sparse=False"
        raise RecipeError("recipe", [Problem(f"$.groups.{rule.name}.weight_decay", what)])
    return replace(group, name=group.name + "_sparse" * apart, sparse=True, weight_decay=0.0)


def group_of(recipe: Recipe, name: str, kind: Kind) -> str:
    """The param group that a parameter of this name and kind falls into: the first rule that takes it, or `default`."""
    return next((rule.name for rule in recipe.groups if takes(rule.match, name, kind)), DEFAULT)


def takes(match: Match, name: str, kind: Kind) -> bool:
    """Whether a rule's `match`, with patterns as `own_pattern` has them, fits a parameter of this name and kind."""
    return (match.kind is None or kind in match.kind) and (
        match.params is None or any(fnmatchcase(name, pattern) for pattern in match.params)
    )


def unmatched(match: Match, model: nn.Module, kind_of: dict[str, Kind]) -> str:
    """What to say of a `match` whose patterns fit none of the names in `kind_of`, which are each the `own_name`."""
    of_kind = f" of kind {' or '.join(match.kind)}" if match.kind else ""
    params = f"params {list(match.params or ())}{of_kind}"
    counted = {id(param): own_name(name, model) for name, param in trainable(model)}
    for name, param in model.named_parameters(remove_duplicate=False):
        tied, alias = counted.get(id(param)), own_name(name, model)
        if tied is not None and takes(match, alias, kind_of[tied]):
            return f"{params} match '{alias}', which is tied to '{tied}' and counts under that name; name that one"
    return f"{params} match no parameter of the model, which has e.g. {', '.join(list(kind_of)[:4])}"


def _refuse_idle(recipe: Recipe, model: nn.Module, kind_of: dict[str, Kind]) -> None:
    """A person who names parameters means to set something for them: say so where that comes to nothing."""
    problems = []
    for rule in recipe.groups:
        if not rule.match.params:
            continue
        matched = [name for name, kind in kind_of.items() if takes(rule.match, name, kind)]
        takers = [group_of(recipe, name, kind_of[name]) for name in matched]
        if not matched:
            what = unmatched(rule.match, model, kind_of)
        elif rule.name not in takers:
            what = (
                f"matches nothing that is left: the first rule to match takes a parameter, and '{matched[0]}' matches "
                f"'{takers[0]}' too, which comes before '{rule.name}'; put '{rule.name}' first, or drop one of them"
            )
        else:
            continue
        problems.append(Problem(f"$.groups.{rule.name}.match", what))
    if problems:
        raise RecipeError("recipe", problems)


def _group(
    recipe: Recipe,
    name: str,
    rule: GroupRule | None,
    owned: Sequence[tuple[str, nn.Parameter]],
    kinds_owned: tuple[Kind, ...],
    own_names: tuple[str, ...],
) -> ParamGroup:
    own_decay = rule.weight_decay if rule else None
    own_eps = rule.eps if rule else None
    return ParamGroup(
        name=name,
        names=tuple(name for name, _ in owned),
        params=tuple(param for _, param in owned),
        lr=recipe.lr * (rule.lr_mult if rule else 1.0),
        weight_decay=recipe.weight_decay if own_decay is None else own_decay,
        betas=(rule.betas if rule else None) or recipe.betas,
        eps=recipe.eps if own_eps is None else own_eps,
        kinds=kinds_owned,
        own_names=own_names,
    )
