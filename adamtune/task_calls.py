"""Calling a task's own code while training, and the one sentence said when it fails. Shared by all that train."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from adamtune import yaml_text
from adamtune.errors import AdamtuneError, Problem, RecipeError, TaskError
from adamtune.groups import group_of, in_own_names, kinds, own_name, param_groups, takes, trainable, unmatched
from adamtune.recipe import Match, Recipe
from adamtune.task import Batch, Task, describe_exception, tensor_bytes

_USED = "_adamtune_used"
"""Set on parameters that a trial trains. Copies of a parameter do not inherit it."""


_BUFFERS: WeakKeyDictionary[nn.Module, dict[str, int | None]] = WeakKeyDictionary()
"""Checksums of a module's buffers when a model was first made of it. Copies are other modules."""


def new_model(task: Task) -> nn.Module:
    """A model of the task, on the CPU, checked: it has something to train, and nothing that another trial
    trains or changes.

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
    _check_buffers(task, model)
    return model


def _check_buffers(task: Task, model: nn.Module) -> None:
    """Raise `TaskError` where a module that an earlier model had too no longer has the buffers it had then."""
    for path, module in model.named_modules():
        now = {name: _checksum(tensor) for name, tensor in module.named_buffers(recurse=False)}
        before = _BUFFERS.setdefault(module, now)
        changed = [name for name in now if now[name] != before.get(name, now[name])]
        if changed:
            raise TaskError(
                f"task '{task.name}': make_model returned the buffer '{'.'.join(filter(None, (path, changed[0])))}' a "
                "second time, and its values have changed since the first, so trials would change each other's models; "
                f"copy its {type(module).__name__} within make_model, by copy.deepcopy"
            )


def _checksum(buffer: Tensor) -> int | None:
    try:
        return zlib.crc32(tensor_bytes(buffer))
    except Exception:  # of some kinds, as of sparse ones, nobody can tell whether they changed
        return None


def with_named_groups(recipe: Recipe, task: Task, model: nn.Module) -> Recipe:
    """The recipe in names of the user's own model, with a rule behind its own for each group that the task names.

    It trains as before. A name that the recipe has stays the recipe's; a group of which its rules leave nothing gets
    none. Raises `TaskError` where `task.groups` raises, `RecipeError` where what it returns cannot be groups of the
    model.
    """
    recipe = in_own_names(recipe, model)
    if task.groups is None:
        return recipe
    param_groups(recipe, model)  # what is wrong with the recipe itself is told as its own
    try:
        named = dict(task.groups(model))
    except Exception as problem:
        what = f"task '{task.name}': groups raised {describe_exception(problem)}"
        raise TaskError(f"{what}; it must return parameter names, or patterns such as 'head.*', by group") from problem
    source = f"groups of task '{task.name}'"
    kind_of = {own_name(param, model): kind for param, kind in kinds(model).items()}
    own: set[str] = set()
    for name, params in named.items():
        if any(rule.name == name for rule in recipe.groups):
            continue
        data = recipe.model_dump()
        data["groups"] = [*data["groups"], {"name": name, "match": {"params": params}}]
        extended = in_own_names(yaml_text.validate(Recipe, data, source, RecipeError), model)
        for pattern in extended.groups[-1].match.params or ():
            one = Match(params=(pattern,))
            if not any(takes(one, param, kind) for param, kind in kind_of.items()):
                raise RecipeError(source, [Problem(f"$.{name}", unmatched(one, model, kind_of))])
        match = extended.groups[-1].match
        takers = {group_of(extended, param, kind) for param, kind in kind_of.items() if takes(match, param, kind)}
        if name in takers:
            recipe = extended
            own.add(name)
        elif taken := sorted(takers & own):
            what = f"is left nothing by '{taken[0]}', which the task names before it; put '{name}' first, or drop one"
            raise RecipeError(source, [Problem(f"$.{name}", what)])
    return recipe


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
        if isinstance(loss, Tensor):
            got = f"a tensor of shape {tuple(loss.shape)}, not a scalar; return the mean over the batch"
        else:
            got = f"a {type(loss).__name__}, not a tensor; return the tensor itself, without item() or float()"
        raise TaskError(f"task '{task.name}': the loss at training step {step + 1} is {got}")
    if not loss.requires_grad:
        raise TaskError(
            f"task '{task.name}': the loss at training step {step + 1} has no gradient; compute it from "
            "the model's output without detach(), item() or no_grad()"
        )


def no_validation(task: Task) -> TaskError:
    """What to raise where the validation batches gave nothing."""
    return TaskError(
        f"task '{task.name}': val_batches gave no batch, so a recipe cannot be judged; look for validation data that "
        "are empty, used up by an earlier pass, or less than one batch under drop_last"
    )


def measured(task: Task, name: str, value: Any) -> float:
    """What the loss or metric `name` gave for a validation batch; raises `TaskError` unless it is one number."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise TaskError(
            f"task '{task.name}': its {'loss' if name == 'loss' else f'metric {name!r}'} of a validation batch is a "
            f"tensor of shape {tuple(value.shape)}, not a scalar; return the mean over the batch"
        )
    return float(value)


@contextmanager
def faults_told(task: Task, when: str) -> Iterator[None]:
    """What the task's own code raises in the block, as `raised` tells it."""
    try:
        yield
    except AdamtuneError:
        raise
    except Exception as problem:  # a stranger's code may raise anything
        raise raised(task, when, problem) from problem


def raised(task: Task, when: str, problem: BaseException) -> TaskError:
    """What to raise where the task's own code raised `problem`, `when` being such as `at training step 3`."""
    if isinstance(problem, torch.OutOfMemoryError):
        mend = "use a smaller batch with `accumulate`, or a device with more memory"
    elif "Too many open files" in str(problem):  # each trial that is under way keeps its own loader's workers
        mend = "set num_workers=0 in the task's loaders, or allow more by `ulimit -n`"
    else:
        mend = "mend the task, or see the whole traceback with --debug"
    return TaskError(f"task '{task.name}' raised {describe_exception(problem)} {when}; {mend}")
