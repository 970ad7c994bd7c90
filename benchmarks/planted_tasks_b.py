"""More tasks of `benchmarks.planted`: few data, rare rows, embeddings and recurrent layers."""

from __future__ import annotations

import dataclasses
import functools
import io
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamtune.task import Task
from adamtune.tasks import chars, digits
from benchmarks import lr_tasks
from benchmarks.lr_tasks import CharGRU
from benchmarks.planted_tasks import small_chars

LENGTH = 32
"""Of the characters' windows."""


def chars_from(text: Tensor, task: Task) -> Task:
    """The same task, its training batches drawn from this text alone."""

    def batches(generator: torch.Generator) -> Iterator[Tensor]:
        while True:
            yield chars._windows(text, torch.randint(len(text) - LENGTH, (16,), generator=generator), LENGTH)

    return dataclasses.replace(task, train_batches=batches)


def few_chars(count: int = 1000) -> Task:
    """The character GPT on `count` successive characters."""
    return chars_from(chars._text()[0][50_000 : 50_000 + count], small_chars())


def few_diabetes() -> Task:
    """Regression on the first hundred rows of scikit-learn's diabetes data."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    x = torch.from_numpy(data.data).float() * 442**0.5
    y = torch.from_numpy(data.target).float()
    y = (y - y.mean()) / y.std()
    return Task.supervised(
        lambda: nn.Sequential(
            nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(0)
        ),
        (x[:100], y[:100]),
        (x[300:], y[300:]),
        functional.mse_loss,
    )


def mislabelled_digits(count: int = 200, share: float = 0.4) -> Task:
    """Digits on `count` rows, of which `share` have a random class."""
    x, y = digits._data()
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(count, generator=generator) < share
    labels = torch.where(wrong, torch.randint(10, (count,), generator=generator), y[:count])
    held_out = slice(digits.TRAIN_ROWS, None)
    return Task.supervised(
        lambda: digits._mlp(128), (x[:count], labels), (x[held_out], y[held_out]), functional.cross_entropy
    )


def wide_embeddings() -> Task:
    """The character GPT with embeddings drawn from N(0, 1), as `nn.Embedding` does, in place of GPT-2's 0.02."""
    task = small_chars()

    def make_model() -> nn.Module:
        model = task.make_model()
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.reset_parameters()
        return model

    return dataclasses.replace(task, make_model=make_model)


def char_gru() -> Task:
    """Next character by a GRU."""
    return dataclasses.replace(chars_from(chars._text()[0], small_chars()), make_model=CharGRU)


@functools.cache
def _all_names() -> tuple[Tensor, int]:
    """Runs of five successive names of the standard library's source, by rank of frequency; and how many differ."""
    names: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:30]:
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8", errors="ignore")).readline)
        names += [token.string for token in tokens if token.type == tokenize.NAME]
    rank = {name: place for place, (name, _) in enumerate(Counter(names).most_common())}
    runs = torch.tensor([rank[name] for name in names]).unfold(0, 5, 2)
    return runs[torch.randperm(len(runs), generator=torch.Generator().manual_seed(0))], len(rank)


def _from_rows(inputs: Tensor, targets: Tensor, rows: int, classes: int) -> Task:
    """Embeddings of a few codes out of `rows`, then an MLP; the last 1,000 samples validate."""
    count = inputs.shape[1]
    return Task.supervised(
        lambda: nn.Sequential(
            nn.Embedding(rows, 16), nn.Flatten(), nn.Linear(16 * count, 64), nn.ReLU(), nn.Linear(64, classes)
        ),
        (inputs[:-1000], targets[:-1000]),
        (inputs[-1000:], targets[-1000:]),
        functional.cross_entropy,
    )


def rare_names() -> Task:
    """Four names predict which of the hundred most frequent ones, or any other, comes next."""
    runs, rows = _all_names()
    return _from_rows(runs[:, :4], runs[:, 4].clamp(max=100), rows, 101)


def rare_trigrams() -> Task:
    """A trigram of characters, as one code, and the one before it predict the next character."""
    text = chars._text()[0][:60_000].long()
    size = len(chars.ALPHABET)
    codes = text[:-2] * size**2 + text[1:-1] * size + text[2:]
    _, codes = codes.unique(return_inverse=True)
    inputs = torch.stack([codes[:-4], codes[3:-1]], 1)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    return _from_rows(inputs[order], text[6:][order], int(codes.max()) + 1, size)


TASKS: dict[str, Callable[[], Task]] = {
    "chars, 1,000 of them": few_chars,
    "diabetes, 100 rows": few_diabetes,
    "digits, 200 rows, 40% mislabelled": mislabelled_digits,
    "chars, embeddings from N(0, 1)": wide_embeddings,
    "char GRU": char_gru,
    "rare names": rare_names,
    "rare trigrams": rare_trigrams,
    "digits, batches of 512": lambda: digits.task(batch_size=512),
    "digits autoencoder": lambda: lr_tasks.task("digits-autoencoder"),
}
