"""Seeds: every source of chance in a trial is a stream of its own, derived from the trial's seed.

Trials that share a seed share initial weights, batches and dropout (common random numbers), which is what makes their
differences small and their comparison cheap. Torch's generator is seeded anew before every step from (seed, step), so
the noise of step k does not depend on how many trials take turns in one process, nor on whether a trial was paused.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import numpy as np
import torch

_MASK = (1 << 64) - 1


class Stream(IntEnum):
    """What a derived seed is for."""

    INIT = 1
    DATA = 2
    STEP = 3
    EVALUATION = 4


def derive_seed(seed: int, stream: Stream, index: int = 0) -> int:
    """A 63-bit seed for one use; near inputs give unrelated outputs (SplitMix64, Steele et al. 2014)."""
    mixed = seed & _MASK
    for word in (int(stream), index):
        mixed = (mixed + 0x9E3779B97F4A7C15 * (word + 1)) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed >> 1


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's global generator of the CPU, and of `device` where that is another."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the global streams of torch (the CPU's), NumPy and Python begin at `seed`; then the caller's go on."""
    cpu = torch.device("cpu")
    with RandomState(seed).active(cpu):
        seed_torch(seed, cpu)
        yield


class TorchState:
    """Where torch's global streams stand: the CPU's and, on CUDA, the device's."""

    def __init__(self, cpu: torch.Tensor, device: torch.device, own: torch.Tensor | None) -> None:
        """As `now` takes them."""
        self._cpu, self._device, self._own = cpu, device, own

    @classmethod
    def now(cls, device: torch.device) -> TorchState:
        """Take them down."""
        own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.default_generator.get_state(), device, own)

    def restore(self) -> None:
        """Go on from here."""
        torch.default_generator.set_state(self._cpu)
        if self._own is not None:
            torch.cuda.set_rng_state(self._own, self._device)

    def __eq__(self, other: object) -> bool:
        """Whether both would go on alike."""
        if not isinstance(other, TorchState) or not torch.equal(self._cpu, other._cpu):
            return False
        return (self._own is None and other._own is None) or (
            self._own is not None and other._own is not None and torch.equal(self._own, other._own)
        )

    __hash__ = None  # type: ignore[assignment]


class RandomState:
    """Python's and NumPy's global generators as one trial sees them, kept apart from the caller's and other trials'."""

    def __init__(self, seed: int) -> None:
        """Start both streams from `seed`."""
        self._python = random.Random(seed)  # its state as Python tells it takes ten times the memory
        self._numpy: Any = np.random.RandomState(seed % 2**32).get_state()

    def state(self) -> dict[str, Any]:
        """Where the streams stand, as plain data and tensors."""
        name, words, *rest = self._numpy
        return {"python": self._python.getstate(), "numpy": (name, torch.from_numpy(words.astype(np.int64)), *rest)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        name, words, *rest = state["numpy"]
        self._python.setstate(state["python"])
        self._numpy = (name, words.numpy().astype(np.uint32), *rest)

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Put these streams in place; on leaving, keep how far they came and restore the caller's, torch's included."""
        python, numpy = random.getstate(), np.random.get_state()
        random.setstate(self._python.getstate())
        np.random.set_state(self._numpy)
        forked = [device] if device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=forked):
                yield
        finally:
            self._python.setstate(random.getstate())
            self._numpy = np.random.get_state()
            random.setstate(python)
            np.random.set_state(numpy)
