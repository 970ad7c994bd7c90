"""The probe on every state that torch's optimizers keep, beside a naive twin: how far the parameters really went."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, SparseAdam

from adamtune.errors import ProbeError
from adamtune.handover import AdamThenSGD
from adamtune.probe import AdamProbe
from adamtune.probe.state import moments_of

PERCENTILES = (10, 50, 90)
SETTINGS: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3}
LARGE = 70_001
"""Elements that are more than a sample has."""

KINDS: dict[str, Callable[[Any], Optimizer]] = {
    "Adam": lambda params: Adam(params, **SETTINGS),
    "Adam, weight decay": lambda params: Adam(params, weight_decay=0.3, **SETTINGS),
    "Adam, maximize": lambda params: Adam(params, maximize=True, weight_decay=0.3, **SETTINGS),
    "AdamW": lambda params: AdamW(params, weight_decay=0.0, **SETTINGS),
    "amsgrad": lambda params: AdamW(params, weight_decay=0.0, amsgrad=True, **SETTINGS),
    "foreach": lambda params: AdamW(params, weight_decay=0.0, foreach=True, **SETTINGS),
    "fused": lambda params: AdamW(params, weight_decay=0.0, fused=True, **SETTINGS),
    "lr a tensor": lambda params: Adam(params, **SETTINGS | {"lr": torch.tensor(0.02, dtype=torch.double)}),
    "NAdam": lambda params: NAdam(params, **SETTINGS),
    "NAdam, weight decay": lambda params: NAdam(params, weight_decay=0.3, **SETTINGS),
    "RAdam": lambda params: RAdam(params, **SETTINGS),
    "RAdam, weight decay": lambda params: RAdam(params, weight_decay=0.3, **SETTINGS),
    "beta1 of zero": lambda params: Adam(params, **SETTINGS | {"betas": (0.0, 0.95)}),
}


def gradients(param: Tensor, generator: torch.Generator) -> Tensor:
    """Of many sizes, so that percentiles lie far apart."""
    size = torch.randn(param.shape, generator=generator, dtype=param.dtype)
    return size * torch.logspace(-4, 0, param.numel(), dtype=torch.double).reshape(param.shape).to(param.dtype)


def trained(optimizer: Optimizer, steps: int, sparse: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Train on random gradients; how far each parameter went at the last step, and its m before it."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        before = [param.detach().clone() for param in params]
        moments = [optimizer.state[param].get("exp_avg", torch.zeros_like(param)).clone() for param in params]
        for param in params:
            param.grad = gradients(param, generator)
            if sparse:
                param.grad = param.grad.to_sparse(1)
        optimizer.step()
    return [param.detach() - was for param, was in zip(params, before, strict=True)], moments


def flat(tensors: list[Tensor]) -> Tensor:
    """Absolute values of all elements, complex ones as two."""
    pairs = [torch.view_as_real(each) if each.is_complex() else each for each in tensors]
    return torch.cat([each.detach().double().abs().flatten() for each in pairs])


def percentiles(name: str, values: Tensor) -> dict[str, float]:
    return {f"group0/{name}/p{p}": float(np.quantile(values.numpy(), p / 100)) for p in PERCENTILES}


def small() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.double)) for shape in ((9, 4), (6,), ())]


def moved(optimizer: Optimizer, steps: int, sparse: bool = False) -> dict[str, float]:
    """What the record must say of r, lr_r, the update to weight, and sign flips."""
    went, before = trained(optimizer, steps, sparse)
    params = list(optimizer.state)
    far = flat(went)
    flips = [optimizer.state[param]["exp_avg"] * m < 0 for param, m in zip(params, before, strict=True)]
    found = percentiles("lr_r", far) | percentiles("r", far / 0.02)
    found |= percentiles("update_to_weight", far / flat(params))
    if optimizer.param_groups[0]["betas"][0] > 0:
        found["group0/flips"] = float(torch.cat([each.flatten() for each in flips]).double().mean())
    return found


@pytest.mark.parametrize("steps", [1, 2, 9, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_r_is_as_far_as_the_parameters_went(kind: str, steps: int) -> None:
    optimizer = KINDS[kind](small())
    expected = moved(optimizer, steps)
    record = AdamProbe(optimizer).record()
    assert {name: record.get(name) for name in expected} == pytest.approx(expected, rel=1e-3)
    assert ("group0/flips" in record) == ("group0/flips" in expected)


def test_an_optimizer_may_keep_what_it_likes_under_the_names_that_ours_use() -> None:
    plain, named = KINDS["Adam, weight decay"](small()), KINDS["Adam, weight decay"](small())
    vars(named)["_kind"] = "adamw"
    for optimizer in (plain, named):
        trained(optimizer, 2)
    assert AdamProbe(named).record() == AdamProbe(plain).record()


@pytest.mark.parametrize("kind", KINDS)
def test_exact_percentiles_of_a_large_group_are_within_half_a_percent(kind: str) -> None:
    params = [nn.Parameter(torch.linspace(0.5, 2.0, LARGE, dtype=torch.double)), *small()]
    optimizer = KINDS[kind](params)
    expected = moved(optimizer, 6)
    probe = AdamProbe(optimizer, exact=True)
    record = probe.record()
    flips = expected.pop("group0/flips", None)
    assert {name: record[name] for name in expected} == pytest.approx(expected, rel=5e-3)
    assert record.get("group0/flips") == (None if flips is None else pytest.approx(flips, abs=1e-4))
    assert probe.rank_error == 0


def test_nadams_m_hat_has_its_part_of_the_gradient() -> None:
    param = nn.Parameter(torch.ones(1, dtype=torch.double))
    optimizer = NAdam([param], momentum_decay=4e-3, **SETTINGS)
    went, _ = trained(optimizer, 5)
    record = AdamProbe(optimizer).record()
    divisor = record["group0/sqrt_v_hat/p50"] + 1e-3
    assert record["group0/m_hat/p50"] == pytest.approx(float(went[0].abs()) / 0.02 * divisor, rel=1e-4)


# --- sparse gradients


@pytest.mark.parametrize("exact", [False, True])
def test_sparse_adam_is_measured_as_far_as_its_rows_went(exact: bool) -> None:
    rows = 3 if not exact else LARGE // 3
    param = nn.Parameter(torch.linspace(0.5, 2.0, 4 * rows, dtype=torch.double).reshape(rows, 4))
    optimizer = SparseAdam([param], **SETTINGS)
    expected = moved(optimizer, 6, sparse=True)
    flips = expected.pop("group0/flips")
    record = AdamProbe(optimizer, exact=exact).record()
    assert {name: record[name] for name in expected} == pytest.approx(expected, rel=5e-3 if exact else 1e-3)
    assert record["group0/flips"] == pytest.approx(flips, abs=1e-4)


def of_rows(rows: list[int], values: list[float]) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), torch.tensor(values)[:, None], (4, 1), check_invariants=True)


def test_rows_that_sparse_adam_left_out_keep_their_moments_and_tell_no_flips() -> None:
    param = nn.Parameter(torch.ones(4, 1))
    optimizer = SparseAdam([param], **SETTINGS)
    for values, rows in (([1.0, 1.0], [0, 1]), ([-9.0], [0]), ([-9.0], [0])):
        param.grad = of_rows(rows, values)
        optimizer.step()
    record = AdamProbe(optimizer).record()
    assert record["group0/never_updated"] == 0.5
    assert record["group0/flips"] == 0.0  # row 0 flipped a step before; of row 1 nothing is known
    assert record["group0/grad_norm"] == 9.0
    param.grad = of_rows([0, 1], [0.0, -9.0])
    optimizer.step()
    assert AdamProbe(optimizer).record()["group0/flips"] == 0.5


def test_an_embedding_with_sparse_gradients_that_saw_no_row_is_measured() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = SparseAdam(table.parameters(), **SETTINGS)
    table(torch.zeros(0, dtype=torch.long)).sum().backward()
    optimizer.step()
    record = AdamProbe(optimizer).record()
    assert record["group0/never_updated"] == 1.0
    assert record["group0/grad_norm"] == 0.0


# --- types of state


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_state_is_told_in_fp32(dtype: torch.dtype, exact: bool) -> None:
    param = nn.Parameter(torch.ones(LARGE if exact else 500, dtype=dtype))
    optimizer = AdamW([param], **SETTINGS)
    trained(optimizer, 6)
    state = optimizer.state[param]
    assert state["exp_avg"].dtype == dtype
    m_hat = state["exp_avg"].double().abs() / (1 - 0.8**6)
    root = (state["exp_avg_sq"].double() / (1 - 0.95**6)).sqrt()
    expected = percentiles("m_hat", m_hat) | percentiles("sqrt_v_hat", root) | percentiles("r", m_hat / (root + 1e-3))
    record = AdamProbe(optimizer, exact=exact).record()
    assert {name: record[name] for name in expected} == pytest.approx(expected, rel=5e-3 if exact else 1e-5)
    assert record["group0/below_eps"] == pytest.approx(float(((root < 1e-3) & (root > 0)).double().mean()), abs=1e-4)


@pytest.mark.parametrize("exact", [False, True])
def test_complex_parameters_are_measured_as_pairs(exact: bool) -> None:
    size = LARGE if exact else 50
    param = nn.Parameter(torch.complex(torch.linspace(0.5, 2.0, size), torch.ones(size)).to(torch.complex128))
    optimizer = Adam([param], **SETTINGS)
    went, _ = trained(optimizer, 6)
    expected = percentiles("lr_r", flat(went)) | percentiles("update_to_weight", flat(went) / flat([param]))
    record = AdamProbe(optimizer, exact=exact).record()
    assert {name: record[name] for name in expected} == pytest.approx(expected, rel=5e-3 if exact else 1e-3)
    assert record["group0/grad_norm"] == pytest.approx(float(torch.linalg.vector_norm(param.grad)), rel=1e-5)


@pytest.mark.parametrize("step", [6, 6.0, torch.tensor(6), torch.tensor([6.0], dtype=torch.double)])
def test_a_step_of_any_type_is_read(step: object) -> None:
    params = small()
    optimizer = Adam(params, **SETTINGS)
    trained(optimizer, 6)
    expected = AdamProbe(optimizer).record()
    for state in optimizer.state.values():
        state["step"] = step
    assert AdamProbe(optimizer).record() == expected


@pytest.mark.parametrize("exact", [False, True])
def test_state_that_is_not_finite_is_counted_and_the_rest_measured(exact: bool) -> None:
    param = nn.Parameter(torch.ones(4, LARGE))
    optimizer = Adam([param], **SETTINGS)
    param.grad = torch.full((4, LARGE), -2.0)
    optimizer.step()
    optimizer.state[param]["exp_avg"][0].fill_(math.nan)
    optimizer.state[param]["exp_avg"][1].fill_(-math.inf)
    optimizer.state[param]["exp_avg_sq"][1].fill_(math.inf)
    param.grad[2] = -math.nan
    record = AdamProbe(optimizer, exact=exact).record()
    assert record["group0/nonfinite"] == pytest.approx(0.5, abs=0 if exact else 0.0065)
    assert [record[f"group0/m_hat/p{p}"] for p in PERCENTILES] == pytest.approx([2.0] * 3, rel=5e-3)
    assert record["group0/flips"] == 0.0
    assert math.isnan(record["group0/grad_norm"])
    optimizer.state[param]["exp_avg_sq"].fill_(math.nan)
    record = AdamProbe(optimizer, exact=exact).record()
    assert record["group0/nonfinite"] == 1.0
    assert not [name for name in record if "/p" in name]


class Scaled(Tensor):
    """As torchao keeps moments: codes and scales within."""

    codes = torch.zeros(2, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "state1"])
@pytest.mark.parametrize("moment", [torch.zeros(2, dtype=torch.uint8), torch.zeros(2).as_subclass(Scaled)])
def test_moments_in_8_bits_are_refused(name: str, moment: Tensor) -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = Adam([param])
    trained(optimizer, 1)
    optimizer.state[param][name] = moment
    with pytest.raises(ProbeError, match=f"8 bits \\('{name}'\\).*32-bit"):
        AdamProbe(optimizer).record()


@pytest.mark.parametrize("kind", [Adamax, SGD])
def test_an_optimizer_that_keeps_other_state_is_told_by_its_norms(kind: type[Optimizer]) -> None:
    optimizer = kind(small(), lr=0.1)
    trained(optimizer, 2)
    probe = AdamProbe(optimizer)
    assert list(probe.record()) == ["group0/grad_norm"]
    assert "norms only" in probe.notes[0]


def test_moments_of_another_size_than_the_parameter_are_no_adams() -> None:
    param = nn.Parameter(torch.ones(6))
    optimizer = Adam([param])
    trained(optimizer, 1)
    for name in ("exp_avg", "exp_avg_sq"):  # as where gradients are projected
        optimizer.state[param][name] = torch.ones(2)
    probe = AdamProbe(optimizer)
    assert list(probe.record()) == ["group0/grad_norm"]
    assert "keeps no moments as Adam does" in probe.notes[0]


@pytest.mark.parametrize("exact", [False, True])
def test_channels_last_moments_are_measured_in_place(exact: bool) -> None:
    records = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = torch.linspace(0.5, 2.0, 24 * (LARGE // 24 + 1)).reshape(-1, 6, 2, 2)
        if not exact:
            weight = weight[:50]
        param = nn.Parameter(weight.clone(memory_format=layout))
        optimizer = AdamW([param], **SETTINGS)
        trained(optimizer, 6)
        optimizer.state[param]["exp_avg"] *= weight  # so that it matters which elements go together
        records.append(AdamProbe(optimizer, exact=exact).record())
        moments = moments_of(param, optimizer.state[param], optimizer.param_groups[0])
        assert moments is not None
        assert moments.first.reshape(-1).data_ptr() == optimizer.state[param]["exp_avg"].data_ptr()
        assert moments.second.is_contiguous()
    assert records[1] == pytest.approx(records[0], rel=1e-5)


# --- models


def test_tied_weights_are_counted_once() -> None:
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head)
    optimizer = Adam(model.parameters(), **SETTINGS)
    model(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert head.weight.grad is not None
    record = AdamProbe(optimizer, model, by="layer").record()
    assert {name.split("/")[0] for name in record} == {"0.weight"}
    assert record["0.weight/grad_norm"] == pytest.approx(float(head.weight.grad.norm()))


def test_a_compiled_model_is_named_as_the_model_within() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    compiled = torch.compile(model, backend="eager")
    optimizer = AdamW(compiled.parameters(), **SETTINGS)
    compiled(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    record = AdamProbe(optimizer, compiled, by="layer").record()
    assert [name.split("/")[0] for name in record if name.endswith("flips")] == [
        "0.weight", "0.bias", "1.weight", "1.bias"
    ]  # fmt: skip
    whole = AdamProbe(optimizer, compiled).record()
    assert whole == AdamProbe(optimizer, model).record()


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("needs gloo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP on a CPU needs torch 2.7")
@pytest.mark.parametrize("exact", [False, True])
def test_what_this_process_holds_of_a_sharded_model_is_measured_and_said_to_be(mesh: Any, exact: bool) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    def model() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(4, 300), nn.Linear(300, 300))

    plain, sharded = model(), model()
    fully_shard(sharded, mesh=mesh)
    records = []
    for each in (plain, sharded):
        optimizer = AdamW(each.parameters(), foreach=False, **SETTINGS)
        each(torch.linspace(0, 1, 12).reshape(3, 4)).pow(2).sum().backward()
        optimizer.step()
        probe = AdamProbe(optimizer, each, exact=exact)
        records.append(probe.record())
    assert all(isinstance(param, DTensor) for param in sharded.parameters())
    assert records[1] == pytest.approx(records[0], rel=1e-5)
    assert probe.notes == ("group0: only what this process holds of its shards is measured",)


# --- along a training


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_read_unscaled_after_a_scaler(fused: bool) -> None:
    def record(scaled: bool) -> dict[str, float]:
        params = [nn.Parameter(torch.linspace(-1, 1, 8)), nn.Parameter(torch.ones(3))]
        optimizer = Adam(params, fused=fused, **SETTINGS)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(sum((param**3).sum() for param in params)).backward()
            scaler.step(optimizer)
            scaler.update()
        return AdamProbe(optimizer).record()

    assert record(True) == pytest.approx(record(False), rel=1e-5)


def test_a_step_that_a_scaler_skipped_is_measured_with_its_infinite_norm() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = Adam([param], **SETTINGS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, math.inf):
        optimizer.zero_grad()
        scaler.scale((factor * param).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    record = AdamProbe(optimizer).record()
    assert math.isinf(record["group0/grad_norm"])
    assert record["group0/r/p50"] == pytest.approx(1.0, rel=2e-3)  # Adam's first step, the only one it made
    assert "group0/flips" not in record


def test_groups_may_change_midway() -> None:
    optimizer = Adam([nn.Parameter(torch.ones(5))], **SETTINGS)
    probe = AdamProbe(optimizer)
    trained(optimizer, 2)
    assert {name.split("/")[0] for name in probe.record()} == {"group0"}
    added = nn.Parameter(torch.ones(LARGE, dtype=torch.double))
    optimizer.add_param_group({"params": [added], "name": "added"})
    assert probe.record().keys() == AdamProbe(optimizer).record().keys()
    assert probe.notes == ("added: it has no state yet, so there are norms only",)
    went, _ = trained(optimizer, 1)
    record = probe.record()
    assert probe.notes == ()
    assert record["added/lr_r/p50"] == pytest.approx(float(went[1].abs().quantile(0.5)), rel=1e-2)
    optimizer.param_groups[0]["params"] += optimizer.param_groups.pop()["params"]  # merged: other sizes, same name
    assert probe.record() == AdamProbe(optimizer).record()
    optimizer.param_groups.clear()
    assert probe.record() == {}


@pytest.mark.parametrize("exact", [False, True])
def test_a_hand_over_to_sgd_is_followed(exact: bool) -> None:
    param = nn.Parameter(torch.ones(LARGE))
    optimizer = AdamThenSGD([{"params": [param]}], Adam, switch_at=2, lr=0.02, sgd_lr=0.1, momentum=0.9)
    probe = AdamProbe(optimizer, exact=exact)
    for _ in range(3):
        param.grad = torch.full_like(param, 2.0)
        optimizer.step()
        probe.step()
    adams, last, sgd = (record for _, record in probe.records)
    assert adams["group0/lr_r/p50"] == pytest.approx(0.02, rel=5e-3)
    assert adams.keys() == last.keys()
    assert sgd == {
        "group0/grad_norm": pytest.approx(2 * math.sqrt(LARGE)),
        "group0/momentum_norm": pytest.approx(2 * math.sqrt(LARGE)),
    }


def test_records_become_a_table() -> None:
    params = small()
    groups = [{"params": params[:2], "name": "encoder/body"}, {"params": params[2:], "name": "p50"}]
    optimizer = AdamW(groups, **SETTINGS)
    probe = AdamProbe(optimizer, percentiles=(0, 50, 99.5), every=2)
    empty = probe.to_frame()
    assert list(empty.columns) == ["step", "group", "statistic", "percentile", "value"]
    assert len(empty) == 0
    for _ in range(4):
        trained(optimizer, 1)
        probe.step()
    table = probe.to_frame()
    assert table.dtypes.astype(str).to_dict() == empty.dtypes.astype(str).to_dict()
    rows = [tuple(row) for row in table.itertuples(index=False)]
    back: dict[int, dict[str, float]] = {}
    for step, group, statistic, percentile, value in rows:
        rank = "" if math.isnan(percentile) else f"/p{percentile:g}"
        back.setdefault(step, {})[f"{group}/{statistic}{rank}"] = value
    assert list(back.items()) == probe.records
