"""A training at hand as the rules look at it: what a probe has recorded of a live optimizer, and what else is known."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from adamtune.diagnosis.finding import Observed
from adamtune.errors import ProbeError
from adamtune.groups import kinds
from adamtune.probe import AdamProbe
from adamtune.probe.groups import named_groups
from adamtune.probe.state import steps_made
from adamtune.recipe import Kind, Recipe


def observed_live(
    target: object,
    exact: bool,
    recipe: Recipe | None,
    horizon: int | None,
    train_losses: Sequence[float],
    validation: Sequence[tuple[int, float]],
) -> tuple[Observed, tuple[str, ...]]:
    """The records of an `AdamProbe`, or one taken now of an optimizer; and what could not be told, in sentences.

    Kinds of parameters are told from the probe's model. Raises `ProbeError` for anything else.
    """
    if recipe is not None and not isinstance(recipe, Recipe):
        raise ProbeError(f"recipe must be a Recipe, not {type(recipe).__name__}; adamtune.load_recipe reads a file")
    if horizon is not None and horizon < 1:
        raise ProbeError(f"horizon must be at least 1 step, not {horizon}")
    if not all(isinstance(each, Sequence) and len(each) == 2 for each in validation):
        raise ProbeError("validation must be pairs (step, loss)")
    beyond = next((step for step, _ in validation if step > len(train_losses) > 0), None)
    if beyond is not None:
        what = f"there are {len(train_losses)} train_losses and a validation at step {beyond}"
        raise ProbeError(f"{what}; train_losses are one an optimizer step")
    if isinstance(target, AdamProbe):
        probe, records = target, target.records
    elif isinstance(target, Optimizer):
        probe = AdamProbe(target, exact=exact)
        record = probe.record()
        records = [(steps_made(probe.optimizer), record)] if record else []
    else:
        raise ProbeError(f"diagnose takes a path, an AdamProbe or a torch optimizer, not {type(target).__name__}")
    notes = list(probe.notes)
    if not records and probe is target:
        notes.append(f"nothing is recorded yet; call probe.step() {probe.every} times, after optimizer.step()")
    if recipe is None:
        notes.append("rules that need the recipe, such as its betas, say nothing; pass recipe=")
    return Observed(records, recipe, horizon, train_losses, validation, _kinds(probe)), tuple(notes)


def _kinds(probe: AdamProbe) -> dict[str, tuple[Kind, ...]]:
    """Of the trainable parameters in each of the probe's groups."""
    if probe.model is None:
        return {}
    by_name = kinds(probe.model)
    known: dict[Tensor, Kind] = {
        param: by_name[name] for name, param in probe.model.named_parameters() if name in by_name
    }
    found = {
        named.name: tuple(dict.fromkeys(known[param] for param in named.params if param in known))
        for named in named_groups(probe.optimizer, probe.model, probe.by)
    }
    return {name: own for name, own in found.items() if own}
