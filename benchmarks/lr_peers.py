"""Today's learning rate finders as their users run them: real installs, on our tasks, batches and initial weights.

Each gets 300 steps over its own default range, AdamW with torch's values, and the task's loss as it is. A finder that
is not installed is left out (`pip install -e '.[bench]'`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from adamtune.randomness import Stream, derive_seed, seed_torch
from adamtune.task import Batch, Task
from adamtune.trial import new_model

STEPS = 300


@dataclass(frozen=True)
class Answer:
    """What a finder suggests (None: nothing), and what it cost."""

    finder: str
    lr: float | None
    steps: int
    seconds: float


class Batches(IterableDataset[tuple[Batch, Tensor]]):
    """The task's batches of one seed, each with a label nobody reads: the finders want pairs."""

    def __init__(self, task: Task, seed: int) -> None:
        self._task, self._seed = task, seed

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, Stream.DATA))
        return ((batch, torch.zeros(1)) for batch in self._task.train_batches(generator))

    def __len__(self) -> int:
        return 100_000


class Losses(nn.Module):
    """The task's model, called on a whole batch to give its loss."""

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__()
        seed_torch(derive_seed(seed, Stream.INIT), torch.device("cpu"))
        self.model, self._loss = new_model(task), task.loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.model, batch)


def loader(task: Task, seed: int) -> DataLoader[Any]:
    return DataLoader(Batches(task, seed), batch_size=None, collate_fn=lambda pair: pair)


def _the_loss(output: Tensor, label: Tensor) -> Tensor:
    return output


def torch_lr_finder(task: Task, seed: int, end: float = 10.0) -> Iterator[tuple[str, float | None]]:
    import matplotlib.pyplot as plt
    from torch_lr_finder import LRFinder

    plt.switch_backend("agg")
    model = Losses(task, seed)
    finder = LRFinder(model, torch.optim.AdamW(model.parameters(), lr=1e-7), _the_loss, device="cpu")
    finder.range_test(loader(task, seed), end_lr=end, num_iter=STEPS)
    axes, suggestion = finder.plot(ax=plt.figure().subplots(), suggest_lr=True)
    plt.close(axes.figure)
    yield "torch-lr-finder", suggestion


def lightning(task: Task, seed: int, end: float = 1.0) -> Iterator[tuple[str, float | None]]:
    import lightning.pytorch as pl
    from lightning.pytorch.tuner import Tuner

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.losses, self.lr = Losses(task, seed), 1e-3

        def training_step(self, pair: tuple[Batch, Tensor]) -> Tensor:
            loss: Tensor = self.losses(pair[0])
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=self.lr)

    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, max_steps=STEPS,
        )  # fmt: skip
        found = Tuner(trainer).lr_find(Module(), loader(task, seed), max_lr=end, num_training=STEPS)
    yield "Lightning Tuner", found.suggestion() if found else None


def fastai(task: Task, seed: int, end: float = 10.0) -> Iterator[tuple[str, float | None]]:
    from fastai.callback.schedule import minimum, slide, steep, valley
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(
            DataLoaders(loader(task, seed), loader(task, seed), device="cpu"),
            Losses(task, seed),
            loss_func=_the_loss,
            opt_func=functools.partial(OptimWrapper, opt=torch.optim.AdamW),
            path=folder,
        )
        with learner.no_bar(), learner.no_logging():
            rules = learner.lr_find(
                end_lr=end, num_it=STEPS, show_plot=False, suggest_funcs=(valley, minimum, steep, slide)
            )
    for rule in ("valley", "minimum", "steep", "slide"):
        # fastai's `minimum` is the minimum over ten.
        yield f"fastai {'minimum/10' if rule == 'minimum' else rule}", getattr(rules, rule)


FINDERS: dict[str, Callable[..., Iterator[tuple[str, float | None]]]] = {
    "torch_lr_finder": torch_lr_finder,
    "lightning": lightning,
    "fastai": fastai,
}


def installed() -> list[str]:
    return [package for package in FINDERS if importlib.util.find_spec(package)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no warnings, no advertising."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    silent = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        warnings.simplefilter("ignore")
        yield


def answers(task: Task, seed: int) -> Iterator[Answer]:
    """Every installed finder's answer on the task with one seed; a rule that breaks suggests nothing."""
    for package in installed():
        began = time.perf_counter()
        with quiet():
            try:
                suggestions = list(FINDERS[package](task, seed))
            except (ValueError, IndexError) as problem:  # too few points left to suggest anything
                suggestions = [(f"{package} ({problem})", None)]
        seconds = time.perf_counter() - began
        for finder, lr in suggestions:
            yield Answer(finder, lr, STEPS, seconds)
