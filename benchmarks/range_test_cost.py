"""What a range test costs beside a bare training loop of the same steps, in a training script.

python -m benchmarks.range_test_cost

One process, one thread; bare loop and range test take turns, and the ratio is the median over the pairs. The peers are
those of `benchmarks.lr_peers`, their set-up included, as is that of ours: 300 steps are what one waits for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import adamtune
from adamtune.task import Task
from adamtune.tasks import chars, digits
from benchmarks.lr_peers import FINDERS, STEPS, Losses, installed, loader, quiet

PAIRS = 15
END = 1e-3
"""A lr at which no task here diverges, so that everyone takes all the steps."""


def bare(task: Task) -> None:
    """What anybody writes: the same model, batches and optimizer."""
    losses = Losses(task, 0)
    optimizer = torch.optim.AdamW(losses.parameters(), lr=1e-6)
    batches = iter(loader(task, 0))
    for _ in range(STEPS):
        batch, _ = next(batches)
        optimizer.zero_grad()
        losses(batch).backward()
        optimizer.step()


def ours(task: Task) -> None:
    losses = Losses(task, 0)
    optimizer = torch.optim.AdamW(losses.parameters(), lr=1e-6)

    def loss(model: nn.Module, pair: Any) -> torch.Tensor:
        out: torch.Tensor = model(pair[0])
        return out

    found = adamtune.range_test(losses, optimizer, loss, loader(task, 0), steps=STEPS, end=END)
    assert found.steps_used == STEPS


def ratio(run: Callable[[Task], Any], task: Task) -> tuple[float, float]:
    """Median over pairs of the run's time over the bare loop's: wall, and processor seconds."""
    wall, cpu = [], []
    for _ in range(PAIRS):
        took = []
        for each in (bare, run):
            began = time.perf_counter(), time.process_time()
            each(task)
            took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
        wall.append(took[1][0] / took[0][0])
        cpu.append(took[1][1] / took[0][1])
    return statistics.median(wall), statistics.median(cpu)


def main() -> None:
    torch.set_num_threads(1)
    tasks = {"digits MLP, batch 32": digits.task(), "digits CNN": digits.task("cnn"), "characters GPT": chars.task()}
    print(f"{STEPS} steps over a bare loop of as many: wall clock (processor time)")
    for name, task in tasks.items():
        wall, cpu = ratio(ours, task)
        print(f"{name:<22} adamtune.range_test {wall:.3f} ({cpu:.3f})", flush=True)
        for package in installed():
            with quiet():
                wall, cpu = ratio(lambda task, package=package: list(FINDERS[package](task, 0, END)), task)  # type: ignore[misc]
            print(f"{'':<22} {package:<19} {wall:.3f} ({cpu:.3f})", flush=True)


if __name__ == "__main__":
    main()
