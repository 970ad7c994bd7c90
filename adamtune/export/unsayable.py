"""What most consumers have no word for: groups, the switch, knobs of a schedule they do not know."""

from __future__ import annotations

from collections.abc import Iterator

from adamtune.export.format import Unsaid
from adamtune.recipe import GroupRule, Recipe, Schedule


def no_decay_rules(recipe: Recipe) -> tuple[GroupRule, ...]:
    """The rules that take weight decay from biases and norms, all of them and nothing else; none if some keep it.

    Many consumers exempt these parameters by themselves.
    """
    taking = [rule for rule in recipe.groups if rule.weight_decay == 0.0 and not rule.match.params]
    taking = [rule for rule in taking if set(rule.match.kind or ()) <= {"bias", "norm"}]
    covered = {kind for rule in taking for kind in rule.match.kind or ()}
    return tuple(taking) if covered == {"bias", "norm"} else ()


def own_settings(recipe: Recipe, rule: GroupRule) -> list[str]:
    """The settings in which a rule's parameters differ from the recipe's own."""
    differing = ["lr_mult"] if rule.lr_mult != 1.0 else []
    for key in ("weight_decay", "betas", "eps"):
        own = getattr(rule, key)
        if own is not None and own != getattr(recipe, key):
            differing.append(key)
    return [key for key in differing if recipe.optimizer != "sgd" or key in ("lr_mult", "weight_decay")]


def groups(recipe: Recipe, exempt: tuple[GroupRule, ...], why: str) -> Iterator[Unsaid]:
    """Every setting of every rule, but the weight decay of the rules in `exempt`, which the consumer takes by itself.

    `why` says what all parameters get instead.
    """
    for at, rule in enumerate(recipe.groups):
        own = own_settings(recipe, rule)
        for key in own:
            if key != "weight_decay" or rule not in exempt:
                yield Unsaid(f"groups.{rule.name}.{key}", why)
        if not own and any(own_settings(recipe, later) for later in recipe.groups[at + 1 :]):
            yield Unsaid(f"groups.{rule.name}", "keeps its parameters from the rules after it; nothing does there")


def own_exemption(recipe: Recipe, consumer: str, exempt: str) -> Iterator[Unsaid]:
    """For a consumer that takes weight decay from biases and norms by itself, where the recipe does not ask for it."""
    if decays(recipe) and not no_decay_rules(recipe):
        yield Unsaid("weight_decay", f"{consumer} takes it from {exempt} by itself, the recipe does not")


def decays(recipe: Recipe) -> bool:
    """Whether any parameter has weight decay; without it Adam and AdamW are one."""
    return recipe.weight_decay > 0.0 or any(rule.weight_decay for rule in recipe.groups)


def switch(recipe: Recipe, consumer: str) -> Iterator[Unsaid]:
    """The hand-over to SGD."""
    if recipe.switch:
        yield Unsaid("switch", f"{consumer} runs Adam to the end")


def curve(schedule: Schedule, instead: str) -> Iterator[Unsaid]:
    """The kind of a schedule and the knobs that belong to it alone; `instead` is the consumer's curve."""
    yield Unsaid("schedule", f"no {schedule.kind} decay there; {instead}")
    if schedule.kind == "step":
        yield Unsaid("milestones", instead)
        yield Unsaid("gamma", instead)


def floor_of_steps(schedule: Schedule) -> Iterator[Unsaid]:
    """The floor of a step decay that would go below it, for consumers whose step decay has none."""
    if schedule.kind == "step" and schedule.floor > (lowest := schedule.gamma ** len(schedule.milestones)):
        yield Unsaid("floor", f"lr falls to {lowest:g} of its peak, not to {schedule.floor:g}")


def first_step_at(fraction: float, total_steps: int) -> int:
    """The first update, from 0, that a milestone at this fraction of the horizon lowers."""
    step = max(0, int(fraction * total_steps) - 1)
    while step / total_steps < fraction:  # as `adamtune.schedule.multiplier` compares them
        step += 1
    return step
