"""A small residual network for the digits, written as torchvision writes them: batch norm, and what can be in place."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from adamtune.task import Task
from adamtune.tasks import digits


class Block(nn.Module):
    """Two convolutions of three by three, and the way around them."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        """`into` and `out` count channels."""
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.around = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, into, H, W) -> (N, out, H / stride, W / stride)."""
        out: Tensor = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += self.around(x)
        activated: Tensor = self.relu(out)
        return activated


def model() -> nn.Module:
    """Pixels (N, 64) -> scores (N, 10), by two blocks."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        Block(16, 16, 1), Block(16, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def task() -> Task:
    """The digits task with this model."""
    return dataclasses.replace(digits.task(), name="digits-resnet", make_model=model)
