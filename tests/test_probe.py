from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from adamtune.errors import ProbeError
from adamtune.probe import SAMPLE, AdamProbe
from adamtune.recipe import GroupRule, Match, Recipe, Switch
from adamtune.task import Task
from adamtune.trial import Outcome, Trial, TrialRequest, TrialResult

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
PERCENTILES = (10, 50, 90)


def make_model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 1))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x.sum(1, keepdim=True)).pow(2).mean()


def batches(generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield X[torch.randint(64, (8,), generator=generator)]


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> dict[nn.Parameter, list[Tensor]]:
    """Train; the gradients of every parameter, step by step, in float64."""
    data = batches(torch.Generator().manual_seed(2))
    gradients: dict[nn.Parameter, list[Tensor]] = {param: [] for param in model.parameters()}
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, next(data)).backward()
        for param, seen in gradients.items():
            seen.append(param.grad.double())
        optimizer.step()
    return gradients


def by_hand(
    gradients: Mapping[nn.Parameter, list[Tensor]], group: Mapping[str, Any], amsgrad: bool = False
) -> dict[str, float]:
    """One group's record: Kingma & Ba 2014, algorithm 1, in float64; amsgrad as torch has it."""
    beta1, beta2 = group["betas"]
    m_hats, roots, flips = [], [], []
    for seen in gradients.values():
        m = v = largest = before = torch.zeros_like(seen[0])
        for g in seen:
            before = m
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            largest = torch.maximum(largest, v)
        flips.append((m * before < 0).flatten())
        m_hats.append((m / (1 - beta1 ** len(seen))).abs().flatten())
        roots.append(((largest if amsgrad else v) / (1 - beta2 ** len(seen))).sqrt().flatten())
    m_hat, root = torch.cat(m_hats), torch.cat(roots)
    r = m_hat / (root + group["eps"])
    weights = torch.cat([param.detach().double().abs().flatten() for param in gradients])
    record = {"grad_norm": math.sqrt(sum(float((seen[-1] ** 2).sum()) for seen in gradients.values()))}
    statistics = {"m_hat": m_hat, "sqrt_v_hat": root, "r": r, "lr_r": group["lr"] * r}
    statistics["update_to_weight"] = (group["lr"] * r / weights)[weights > 0]
    for statistic, values in statistics.items():
        for p in PERCENTILES:
            record[f"{statistic}/p{p}"] = float(torch.quantile(values, p / 100))
    record["below_eps"] = float(((root < group["eps"]) & (root > 0)).double().mean())
    record["never_updated"] = float((root == 0).double().mean())
    return record | {"nonfinite": 0.0, "flips": float(torch.cat(flips).double().mean())}


SETTINGS = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3}


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("kind", [AdamW, Adam])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_percentiles_are_those_of_adams_state_worked_out_by_hand(
    kind: type[Optimizer], amsgrad: bool, steps: int
) -> None:
    model = make_model()
    optimizer = kind(model.parameters(), weight_decay=0.0, amsgrad=amsgrad, **SETTINGS)
    gradients = train(model, optimizer, steps)
    expected = by_hand(gradients, SETTINGS, amsgrad)
    record = AdamProbe(optimizer, model).record()
    assert record == pytest.approx({f"group0/{name}": value for name, value in expected.items()}, rel=1e-4)


def test_amsgrad_shows_the_largest_v_and_not_the_latest() -> None:
    param = nn.Parameter(torch.zeros(1))
    optimizer = Adam([param], betas=(0.9, 0.5), amsgrad=True)
    for gradient in (8.0, 0.0, 0.0):
        param.grad = torch.full((1,), gradient)
        optimizer.step()
    # v is 32, 16, 8: the largest over 1 - 0.5^3
    assert AdamProbe(optimizer).record()["group0/sqrt_v_hat/p50"] == pytest.approx(math.sqrt(32 / 0.875))


RECIPE = Recipe(
    lr=0.02,
    groups=(
        GroupRule(name="biases", match=Match(kind=("bias",)), weight_decay=0.0, betas=(0.5, 0.9)),
        GroupRule(name="head", match=Match(params=("2.*",)), lr_mult=3.0, eps=1e-2),
    ),
)


def test_every_group_is_named_and_measured_with_its_own_settings() -> None:
    model = make_model()
    optimizer, _ = RECIPE.build(model, total_steps=10)
    gradients = train(model, optimizer, 4)
    record = AdamProbe(optimizer, model).record()
    assert list(dict.fromkeys(name.split("/")[0] for name in record)) == ["biases", "head", "default"]
    for group in optimizer.param_groups:
        expected = by_hand({param: gradients[param] for param in group["params"]}, group)
        own = {name: value for name, value in record.items() if name.startswith(group["name"] + "/")}
        assert own == pytest.approx({f"{group['name']}/{name}": value for name, value in expected.items()}, rel=1e-4)


def test_groups_without_a_name_are_numbered() -> None:
    model = make_model()
    optimizer = AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters(), "name": "out"}])
    train(model, optimizer, 1)
    assert {name.split("/")[0] for name in AdamProbe(optimizer).record()} == {"group0", "out"}


def test_there_is_nothing_to_record_before_the_first_step() -> None:
    model = make_model()
    optimizer = AdamW(model.parameters())
    probe = AdamProbe(optimizer, model)
    assert probe.record() == {}
    assert probe.records == []
    loss(model, X).backward()
    assert list(probe.record()) == ["group0/grad_norm"]  # the gradients are there, Adam's state is not


def test_the_gradient_norm_is_that_of_the_gradients_that_are_there() -> None:
    one, other, without = (nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float, torch.half, torch.half))
    one.grad, other.grad = torch.tensor([9e4, 0.0]), torch.tensor([0.0, 6e4], dtype=torch.half)
    record = AdamProbe(AdamW([one, other, without])).record()
    assert record == {"group0/grad_norm": pytest.approx(math.hypot(9e4, 6e4))}
    one.grad = None
    other.grad.fill_(6e4)  # whose norm fp16 cannot hold
    record = AdamProbe(AdamW([one, other, without])).record()
    assert record == {"group0/grad_norm": pytest.approx(math.hypot(6e4, 6e4))}


def test_an_optimizer_without_adams_state_has_norms_only_and_says_so() -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 3)
    probe = AdamProbe(optimizer)
    buffers = [optimizer.state[param]["momentum_buffer"] for param in model.parameters()]
    expected = math.sqrt(sum(float(buffer.double().pow(2).sum()) for buffer in buffers))
    assert list(record := probe.record()) == ["group0/grad_norm", "group0/momentum_norm"]
    assert record["group0/momentum_norm"] == pytest.approx(expected)
    assert probe.notes == ("group0: SGD keeps no moments as Adam does, so there are norms only",)


def test_parameters_that_never_had_a_gradient_are_left_out() -> None:
    model = make_model()
    unused = nn.Parameter(torch.ones(50))
    optimizer = AdamW([*model.parameters(), unused], **SETTINGS)
    gradients = train(model, optimizer, 3)
    expected = by_hand(gradients, SETTINGS)
    record = AdamProbe(optimizer).record()
    assert record == pytest.approx({f"group0/{name}": value for name, value in expected.items()}, rel=1e-4)


def test_half_precision_state_is_measured_in_fp32() -> None:
    param = nn.Parameter(torch.zeros(4, dtype=torch.half))
    optimizer = AdamW([param], lr=0.5, eps=1e-8)
    param.grad = torch.full((4,), 2.0**-10, dtype=torch.half)
    optimizer.step()
    optimizer.state[param]["exp_avg_sq"].zero_()  # as fp16 leaves it where gradients are small: eps alone divides
    record = AdamProbe(optimizer).record()
    assert record["group0/r/p50"] == pytest.approx(2.0**-10 / 1e-8, rel=1e-3)
    assert record["group0/sqrt_v_hat/p50"] == 0.0


def test_recording_changes_neither_the_state_nor_the_random_numbers() -> None:
    def trained(probed: bool) -> list[float]:
        model = make_model()
        optimizer = AdamW(model.parameters(), lr=0.1)
        probe = AdamProbe(optimizer, model)
        torch.manual_seed(3)
        for _ in range(5):
            optimizer.zero_grad()
            loss(model, X + 0.1 * torch.randn(X.shape)).backward()
            optimizer.step()
            if probed:
                probe.step()
        return [value for param in model.parameters() for value in param.flatten().tolist()]

    assert trained(True) == trained(False)


# --- groups too large to read whole


def ranks(record: Mapping[str, float], values: Tensor, name: str) -> list[float]:
    """How far each percentile's rank among all values is off, in percentage points."""
    return [abs(100 * float((values <= record[f"group0/{name}/p{p}"]).double().mean()) - p) for p in PERCENTILES]


def test_a_large_group_is_sampled_with_every_percentile_within_its_bound_of_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.zeros(shape)) for shape in ((400, 300), (7,), (90_000,), (250, 40, 12))]
    optimizer = AdamW(params, lr=1e-2, betas=(0.9, 0.99))
    for _ in range(3):
        for scale, param in enumerate(params, 1):  # of a scale each: a sample that leaves one out is far off
            param.grad = scale**3 * torch.randn(param.shape, generator=generator)
        optimizer.step()
    assert sum(param.numel() for param in params) > 4 * SAMPLE
    states = [optimizer.state[param] for param in params]
    m_hat = torch.cat([(state["exp_avg"] / (1 - 0.9**3)).abs().flatten() for state in states])
    root = torch.cat([(state["exp_avg_sq"] / (1 - 0.99**3)).sqrt().flatten() for state in states])
    everything = {"m_hat": m_hat, "sqrt_v_hat": root, "r": m_hat / (root + 1e-8)}
    probe = AdamProbe(optimizer)
    record = probe.record()
    assert max(off for name, values in everything.items() for off in ranks(record, values, name)) < 0.65
    assert record["group0/lr_r/p50"] == pytest.approx(1e-2 * record["group0/r/p50"])
    exact = math.sqrt(sum(float((param.grad.double() ** 2).sum()) for param in params))
    assert record["group0/grad_norm"] == pytest.approx(exact, rel=1e-5)
    assert probe.record() == record  # the same elements each time
    assert AdamProbe(optimizer).record() == record


def test_a_group_of_just_the_sample_size_is_read_whole() -> None:
    param = nn.Parameter(torch.zeros(SAMPLE))
    optimizer = Adam([param], lr=1.0, betas=(0.0, 0.0))
    param.grad = torch.linspace(0.0, 1.0, SAMPLE)
    optimizer.step()
    record = AdamProbe(optimizer).record()
    assert [record[f"group0/m_hat/p{p}"] for p in PERCENTILES] == pytest.approx([0.1, 0.5, 0.9], abs=1e-6)


# --- every N-th step, and in trials


@pytest.mark.parametrize(("every", "recorded"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (8, [])])
def test_every_nth_step_is_recorded(every: int, recorded: list[int]) -> None:
    model = make_model()
    optimizer = AdamW(model.parameters())
    probe = AdamProbe(optimizer, model, every=every)
    for step in range(1, 8):
        train(model, optimizer, 1)
        probe.step()
        assert [at for at, _ in probe.records] == [at for at in recorded if at <= step]
        if step in recorded:
            assert probe.records[-1][1] == probe.record()


class Waits(TorchDispatchMode):
    """Counts what a device would be waited for, by the operations that give Python a value or a size of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "bincount"):
            self.seen.append(name)
        return func(*args, **kwargs or {})


def test_a_record_waits_for_the_device_once_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small, without = (nn.Parameter(torch.ones(size)) for size in (2 * SAMPLE, 50, 20))
    optimizer = AdamW([{"params": [large]}, {"params": [small, without]}], lr=torch.tensor(0.02))
    for param in (large, small, without):
        param.grad = torch.ones_like(param)
    optimizer.step()
    without.grad = None
    probe = AdamProbe(optimizer)
    probe.record()  # which draws the sample
    read = []
    whole = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(tensor.shape) or whole(tensor))
    for state in optimizer.state.values():
        state["step"] = float(state["step"])  # on a device they are there, or plain numbers
    with Waits() as waits:
        record = probe.record()
    assert waits.seen == []
    assert read == [(len(record),)]


@pytest.mark.parametrize("every", [0, -1])
def test_an_interval_of_no_steps_is_refused(every: int) -> None:
    with pytest.raises(ProbeError, match=f"at least 1, not {every}"):
        AdamProbe(AdamW(make_model().parameters()), every=every)


@pytest.mark.parametrize("what", [5, nn.Linear(2, 2), None])
def test_what_is_no_optimizer_is_refused(what: Any) -> None:
    with pytest.raises(ProbeError, match=r"not (int|Linear|NoneType): AdamProbe\(optimizer, model\)"):
        AdamProbe(what)


def test_groups_without_parameters_and_sgd_without_momentum_say_so() -> None:
    model = make_model()
    momenta = SGD([{"params": []}, {"params": model.parameters()}], lr=0.1, momentum=0.9)
    train(model, momenta, 2)
    probe = AdamProbe(momenta)
    assert list(probe.record()) == ["group1/grad_norm", "group1/momentum_norm"]
    assert probe.notes[0] == "group0: it has no parameters"
    probe = AdamProbe(SGD(model.parameters(), lr=0.1))
    assert list(probe.record()) == ["group0/grad_norm"]
    assert probe.notes == ("group0: SGD keeps no moments as Adam does, so there are norms only",)


TASK = Task("probed", lambda: nn.Sequential(make_model(), nn.Dropout(0.2)), batches, loss, lambda: [X])


def run(probe: bool, recipe: Recipe | None = None) -> TrialResult:
    trial = Trial(TASK, TrialRequest(recipe or Recipe(lr=0.02), 0, 12, probe=probe), torch.device("cpu"))
    for rung in (4, 9, 12):
        trial.advance(rung)
    return trial.result()


def test_a_probed_trial_records_at_each_rung_and_trains_the_same() -> None:
    with_probe, without = run(True), run(False)
    assert [set(rung.probe) for rung in without.rungs] == [set()] * 3
    statistics = ("m_hat", "sqrt_v_hat", "r", "lr_r", "update_to_weight")
    names = {f"default/{statistic}/p{p}" for statistic in statistics for p in PERCENTILES}
    names |= {f"default/{name}" for name in ("grad_norm", "below_eps", "never_updated", "nonfinite", "flips")}
    assert [set(rung.probe) for rung in with_probe.rungs] == [names] * 3
    assert all(math.isfinite(value) for rung in with_probe.rungs for value in rung.probe.values())
    bare = [replace(rung, probe={}) for rung in with_probe.rungs]
    assert bare == list(without.rungs)


NORMS = ["default/grad_norm", "default/momentum_norm"]


def test_a_probed_trial_of_sgd_records_norms() -> None:
    assert [list(rung.probe) for rung in run(True, Recipe(optimizer="sgd")).rungs] == [NORMS] * 3


def test_a_trial_that_hands_over_records_adams_state_up_to_there() -> None:
    recipe = Recipe(lr=0.02, switch=Switch(at=0.75, lr=0.1))  # the second rung is Adam's last update
    before, at, after = (rung.probe for rung in run(True, recipe).rungs)
    adams = [rung.probe for rung in run(True).rungs]
    assert (before, at) == (adams[0], adams[1])
    assert list(after) == NORMS
    assert after != adams[2]


def test_a_trial_that_diverged_has_no_record_of_its_last_rung() -> None:
    result = run(True, Recipe(optimizer="sgd", lr=1e30))
    assert result.outcome is Outcome.DIVERGED
    assert result.rungs[-1].probe == {}
