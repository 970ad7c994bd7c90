"""A saved state dict as an optimizer again, for the probe to read: over parameters that take no memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam, SparseAdam

from adamtune.errors import CheckpointError


def plain(text: object) -> str:
    """A name from a file, without what would break a record's key or the terminal.

    What is neither text nor number is called by its type: spelling it out might never end.
    """
    known = text if isinstance(text, str | int | float) or text is None else type(text).__name__
    return "".join(each if each.isprintable() and each != "/" else "." for each in str(known)[:100])


def whole(value: object) -> int | None:
    """A step count, from a number or a tensor; None where it is neither."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and not value.is_meta:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        return None  # NaN is in no range
    return int(value)


class Rebuilt:
    """An optimizer with the param groups and the state of a state dict, over parameters that take no memory."""

    def __init__(self, state_dict: Mapping[str, Any], file: Path, prefix: str, global_step: int | None) -> None:
        """`prefix` begins the groups' names; `global_step` counts where the state has no step of its own.

        Raises `CheckpointError` naming `file` for a state that no optimizer saves.
        """
        self.steps: list[int] = []
        """Of every parameter that has one."""
        self.nadam = False
        """Whether NAdam saved it."""
        self._file = file
        self._global_step = global_step
        state = state_dict["state"]
        groups: list[dict[str, Any]] = []
        states: dict[Tensor, dict[str, Any]] = {}
        for index, saved in enumerate(state_dict["param_groups"]):
            name = saved.get("name", f"group{index}")
            if not isinstance(name, str | int):
                what = f"a param group called by a {type(name).__name__}, as no optimizer saves it"
                raise CheckpointError(f"{file} has {what}; save optimizer.state_dict() as it is")
            name = prefix + plain(name)
            group = {plain(key): value for key, value in saved.items()} | {"name": name, "params": []}
            group["weight_decay"] = number(saved.get("weight_decay")) or 0.0
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
        own = {plain(key): value for key, value in saved.items()}
        for name, value in own.items():
            if isinstance(value, Tensor):
                self._check_tensor(name, value)
        step = whole(own.get("step"))
        if step is None:
            step = whole(group.get("step", group.get("updates")))  # where apex, and AdamThenSGD, count
        if step is not None:
            self.steps.append(step)
        # With neither, the moments count as those of a long run, whose bias correction is 1.
        counted = step if step is not None else self._global_step
        return own | {"step": math.inf if counted is None else float(counted)}

    def _check_tensor(self, name: str, value: Tensor) -> None:
        size = value.numel() * value.element_size()
        if value.layout is not torch.strided or value.is_meta or size > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{self._file} holds '{plain(name)}' of {value.numel():,} elements without their values, as no "
                "optimizer saves it; save optimizer.state_dict() as it is"
            )

    def _check(self, group: Mapping[str, Any], states: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Refuse moments that cannot be told for want of settings, or are no moments."""
        for param in group["params"]:
            own = states.get(param, {})
            moments = [own[key] for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if key in own]
            if not {"exp_avg", "exp_avg_sq"} <= set(own):
                continue
            if not has_settings(group):
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


def has_settings(group: Mapping[str, Any]) -> bool:
    """Whether lr, betas and eps are there, as numbers."""
    betas = group.get("betas")
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        return False
    numbers = [number(value) for value in (group.get("lr"), group.get("eps"), *betas)]
    return all(each is not None for each in numbers) and all(0 <= (each or 0.0) < 1 for each in numbers[2:])


def number(value: object) -> float | None:
    """A finite number, or a tensor of one, as float; None for all else."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and not value.is_meta:
        return float(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > sys.float_info.max:
        return None
    return float(value)


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
