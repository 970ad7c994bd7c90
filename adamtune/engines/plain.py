"""Requests and results of trials as plain data, to the bit: for files and for other processes."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from adamtune import yaml_text
from adamtune.errors import RecipeError
from adamtune.history import Outcome, Ramp, RungReport, TrialRequest, TrialResult
from adamtune.recipe import Recipe


def request_data(request: TrialRequest) -> dict[str, Any]:
    """A request as JSON takes it; the recipe's provenance stays here."""
    return {
        "recipe": request.recipe.to_dict() | {"provenance": {}},
        "seed": request.seed,
        "horizon": request.horizon,
        "ramp": request.ramp and asdict(request.ramp),
        "probe": request.probe,
    }


def request_of(data: Mapping[str, Any]) -> TrialRequest:
    """The request that `request_data` wrote. Raises `RecipeError` where its recipe is none."""
    ramp = data["ramp"] and Ramp(**data["ramp"])
    recipe = yaml_text.validate(Recipe, data["recipe"], "trial", RecipeError)
    return TrialRequest(recipe, data["seed"], data["horizon"], ramp, data["probe"])


def result_data(result: TrialResult) -> dict[str, Any]:
    """A result as JSON takes it, without its request."""
    return {
        "outcome": str(result.outcome),
        "steps": result.steps,
        "seconds": result.seconds,
        "message": result.message,
        "rungs": [
            {"step": rung.step, "losses": _packed(rung.train_losses), "values": rung.values, "probe": rung.probe}
            for rung in result.rungs
        ],
    }


def result_of(data: Mapping[str, Any], request: TrialRequest) -> TrialResult:
    """The result that `result_data` wrote. Raises `KeyError`, `TypeError`, `ValueError` or `zlib.error` where it is
    something else.
    """
    rungs = tuple(
        RungReport(int(rung["step"]), _unpacked(rung["losses"], request.horizon), rung["values"], rung["probe"])
        for rung in data["rungs"]
    )
    outcome, steps, seconds = Outcome(data["outcome"]), int(data["steps"]), float(data["seconds"])
    return TrialResult(request, outcome, steps, rungs, seconds, str(data["message"]))


def _packed(losses: Sequence[float]) -> str:
    """To the bit, in a third of the room that decimals take."""
    return base64.b64encode(zlib.compress(np.asarray(losses, dtype="<f8").tobytes())).decode("ascii")


def _unpacked(text: str, most: int) -> list[float]:
    """At most so many: what claims to be more is not ours."""
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(base64.b64decode(text), 8 * most)
    if unpacking.unconsumed_tail:
        raise ValueError(f"more than {most} losses")
    losses: list[float] = np.frombuffer(data, dtype="<f8").tolist()
    return losses
