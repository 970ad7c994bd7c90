"""Small real tasks that differ in kind, to judge learning rate finders on. Data come with scikit-learn and Python."""

from __future__ import annotations

import functools
import io
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamtune.task import Task
from adamtune.tasks import chars, digits


@dataclass(frozen=True)
class Case:
    """A task and the length of the run a learning rate is wanted for."""

    task: Task
    horizon: int


class Scaled(nn.Module):
    """A linear layer whose parameters are stored `scale` times smaller, so that Adam's best lr is as much smaller."""

    def __init__(self, inputs: int, outputs: int, scale: float) -> None:
        super().__init__()
        plain = nn.Linear(inputs, outputs)
        self.scale = scale
        self.weight = nn.Parameter(plain.weight.detach() / scale)
        self.bias = nn.Parameter(plain.bias.detach() / scale)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.scale, self.bias * self.scale)


def _digits(make_model: Callable[[], nn.Module], name: str, pixel_scale: float = 1.0) -> Task:
    pixels, classes = digits._data()
    pixels = pixels * pixel_scale
    rows = digits.TRAIN_ROWS
    return Task.supervised(
        make_model,
        (pixels[:rows], classes[:rows]),
        (pixels[rows:], classes[rows:]),
        functional.cross_entropy,
        name=name,
    )


def _mlp(scale: float) -> nn.Module:
    return nn.Sequential(Scaled(64, 128, scale), nn.ReLU(), Scaled(128, 128, scale), nn.ReLU(), Scaled(128, 10, scale))


def _dropout_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(256, 10),
    )  # fmt: skip


def _batchnorm_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


class CharGRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(chars.ALPHABET), 32)
        self.gru = nn.GRU(32, 64, batch_first=True)
        self.head = nn.Linear(64, len(chars.ALPHABET))

    def forward(self, codes: Tensor) -> Tensor:
        out: Tensor = self.head(self.gru(self.embed(codes))[0])
        return out


def _char_gru() -> Task:
    train, validation = chars._text()
    length = 24

    def batches(generator: torch.Generator) -> Iterator[Tensor]:
        while True:
            yield chars._windows(train, torch.randint(len(train) - length, (16,), generator=generator), length)

    spread = torch.linspace(0, len(validation) - length - 1, 64).long()
    return Task("char-gru", CharGRU, batches, chars._loss, lambda: [chars._windows(validation, spread, length)])


@functools.cache
def _identifiers() -> tuple[Tensor, Tensor]:
    """Runs of five successive names in the standard library's source (four predict the fifth), 1,000 names."""
    names: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]:
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8", errors="ignore")).readline)
        names += [token.string for token in tokens if token.type == tokenize.NAME]
    known = {name: at + 1 for at, (name, _) in enumerate(Counter(names).most_common(999))}
    codes = torch.tensor([known.get(name, 0) for name in names])
    runs = codes.unfold(0, 5, 2)
    order = torch.randperm(len(runs), generator=torch.Generator().manual_seed(0))
    return runs[order][:-2000], runs[order][-2000:]


def _name_embeddings() -> Task:
    train, validation = _identifiers()
    return Task.supervised(
        lambda: nn.Sequential(
            nn.Embedding(1000, 32), nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1000)
        ),
        (train[:, :4], train[:, 4]),
        (validation[:, :4], validation[:, 4]),
        functional.cross_entropy,
        batch_size=64,
        name="name-embeddings",
    )


def _diabetes() -> Task:
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    x = torch.from_numpy(data.data).float() * 442**0.5
    y = torch.from_numpy(data.target).float()
    y = (y - y.mean()) / y.std()
    return Task.supervised(
        lambda: nn.Sequential(
            nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(0)
        ),
        (x[:300], y[:300]),
        (x[300:], y[300:]),
        functional.mse_loss,
        name="diabetes",
    )


CASES: dict[str, Callable[[], Case]] = {
    "digits-mlp": lambda: Case(digits.task(), 300),
    "digits-mlp-long": lambda: Case(digits.task(), 2000),
    "digits-raw-pixels": lambda: Case(_digits(lambda: _mlp(1.0), "digits-raw-pixels", 16.0), 300),
    "digits-dropout": lambda: Case(_digits(_dropout_mlp, "digits-dropout"), 600),
    "digits-cnn": lambda: Case(digits.task("cnn"), 300),
    "digits-batchnorm": lambda: Case(_digits(_batchnorm_cnn, "digits-batchnorm"), 400),
    "diabetes": lambda: Case(_diabetes(), 500),
    "name-embeddings": lambda: Case(_name_embeddings(), 500),
    "char-gru": lambda: Case(_char_gru(), 400),
    "char-gpt": lambda: Case(chars.task(length=32, width=32), 300),
    "moved-to-1e-5": lambda: Case(_digits(lambda: _mlp(1500.0), "moved-to-1e-5"), 300),
    "moved-to-1e-4": lambda: Case(_digits(lambda: _mlp(150.0), "moved-to-1e-4"), 300),
    "moved-to-0.3": lambda: Case(_digits(lambda: _mlp(0.05), "moved-to-0.3"), 300),
    "moved-to-1": lambda: Case(_digits(lambda: _mlp(0.016), "moved-to-1"), 300),
}
