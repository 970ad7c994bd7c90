"""Worker processes that a sweep starts on its own machine, and starts again when they die."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import torch

from adamtune.engines.cores import core_count
from adamtune.engines.endings import ending
from adamtune.errors import AdamtuneError, ExitCode
from adamtune.plain_text import plain
from adamtune.rundir import CHECKPOINTS

NAME = "ADAMTUNE_WORKER"
"""The environment variable by which a sweep names the workers it starts."""
STATES = "ADAMTUNE_CHECKPOINTS"
"""The environment variable by which they are told the folder of the states of trials under way."""
STORAGE = "ADAMTUNE_STORAGE"
"""The environment variable that a worker reads the storage URL from: a command line would show its password."""

_LAST_LINES, _LAST_CHARACTERS = 3, 300
"""Of the log, that are told of a worker that has died."""

_DEATHS_IN_A_ROW = 5
"""Workers that may die without a job done, for each of them, before the sweep gives up."""


class LocalWorkers:
    """So many workers of a run, each on a device of its own where there are several."""

    def __init__(self, count: int, url: str, run: str, ref: str, device: torch.device, log: Path) -> None:
        """Start nothing yet. `ref`: the task reference that they may import; `log`: where their output goes."""
        self._command = [
            *(sys.executable, "-m", "adamtune", "worker", "--study", run, "--task", ref, "--device", str(device)),
            *("--idle", "60"),
        ]
        self._count, self._url, self._device, self._log = count, url, device, log
        self._processes: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}
        self._dead: dict[str, subprocess.Popen[bytes]] = {}
        self._deaths = 0

    def start(self) -> None:
        """Start them all."""
        for place in range(self._count):
            self._start(place)

    def replace(self) -> None:
        """Start another for each that has ended. Raises `AdamtuneError` where they all die at once, always."""
        for name, (place, process) in list(self._processes.items()):
            if process.poll() is not None:
                self._dead[name] = process
                del self._processes[name]
                self._deaths += 1
                if process.returncode == ExitCode.USAGE:  # the next would say the same
                    raise AdamtuneError(f"a worker cannot start: {self._complaint()}")
                if self._deaths > _DEATHS_IN_A_ROW * self._count:
                    raise AdamtuneError(f"the workers die before they have done a job; {self._log} says why")
                self._start(place)

    def answered(self) -> None:
        """One of them has done a job: they can."""
        self._deaths = 0

    def dead(self, worker: str) -> bool:
        """Whether a worker, by the name that it gives itself, is one of these and has ended."""
        return self.starts(worker) and self._process(worker).poll() is not None

    def starts(self, worker: str) -> bool:
        """Whether a worker, by the name that it gives itself, is one of these, running or not."""
        name = worker.partition("/")[0]
        return name in self._dead or name in self._processes

    def end(self, worker: str) -> None:
        """End one that does not answer any more; `replace` starts another."""
        process = self._process(worker)
        process.kill()
        process.wait()

    def last_words(self, worker: str) -> str:
        """How one that is dead has ended, and what the log ends with."""
        how = ending(self._process(worker).returncode)
        lines = [line for line in self._log_tail().splitlines() if line.strip() and not line.startswith("worker ")]
        last = plain(" | ".join(lines[-_LAST_LINES:]))[-_LAST_CHARACTERS:]
        return f"{how}; {self._log.name} {'ends: ' + last if last else 'says nothing'}"

    def processes(self) -> list[subprocess.Popen[bytes]]:
        """Those that run."""
        return [process for _, process in self._processes.values()]

    def close(self) -> None:
        """End them all."""
        for _, process in self._processes.values():
            process.terminate()
        for _, process in self._processes.values():
            try:
                process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _process(self, worker: str) -> subprocess.Popen[bytes]:
        name = worker.partition("/")[0]
        return self._dead[name] if name in self._dead else self._processes[name][1]

    def _log_tail(self) -> str:
        with self._log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            return file.read().decode("utf-8", errors="replace")

    def _complaint(self) -> str:
        lines = self._log_tail().splitlines()
        return next((line for line in reversed(lines) if line.startswith("adamtune: ")), f"see {self._log}")

    def _start(self, place: int) -> None:
        name = f"local-{place}-{uuid.uuid4().hex[:6]}"
        states = self._log.with_name(CHECKPOINTS).resolve()
        environment = os.environ | {STORAGE: self._url, NAME: name, STATES: str(states)}
        if self._device.type == "cuda" and self._device.index is None:
            there = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = there.split(",") if there else [str(index) for index in range(torch.cuda.device_count())]
            environment["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
        with self._log.open("ab") as log:
            process = subprocess.Popen(  # a session of its own: Ctrl-C is for the sweep, which tells its workers
                self._command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._processes[name] = place, process


def worker_count(wanted: int | None, device: torch.device) -> int:
    """How many workers to start; None for one a GPU or, without any, one a core."""
    if wanted is not None:
        return wanted
    if device.type == "cuda":
        return torch.cuda.device_count() if device.index is None else 1
    return core_count()
