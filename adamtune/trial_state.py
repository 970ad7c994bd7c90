"""The state of a trial under way, in a file: from there a sweep that was interrupted goes on within the trial.

Saved are parameters, buffers, plain attributes of modules, optimizer, schedule, scaler, Python's and NumPy's random
streams, and the trial's record. Where its batches stand cannot be saved, whatever yields them: they are drawn again,
and the last of them must be the one that was trained on.
"""

from __future__ import annotations

import functools
import io
import pickle
import random
import time
import weakref
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from adamtune.diagnosis.saved_file import read_saved
from adamtune.history import History, TrialRequest, TrialResult
from adamtune.rundir import replacing
from adamtune.task import Batch, tensor_bytes

VERSION = 1

WORTH = 100
"""A state is written once the trial has trained so many times as long as writing takes: one percent at most."""
SYNC, _RATE = 0.005, 100e6
"""Seconds of any write at least, and bytes a second before it was measured: those of a slow disk. A local one took 1 ms
and 300 MB/s or more."""

_TORCHS_OWN = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, type(None))


def expected_seconds(model: nn.Module) -> float:
    """Of writing the state of a trial of this model by Adam: three numbers a trained parameter."""
    count = sum((3 if param.requires_grad else 1) * param.nbytes for param in model.parameters())
    return SYNC + count / _RATE


def write_state(request: TrialRequest, history: History, parts: Mapping[str, Any]) -> float:
    """Put the state at the request's `checkpoint`, whole or not at all; the seconds it took.

    Where the disk has no room it is left out: the trial would begin again, which is no reason to end it.
    """
    began = time.perf_counter()
    if request.checkpoint is not None:
        state = {"version": VERSION, "request": request.key, "history": history.state(), **parts}
        with suppress(OSError, RuntimeError), replacing(request.checkpoint) as file:  # torch raises the latter
            torch.save(state, file)
    return time.perf_counter() - began


def read_state(request: TrialRequest) -> dict[str, Any] | None:
    """What `write_state` wrote, its tensors mapped from the file; None where there is nothing that fits."""
    path = request.checkpoint
    if path is None or path.is_symlink() or not path.is_file():
        return None
    try:
        state = read_saved(path)  # first: it refuses a file that would grow when unpacked
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch does not look at the checksums
                return None
        fits = state["version"] == VERSION and state["request"] == request.key
    except Exception:  # damaged, or of another version, or nobody's
        return None
    return state if fits else None


def saved_result(request: TrialRequest) -> TrialResult | None:
    """How the trial stood when its state was saved; None where there is none that fits."""
    state = read_state(request)
    try:
        return None if state is None else History.of(request, state["history"]).result()
    except Exception:  # a record that is none of ours may fail in any way
        return None


def own_copy(saved: Any) -> Any:
    """Saved data with tensors of their own in place of those mapped from the file."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, saved)


class ModelState:
    """What training changes in a model, read and put back."""

    def __init__(self, model: nn.Module) -> None:
        """Watch `model`, untrained."""
        self._model = model
        self._unsaved = unsaved(model)

    def read(self) -> dict[str, Any] | None:
        """Parameters, buffers and attributes; None where `unsaved` has changed, or cannot be told."""
        if self._unsaved is None or unsaved(self._model) != self._unsaved:
            return None
        tensors = {name: tensor.detach() for name, tensor in self._tensors().items()}
        return {"tensors": tensors, "attributes": attributes_of(self._model)}

    @torch.no_grad()
    def put_back(self, saved: Mapping[str, Any]) -> None:
        """Make the model what it was. Raises where it is another model."""
        tensors = self._tensors()
        if tensors.keys() != saved["tensors"].keys():
            raise ValueError("another model")
        for name, tensor in tensors.items():
            put_tensor(tensor, saved["tensors"][name])
        put_attributes(self._model, saved["attributes"])

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}


def put_tensor(tensor: Tensor, saved: Tensor) -> None:
    """Copy what was saved into `tensor`. Raises `ValueError` where it is of another shape, which might be stretched."""
    if tensor.shape != saved.shape:
        raise ValueError(f"a tensor of shape {tuple(saved.shape)} for one of {tuple(tensor.shape)}")
    tensor.copy_(saved)


def attributes_of(model: nn.Module) -> dict[str, Any]:
    """What modules keep as attributes that are plain data or tensors, for `put_attributes`."""
    values = {
        name: {key: value for key, value in own.items() if _is_plain(value)} for name, own in _attributes(model).items()
    }
    return {
        "values": tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, values),
        "devices": tree_map(lambda value: str(value.device) if isinstance(value, Tensor) else None, values),
    }


def put_attributes(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Set the attributes that `attributes_of` read."""
    values = tree_map(
        lambda value, device: value.to(device, copy=True) if isinstance(value, Tensor) else value,
        saved["values"],
        saved["devices"],
    )
    modules = dict(model.named_modules())
    for name, own in values.items():
        modules[name].__dict__.update(own)


def unsaved(model: nn.Module) -> int | None:
    """A checksum of all other attributes, such as a random generator, an object that is called, or a module in a plain
    list: while it is that of the untrained model, nothing is lost without them. None where one cannot be told.
    """
    others = [
        value
        for own in _attributes(model).values()
        for value in own.values()
        if not _is_plain(value) and not getattr(type(value), "forgotten", False)
    ]
    written = io.BytesIO()
    try:
        _Fingerprint(written, model).dump(others)
    except Exception:  # what cannot be pickled may raise anything
        return None
    return zlib.crc32(written.getbuffer())


def _attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in vars(module).items() if key not in _TORCHS_OWN}
        for name, module in model.named_modules()
    }


class _Fingerprint(pickle.Pickler):
    """Leaves out code, and what is saved but listed a second time, as recurrent layers do with their parameters."""

    def __init__(self, file: io.BytesIO, model: nn.Module) -> None:
        super().__init__(file)
        self._saved = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}

    def persistent_id(self, value: Any) -> str | None:
        if id(value) in self._saved or _is_code(value) or isinstance(value, weakref.ref):
            return "known"
        if not isinstance(value, Tensor):
            return None
        digest = batch_digest(value)
        if digest is None:
            raise pickle.PicklingError(f"a {type(value).__name__} that cannot be read")
        return f"{value.dtype} {tuple(value.shape)} {digest}"


def _is_code(value: Any) -> bool:
    """Whether it is called but keeps nothing between calls; a method does, where the object it is bound to does."""
    if isinstance(value, BuiltinFunctionType):  # those of `random` draw from a stream that is saved by itself
        return value.__self__ is random._inst or isinstance(value.__self__, ModuleType | type | None)
    if isinstance(value, torch.jit.ScriptFunction | functools._lru_cache_wrapper):
        return True
    torchs_own = callable(value) and type(value).__module__.startswith("torch._")  # operators, and what compiles
    return torchs_own or isinstance(value, FunctionType | type)


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) in (str, int) and _is_plain(item) for key, item in value.items())
    return type(value) in _PLAIN or (type(value) is Tensor and value.layout is torch.strided)


def batch_digest(batch: Batch, before: int | None = 0) -> int | None:
    """A checksum of a batch, going on from that of another; None where it holds more than data, as environments are."""
    if before is None:
        return None
    if isinstance(batch, Mapping):
        batch = [item for pair in batch.items() for item in pair]
    if isinstance(batch, tuple | list):
        for item in batch:
            before = batch_digest(item, before)
        return before
    if isinstance(batch, _PLAIN):
        return zlib.crc32(repr(batch).encode(), before)
    try:
        data = _bytes_of(batch)
    except Exception:  # tensors and arrays of some kinds have none: nested ones, those of subclasses
        return None
    return None if data is None else zlib.crc32(data, before)


def _bytes_of(data: Any) -> memoryview | None:
    if isinstance(data, Tensor) and data.layout is torch.strided:
        return tensor_bytes(data)
    if isinstance(data, np.ndarray) and not data.dtype.hasobject:
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    return None
