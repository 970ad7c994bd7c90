"""Trials that have ended, in a file of a run, so that a sweep begun again does not train them again."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adamtune.engines.plain import result_data, result_of
from adamtune.history import TrialRequest, TrialResult
from adamtune.rundir import CHECKPOINTS, append, read_lines


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
        self._asked: Counter[bytes] = Counter()
        self._lines: dict[Place, dict[str, Any]] = {}
        self.seconds_before = 0.0
        """What earlier sittings of the sweep took, up to the last trial that ended."""
        if path is not None:
            with suppress(OSError):  # without it no state is kept
                path.with_name(CHECKPOINTS).mkdir(exist_ok=True)
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
        place = self._next(request)
        self._asked[_digest(place.key)] = place.time
        return place

    def begun(self, request: TrialRequest) -> bool:
        """Whether the trial at the next place of a request has ended in an earlier sitting, or has left its state."""
        place = self._next(request)
        state = self.checkpoint(place)
        return place in self._lines or (state is not None and state.exists())

    def _next(self, request: TrialRequest) -> Place:
        key = request.key
        return Place(key, self._asked[_digest(key)] + 1)

    def checkpoint(self, place: Place) -> Path | None:
        """Where the state of the trial at this place is kept until it ends."""
        if self._path is None:
            return None
        name = hashlib.sha256(f"{place.time} {place.key}".encode()).hexdigest()[:32]
        return self._path.with_name(CHECKPOINTS) / f"{name}.pt"

    def pop(self, place: Place, request: TrialRequest) -> TrialResult | None:
        """The trial that ended at this place in an earlier sitting; None where there is none that can be read."""
        data = self._lines.pop(place, None)
        try:
            return None if data is None else result_of(data, request)
        except (KeyError, TypeError, ValueError, zlib.error):
            return None

    def add(self, ended: Sequence[tuple[Place, TrialResult]]) -> None:
        """Keep trials that have ended: all of them, or none. Raises `UnwritableError` where the disk is full."""
        if self._path is None or not ended:
            return
        elapsed = time.monotonic() - self._began
        told = [asdict(place) | result_data(result) | {"elapsed": elapsed} for place, result in ended]
        append(self._path, "".join(json.dumps(data) + "\n" for data in told))
        for place, _ in ended:
            self.forget(place)

    def forget(self, place: Place) -> None:
        """Let go of the state of a trial under way."""
        path = self.checkpoint(place)
        if path is not None:
            path.unlink(missing_ok=True)


def _digest(key: str) -> bytes:
    """A tenth of the key: there is one for every trial of the sweep."""
    return hashlib.sha256(key.encode()).digest()
