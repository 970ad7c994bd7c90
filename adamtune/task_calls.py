"""Calling a task's own code while training, and the one sentence said when it fails. Shared by all that train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adamtune.errors import AdamtuneError, TaskError
from adamtune.groups import trainable
from adamtune.task import Batch, Task, describe_exception

_USED = "_adamtune_used"
"""Set on parameters that a trial trains. Copies of a parameter do not inherit it."""


def new_model(task: Task) -> nn.Module:
    """A model of the task, on the CPU, checked: it has something to train, and nothing another trial has trained.

    Raises `TaskError`.
    """
    try:
        model = task.make_model()
    except AdamtuneError:
        raise
    except Exception as problem:
        raise TaskError(f"task '{task.name}': make_model raised {describe_exception(problem)}") from problem
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise TaskError(f"task '{task.name}': make_model returned a {got}; it must return a torch.nn.Module")
    named = list(trainable(model))
    if not named:
        raise TaskError(
            f"task '{task.name}' fails at step 0: its model has no trainable parameters; make_model must return a "
            "model with parameters whose requires_grad is True"
        )
    for name, param in named:
        if hasattr(param, _USED):
            raise TaskError(
                f"task '{task.name}': make_model returned the parameter '{name}' a second time, so trials would train "
                "each other's weights; build a new model, or copy.deepcopy the pretrained one, at each call"
            )
        setattr(param, _USED, True)
    return model


@contextmanager
def must_return() -> Iterator[None]:
    """Raise `TaskError` where the task's code ends the process by exit(): nothing would be said, and code 0 returned.

    Trials tell it themselves, with the step; this is for all else that calls a task, and decorates what does.
    """
    try:
        yield
    except SystemExit as end:
        raise TaskError(f"the task ended the process, by exit({end.code!r}); it must return") from end


def next_batch(task: Task, batches: Iterator[Batch], step: int, horizon: int) -> Batch:
    """The next training batch, for step `step` (from 0) of `horizon`; `TaskError` where there is none."""
    try:
        return next(batches)
    except StopIteration:
        raise TaskError(
            f"task '{task.name}': train_batches ended at training step {step + 1} of {horizon}; it must be endless "
            "(loop over the epochs with `while True`)"
        ) from None


def check_loss(task: Task, loss: Any, step: int) -> None:
    """Raise `TaskError` unless `loss`, of step `step` (from 0), is one number with a gradient."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        mend = "return the mean over the batch" if isinstance(loss, Tensor) else "return a tensor"
        raise TaskError(f"task '{task.name}': the loss at training step {step + 1} is {got}, not a scalar; {mend}")
    if not loss.requires_grad:
        raise TaskError(
            f"task '{task.name}': the loss at training step {step + 1} has no gradient; compute it from "
            "the model's output without detach(), item() or no_grad()"
        )


def as_number(task: Task, name: str, measured: Any) -> float:
    """What loss or metric `name` gave for a batch of validation data; `TaskError` where that is not one number."""
    if isinstance(measured, Tensor) and measured.numel() != 1:
        got = f"a tensor of shape {tuple(measured.shape)}"
        what = f"{name} on the validation data is {got}, not a scalar; return the mean over the batch"
        raise TaskError(f"task '{task.name}': {what}")
    return float(measured)


def no_validation(task: Task) -> TaskError:
    """What to raise where the validation batches gave nothing."""
    return TaskError(f"task '{task.name}': val_batches gave no batch, so a recipe cannot be judged")


def raised(task: Task, when: str, problem: BaseException) -> TaskError:
    """What to raise where the task's own code raised `problem`, `when` being such as `at training step 3`."""
    if isinstance(problem, torch.OutOfMemoryError):
        mend = "use a smaller batch with `accumulate`, or a device with more memory"
    else:
        mend = "mend the task, or see the whole traceback with --debug"
    return TaskError(f"task '{task.name}' raised {describe_exception(problem)} {when}; {mend}")
