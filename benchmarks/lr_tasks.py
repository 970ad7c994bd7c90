"""Small real tasks that differ in kind, to judge learning rate finders on. Data come with scikit-learn and Python."""

from __future__ import annotations

import dataclasses
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


class PatchTransformer(nn.Module):
    """Digits as sixteen patches of four pixels through two pre-norm blocks."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.place = nn.Parameter(torch.zeros(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = pixels.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        out: Tensor = self.head(self.blocks(self.embed(patches) + self.place).mean(1))
        return out


class CharLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(chars.ALPHABET), 24)
        self.lstm = nn.LSTM(24, 48, num_layers=2, batch_first=True)
        self.head = nn.Linear(48, len(chars.ALPHABET))

    def forward(self, codes: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(self.embed(codes))[0])
        return out


def _autoencoder() -> Task:
    pixels, _ = digits._data()
    rows = digits.TRAIN_ROWS
    return Task.supervised(
        lambda: nn.Sequential(
            nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 12), nn.Linear(12, 128), nn.GELU(), nn.Linear(128, 64)
        ),
        (pixels[:rows], pixels[:rows]),
        (pixels[rows:], pixels[rows:]),
        functional.mse_loss,
        name="digits-autoencoder",
    )


def _breast_cancer() -> Task:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(data.data).float()[order]
    x = (x - x[:350].mean(0)) / x[:350].std(0)
    y = torch.from_numpy(data.target).long()[order]
    return Task.supervised(
        lambda: nn.Sequential(nn.Linear(30, 64), nn.LayerNorm(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 2)),
        (x[:350], y[:350]),
        (x[350:], y[350:]),
        functional.cross_entropy,
        name="breast-cancer",
    )


@functools.cache
def _pretrained() -> dict[str, Tensor]:
    """Weights of a digits MLP trained on the classes 0 to 4 of the validation rows, upside down."""
    pixels, classes = digits._data()
    seen = classes[digits.TRAIN_ROWS :] < 5
    x, y = pixels[digits.TRAIN_ROWS :][seen], classes[digits.TRAIN_ROWS :][seen]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _mlp(1.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(300):
            rows = torch.randint(len(x), (32,))
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.state_dict()


def _finetuned() -> nn.Module:
    model = _mlp(1.0)
    model.load_state_dict(_pretrained())
    return model


def _char_lstm() -> Task:
    return dataclasses.replace(_char_gru(), name="char-lstm", make_model=CharLSTM)


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
    "digits-transformer": lambda: Case(_digits(PatchTransformer, "digits-transformer"), 600),
    "digits-autoencoder": lambda: Case(_autoencoder(), 800),
    "breast-cancer": lambda: Case(_breast_cancer(), 300),
    "digits-finetuned": lambda: Case(_digits(_finetuned, "digits-finetuned"), 300),
    "char-lstm": lambda: Case(_char_lstm(), 1000),
    "char-gpt-long": lambda: Case(chars.task(length=32, width=32), 1000),
    "digits-dropout-5000": lambda: Case(_digits(_dropout_mlp, "digits-dropout"), 5000),
    "name-embeddings-5000": lambda: Case(_name_embeddings(), 5000),
    "digits-autoencoder-5000": lambda: Case(_autoencoder(), 5000),
    "moved-to-1e-5": lambda: Case(_digits(lambda: _mlp(1500.0), "moved-to-1e-5"), 300),
    "moved-to-1e-4": lambda: Case(_digits(lambda: _mlp(150.0), "moved-to-1e-4"), 300),
    "moved-to-0.3": lambda: Case(_digits(lambda: _mlp(0.05), "moved-to-0.3"), 300),
    "moved-to-1": lambda: Case(_digits(lambda: _mlp(0.016), "moved-to-1"), 300),
}


def task(case: str) -> Task:
    """The task of one of `CASES`, as a spec refers to it: benchmarks.lr_tasks:task."""
    return CASES[case]().task
