from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Adam

from adamtune.probe import SAMPLE, AdamProbe

RANKS = (0, 0.01, 10, 33.3, 50, 90, 99.99, 100)
LARGE = SAMPLE + 12_345


def with_moments(*first: Tensor) -> Adam:
    """Adam whose m_hat, as bias correction is over, is `first`."""
    params = [nn.Parameter(torch.ones_like(m)) for m in first]
    optimizer = Adam(params, betas=(0.9, 0.99))
    for param, m in zip(params, first, strict=True):
        state = {"exp_avg": m, "exp_avg_sq": torch.ones_like(m), "step": torch.tensor(1e9)}
        optimizer.state[param] = state
    return optimizer


def measured(*first: Tensor, exact: bool = True) -> list[float]:
    record = AdamProbe(with_moments(*first), percentiles=RANKS, exact=exact).record()
    return [record[f"group0/m_hat/p{rank:g}"] for rank in RANKS]


def expected(*first: Tensor) -> list[float]:
    values = torch.cat([m.flatten() for m in first]).double().abs().numpy()
    return [float(np.quantile(values, rank / 100)) for rank in RANKS]


@settings(max_examples=25, deadline=None)
@given(
    low=st.floats(-37, 37),
    width=st.floats(0, 60),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 9),
    parts=st.integers(1, 4),
)
@example(low=0.0, width=0.0, zeros=0.0, seed=0, parts=1)
@example(low=-37.0, width=74.0, zeros=1.0, seed=0, parts=1)
def test_percentiles_of_any_scale_are_within_half_a_percent(
    low: float, width: float, zeros: float, seed: int, parts: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    exponents = low + (min(low + width, 37) - low) * torch.rand(LARGE, generator=generator, dtype=torch.double)
    first = 10**exponents * (torch.rand(LARGE, generator=generator) >= zeros)
    first *= torch.where(torch.rand(LARGE, generator=generator) < 0.5, -1.0, 1.0)
    own = first.float().chunk(parts)
    # Between two numbers far apart the error is relative to the larger one.
    assert measured(*own) == pytest.approx(expected(*own), rel=5e-3, abs=1e-40)


def test_the_largest_of_many_is_found_where_a_sample_misses_it() -> None:
    first = torch.ones(20 * SAMPLE)
    first[777] = 5.0
    assert measured(first)[-1] == pytest.approx(5.0, rel=5e-3)
    assert measured(first, exact=False)[-1] == 1.0


@pytest.mark.parametrize("size", [SAMPLE, SAMPLE + 1, 2 * SAMPLE, 2**19 + 1, 2**20])
def test_no_element_is_left_out_or_counted_twice_at_the_edges_of_chunks(size: int) -> None:
    first = torch.linspace(1.0, 100.0, size)
    optimizer = with_moments(first, torch.ones(()), torch.ones(0), first[:5])
    for state in optimizer.state.values():
        state["exp_avg"].fill_(0.0)
        state["exp_avg_sq"].fill_(0.0)
    next(iter(optimizer.state.values()))["exp_avg_sq"][-7:] = 1.0
    record = AdamProbe(optimizer, exact=True).record()
    assert record["group0/never_updated"] == pytest.approx(1 - 7 / (size + 6), abs=1e-7)
    assert measured(first) == pytest.approx(expected(first), rel=5e-3)


def test_moments_that_are_no_whole_block_of_memory_are_read() -> None:
    first = torch.randn(3, LARGE, generator=torch.Generator().manual_seed(0)).t()[:, 1:]
    assert measured(first) == pytest.approx(expected(first), rel=5e-3)


def test_the_numbers_do_not_depend_on_the_number_of_threads() -> None:
    first = torch.randn(3 * LARGE, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = measured(first)
        torch.set_num_threads(3)
        assert measured(first) == alone
    finally:
        torch.set_num_threads(threads)
