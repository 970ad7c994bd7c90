"""Which library multiplies matrices fastest on this processor, and on how many threads NumPy's does.

torch's wheels multiply by Intel's MKL, which uses AVX-512 on Intel's processors only. On one of AMD's that has it,
OpenBLAS is quicker, and NumPy's wheels bring it along: twice as quick on Zen 5; on Zen 4, whose units are half as wide,
by a tenth at 512 rows and columns and up to a quarter in a stack's small products (MKL 2024.2, OpenBLAS 0.3.31).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

_WITH_AVX512 = {"SkylakeX", "Cooperlake", "SapphireRapids"}
"""OpenBLAS's names for the processors whose kernels use it, whoever made them."""


@cache
def numpy_is_quicker() -> bool:
    """Whether NumPy multiplies matrices faster than torch does, on a CPU."""
    kernels = {library.get("architecture") for library in _libraries().info()}
    by_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]  # torch's
    return by_mkl and _by_amd() and bool(kernels & _WITH_AVX512)


def threads(count: int) -> AbstractContextManager[Any]:
    """NumPy's products on so many threads, until the context that this gives is left."""
    limit: AbstractContextManager[Any] = _libraries().limit(limits=count)
    return limit


@cache
def _libraries() -> Any:
    return ThreadpoolController().select(user_api="blas")


def _by_amd() -> bool:
    try:
        with Path("/proc/cpuinfo").open() as file:
            return "AuthenticAMD" in file.read(4096)  # of the first core
    except OSError:  # not Linux
        return False
