"""What rules are reckoned by, and what they do where they are told little; `test_planted` has them on trainings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adamtune.diagnose import RULES, Observed, Rule, Severity, findings
from adamtune.diagnose.rules.eps_size import largest_r
from adamtune.diagnose.rules.oscillation import flips_of_noise
from adamtune.probe import AdamProbe
from adamtune.recipe import Recipe


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


def test_the_largest_r_is_reached() -> None:
    # Cauchy and Schwarz hold with equality for gradients in proportion to (beta1 / beta2)^k.
    gradients = [torch.tensor([(0.9 / 0.999) ** (20 - k)]) for k in range(1, 21)]
    r = stepped(gradients).records[-1][1]["default/r/p50"]
    assert r == pytest.approx(largest_r(0.9, 0.999, 20), rel=1e-4)


@pytest.mark.parametrize("beta1", [0.3, 0.9])
def test_noise_flips_m_as_often_as_said(beta1: float) -> None:
    generator = torch.Generator().manual_seed(0)
    probe = stepped([torch.randn(4000, generator=generator) for _ in range(60)], (beta1, 0.999))
    flips = [record["default/flips"] for step, record in probe.records if step > 30]
    assert sum(flips) / len(flips) == pytest.approx(flips_of_noise(beta1), abs=0.01)


def test_gradients_that_alternate_are_told_as_an_oscillation() -> None:
    probe = stepped([torch.ones(8) * (-1) ** k for k in range(20)], (0.3, 0.999))
    recipe = Recipe.default().with_knob("beta1", 0.3)
    found = findings(Observed(records=probe.records, recipe=recipe))
    assert [(finding.rule, finding.severity) for finding in found] == [("oscillation", Severity.NOTE)]


def test_a_group_that_is_held_on_purpose_is_not_called_frozen() -> None:
    probe = stepped([torch.ones(8)] * 20, lr=0.0)
    assert findings(Observed(records=probe.records, recipe=Recipe.default())) == []


def test_a_small_lr_on_turning_gradients_is_a_note_as_in_fine_tuning() -> None:
    generator = torch.Generator().manual_seed(0)
    probe = stepped([torch.randn(4000, generator=generator) for _ in range(40)], lr=1e-5)
    found = findings(Observed(records=probe.records[20:], recipe=Recipe.default()))
    assert [(finding.rule, finding.severity) for finding in found] == [("frozen-group", Severity.NOTE)]


def test_a_remedy_goes_to_the_knob_of_the_group() -> None:
    probe = stepped([torch.full((8,), 1e-30)] * 20, lr=1e-2)
    recipe = Recipe.default().with_knob("lr", 1e-2).with_knob("eps", 1.0)
    warned = [found for found in findings(Observed(records=probe.records, recipe=recipe)) if found.remedy]
    for finding in warned:
        for knob, value in finding.remedy.items():
            assert recipe.with_knob(knob, value) != recipe
