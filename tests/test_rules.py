"""What rules are reckoned by, and what they do where they are told little; `test_planted` has them on trainings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adamtune.diagnosis import RULES, Observed, Rule, Severity, diagnose, findings
from adamtune.diagnosis.rules.eps_size import largest_r
from adamtune.diagnosis.rules.frozen_group import r_of_noise
from adamtune.diagnosis.rules.oscillation import flips_of_noise
from adamtune.errors import ProbeError
from adamtune.probe import AdamProbe
from adamtune.recipe import GroupRule, Kind, Match, Recipe
from recipes import recipes


def stepped(gradients: list[Tensor], betas: tuple[float, float] = (0.9, 0.999), lr: float = 1e-3) -> AdamProbe:
    """torch's Adam fed with these gradients, probed at every step."""
    param = torch.nn.Parameter(torch.ones_like(gradients[0]))
    optimizer = torch.optim.Adam([{"params": [param], "name": "default"}], lr=lr, betas=betas)
    probe = AdamProbe(optimizer)
    for gradient in gradients:
        param.grad = gradient
        optimizer.step()
        probe.step()
    return probe


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_that_is_told_nothing_finds_nothing(rule: Rule) -> None:
    assert list(rule.find(Observed())) == []
    assert list(rule.find(Observed(records=[(8, {"default/grad_norm": 1.0})], recipe=Recipe.default()))) == []


@given(
    st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=30),
    st.floats(0.0, 0.99),
    st.floats(0.5, 0.9999),
)
def test_no_gradients_give_an_r_above_the_largest(gradients: list[float], beta1: float, beta2: float) -> None:
    m = v = 0.0
    for gradient in gradients:
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
    steps = len(gradients)
    if v < 1e-200:
        return
    r = abs(m) / (1 - beta1**steps) / math.sqrt(v / (1 - beta2**steps))
    assert r <= largest_r(beta1, beta2, steps) * (1 + 1e-6)


PERCENTILES = ("r", "m_hat", "sqrt_v_hat", "lr_r", "update_to_weight")
SHARES = ("below_eps", "never_updated", "nonfinite", "flips")


@st.composite
def trainings(draw: st.DrawFn) -> Observed:
    """Whatever a probe and a person may tell."""
    recipe = draw(st.none() | recipes(params=["a.*", "*.weight"]))
    groups = ["default", *(rule.name for rule in recipe.groups)] if recipe else ["default"]
    sizes = st.floats(0.0, 2.0**127, width=32) | st.sampled_from([math.nan, math.inf])
    records, step = [], 0
    for _ in range(draw(st.integers(0, 9))):
        step += draw(st.integers(1, 100_000))
        record = {
            f"{group}/{name}/p{at}": draw(sizes) for group in groups for name in PERCENTILES for at in (10, 50, 90)
        }
        record |= {f"{group}/{name}": draw(st.floats(0.0, 1.0)) for group in groups for name in SHARES}
        record |= {f"{group}/grad_norm": draw(sizes) for group in groups}
        kept = draw(st.sets(st.sampled_from(sorted(record)), max_size=4))
        records.append((step, {key: value for key, value in record.items() if key not in kept}))
    losses = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf])
    validation = draw(st.lists(st.tuples(st.integers(1, 60), losses), max_size=8))
    horizon = draw(st.none() | st.integers(1, 10**6))
    kinds: dict[str, tuple[Kind, ...]] = dict.fromkeys(groups, ("rest", "embedding"))
    return Observed(records, recipe, horizon, draw(st.lists(losses, max_size=60)), sorted(validation), kinds)


@given(trainings())
def test_no_training_is_too_odd_to_be_judged(observed: Observed) -> None:
    for finding in findings(observed):
        assert "nan" not in f"{finding.told} {finding.advice}"
        assert observed.recipe is None or all(observed.recipe.with_knob(*each) for each in finding.remedy.items())


def test_betas_that_allow_any_r_end_no_sweep() -> None:
    """0.9^2 is above 0.63, the lowest beta2 among AlgoPerf's winners, so that the bound grows without an end."""
    assert largest_r(0.9, 0.63, 100) < largest_r(0.9, 0.63, 1000) < largest_r(0.9, 0.63, 3000) == math.inf
    record = {"default/r/p90": 1e9, "default/m_hat/p90": 1e-3}
    recipe = Recipe(betas=(0.9, 0.63))
    (found,) = findings(Observed([(9, record), (5000, record)], recipe))
    assert found.rule == "eps-size"
    assert found.remedy["eps"] > 0


NAN = math.nan
FALLING = [2.0 - 0.1 * step for step in range(20)]
RISEN = ((5, 2.0), (10, 1.5), (15, 1.0), (20, 1.9))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.name == "generalization-gap"])
def test_losses_that_are_no_numbers_move_no_window(rule: Rule) -> None:
    def found(losses: list[float], validation: tuple[tuple[int, float], ...] = RISEN) -> list[str]:
        return [finding.told for finding in rule.find(Observed((), Recipe(), 20, losses, validation))]

    (told,) = found(FALLING)
    assert "rose from 1 at step 15 to 1.9 at step 20, while the training loss fell from 0.8 to 0.3" in told
    assert found([NAN] * 8 + FALLING[8:]) == [told]
    assert found([*FALLING[:3], NAN, *FALLING[4:]]) == [told]
    assert found(FALLING[:15] + [NAN] * 5) == []
    assert found(FALLING, ((5, NAN), (10, 1.5), (14, 1.2), (15, 1.0), (20, 1.9), (21, NAN))) != []
    assert found(FALLING, ((5, NAN), (10, 1.5), (15, 1.0), (18, 0.9), (20, 0.8))) == []


def test_the_largest_r_is_reached() -> None:
    # Cauchy and Schwarz hold with equality for gradients in proportion to (beta1 / beta2)^k.
    gradients = [torch.tensor([(0.9 / 0.999) ** (20 - k)]) for k in range(1, 21)]
    r = stepped(gradients).records[-1][1]["default/r/p50"]
    assert r == pytest.approx(largest_r(0.9, 0.999, 20), rel=1e-4)


@pytest.mark.parametrize("beta1", [0.3, 0.9])
def test_noise_flips_m_and_makes_r_as_said(beta1: float) -> None:
    generator = torch.Generator().manual_seed(0)
    probe = stepped([torch.randn(4000, generator=generator) for _ in range(60)], (beta1, 0.999))
    flips = [record["default/flips"] for step, record in probe.records if step > 30]
    assert sum(flips) / len(flips) == pytest.approx(flips_of_noise(beta1), abs=0.01)
    r = [record["default/r/p50"] for step, record in probe.records if step > 30]
    assert sum(r) / len(r) == pytest.approx(r_of_noise(beta1), rel=0.05)


def test_gradients_that_alternate_are_told_as_an_oscillation() -> None:
    probe = stepped([torch.ones(8) * (-1) ** k for k in range(20)], (0.3, 0.999), lr=0.05)
    recipe = Recipe.default().with_knob("beta1", 0.3)
    found = findings(Observed(records=probe.records, recipe=recipe))
    assert [(finding.rule, finding.severity) for finding in found] == [("oscillation", Severity.WARNING)]
    assert dict(found[0].remedy) == {"beta1": 0.7}


def test_a_group_with_betas_of_its_own_gets_them_back_and_a_large_beta1_is_a_note() -> None:
    probe = stepped([torch.ones(8) * (-1) ** k for k in range(20)], (0.3, 0.999), lr=0.05)
    records = [
        (step, {key.replace("default", "own"): each for key, each in record.items()}) for step, record in probe.records
    ]
    found = []
    for beta1 in (0.3, 0.6):
        rule = GroupRule(name="own", match=Match(params=("own*",)), betas=(beta1, 0.99))
        found += findings(Observed(records=records, recipe=Recipe(groups=(rule,))))
    assert [(finding.severity, dict(finding.remedy)) for finding in found] == [
        (Severity.WARNING, {"groups.own.betas": (0.7, 0.99)}),
        (Severity.NOTE, {}),
    ]


def test_a_group_that_is_held_on_purpose_is_not_called_frozen() -> None:
    probe = stepped([torch.ones(8)] * 20, lr=0.0)
    assert findings(Observed(records=probe.records, recipe=Recipe.default())) == []


def test_a_small_lr_on_turning_gradients_is_a_note_as_in_fine_tuning() -> None:
    generator = torch.Generator().manual_seed(0)
    probe = stepped([torch.randn(4000, generator=generator) for _ in range(40)], lr=1e-5)
    found = findings(Observed(records=probe.records[20:], recipe=Recipe.default()))
    assert [(finding.rule, finding.severity) for finding in found] == [("frozen-group", Severity.NOTE)]


def test_a_frozen_group_with_a_rule_of_its_own_gets_its_lr_mult_back() -> None:
    rule = GroupRule(name="slow", match=Match(params=("slow*",)), lr_mult=1e-3)
    recipe = Recipe(lr=1e-2, groups=(rule,))
    params = {name: torch.nn.Parameter(torch.ones(8)) for name in ("slow", "default")}
    optimizer = torch.optim.Adam(
        [{"params": [param], "name": name, "lr": 1e-5 if name == "slow" else 1e-2} for name, param in params.items()]
    )
    probe = AdamProbe(optimizer)
    for _ in range(40):
        for param in params.values():
            param.grad = torch.ones(8)
        optimizer.step()
        probe.step()
    found = findings(Observed(records=probe.records, recipe=recipe))
    assert [(finding.rule, finding.group, dict(finding.remedy)) for finding in found] == [
        ("frozen-group", "slow", {"groups.slow.lr_mult": 0.1})  # at most a hundred times
    ]


@pytest.mark.parametrize(
    ("kind", "severity", "remedy"),
    [("head", Severity.WARNING, {"groups.slow.lr_mult": 0.2}), ("rest", Severity.NOTE, {})],
)
def test_a_layer_that_lags_is_warned_of_only_where_a_larger_lr_was_measured_to_help(
    kind: Kind, severity: Severity, remedy: dict[str, float]
) -> None:
    record = {
        "slow/r/p50": 0.5,
        "slow/update_to_weight/p50": 2e-3,
        "default/r/p50": 0.1,
        "default/update_to_weight/p50": 2e-2,
    }
    found = findings(
        Observed(
            records=[(step, record) for step in (25, 50, 75, 100)],
            recipe=Recipe(groups=(GroupRule(name="slow", match=Match(params=("slow*",)), lr_mult=0.02),)),
            kinds={"slow": (kind, "bias"), "default": ("rest",)},
        )
    )
    assert [(finding.rule, finding.group, finding.severity, dict(finding.remedy)) for finding in found] == [
        ("layer-imbalance", "slow", severity, remedy)
    ]


def test_a_groups_name_may_hold_slashes() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([{"params": [weight], "name": "enc/a"}], lr=1e-6)
    probe = AdamProbe(optimizer)
    for _ in range(30):
        weight.grad = torch.ones(4)
        optimizer.step()
        probe.step()
    found = diagnose(probe, recipe=Recipe(lr=1e-6))
    assert [(told.finding.rule, told.finding.group) for told in found.findings] == [("frozen-group", "enc/a")]
    assert list(found.groups) == ["enc/a"]


def test_radams_first_steps_which_nothing_divides_are_no_underflow() -> None:
    weight = torch.nn.Parameter(torch.ones(50))
    optimizer = torch.optim.RAdam([weight], lr=1e-6)
    probe, noise = AdamProbe(optimizer), torch.Generator().manual_seed(0)
    for _ in range(12):
        weight.grad = 100 * torch.randn(50, generator=noise)
        optimizer.step()
        probe.step()
    assert "eps-size" not in [told.finding.rule for told in diagnose(probe, recipe=Recipe(lr=1e-6)).findings]


def test_a_probe_given_to_a_resumed_optimizer_counts_on() -> None:
    weight = torch.nn.Parameter(torch.ones(50))
    optimizer = torch.optim.Adam([weight])

    def train(size: float) -> None:
        weight.grad = torch.full_like(weight, size)
        optimizer.step()

    for _ in range(300):
        train(0.01)
    probe = AdamProbe(optimizer, every=3)
    for _ in range(12):
        train(1.0)
        probe.step()
    assert [step for step, _ in probe.records] == [303, 306, 309, 312]
    assert not diagnose(probe, recipe=Recipe()).findings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"recipe": "recipe.yaml"}, "recipe must be a Recipe"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"validation": [1.0, 2.0]}, "pairs"),
    ],
)
def test_what_diagnose_cannot_use_is_told(given: dict[str, Any], said: str) -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(ProbeError, match=said):
        diagnose(AdamProbe(optimizer), **given)


def test_percentiles_that_rules_do_not_read_leave_them_silent() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight])
    probe = AdamProbe(optimizer, percentiles=np.array([90]))
    for _ in range(6):
        weight.grad = torch.ones(4)
        optimizer.step()
        probe.step()
    assert diagnose(probe, recipe=Recipe()).groups.keys() == {"group0"}
