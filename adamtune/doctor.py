"""Whether this machine, and a task on it, are fit for a sweep: what is checked before hours are spent."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from adamtune import __version__
from adamtune.engines import pick_device
from adamtune.engines.memory import free_memory
from adamtune.engines.width import time_alone
from adamtune.errors import AdamtuneError, TaskError
from adamtune.groups import kinds, trainable
from adamtune.history import TrialRequest, TrialResult
from adamtune.population.check import check
from adamtune.population.state import NotVectorisable
from adamtune.randomness import RandomState, Stream, derive_seed
from adamtune.recipe import Recipe
from adamtune.task import Task, batch_to, describe_exception, has_tensor
from adamtune.task_calls import must_return, new_model
from adamtune.trial import Trial

OK, NOTE, PROBLEM = "ok", "note", "problem"

_STEPS = 3
"""Of the trainings that are compared."""

_OPTIONAL = {
    "sklearn": ("the digits tasks", "pip install 'adamtune[examples]'"),
    "ray": ("engine: ray", "pip install 'adamtune[ray]'"),
    "psycopg": ("storage: postgresql://...", "pip install 'adamtune[postgres]'"),
    "optuna_dashboard": ("adamtune dashboard", "pip install 'adamtune[dashboard]'"),
    "pyarrow": ("probe.to_frame().to_parquet", "pip install pyarrow"),
    "transformers": ("its TrainerCallback", "pip install transformers"),
    "lightning": ("its Callback", "pip install lightning"),
}
"""Module: what it is for, and how to get it."""


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    status: str
    """`ok`; `note`, to know of; `problem`, to be mended before a sweep."""
    told: str


def check_machine() -> Iterator[Check]:
    """Versions, devices, memory, and what optional packages would add."""
    yield Check("adamtune", OK, f"{__version__}, Python {platform.python_version()}, {platform.system()}")
    yield Check("torch", OK, torch.__version__)
    yield Check("packages", OK, ", ".join(f"{name} {version(name)}" for name in ("optuna", "numpy", "pandas")))
    device = pick_device("auto")
    named = f"{device.type}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
    count = f"; {torch.cuda.device_count()} CUDA devices" if device.type == "cuda" else ""
    yield Check("device", OK, f"{named}{count}; {_cores()} CPU cores")
    yield Check("free memory", OK, f"{free_memory(device) / 2**30:.1f} GiB")
    for module, (purpose, command) in _OPTIONAL.items():
        if importlib.util.find_spec(module) is not None:
            yield Check(module, OK, f"{_version(module)}, for {purpose}")
        else:
            yield Check(module, NOTE, f"not installed; for {purpose}: {command}")


def check_task(task: Task, device: torch.device) -> Iterator[Check]:
    """Model, one step, validation, reproducibility, stacks, seconds of a step. What the task raises is a problem told.

    Checks that build on one that found a problem are left out.
    """
    for looked_at in (_model, _training, _stacks):
        try:
            with must_return():
                for found in looked_at(task, device):
                    yield found
                    if found.status == PROBLEM:
                        return
        except AdamtuneError as problem:
            yield Check("task", PROBLEM, str(problem))
            return
        except Exception as problem:
            yield Check("task", PROBLEM, f"the task raised {describe_exception(problem)}")
            return


def _model(task: Task, device: torch.device) -> Iterator[Check]:
    with RandomState(derive_seed(0, Stream.INIT)).active(device):
        model = new_model(task).to(device)
        sizes: Counter[str] = Counter()
        kind_of = kinds(model)
        for name, param in trainable(model):
            sizes[kind_of[name]] += param.numel()
        told = ", ".join(f"{size:,} in {kind}" for kind, size in sizes.most_common())
        yield Check("model", OK, f"{sum(sizes.values()):,} trainable parameters: {told}")
        batch = next(iter(task.train_batches(torch.Generator().manual_seed(0))), None)
        if batch is None:
            yield Check("batches", PROBLEM, "train_batches is empty; it must yield batches without end")
            return
        if has_tensor(batch):
            yield Check("batches", OK, f"hold tensors, which are moved to {device}")
        else:
            yield Check("batches", NOTE, "hold no tensors, so nothing is moved: the loss gets its data by itself")
        model.train()
        loss = task.loss(model, batch_to(batch, device))
        if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.requires_grad:
            yield Check("loss", PROBLEM, f"is {_described(loss)}; it must be a scalar tensor that depends on the model")
            return
        torch.autograd.backward(loss)
        yield Check("loss", OK if math.isfinite(loss.item()) else PROBLEM, f"{loss.item():.4g} before training")
        idle = [name for name, param in trainable(model) if param.grad is None]
        if idle:
            them = ", ".join(idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
            yield Check("gradients", NOTE, f"none comes to {them}: unused, or left out of the loss")
        else:
            yield Check("gradients", OK, "come to every trainable parameter")


def _training(task: Task, device: torch.device) -> Iterator[Check]:
    first, again, other = (_trained(task, seed, device) for seed in (0, 0, 1))
    values = first.rungs[-1].values if first.rungs else {}
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    if not values:
        why = first.message or "the loss is not finite"
        yield Check("training", PROBLEM, f"ended after {first.steps} of {_STEPS} steps: {first.outcome}, {why}")
        return
    yield Check("validation", PROBLEM if wrong else OK, f"{told} after {_STEPS} steps")
    here, there = _numbers(first), _numbers(again)
    if here == there:
        yield Check("reproducible", OK, "the same seed gives the same numbers")
    else:
        a, b = next((a, b) for a, b in zip(here, there, strict=False) if a != b)
        yield Check(
            "reproducible",
            PROBLEM if device.type == "cpu" else NOTE,  # CUDA kernels may add in any order
            f"the same seed gives {a:.9g} and {b:.9g}: whatever is random in make_model, data and loss must draw from "
            "torch's, numpy's or Python's seeded generators, and data must not change from call to call",
        )
    if here == _numbers(other):
        yield Check("seeds", NOTE, "another seed gives the same numbers: nothing here is random, so seeds tell nothing")


def _stacks(task: Task, device: torch.device) -> Iterator[Check]:
    requests = [_request(seed) for seed in (0, 1)]
    try:
        check(task, requests, device)
        yield Check("stacks", OK, "several trials train at once, in a stack of models")
    except NotVectorisable as reason:
        yield Check("stacks", NOTE, f"trials train one by one: {reason}")
    seconds = time_alone(task, requests[0], device)
    if math.isinf(seconds):
        raise TaskError(f"task '{task.name}': its training steps raise")
    yield Check("speed", OK, f"{1e3 * seconds:.3g} ms a training step, one trial alone")


def _request(seed: int) -> TrialRequest:
    return TrialRequest(Recipe.default(), seed, _STEPS)


def _trained(task: Task, seed: int, device: torch.device) -> TrialResult:
    trial = Trial(task, _request(seed), device)
    trial.advance(_STEPS)
    return trial.result()


def _numbers(result: TrialResult) -> list[float]:
    return [*result.train_losses, *(value for rung in result.rungs for value in rung.values.values())]


def _described(loss: object) -> str:
    if not isinstance(loss, torch.Tensor):
        return f"a {type(loss).__name__}"
    return f"a tensor of shape {tuple(loss.shape)}" if loss.ndim else "a number without a gradient"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(module: str) -> str:
    name = {"sklearn": "scikit-learn", "optuna_dashboard": "optuna-dashboard"}.get(module, module)
    try:
        return version(name)
    except PackageNotFoundError:
        return "installed"
