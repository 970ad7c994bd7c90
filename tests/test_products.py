"""Products of matrices by NumPy are those of torch."""

from __future__ import annotations

import io
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info
from torch import Tensor

from adamtune import blas
from adamtune.engines.sequential import cpu_threads
from adamtune.population import products
from adamtune.population.products import product, shifted_product

SIZES = st.integers(0, 5) | st.sampled_from([32, 130])


@pytest.fixture(autouse=True)
def by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "numpy_is_quicker", lambda: True)
    monkeypatch.setattr(products, "WORTH", 0)


def by_rows(matrices: Tensor) -> Tensor:
    return matrices.contiguous()


def by_columns(matrices: Tensor) -> Tensor:
    return matrices.transpose(1, 2).contiguous().transpose(1, 2)


def with_gaps(matrices: Tensor) -> Tensor:
    return matrices.repeat_interleave(2, 2)[..., ::2]


def for_all(matrices: Tensor) -> Tensor:
    return matrices[:1].expand(matrices.shape)


def of_one_row(matrices: Tensor) -> Tensor:
    return matrices[:, :1].expand(matrices.shape)


LAYOUTS = st.sampled_from([by_rows, by_columns, with_gaps, for_all, of_one_row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.integers(1, 3), SIZES, SIZES, SIZES, LAYOUTS, LAYOUTS)
def test_any_layout_and_size(dtype, count, rows, inner, columns, lay_one, lay_other) -> None:  # type: ignore[no-untyped-def]
    drawn = torch.Generator().manual_seed(rows + inner)
    one = lay_one(torch.randn(count, rows, inner, generator=drawn, dtype=dtype)).requires_grad_()
    other = lay_other(torch.randn(count, inner, columns, generator=drawn, dtype=dtype)).requires_grad_()
    offset = torch.randn(count, 1, columns, generator=drawn, dtype=dtype)
    expected, found = torch.bmm(one, other), product(one, other)
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found, expected, **near)
    torch.testing.assert_close(shifted_product(offset, one, other), expected + offset, **near)
    weights = torch.randn(expected.shape, generator=drawn, dtype=dtype)
    wanted = torch.autograd.grad((expected * weights).sum(), (one, other))
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), (one, other)), wanted, **near)


def test_gradients_of_gradients() -> None:
    one, other = (torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(product, (one, other))
    assert torch.autograd.gradgradcheck(product, (one, other))


def test_other_numbers_are_left_to_torch() -> None:
    half = torch.ones(2, 3, 3, dtype=torch.bfloat16)
    assert product(half, half).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="BFloat16"):
        product(half, half.float())


@pytest.mark.parametrize(("one", "other", "threads", "worth"), [
    ((8, 64, 64), (8, 64, 64), 1, True),
    ((8, 64, 64), (8, 64, 64), 2, False),
    ((8, 64, 64), (8, 64, 1), 1, False),
    ((8, 1, 64), (8, 64, 640), 1, False),
    ((8, 16, 16), (8, 16, 16), 1, False),
])  # fmt: skip
def test_torch_multiplies_what_numpy_is_slower_at(
    one: tuple[int, ...], other: tuple[int, ...], threads: int, worth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "WORTH", 40_000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = product(torch.ones(one, requires_grad=True), torch.ones(other))
    assert ("Product" in str(found.grad_fn)) is worth


@pytest.mark.parametrize(("rows", "inner", "columns", "lies", "parts"), [
    (384, 48, 192, "rows", 4),  # a million multiplications at most in each
    (384, 48, 48, "rows", 1),
    (383, 48, 192, "rows", 0),  # a prime
    (1024, 256, 1024, "rows", 0),  # less than a sixteenth
    (192, 384, 48, "columns", 4),
    (1024, 32, 1024, "columns", 0),
    (32, 512, 128, "along", 4),  # 1,152 results at most in each
    (512, 128, 10, "along", 8),
    (384, 48, 1000, "along", 0),
])  # fmt: skip
def test_a_product_is_cut_so_that_its_parts_are_small_and_not_too_many(
    rows: int, inner: int, columns: int, lies: str, parts: int
) -> None:
    assert products._parts(rows, inner, columns, lies) == parts


@pytest.mark.parametrize(("rows", "inner", "columns", "dimensions"), [
    (384, 48, 192, 4),  # the weight laid out anew
    (32, 512, 128, 4),
    (384, 48, 1000, 3),  # a head over a vocabulary: no part of it would be small
    (16, 128, 1000, 3),
])  # fmt: skip
def test_a_layer_is_cut_only_where_its_parts_are_small(
    rows: int, inner: int, columns: int, dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul = mock.Mock(wraps=np.matmul)
    monkeypatch.setattr(products, "np", mock.Mock(matmul=matmul))
    product(torch.ones(2, rows, inner), torch.ones(2, columns, inner).transpose(1, 2))
    assert matmul.call_args.args[0].ndim == dimensions


def test_numpy_gets_as_many_threads_as_torch_and_gives_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with blas.threads(2):
        with cpu_threads():
            assert threads() == {3}
        assert threads() == {2}


@pytest.mark.parametrize(("cpu", "kernels", "quicker"), [
    ("vendor_id\t: AuthenticAMD", "SkylakeX", True),
    ("vendor_id\t: AuthenticAMD", "Zen", False),
    ("vendor_id\t: GenuineIntel", "SkylakeX", False),
])  # fmt: skip
def test_numpy_multiplies_where_mkl_goes_without_avx512(
    cpu: str, kernels: str, quicker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Libraries:
        def info(self) -> list[dict[str, str]]:
            return [{"architecture": kernels}]

    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(blas.Path, "open", lambda self: io.StringIO(cpu))
    monkeypatch.setattr(blas, "_libraries", Libraries)
    assert blas.numpy_is_quicker.__wrapped__() is quicker
