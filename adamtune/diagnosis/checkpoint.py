"""Saved optimizer states -> what the probe measures of them. No model is needed, and no task is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from adamtune.diagnosis.finding import Observed, Record
from adamtune.diagnosis.rebuilt import Rebuilt, has_settings, number, plain, whole
from adamtune.diagnosis.saved_file import read_saved
from adamtune.errors import CheckpointError, InputError
from adamtune.probe import AdamProbe
from adamtune.probe.frame import parts
from adamtune.recipe import Recipe

_DEEPEST = 6
"""How far below the top of a file optimizer states are looked for."""
_LONGEST = 1_000
"""The same for the lists among them: a longer one holds no optimizers."""


@dataclass(frozen=True)
class Checkpoint:
    """What a saved optimizer state tells."""

    file: Path
    step: int | None
    """Optimizer steps done, where the file says so."""
    record: Record
    """See `AdamProbe`; without what needs weights or gradients."""
    notes: tuple[str, ...] = ()
    """What the record lacks, in sentences."""
    recipe: Recipe | None = None
    """Settings that all param groups share; None where they differ, or lr has come down to zero."""

    @property
    def observed(self) -> Observed:
        """The checkpoint as the rules look at it: one record, the saved settings, no losses."""
        return Observed(records=((self.step or 0, self.record),) if self.record else (), recipe=self.recipe)


def read_checkpoint(path: str | Path, exact: bool = False) -> Checkpoint:
    """Measure the optimizer states in a file that torch.save wrote, or in a checkpoint folder with one such file.

    Found are `optimizer.state_dict()` by itself or anywhere in dicts and lists (transformers' optimizer.pt, Lightning's
    .ckpt, several optimizers), and state dicts keyed by parameter names. Of several optimizers every group is named
    after its place in the file. `exact` reads every element instead of a sample. Raises `CheckpointError` for what
    cannot be read, or not safely, or holds no optimizer state.
    """
    file = checkpoint_file(Path(path))
    saved = read_saved(file)
    found = dict(_state_dicts(saved))
    if not found:
        raise CheckpointError(f"{file} holds no optimizer state{_keys_told(saved)}; save optimizer.state_dict() too")
    if not any(each["state"] for each in found.values()):
        raise CheckpointError(f"{file} holds an optimizer that has made no step yet; save it after some training")
    global_step = whole(saved.get("global_step")) if isinstance(saved, Mapping) else None
    record: dict[str, float] = {}
    steps: list[int] = []
    nadam = False
    groups: list[Mapping[str, Any]] = []
    for place, state_dict in found.items():
        rebuilt = Rebuilt(state_dict, file, f"{plain(place)}." if len(found) > 1 else "", global_step)
        record |= _measured(rebuilt.optimizer, file, exact)
        steps += rebuilt.steps
        nadam |= rebuilt.nadam
        groups += rebuilt.optimizer.param_groups
    step = max(steps, default=global_step)
    notes = tuple(_notes(record, found, step, nadam))
    return Checkpoint(file, step, record, notes, None if nadam else _recipe(groups))


def checkpoint_file(path: Path) -> Path:
    """`path`, or the one file of a checkpoint folder that holds an optimizer's state.

    Looked for are `optimizer*.pt`, `.bin` and `.pth` (transformers, Accelerate), and `*.ckpt` (Lightning).
    """
    if not os.path.isdir(path):  # which, unlike Path.is_dir, takes any name
        return path
    patterns = ("optimizer*.pt", "optimizer*.bin", "optimizer*.pth", "*.ckpt")
    files = [file for pattern in patterns for file in sorted(path.glob(pattern)) if file.is_file()]
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(f"{path} has several optimizer states; name one: {_listed(files)}")
    if any(path.glob("**/*.distcp")):
        raise CheckpointError(
            f"{path} holds a distributed checkpoint; join it into one file: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} optimizer.pt"
        )
    below = sorted({file.parent for pattern in patterns for file in path.glob(f"*/{pattern}")})
    told = (
        f"; name one of the folders in it: {_listed(below)}" if below else ": no optimizer.pt, optimizer.bin or .ckpt"
    )
    raise CheckpointError(f"{path} is a folder without an optimizer state{told}")


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[-4:]) + (", ..." if len(paths) > 4 else "")


def _state_dicts(saved: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every optimizer's state dict below `saved`, with its place: keys and positions joined by dots."""
    seen: set[int] = set()

    def walk(value: object, place: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if id(value) in seen or len(place) > _DEEPEST:
            return
        if isinstance(value, Mapping):
            seen.add(id(value))
            if _is_state_dict(value):
                yield ".".join(place), value
                return
            for key, item in value.items():
                yield from walk(item, (*place, plain(key)))
        elif isinstance(value, list | tuple) and len(value) <= _LONGEST:
            seen.add(id(value))
            for index, item in enumerate(value):
                yield from walk(item, (*place, str(index)))

    return walk(saved, ())


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    groups = value.get("param_groups")
    return (
        isinstance(value.get("state"), Mapping)
        and isinstance(groups, list)
        and bool(groups)
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple) for group in groups)
    )


def _keys_told(saved: object) -> str:
    if not isinstance(saved, Mapping):
        kind = type(saved).__name__
        return f", but {'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
    keys = [plain(key) for key in list(saved)[:5]]
    return f" (it has {', '.join(keys)}{', ...' if len(saved) > 5 else ''})" if keys else ", but an empty dict"


def _measured(optimizer: Optimizer, file: Path, exact: bool) -> dict[str, float]:
    try:
        return AdamProbe(optimizer, exact=exact).record()
    except CheckpointError:
        raise
    except InputError as problem:  # moments in 8 bits
        raise CheckpointError(f"{file}: {problem}") from problem


def _recipe(groups: Sequence[Mapping[str, Any]]) -> Recipe | None:
    """What the groups share, where that is all that rules of one record ask for: betas and eps."""
    if not groups or not all(map(has_settings, groups)):
        return None
    shared = {(*map(number, group["betas"]), number(group["eps"])) for group in groups}
    lr = max(number(group["lr"]) or 0.0 for group in groups)
    if len(shared) != 1:
        return None
    beta1, beta2, eps = shared.pop()
    try:
        return Recipe(lr=lr, betas=(beta1 or 0.0, beta2 or 0.0), eps=eps or 0.0)
    except ValueError:  # lr has come down to zero, say
        return None


def _notes(record: Record, found: Mapping[str, Mapping[str, Any]], step: int | None, nadam: bool) -> Iterator[str]:
    if any(parts(key)[1] == "r" for key in record):
        yield "a checkpoint has no gradients and no weights beside Adam's state: what needs them is left out"
        if nadam:
            yield "half of NAdam's update is of the gradient: r and lr_r are those of Adam with these moments"
        yield "one state shows overflow, underflow and an eps too large; all else needs a training's course: AdamProbe"
        if step is None:
            yield "no step is saved, so bias correction is taken to be over"
    else:
        states = [state for each in found.values() for state in each["state"].values() if isinstance(state, Mapping)]
        kept = sorted({plain(key) for state in states for key in state})
        yield f"no Adam wrote this state (it keeps {', '.join(kept[:6]) or 'nothing'}), so there are no percentiles"
