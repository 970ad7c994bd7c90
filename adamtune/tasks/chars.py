"""Character-level GPT on Python's own standard library source: a small transformer on real text, no data package."""

from __future__ import annotations

import functools
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamtune.task import Task

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""The newline and printable ASCII; any other character is left out."""
TEXT_BYTES = 2_000_000
VALIDATION_WINDOWS = 64


@functools.cache
def _text() -> tuple[Tensor, Tensor]:
    """Training and validation text as class indices (uint8), split by file so that no file is in both."""
    index = {character: number for number, character in enumerate(ALPHABET)}
    parts: dict[bool, list[int]] = {True: [], False: []}
    for number, path in enumerate(sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))):
        codes = [index[c] for c in path.read_text(encoding="utf-8", errors="ignore") if c in index]
        parts[number % 10 != 9].extend(codes)
        if len(parts[True]) >= TEXT_BYTES:
            break
    return torch.tensor(parts[True], dtype=torch.uint8), torch.tensor(parts[False], dtype=torch.uint8)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        """`width` is split over `heads`."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same shape."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return merged


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """An attention and a two-layer MLP of four times the width."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same shape."""
        mixed: Tensor = x + self.dropout(self.attention(self.norm1(x)))
        read: Tensor = self.dropout(self.mlp(self.norm2(mixed)))
        return mixed + read


class CharGPT(nn.Module):
    """GPT over single characters, with GPT-2's initialisation (std 0.02)."""

    def __init__(self, length: int, width: int, layers: int, heads: int, dropout: float) -> None:
        """`length` is the longest context."""
        super().__init__()
        self.tokens = nn.Embedding(len(ALPHABET), width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(ALPHABET), bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (batch, length) -> logits (batch, length, characters)."""
        x = self.tokens(codes) + self.positions(torch.arange(codes.shape[1], device=codes.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def _windows(text: Tensor, starts: Tensor, length: int) -> Tensor:
    return text[starts[:, None] + torch.arange(length + 1)].long()


def _loss(model: nn.Module, batch: Tensor) -> Tensor:
    return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def task(
    length: int = 48, width: int = 48, layers: int = 2, heads: int = 4, dropout: float = 0.0, batch_size: int = 16
) -> Task:
    """Predict the next character; the loss is in nats a character. A batch is codes (batch_size, length + 1)."""
    train, validation = _text()

    def train_batches(generator: torch.Generator) -> Iterator[Tensor]:
        while True:
            starts = torch.randint(len(train) - length, (batch_size,), generator=generator)
            yield _windows(train, starts, length)

    spread = torch.linspace(0, len(validation) - length - 1, VALIDATION_WINDOWS).long()
    held_out = torch.split(_windows(validation, spread, length), 32)
    return Task(
        name="chars",
        make_model=lambda: CharGPT(length, width, layers, heads, dropout),
        train_batches=train_batches,
        loss=_loss,
        val_batches=lambda: held_out,
    )
