"""The states of a stack's members in files, one a member, as `adamtune.trial_state` keeps those of trials alone.

A member's state is put back in a stack only: torch's optimizers, which train a trial alone, keep it in another form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adamtune.history import TrialRequest
from adamtune.population.stack import Stack
from adamtune.trial_state import attributes_of, put_attributes, put_tensor, read_state


def saved_together(requests: Sequence[TrialRequest]) -> list[dict[str, Any]]:
    """The saved states of these trials, where all have one, from stacks and from the same rungs; else none."""
    states = [state for state in map(read_state, requests) if state is not None and "stacked" in state]
    rungs = {tuple(rung[0] for rung in state["history"]["rungs"]) for state in states}
    running = all(state["history"]["outcome"] is None for state in states)
    return states if len(states) == len(requests) and len(rungs) == 1 and running else []


def row_of(stack: Stack, row: int) -> dict[str, Any]:
    """All that training has changed in one member."""
    model = stack.model
    state = model.state
    return {
        "params": [param.detach()[row].clone() for param in state.params],
        "first": [tensor[row].clone() for tensor in state.first],
        "second": [tensor[row].clone() for tensor in state.second],
        "buffers": {name: tensor[row].clone() for name, tensor in state.buffers.items()},
        "steps": state.steps,
        "counters": model.counters,
        "attributes": attributes_of(model.module),
    }


@torch.no_grad()
def put_back(stack: Stack, rows: Sequence[dict[str, Any]]) -> None:
    """Make the members of an untrained stack what they were. Raises where they are others."""
    state = stack.model.state
    for row, saved in enumerate(rows):
        for tensors, own in ((state.params, saved["params"]), (state.first, saved["first"])):
            for tensor, value in zip(tensors, own, strict=True):
                put_tensor(tensor[row], value)
        for tensor, value in zip(state.second, saved["second"], strict=False):  # SGD has none but beside Adam
            put_tensor(tensor[row], value)
        for name, tensor in state.buffers.items():
            put_tensor(tensor[row], saved["buffers"][name])
    shared = rows[0]
    for tensor, value in zip(state.steps, shared["steps"], strict=True):
        put_tensor(tensor, value)
    for name, tensor in stack.model.counters.items():
        put_tensor(tensor, shared["counters"][name])
    put_attributes(stack.model.module, shared["attributes"])
