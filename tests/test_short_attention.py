"""Attention by NumPy's products is that of torch, however query, key and value were cut out of one tensor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from adamtune.population import products
from adamtune.population.short_attention import attention, is_short

BATCH, HEADS, LENGTH, WIDTH = 3, 2, 5, 4


@pytest.fixture(autouse=True)
def by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "numpy_is_quicker", lambda: True)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


class Halving(torch.autograd.Function):
    """A view whose gradient is not a view's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] / 2


def unbound(x: Tensor) -> Sequence[Tensor]:
    return x.view(BATCH, LENGTH, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)


def chunked(x: Tensor) -> Sequence[Tensor]:
    return [part.view(BATCH, LENGTH, HEADS, WIDTH).transpose(1, 2) for part in x.chunk(3, -1)]


def by_head(x: Tensor) -> Sequence[Tensor]:
    return x.view(BATCH, LENGTH, HEADS, 3 * WIDTH).transpose(1, 2).split(WIDTH, -1)


def copied(x: Tensor) -> Sequence[Tensor]:
    return [part.contiguous() for part in unbound(x)]


def detached(x: Tensor) -> Sequence[Tensor]:
    query, key, value = unbound(x)
    return query, key.detach(), value


def halved(x: Tensor) -> Sequence[Tensor]:
    query, key, value = unbound(x)
    return query, Halving.apply(key), value  # type: ignore[no-untyped-call]


def twice_the_same(x: Tensor) -> Sequence[Tensor]:
    query, _, value = unbound(x)
    return query, query, value


def changed_in_place(x: Tensor) -> Sequence[Tensor]:
    size = HEADS * WIDTH
    parts = [x[..., start : start + size] for start in range(0, 3 * size, size)]
    query, key, value = (part.view(BATCH, LENGTH, HEADS, WIDTH).transpose(1, 2) for part in parts)
    query.mul_(2)
    return query, key, value


def fewer_positions(x: Tensor) -> Sequence[Tensor]:
    query, key, value = unbound(x)
    return query[:, :, 2:], key, value


CUTS = [unbound, chunked, by_head, copied, detached, halved, twice_the_same, fewer_positions]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("cut", "leaf"), [*itertools.product(CUTS, [False, True]), (changed_in_place, False)])
def test_gradients_find_their_way_whatever_the_three_are_cut_from(
    cut: Callable[[Tensor], Sequence[Tensor]], causal: bool, leaf: bool
) -> None:
    weights = drawn(BATCH, HEADS, LENGTH - 2 * (cut is fewer_positions), WIDTH)
    found = []
    for function in (
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=causal),
        lambda q, k, v: attention(q, k, v, causal, None),
    ):
        source = drawn(BATCH, LENGTH, 3 * HEADS * WIDTH).requires_grad_()
        out = function(*cut(source if leaf else source * 1.5))
        found.append((out, out.stride(), torch.autograd.grad((out * weights).sum(), source)[0]))
    (expected, strides, gradient), (mine, my_strides, my_gradient) = found
    torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(my_gradient, gradient)
    if cut in (unbound, chunked):
        assert my_strides == strides


def test_a_gradient_of_three_views_comes_in_one_piece() -> None:
    whole = drawn(BATCH, LENGTH, 3 * HEADS * WIDTH).requires_grad_() * 1.0
    joint, apart = attention(*unbound(whole), True, None), attention(*copied(whole), True, None)
    assert [node is not None for node, _ in joint.grad_fn.next_functions] == [True, False, False, False]  # type: ignore[union-attr]
    assert [node is not None for node, _ in apart.grad_fn.next_functions] == [True, True, True]  # type: ignore[union-attr]


@pytest.mark.parametrize(("queries", "keys", "value_width"), [(5, 5, 4), (3, 5, 4), (5, 3, 4), (5, 5, 2)])
@pytest.mark.parametrize("causal", [False, True])
def test_other_sizes_and_a_scale(queries: int, keys: int, value_width: int, causal: bool) -> None:
    shapes = [(2, 3, queries, 4), (2, 3, keys, 4), (2, 3, keys, value_width)]
    three = [drawn(*shape).requires_grad_() for shape in shapes]
    expected = scaled_dot_product_attention(*three, is_causal=causal, scale=0.7)
    mine = attention(*three, causal, 0.7)
    torch.testing.assert_close(mine, expected)
    wanted = torch.autograd.grad(expected.square().sum(), three)
    torch.testing.assert_close(torch.autograd.grad(mine.square().sum(), three), wanted)


def test_a_gradient_of_the_gradient_is_refused_and_not_wrong() -> None:
    three = [drawn(2, 2, 3, 4).requires_grad_() for _ in range(3)]
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(attention(*three, False, None).sum(), three, create_graph=True)


@pytest.mark.parametrize(("shape", "dtype", "short"), [
    ((8, 4, 48, 12), torch.float32, True),
    ((8, 4, 128, 64), torch.float64, True),
    ((8, 4, 129, 12), torch.float32, False),
    ((8, 4, 48, 65), torch.float32, False),
    ((8, 4, 1, 12), torch.float32, False),
    ((4, 48, 12), torch.float32, False),
    ((8, 4, 48, 12), torch.bfloat16, False),
    ((800, 2, 60, 12), torch.float32, True),
    ((800, 2, 60, 12), torch.float64, False),
])  # fmt: skip
def test_long_wide_and_many_are_left_to_torch(shape: tuple[int, ...], dtype: torch.dtype, short: bool) -> None:
    three = [torch.zeros(shape, dtype=dtype) for _ in range(3)]
    assert is_short(*three) is short
    with torch.no_grad():
        assert not is_short(*three)
    with torch.autocast("cpu"):
        assert not is_short(*three)


def test_where_torch_multiplies_its_kernel_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    three = [torch.zeros(8, 4, 48, 12) for _ in range(3)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not is_short(*three)
