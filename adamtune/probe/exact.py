"""Percentiles of all elements in bounded memory: one pass that counts into bins of bounded relative width."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from adamtune.probe.elements import SHARES, STATISTICS, Elements, Settings, Summary, elements
from adamtune.probe.sample import values_of
from adamtune.probe.state import Moments, Update

_SHIFT = 16
"""A bin holds the numbers that agree in the upper 16 bits of float32: sign, exponent, and 7 bits of the mantissa."""

RELATIVE_ERROR = 2.0**-8
"""A bin's middle is within this share, 0.39%, of what is in it: its width is at most 2^-7 of its lower end."""

_BINS = 1 << (31 - _SHIFT)
_FINITE = 0x7F800000 >> _SHIFT
"""The bin from which on numbers are infinite or NaN."""

_CHUNK = {"cpu": 1 << 15, "other": 1 << 19}
"""Elements read at a time. On the CPU what is made of them stays in a core's cache, and torch uses one thread for so
few; on a device, it takes under 64 MB."""

_COUNTED = 1 << 19
"""Elements whose bins are counted at a time, as counting costs as much as there are bins as well."""


@dataclass
class _Tally:
    """Counts over the elements seen so far."""

    device: torch.device
    elements: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    bins: dict[str, Tensor] = field(default_factory=dict)
    _waiting: dict[str, Tensor] = field(default_factory=dict)
    """Upper bits that are not counted yet."""
    _waiting_count: int = 0

    def __post_init__(self) -> None:
        self.bins = {name: torch.zeros(_BINS, dtype=torch.int64, device=self.device) for name in STATISTICS}
        self._waiting = {name: torch.empty(_COUNTED, dtype=torch.int32, device=self.device) for name in STATISTICS}

    def add(self, measured: Elements) -> None:
        size = len(measured.r)
        if self._waiting_count + size > _COUNTED:
            self.count()
        for name, waiting in self._waiting.items():
            bits = getattr(measured, name).view(torch.int32)
            torch.bitwise_right_shift(bits, _SHIFT, out=waiting[self._waiting_count : self._waiting_count + size])
        self._waiting_count += size
        self.elements += size
        for name in (*SHARES, "flips", "known"):
            if (mask := getattr(measured, name)) is not None:
                self.counts[name] = self.counts.get(name, 0) + _count(mask)
        if measured.flips is not None and measured.known is None:
            self.counts["known"] = self.counts.get("known", 0) + size

    def count(self) -> None:
        for name, own in self.bins.items():
            waiting = self._waiting[name][: self._waiting_count]
            own += torch.bincount(waiting.bitwise_and_(_BINS - 1), minlength=_BINS)  # a NaN may have its sign set
        self._waiting_count = 0

    def join(self, other: _Tally) -> None:
        self.elements += other.elements
        for name, own in self.bins.items():
            own += other.bins[name]
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count

    def summary(self, at: Sequence[float]) -> Summary:
        shares = {name: torch.tensor(self.counts.get(name, 0) / self.elements) for name in SHARES}
        if known := self.counts.get("known"):
            shares["flips"] = torch.tensor(self.counts["flips"] / known)
        return Summary({name: _percentiles(bins.cpu(), at) for name, bins in self.bins.items()}, shares)


def exact_summary(moments: Sequence[Moments], update: Update, settings: Settings, at: Sequence[float]) -> Summary:
    """Percentiles `at` of all elements within `RELATIVE_ERROR` of their value, and exact shares.

    numpy.quantile's interpolation between neighbours is kept. Numbers below 1e-38 are as precise as float32 is there.
    Takes a few MB for each of torch's threads whatever the state's size, but for a gradient that is sparse. Waits for
    the device.
    """
    device = moments[0].first.device
    columns = [_each(update, place) for place in range(len(moments))]
    on_cpu = device.type == "cpu"
    spans = list(_spans([each.numel for each in moments], _CHUNK["cpu" if on_cpu else "other"]))
    workers = min(torch.get_num_threads(), len(spans)) if on_cpu else 1

    @torch.no_grad()  # which a thread does not take over
    def read(worker: int) -> _Tally:
        tally = _Tally(device)
        for place, start, stop in spans[worker::workers]:
            tally.add(_chunk(moments[place], start, stop, columns[place], settings))
        tally.count()
        return tally

    if workers == 1:
        return read(0).summary(at)
    with ThreadPoolExecutor(workers) as pool:
        total, *others = pool.map(read, range(workers))
    for other in others:
        total.join(other)
    return total.summary(at)


def _spans(sizes: Sequence[int], chunk: int) -> Iterator[tuple[int, int, int]]:
    for place, size in enumerate(sizes):
        for start in range(0, size, chunk):
            yield place, start, min(size, start + chunk)


def _chunk(moments: Moments, start: int, stop: int, update: Update, settings: Settings) -> Elements:
    device = update.first.device  # a group may lie on several

    def read(tensor: Tensor) -> Tensor:
        return values_of(tensor, start, stop).to(device, non_blocking=True)

    m, v, theta = map(read, (moments.first, moments.second, moments.param))
    gradient = None if moments.gradient is None else read(moments.gradient)
    # Where a sum overflows though all are finite, they are looked at one by one.
    total = sum(float(each.sum()) for each in (m, v, gradient) if each is not None)
    all_finite = math.isfinite(total)
    return elements(m, v, theta, gradient, update, settings, all_finite)


def _each(update: Update, place: int) -> Update:
    return update.each(torch.tensor(place, device=update.first.device))


def _count(mask: Tensor) -> int:
    # numpy counts about ten times faster than torch.
    return int(np.count_nonzero(mask.numpy())) if mask.device.type == "cpu" else int(mask.sum())


def _percentiles(bins: Tensor, at: Sequence[float]) -> list[Tensor]:
    upto = bins[:_FINITE].cumsum(0)
    count = int(upto[-1])
    if count == 0:
        return [torch.tensor(math.nan)] * len(at)
    found = []
    for each in at:
        position = each / 100 * (count - 1)
        lower, upper = (_middle(upto, index) for index in (math.floor(position), math.ceil(position)))
        found.append(torch.tensor(lower + (upper - lower) * (position % 1)))
    return found


def _middle(upto: Tensor, index: int) -> float:
    """The middle of the bin that holds the element of that rank, from 0."""
    place = int(torch.searchsorted(upto, index, right=True))
    bits = (place << _SHIFT) + (1 << (_SHIFT - 1))
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32)) if place else 0.0
