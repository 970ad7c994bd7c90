"""How long `adamtune --help` takes, against importing the two libraries it is made of; and how long after torch's
import `adamtune lr-find` trains its first step, on digits.

python -m benchmarks.startup
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamtune import Task

RUNS = 10

_LR_FIND = """
import time
from adamtune.cli.app import run  # as the command does, before torch
began = time.perf_counter()
import torch
ready = time.perf_counter()
print("torch", ready - began)
print("ready", ready)
run(["lr-find", "benchmarks.startup:task", "--horizon", "300"])
"""

_PLAIN_LOOP = """
import time, torch
from adamtune.tasks.digits import task
ready = time.perf_counter()
made = task()
model = made.make_model()
batch = next(made.train_batches(torch.Generator()))
torch.optim.AdamW(model.parameters())
print("plain", time.perf_counter() - ready)
"""


def task() -> Task:
    """Digits, whose first loss tells when it was asked for."""
    from adamtune.tasks import digits

    made = digits.task()
    return dataclasses.replace(made, loss=_telling(made.loss))


def _telling(loss: Callable[..., Any]) -> Callable[..., Any]:
    told: list[bool] = []

    def first(*arguments: Any) -> Any:
        if not told:
            told.append(True)
            print("first", time.perf_counter())
        return loss(*arguments)

    return first


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - start


def told_by(code: str) -> dict[str, float]:
    """The lines `name number` that a Python of its own prints for `code`."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    pairs = (line.split() for line in done.stdout.splitlines())
    return {pair[0]: float(pair[1]) for pair in pairs if pair and pair[0] in ("torch", "ready", "first", "plain")}


def main() -> None:
    pairs = [(seconds("-m", "adamtune", "--help"), seconds("-c", "import typer, rich")) for _ in range(RUNS)]
    ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"adamtune --help {ours * 1e3:.0f} ms, import typer and rich {peer * 1e3:.0f} ms, ratio {ratio:.2f} (goal 2)")
    found = [told_by(_LR_FIND) | told_by(_PLAIN_LOOP) for _ in range(RUNS)]
    first = statistics.median(each["first"] - each["ready"] for each in found)
    torch, plain = (statistics.median(each[name] for each in found) for name in ("torch", "plain"))
    print(f"import torch {torch:.2f} s, then adamtune lr-find {first:.2f} s to its first step (goal 1)", end="")
    print(f", a plain loop {plain:.2f} s")


if __name__ == "__main__":
    main()
