"""Saved optimizer states -> what the probe measures of them. No model is needed, and no task is imported."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam, SparseAdam

from adamtune.diagnose.finding import Observed, Record
from adamtune.diagnose.saved_file import read_saved
from adamtune.errors import CheckpointError, InputError
from adamtune.probe import AdamProbe

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

    @property
    def observed(self) -> Observed:
        """The checkpoint as the rules look at it: one record, no recipe, no losses."""
        return Observed(records=((self.step or 0, self.record),) if self.record else ())


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
    global_step = _whole(saved.get("global_step")) if isinstance(saved, Mapping) else None
    record: dict[str, float] = {}
    steps: list[int] = []
    nadam = False
    for place, state_dict in found.items():
        rebuilt = _Rebuilt(state_dict, file, f"{_plain(place)}." if len(found) > 1 else "", global_step)
        record |= _measured(rebuilt.optimizer, file, exact)
        steps += rebuilt.steps
        nadam |= rebuilt.nadam
    step = max(steps, default=global_step)
    return Checkpoint(file, step, record, tuple(_notes(record, found, step, nadam)))


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
                yield from walk(item, (*place, str(key)))
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
        return f", but a {type(saved).__name__}"
    keys = [_plain(key) for key in list(saved)[:5]]
    return f" (it has {', '.join(keys)}{', ...' if len(saved) > 5 else ''})" if keys else ", but an empty dict"


def _plain(text: object) -> str:
    """A name from a file, without what would break a record's key or the terminal."""
    return "".join(each if each.isprintable() and each != "/" else "." for each in str(text))[:100]


def _whole(value: object) -> int | None:
    """A step count, from a number or a tensor; None where it is neither."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and not value.is_meta:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return int(value)


class _Rebuilt:
    """An optimizer with the param groups and the state of a state dict, over parameters that take no memory."""

    def __init__(self, state_dict: Mapping[str, Any], file: Path, prefix: str, global_step: int | None) -> None:
        self.steps: list[int] = []
        self.nadam = False
        self._file = file
        self._global_step = global_step
        state = state_dict["state"]
        groups: list[dict[str, Any]] = []
        states: dict[Tensor, dict[str, Any]] = {}
        for index, saved in enumerate(state_dict["param_groups"]):
            name = prefix + _plain(saved.get("name", f"group{index}"))
            group = {str(key): value for key, value in saved.items()} | {"name": name, "params": []}
            group["weight_decay"] = _number(saved.get("weight_decay")) or 0.0
            for flag in ("amsgrad", "maximize", "decoupled_weight_decay"):
                group[flag] = saved.get(flag) is True
            # Half of NAdam's update is of the gradient, which is not saved; its moments are read as Adam's.
            self.nadam |= group.pop("momentum_decay", None) is not None
            for key in saved["params"]:
                own = state.get(key) if isinstance(key, str | int) else None
                own = self._state(own, group) if isinstance(own, Mapping) else {}
                param = _placeholder(own)
                group["params"].append(param)
                if own:
                    states[param] = own
            self._check(group, states)
            groups.append(group)
        self.optimizer = _kind(set(state_dict["param_groups"][0]), groups[0])
        self.optimizer.param_groups = groups
        self.optimizer.state = states  # type: ignore[assignment]

    def _state(self, saved: Mapping[Any, Any], group: Mapping[str, Any]) -> dict[str, Any]:
        own = {str(key): value for key, value in saved.items()}
        for name, value in own.items():
            if isinstance(value, Tensor):
                self._check_tensor(name, value)
        step = _whole(own.get("step"))
        if step is None:
            step = _whole(group.get("step", group.get("updates")))  # where apex, and AdamThenSGD, count
        if step is not None:
            self.steps.append(step)
        # With neither, the moments count as those of a long run, whose bias correction is 1.
        counted = step if step is not None else self._global_step
        return own | {"step": math.inf if counted is None else float(counted)}

    def _check_tensor(self, name: str, value: Tensor) -> None:
        size = value.numel() * value.element_size()
        if value.layout is not torch.strided or value.is_meta or size > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{self._file} holds '{_plain(name)}' of {value.numel():,} elements without their values, as no "
                "optimizer saves it; save optimizer.state_dict() as it is"
            )

    def _check(self, group: Mapping[str, Any], states: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Refuse moments that cannot be told for want of settings, or are no moments."""
        for param in group["params"]:
            own = states.get(param, {})
            moments = [own[key] for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if key in own]
            if not {"exp_avg", "exp_avg_sq"} <= set(own):
                continue
            if not _has_settings(group):
                raise CheckpointError(
                    f"{self._file} has Adam's moments for the group '{group['name']}', but not its lr, betas and eps "
                    "as numbers; save optimizer.state_dict() as it is"
                )
            if not all(_is_moment(each) and each.shape == moments[0].shape for each in moments):
                raise CheckpointError(
                    f"{self._file} has moments of the group '{group['name']}' that are no numbers, or of different "
                    "shapes for one parameter; save optimizer.state_dict() as it is"
                )


def _is_moment(value: object) -> bool:
    if not isinstance(value, Tensor):
        return False
    codes = value.dtype in (torch.uint8, torch.int8)  # the probe tells of those
    return codes or value.is_floating_point() or value.is_complex()


def _has_settings(group: Mapping[str, Any]) -> bool:
    betas = group.get("betas")
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        return False
    numbers = [_number(value) for value in (group.get("lr"), group.get("eps"), *betas)]
    return all(each is not None for each in numbers) and all(0 <= (each or 0.0) < 1 for each in numbers[2:])


def _number(value: object) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and not value.is_meta:
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _placeholder(state: Mapping[str, Any]) -> Tensor:
    """Stands for a parameter whose values the file does not tell: as large as its moments, of one zero in memory.

    The probe leaves zero weights out of `update_to_weight`, so that is left out altogether.
    """
    shapes = [value.shape for value in state.values() if isinstance(value, Tensor) and value.dim()]
    dtypes = [value.dtype for name, value in state.items() if name == "exp_avg" and isinstance(value, Tensor)]
    return torch.zeros((), dtype=dtypes[0] if dtypes else None).expand(shapes[0] if shapes else ())


def _kind(keys: set[Any], group: Mapping[str, Any]) -> Optimizer:
    """An optimizer of the kind that saved a group with these keys; the probe measures each kind as it is."""
    dummy = [torch.zeros(1, requires_grad=True)]
    if "betas" in keys:
        if "decoupled_weight_decay" in keys and not {"amsgrad", "momentum_decay"} & keys:
            return RAdam(dummy)
        if not {"weight_decay", "amsgrad"} & keys:
            return SparseAdam(dummy)
        return AdamW(dummy) if group["decoupled_weight_decay"] else Adam(dummy)
    return SGD(dummy, lr=1.0) if {"momentum", "nesterov"} <= keys else Optimizer(dummy, {})


def _measured(optimizer: Optimizer, file: Path, exact: bool) -> dict[str, float]:
    try:
        return AdamProbe(optimizer, exact=exact).record()
    except CheckpointError:
        raise
    except InputError as problem:  # moments in 8 bits
        raise CheckpointError(f"{file}: {problem}") from problem


def _notes(record: Record, found: Mapping[str, Mapping[str, Any]], step: int | None, nadam: bool) -> Iterator[str]:
    if any(key.split("/")[1] == "r" for key in record):
        yield "a checkpoint has no gradients and no weights beside Adam's state: what needs them is left out"
        if nadam:
            yield "half of NAdam's update is of the gradient: r and lr_r are those of Adam with these moments"
        if step is None:
            yield "no step is saved, so bias correction is taken to be over"
    else:
        states = [state for each in found.values() for state in each["state"].values() if isinstance(state, Mapping)]
        kept = sorted({_plain(key) for state in states for key in state})
        yield f"no Adam wrote this state (it keeps {', '.join(kept[:6]) or 'nothing'}), so there are no percentiles"
