"""`adamtune.diagnose`, as a training script calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import adamtune
from adamtune.diagnosis import Diagnosis, Finding, Observed, Severity, Told, without_asked
from adamtune.errors import InputError, ProbeError
from adamtune.spec import STAGES

STEPS = 100


def model_and_data() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 2))
    x = torch.randn(256, 20)
    return model, x, (x[:, 0] > x[:, 1]).long()


def trained(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, probe: adamtune.AdamProbe) -> list[float]:
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        probe.step()
        losses.append(loss.item())
    return losses


def told(diagnosis: Diagnosis) -> set[tuple[str, str, str | None]]:
    return {(each.finding.rule, str(each.finding.severity), each.finding.group) for each in diagnosis.findings}


def test_a_probe_of_a_training_that_stands_still_is_told_with_the_recipes_remedy() -> None:
    model, x, y = model_and_data()
    recipe = adamtune.Recipe(lr=1e-6, schedule={"kind": "constant", "warmup": 0.0})  # type: ignore[arg-type]
    optimizer, _ = recipe.build(model, total_steps=STEPS)
    probe = adamtune.AdamProbe(optimizer, model, every=10)
    losses = trained(model, optimizer, x, y, probe)
    diagnosis = adamtune.diagnose(probe, recipe=recipe, horizon=STEPS, train_losses=losses)
    assert (diagnosis.kind, diagnosis.step, diagnosis.notes) == ("training", STEPS, ())
    assert diagnosis.record == probe.records[-1][1]
    frozen = [each.finding for each in diagnosis.findings if each.finding.rule == "frozen-group"]
    assert [finding.remedy for finding in frozen] == [{"lr": 1e-4}]
    bare = adamtune.diagnose(probe)
    assert ("frozen-group", "warning", "default") in told(bare)
    assert all(not each.finding.remedy for each in bare.findings)
    assert bare.notes == ("rules that need the recipe, such as its betas, say nothing; pass recipe=",)


@pytest.mark.parametrize("known", [True, False])
def test_layers_are_told_apart_by_the_probes_model(known: bool) -> None:
    model, x, y = model_and_data()
    groups = [
        {"params": [*model[0].parameters()], "name": "first", "lr": 3e-2},
        {"params": [*model[2].parameters()], "name": "last", "lr": 2e-4},
    ]
    optimizer = AdamW(groups)
    probe = adamtune.AdamProbe(optimizer, model if known else None, every=10)
    trained(model, optimizer, x, y, probe)
    assert (("layer-imbalance", "warning", "last") in told(adamtune.diagnose(probe))) == known


def test_an_optimizer_is_measured_now() -> None:
    model, x, y = model_and_data()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    trained(model, optimizer, x, y, adamtune.AdamProbe(optimizer))
    diagnosis = adamtune.diagnose(optimizer)
    assert (diagnosis.step, diagnosis.record) == (STEPS, adamtune.AdamProbe(optimizer).record())


def test_a_probe_or_an_optimizer_before_the_first_step_says_what_it_lacks() -> None:
    model, _, _ = model_and_data()
    optimizer = AdamW(model.parameters())
    probe = adamtune.AdamProbe(optimizer, every=5)
    for target, said in [(probe, "call probe.step() 5 times"), (optimizer, "no state yet")]:
        diagnosis = adamtune.diagnose(target)
        assert (diagnosis.step, diagnosis.record, diagnosis.findings) == (None, {}, ())
        assert any(said in note for note in diagnosis.notes)


def test_a_checkpoint_is_told_as_the_optimizer_it_was_saved_from(tmp_path: Path) -> None:
    model, x, y = model_and_data()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    trained(model, optimizer, x, y, adamtune.AdamProbe(optimizer))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    saved, live = adamtune.diagnose(tmp_path / "optimizer.pt"), adamtune.diagnose(optimizer)
    assert (saved.kind, saved.step) == ("checkpoint", live.step)
    assert {key: live.record[key] for key in saved.record} == pytest.approx(dict(saved.record))


def test_what_cannot_be_diagnosed_is_said_in_a_sentence(tmp_path: Path) -> None:
    model, _, _ = model_and_data()
    with pytest.raises(ProbeError, match="an AdamProbe or a torch optimizer, not Sequential"):
        adamtune.diagnose(model)  # type: ignore[arg-type]
    for target in (tmp_path, Observed()):
        with pytest.raises(InputError, match="so leave them out"):
            adamtune.diagnose(target, horizon=10)
    assert "keeps no moments" in adamtune.diagnose(momentum(model)).notes[0]


def momentum(model: nn.Module) -> SGD:
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 20)).sum().backward()
    optimizer.step()
    return optimizer


# --- what a sweep has settled

MORE_LR = Finding("frozen-group", Severity.WARNING, "it stands still", "raise lr", remedy={"lr": 0.1})
CLIP_GROUP = Finding(
    "v-hat-lag", Severity.WARNING, "a burst", "clip", remedy={"clip_norm": 1.0, "groups.head.lr_mult": 0.3}
)
GROUP_EPS = Finding("eps-size", Severity.WARNING, "eps", "lower it", "head", {"groups.head.eps": 1e-8})
NO_REMEDY = Finding("nonfinite-state", Severity.WARNING, "NaN", "look at the data")


@pytest.mark.parametrize(
    ("finding", "verdicts", "settled"),
    [
        (MORE_LR, {"lr": "kept"}, "lr was"),
        (MORE_LR, {"lr": "changed"}, "lr was"),
        (MORE_LR, {"lr": "unasked", "beta1": "kept"}, ""),
        (MORE_LR, {"lr": "measured"}, ""),
        (CLIP_GROUP, {"clip": "kept", "groups": "kept"}, "clip and groups were"),
        (CLIP_GROUP, {"clip": "kept"}, ""),
        (NO_REMEDY, dict.fromkeys(STAGES, "kept"), ""),
        (GROUP_EPS, dict.fromkeys(STAGES, "kept"), ""),
    ],
)
def test_what_the_sweep_has_asked_about_is_no_warning_any_more(
    finding: Finding, verdicts: dict[str, str], settled: str
) -> None:
    other = Told(Finding("short-warmup", Severity.WARNING, "early", "warm up", remedy={"warmup": 0.1}), 2, 5)
    found = without_asked([Told(finding, 3, 5), other], verdicts)
    (told,) = [each for each in found if each.finding.rule == finding.rule]
    assert (told.seeds, told.of) == (3, 5)
    if settled:
        assert told.finding.advice == f"nothing: {settled} asked and decided by evidence (else: {finding.advice})"
        assert (told.finding.severity, told.finding.remedy) == (Severity.NOTE, {})
        assert found == (other, told)
    else:
        assert told.finding == finding
