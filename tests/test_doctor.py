"""`adamtune doctor`: what it finds in this machine and in tasks good and bad."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adamtune import Task
from adamtune.cli.app import run
from adamtune.doctor import Check, check_task

Batch = tuple[Tensor, Tensor]
CPU = torch.device("cpu")
UNSEEDED = random.Random()


def batches(generator: torch.Generator) -> Iterator[Batch]:
    while True:
        x = torch.randn(8, 4, generator=generator)
        yield x, x.sum(dim=1, keepdim=True)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def a_task(**fields: Any) -> Task:
    held = list(zip(range(2), batches(torch.Generator().manual_seed(9)), strict=False))
    usual: dict[str, Any] = {
        "name": "small",
        "make_model": lambda: nn.Linear(4, 1),
        "train_batches": batches,
        "loss": loss,
        "val_batches": lambda: [batch for _, batch in held],
    }
    return Task(**usual | fields)


def checks(task: Task) -> dict[str, Check]:
    return {check.name: check for check in check_task(task, CPU)}


def test_a_sound_task_has_nothing_to_mend() -> None:
    found = checks(a_task())
    assert {check.status for check in found.values()} == {"ok"}
    assert list(found) == ["model", "batches", "loss", "gradients", "validation", "reproducible", "stacks", "speed"]
    assert found["model"].told.startswith("5 trainable parameters: 4 in ")


def test_data_that_no_seed_holds_is_a_problem_with_its_remedy() -> None:
    def unseeded(generator: torch.Generator) -> Iterator[Batch]:
        for x, y in batches(generator):
            yield x + UNSEEDED.random(), y

    told = checks(a_task(train_batches=unseeded))["reproducible"]
    assert told.status == "problem"
    assert "must draw from" in told.told


def test_what_seeds_do_not_change_is_noted() -> None:
    def same() -> nn.Module:
        model = nn.Linear(4, 1)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        return model

    fixed = next(batches(torch.Generator().manual_seed(0)))
    assert checks(a_task(make_model=same, train_batches=lambda generator: iter([fixed] * 9)))["seeds"].status == "note"


def test_parameters_without_gradient_are_named() -> None:
    def idle() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 1))
        model.register_parameter("spare", nn.Parameter(torch.ones(3)))
        return model

    told = checks(a_task(make_model=idle))["gradients"]
    assert (told.status, "spare" in told.told) == ("note", True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda model, batch: model(batch[0]), "a tensor of shape (8, 1)"),
        (lambda model, batch: loss(model, batch).item(), "a float"),
        (lambda model, batch: loss(model, batch).detach(), "a number without a gradient"),
    ],
)
def test_a_loss_that_cannot_be_trained_by_is_a_problem(wrong: Any, said: str) -> None:
    told = list(check_task(a_task(loss=wrong), CPU))
    assert (told[-1].name, told[-1].status) == ("loss", "problem")
    assert said in told[-1].told


def test_a_loss_that_is_not_finite_is_a_problem() -> None:
    told = list(check_task(a_task(loss=lambda model, batch: loss(model, batch) * float("nan")), CPU))
    assert (told[-1].name, told[-1].status) == ("loss", "problem")


def test_a_task_that_raises_or_exits_is_told_in_a_sentence() -> None:
    def raising() -> nn.Module:
        raise RuntimeError("no weights here")

    def leaving(model: nn.Module, batch: Batch) -> Tensor:
        raise SystemExit(3)

    for task, said in ((a_task(make_model=raising), "no weights here"), (a_task(loss=leaving), "exit(3)")):
        told = list(check_task(task, CPU))[-1]
        assert told.status == "problem"
        assert said in told.told


def test_a_model_that_cannot_be_stacked_is_noted_with_the_reason() -> None:
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2.0 if self.weight.sum().item() > 0 else 1.0)

    told = checks(a_task(make_model=lambda: Branching(4, 1)))
    assert told["stacks"].status == "note"
    assert told["stacks"].told.startswith("trials train one by one: ")
    assert told["speed"].status == "ok"


def test_exit_codes_and_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    machine = json.loads(capfd.readouterr().out)
    assert machine["ok"] is True
    assert {"adamtune", "torch", "device", "free memory", "ray"} <= {check["name"] for check in machine["checks"]}
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import adamtune\n"
        "def task():\n"
        "    return adamtune.Task(name='b', make_model=lambda: 3, train_batches=iter, loss=max, val_batches=list)\n"
    )
    assert run(["doctor", "--task", f"{broken}:task"]) == 1
    out = capfd.readouterr().out
    assert "problem task" in out
    assert "must return a torch.nn.Module" in out
    assert run(["doctor", "--task", f"{broken}:nothing"]) == 2
