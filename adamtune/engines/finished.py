"""Trials that have ended, in a file of a run, so that a sweep begun again does not train them again."""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adamtune.history import Outcome, RungReport, TrialRequest, TrialResult
from adamtune.rundir import append, read_lines


@dataclass(frozen=True)
class Place:
    """A trial of a sweep: what was asked for, and for the how-manieth time."""

    key: str
    time: int


class FinishedTrials:
    """The ended trials of a sweep by their place. One line of JSON each, put on the disk when `add` returns.

    From a line on that a crash or a full disk has left damaged, they are dropped.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Go on with the file at `path`, or begin it with the first trial; without a path nothing is kept."""
        self._path = path
        self._asked: Counter[str] = Counter()
        self._lines: dict[Place, dict[str, Any]] = {}
        self.seconds_before = 0.0
        """What earlier sittings of the sweep took, up to the last trial that ended."""
        if path is not None and path.exists():
            for data in read_lines(path):
                with suppress(KeyError, TypeError, ValueError):  # of another version, or nobody's: not known
                    place, elapsed = Place(str(data["key"]), int(data["time"])), float(data["elapsed"])
                    self._lines[place] = data
                    self.seconds_before = max(elapsed, self.seconds_before)
        self._began = time.monotonic() - self.seconds_before

    def __len__(self) -> int:
        """Trials that are known and were not asked for yet."""
        return len(self._lines)

    def place(self, request: TrialRequest) -> Place:
        """The place of a request that is about to train."""
        ramp = request.ramp and asdict(request.ramp)
        key = json.dumps([request.recipe.training_key(), request.seed, request.horizon, ramp, request.probe])
        self._asked[key] += 1
        return Place(key, self._asked[key])

    def pop(self, place: Place, request: TrialRequest) -> TrialResult | None:
        """The trial that ended at this place in an earlier sitting; None where there is none that can be read."""
        data = self._lines.pop(place, None)
        try:
            return None if data is None else _result(data, request)
        except (KeyError, TypeError, ValueError, zlib.error):
            return None

    def add(self, ended: Sequence[tuple[Place, TrialResult]]) -> None:
        """Keep trials that have ended: all of them, or none. Raises `UnwritableError` where the disk is full."""
        if self._path is None or not ended:
            return
        elapsed = time.monotonic() - self._began
        lines = [json.dumps(_data(place, result) | {"elapsed": elapsed}) + "\n" for place, result in ended]
        append(self._path, "".join(lines))


def _data(place: Place, result: TrialResult) -> dict[str, Any]:
    rungs = [
        {"step": rung.step, "losses": _packed(rung.train_losses), "values": rung.values, "probe": rung.probe}
        for rung in result.rungs
    ]
    return {
        "key": place.key,
        "time": place.time,
        "outcome": str(result.outcome),
        "steps": result.steps,
        "seconds": result.seconds,
        "message": result.message,
        "rungs": rungs,
    }


def _result(data: dict[str, Any], request: TrialRequest) -> TrialResult:
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
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(base64.b64decode(text), 8 * most)
    if unpacking.unconsumed_tail:
        raise ValueError(f"more than {most} losses")
    losses: list[float] = np.frombuffer(data, dtype="<f8").tolist()
    return losses
