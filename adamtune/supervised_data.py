"""The batches of `Task.supervised`: from Datasets, DataLoaders or tensors, without an end or in one pass."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from adamtune.errors import TaskError


def endless(data: Any, batch_size: int | None, generator: torch.Generator) -> Iterator[Any]:
    """Training batches without an end, shuffled anew each epoch by `generator`."""
    if _is_tensors(data):
        assert batch_size is not None  # see check_data
        count = len(data[0])
        size = min(batch_size, count)
        while True:
            order = torch.randperm(count, generator=generator)
            for rows in torch.split(order[: count - count % size], size):
                yield tuple(tensor[rows] for tensor in data)
    loader = _reseeded(data, batch_size, generator)
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError("the training data gave no batch (is the dataset smaller than one batch?)")


def _is_tensors(data: Any) -> bool:
    return isinstance(data, Sequence) and all(isinstance(item, Tensor) for item in data)


def check_data(name: str, data: Any, batch_size: int | None) -> None:
    """Raise `TaskError` where `data`, called `name`, cannot be read again and again, are columns that would be taken
    for the rows of a dataset (NumPy arrays, a dict), or tensors without rows, or with unequal numbers of them; or where
    they are no DataLoader, and no batches of `batch_size`.
    """
    if isinstance(data, tuple | list) and any(isinstance(item, np.ndarray) for item in data):
        raise TaskError(f"{name} holds NumPy arrays; give tensors, each made by torch.from_numpy(array)")
    if isinstance(data, Mapping):
        what = f"{name} is a {type(data).__name__}, which has no rows to draw"
        raise TaskError(f"{what}; give tensors as a tuple, or a Dataset whose items are dicts")
    rows = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not (rows or isinstance(data, DataLoader | IterableDataset)):
        raise TaskError(f"{name} is a {type(data).__name__}; give a DataLoader, a Dataset with a length or tensors")
    lengths = [len(tensor) for tensor in data] if _is_tensors(data) else [1]
    if not lengths or not lengths[0] or len(set(lengths)) > 1:
        what = f"the tensors of {name} are empty or of unequal length: {lengths} rows"
        raise TaskError(f"{what}; give tensors with a row for each example")
    if batch_size is None and _is_tensors(data):
        raise TaskError(
            f"batch_size is None, but {name} are tensors, which are cut into batches; give a number of rows"
        )
    if batch_size is not None and batch_size < 1 and not isinstance(data, DataLoader):
        raise TaskError(f"batch_size is {batch_size}; it must be at least 1")


def _reseeded(data: Any, batch_size: int | None, generator: torch.Generator) -> DataLoader[Any]:
    """A DataLoader over `data` whose shuffling follows `generator`."""
    if not isinstance(data, DataLoader):
        if isinstance(data, IterableDataset):
            return DataLoader(data, batch_size=batch_size, generator=generator)
        if batch_size is None:
            return DataLoader(data, batch_size=None, shuffle=True, generator=generator)
        size = min(batch_size, len(data))
        return DataLoader(data, batch_size=size, shuffle=True, drop_last=True, generator=generator)
    return _own_loader(data, generator)


def _own_loader(data: DataLoader[Any], generator: torch.Generator) -> DataLoader[Any]:
    """A copy, so that a subclass and all settings stay, with samplers of its own that follow `generator`."""
    own = copy.copy(data)
    own._iterator = None  # with persistent workers, trials would take each other's batches
    own.generator = generator
    own.pin_memory = data.pin_memory and torch.accelerator.is_available()  # without one, torch warns and pins nothing
    sampler, batch_sampler = (_own_sampler(given, generator) for given in (data.sampler, data.batch_sampler))
    if getattr(data.batch_sampler, "sampler", None) is data.sampler:
        sampler = batch_sampler.sampler
    object.__setattr__(own, "sampler", sampler)  # a DataLoader refuses to have them set
    object.__setattr__(own, "batch_sampler", batch_sampler)
    return own


def _own_sampler(sampler: Any, generator: torch.Generator) -> Any:
    """A copy that follows `generator`, as do the samplers within it; the sampler itself where it cannot be copied."""
    try:
        own = copy.copy(sampler)
    except Exception:  # as a generator object does; one of the task's own may raise anything
        return sampler
    attributes = getattr(own, "__dict__", {})  # no properties: they need not let themselves be set
    if "generator" in attributes and isinstance(own.generator, torch.Generator | None):  # it may be one of NumPy's
        own.generator = generator
    if "sampler" in attributes:
        own.sampler = _own_sampler(own.sampler, generator)
    return own


def one_pass(data: Any, batch_size: int | None) -> Iterable[Any]:
    """All validation batches, once, in order."""
    if isinstance(data, DataLoader):
        return data
    if _is_tensors(data):
        assert batch_size is not None  # see check_data
        size = max(batch_size, 256)  # no gradients are kept, so larger batches fit where training ones do
        return list(zip(*(torch.split(tensor, size) for tensor in data), strict=True))
    return DataLoader(data, batch_size=batch_size)
