"""groups: whether some weights want another lr than the rest, and whether biases and norms decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adamtune.groups import DEFAULT, ParamGroup, group_of
from adamtune.knobs import Choice, Knob, Scale
from adamtune.recipe import GroupRule, Kind, Match, Recipe
from adamtune.spec import Spec
from adamtune.stages.choose import Candidate, Question, candidates_cost, choose
from adamtune.stages.context import StageAnswer, StageContext

NAME = "groups"
QUESTION = "Do some weights want another lr than the rest? Should biases and norms decay?"

_FACTORS = (0.3, 3.0)
_FURTHER: dict[Kind, float] = {"embedding": 0.1, "head": 10.0}
"""Tried as well: rows of an embedding see few gradients and Adam steps far on each; a new head starts from nothing."""

_LR_MULT = Knob("lr_mult", 1e-3, 1e3, Scale.LOG)
_DECAY = Choice("bias_norm_decay", ("off", "on"))
_UNDECAYED: tuple[Kind, ...] = ("bias", "norm")


@dataclass(frozen=True)
class _Members:
    """Which kinds of parameters each param group of a recipe holds."""

    by_group: dict[str, set[Kind]]

    @classmethod
    def of(cls, recipe: Recipe, groups: Sequence[ParamGroup]) -> _Members:
        found: dict[str, set[Kind]] = {}
        for group in groups:
            for name, kind in zip(group.own_names, group.kinds, strict=True):
                found.setdefault(group_of(recipe, name, kind), set()).add(kind)
        return cls(found)

    @property
    def unruled(self) -> list[Kind]:
        """The kinds that are no rule's and lie beside others that are none's, and might be told apart."""
        rest = self.by_group.get(DEFAULT, set()) - {*_UNDECAYED}
        return [kind for kind in _FURTHER if kind in rest and len(rest) > 1]

    @property
    def of_weights(self) -> int:
        """How many groups of weights, biases and norms apart, there are or could be."""
        named = sum(bool(kinds - {*_UNDECAYED}) for name, kinds in self.by_group.items() if name != DEFAULT)
        return named + len(self.by_group.get(DEFAULT, set()) - {*_UNDECAYED})


def _rule(recipe: Recipe, name: str, kinds: tuple[Kind, ...], lr_mult: float = 1.0) -> GroupRule:
    """A new last rule for what no other rule takes. Its name is free."""
    taken = {rule.name for rule in recipe.groups}
    while name in taken:
        name += "_"
    return GroupRule(name=name, match=Match(kind=kinds), lr_mult=lr_mult)


def _with(recipe: Recipe, rule: GroupRule) -> Recipe:
    return recipe.model_copy(update={"groups": (*recipe.groups, rule)})


def _multiplied(recipe: Recipe, members: _Members) -> list[Candidate]:
    """Each named group at multiples of its present lr; embeddings and heads also where no rule names them."""
    candidates = []
    for rule in recipe.groups:
        weights = members.by_group.get(rule.name, set()) - {*_UNDECAYED}
        further = [factor for kind, factor in _FURTHER.items() if weights == {kind}]
        if rule.name in members.by_group and rule.lr_mult > 0:  # one of 0 is frozen
            for factor in sorted([*_FACTORS, *further]):
                lr_mult = float(f"{rule.lr_mult * factor:.3g}")
                changed = recipe.with_knob(f"groups.{rule.name}.lr_mult", lr_mult)
                candidates.append(_candidate(rule.name, factor, lr_mult, changed))
    for kind in members.unruled:
        for factor in sorted([*_FACTORS, _FURTHER[kind]]):
            rule = _rule(recipe, kind, (kind,), factor)
            candidates.append(_candidate(rule.name, factor, factor, _with(recipe, rule)))
    return candidates


def _candidate(group: str, factor: float, lr_mult: float, recipe: Recipe) -> Candidate:
    return Candidate(f"{group} lr x{factor:g}", recipe, {"group": group, _LR_MULT.name: lr_mult})


def _decayed(recipe: Recipe, members: _Members) -> list[Candidate]:
    """Decay of biases and norms turned off where some have it, else turned on; groups that hold weights too stay."""
    own = {
        rule.name: rule.weight_decay
        for rule in recipe.groups
        if members.by_group.get(rule.name, {"rest"}) <= {*_UNDECAYED}
    }
    unruled = bool(members.by_group.get(DEFAULT, set()) & {*_UNDECAYED})
    if not recipe.weight_decay or not (own or unruled):
        return []
    decayed = [name for name, decay in own.items() if decay is None or decay > 0]
    changed = recipe
    if decayed or unruled:
        for name in decayed:
            changed = changed.with_knob(f"groups.{name}.weight_decay", 0.0)
        if unruled:
            changed = _with(changed, _rule(changed, "no_decay", _UNDECAYED))
            changed = changed.with_knob(f"groups.{changed.groups[-1].name}.weight_decay", 0.0)
        return [Candidate("no decay on biases and norms", changed, {_DECAY.name: "off"})]
    for name in own:
        changed = changed.with_knob(f"groups.{name}.weight_decay", None)
    return [Candidate("decay on biases and norms too", changed, {_DECAY.name: "on"})]


def missing(spec: Spec, groups: Sequence[ParamGroup]) -> str:
    """Why it cannot matter; empty where it can."""
    alone = _Members.of(spec.base, groups).of_weights < 2
    return "the model has no embeddings, heads or named groups beside the rest" if alone else ""


def cost(spec: Spec) -> int:
    """Steps at most, with embeddings, a head and every group of the base recipe."""
    named = len(spec.base.groups) * (len(_FACTORS) + 1)
    return candidates_cost(spec, named + len(_FURTHER) * (len(_FACTORS) + 1) + 1)


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """One group's lr, or the decay of biases and norms, is changed at most; see `adamtune.stages.choose`."""
    members = _Members.of(incumbent, context.groups)
    candidates = [*_multiplied(incumbent, members), *_decayed(incumbent, members)]
    names = tuple(dict.fromkeys(str(each.parameters["group"]) for each in candidates if "group" in each.parameters))
    knobs: list[Knob | Choice] = [_LR_MULT, _DECAY]
    if names:
        knobs.append(Choice("group", names))
    return choose(context, Question(NAME, QUESTION, knobs, read=Recipe.groups_told), incumbent, candidates)
