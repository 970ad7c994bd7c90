"""Whether a task can be tuned: it builds, trains, repeats itself, moves to the device, and is judged."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from adamtune.doctor.lines import Line, Status
from adamtune.doctor.moving import left_behind, plain_tensors
from adamtune.doctor.repeating import remade, repeats
from adamtune.doctor.start import Start
from adamtune.engines.width import time_alone
from adamtune.errors import AdamtuneError
from adamtune.groups import kinds, param_groups, trainable
from adamtune.history import TrialRequest
from adamtune.population import NotVectorisable
from adamtune.population.check import check as check_stacking
from adamtune.recipe import Recipe
from adamtune.task import Task, has_tensor
from adamtune.task_calls import must_return, with_named_groups
from adamtune.trial import Trial

_REQUEST = TrialRequest(Recipe.default(), seed=0, horizon=20)
_MOST_BATCHES, _DRAWING = 2_000, 2.0
"""Batches drawn, and seconds spent on it, to see whether they end, as those of a single epoch would."""
_SOME = 3
"""Names told of many."""


T = TypeVar("T")


@dataclass(frozen=True)
class _Subject:
    task: Task
    device: torch.device
    start: Start
    load: Callable[[], Task]


def check_task(task: Task, device: torch.device, load: Callable[[], Task] | None = None) -> Iterator[Line]:
    """Look at a task that has been made, line by line; what needs a step ends where there is none.

    `load` makes the task a second time, to see whether it is the same.
    """
    start = _tried(lambda: Start(task, _REQUEST.seed))
    if isinstance(start, AdamtuneError):
        yield problem_line("model", start)
        return
    subject = _Subject(task, device, start, load or (lambda: task))
    looks: tuple[tuple[str, Callable[[_Subject], Line]], ...] = (
        ("model", _model),
        ("groups", _groups),
        ("device", _moves),
        ("batches", _batches),
        ("step", _step),
        ("validation", _validation),
        ("seeds", _seeds),
        ("stacks", _stacks),
        ("speed", _speed),
        *([("data", _data)] if load else []),  # last: a file that is imported again replaces its module
    )
    told: set[str] = set()
    unjudged = False
    for name, look in looks:
        if told and name in ("stacks", "speed", "data"):  # of sound trials only
            return
        line = _tried(lambda look=look: look(subject))  # type: ignore[misc]
        if isinstance(line, AdamtuneError):
            if name == "seeds" and unjudged:  # each of its trials ends in the validation that has failed
                continue
            unjudged |= name == "validation"
            line = problem_line(name, line)
        if line.status is Status.PROBLEM:
            if line.found in told:
                continue
            told.add(line.found)
        yield line
        if name in ("model", "step") and line.status is Status.PROBLEM:
            return


def _tried(look: Callable[[], T]) -> T | AdamtuneError:
    """What `look` gives, or what it raises where the task fails in it."""
    try:
        with must_return():
            return look()
    except AdamtuneError as problem:
        return problem


def problem_line(name: str, problem: AdamtuneError) -> Line:
    """A task's failure; our messages end with how to mend it, after a semicolon."""
    found, _, remedy = str(problem).rpartition("; ")
    return Line(name, Status.PROBLEM, found or remedy, remedy if found else "")


def _model(subject: _Subject) -> Line:
    model = subject.start.model
    param_groups(Recipe.default(), model)  # refuses lazy parameters, which have no size yet
    count = sum(param.numel() for _, param in trainable(model))
    frozen = sum(param.numel() for param in model.parameters() if not param.requires_grad)
    return Line(
        "model",
        Status.OK,
        f"{type(model).__name__} with {count:,} parameters to train" + (f", {frozen:,} frozen" if frozen else ""),
    )


def _groups(subject: _Subject) -> Line:
    model = subject.start.model
    param_groups(Recipe.default(), model)  # refuses what cannot be grouped
    ruled = with_named_groups(Recipe.default(), subject.task, model).groups
    own = [rule.name for rule in ruled[len(Recipe.default().groups) :]]
    tensors, numbers = Counter[str](), Counter[str]()
    kind_of = kinds(model)
    for name, param in trainable(model):
        tensors[kind_of[name]] += 1
        numbers[kind_of[name]] += param.numel()
    told = [f"{kind} {numbers[kind]:,} in {_counted(tensors[kind], 'tensor')}" for kind in tensors]
    return Line("groups", Status.OK, ", ".join(told) + (f"; the task names {', '.join(own)}" if own else ""))


def _moves(subject: _Subject) -> Line:
    batch, model = subject.start.batch, subject.start.model
    plain = plain_tensors(model)
    if plain:
        module, _, attribute = plain[0].rpartition(".")
        found = f"the model keeps {_some(plain)} as plain tensors, which stay where they are when it moves"
        owner = f"in {module}, " if module else ""
        remedy = f"{owner}make it a buffer: self.register_buffer('{attribute}', ...)"
        return Line("device", Status.WARNING, found, remedy)
    left, moved = left_behind(batch)
    if left:
        found = f"tensors in the batch stay where they are when it moves to a device: {_some(left)}"
        remedy = "give tensors in tuples, lists or dicts, or the object that holds them a method to(device)"
        return Line("device", Status.WARNING, found, remedy)
    if not has_tensor(batch) and not moved:
        return Line("device", Status.OK, f"{subject.device}; batches hold no tensors, the loss makes its own")
    return Line("device", Status.OK, f"{subject.device}; the {_counted(moved, 'tensor')} of a batch move there")


def _batches(subject: _Subject) -> Line:
    count, seconds = Start(subject.task, _REQUEST.seed).draw(_MOST_BATCHES, _DRAWING)
    each = f", {_duration(seconds / count)} each" if count else ""
    return Line("batches", Status.OK, f"{_counted(1 + count, 'batch')} drawn without an end{each}")


def _step(subject: _Subject) -> Line:
    loss, gradients, strange = subject.start.step(subject.device)
    without = [name for name, gradient in gradients.items() if gradient is None]
    norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in map(_dense, gradients.values()) if g is not None))
    if not math.isfinite(loss):
        remedy = "look for NaN or infinite values in the data, labels out of range, or a log or division in the loss"
        return Line("step", Status.PROBLEM, f"the first loss is {loss}", remedy)
    if len(without) == len(gradients):
        remedy = "let the loss call the model that it is given, not one of its own"
        return Line("step", Status.PROBLEM, f"loss {loss:.4g}, but no parameter gets a gradient", remedy)
    if not math.isfinite(norm):
        remedy = "look for a square root, norm or division at zero in model or loss"
        return Line("step", Status.PROBLEM, f"loss {loss:.4g}, but its gradient is {norm}", remedy)
    if norm == 0:
        remedy = "look for a layer that is all zero, saturated or dead at the start, and for a loss that is constant"
        return Line("step", Status.PROBLEM, f"loss {loss:.4g}, but every gradient is zero", remedy)
    told = f"loss {loss:.4g}, gradient norm {norm:.3g}"
    if without:
        remedy = "set requires_grad = False on what is not to be trained, or look for a detach() before it"
        return Line("step", Status.WARNING, f"{told}; no gradient reaches {_some(without)}", remedy)
    if strange:
        found = f"{told}; it also reaches {_counted(strange, 'parameter')} outside the model, which no trial trains"
        remedy = "put them into the model (a loss_fn that is a module may have some), or set requires_grad = False"
        return Line("step", Status.WARNING, found, remedy)
    return Line("step", Status.OK, f"{told}; it reaches all {_counted(len(gradients), 'tensor')} of parameters")


def _dense(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return gradient.coalesce().values() if gradient is not None and gradient.is_sparse else gradient


def _seeds(subject: _Subject) -> Line:
    return repeats(subject.task, _REQUEST, subject.device)


def _data(subject: _Subject) -> Line:
    try:
        again = subject.load()
    except AdamtuneError as problem:  # what may be done once a process is done once by each worker
        what = f"whether it has the same data when made a second time was not seen: {problem}"
        return Line("data", Status.NOTE, what)
    return remade(subject.task, again)


def _validation(subject: _Subject) -> Line:
    trial = Trial(subject.task, _REQUEST, subject.device)
    trial.advance(1)
    began = time.perf_counter()
    report = trial.advance(1)
    seconds = time.perf_counter() - began
    if report is None:
        remedy = "look for weights, activations or data so large that a step overflows"
        if any(param.dtype == torch.float16 for _, param in trainable(subject.start.model)):
            remedy = "keep the parameters in float32, and let the recipe's `precision: fp16` compute in 16 bits"
        return Line("validation", Status.PROBLEM, "the model diverged at its first step", remedy)
    bad = [name for name, value in report.values.items() if not math.isfinite(value)]
    told = ", ".join(f"{name} {value:.4g}" for name, value in report.values.items())
    if bad:
        remedy = "look for NaN in the validation data, and for batches on which a mean is over nothing"
        return Line("validation", Status.PROBLEM, f"not finite after a step: {told}", remedy)
    return Line("validation", Status.OK, f"{told} after a step; takes {_duration(seconds)}")


def _stacks(subject: _Subject) -> Line:
    try:
        facts = check_stacking(subject.task, [_REQUEST], subject.device)
    except NotVectorisable as reason:
        remedy = "nothing need be done; where this can be changed, many trials train as one model, which may be faster"
        return Line("stacks", Status.NOTE, f"trials train one by one: {reason}", remedy)
    noisy = ", those of one seed together, since the loss draws random numbers" if facts.noisy else ""
    return Line("stacks", Status.OK, f"trials can train side by side as one model{noisy}")


def _speed(subject: _Subject) -> Line:
    seconds = time_alone(subject.task, _REQUEST, subject.device)
    if math.isinf(seconds):
        return Line("speed", Status.PROBLEM, "a trial fails within its first steps", "run it by adamtune lr-find")
    return Line("speed", Status.OK, f"{_duration(seconds)} a training step of one trial by itself")


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('ch') else 's'}"


def _some(names: list[str]) -> str:
    more = len(names) - _SOME
    return ", ".join(names[:_SOME]) + (f" and {more} more" if more > 0 else "")
