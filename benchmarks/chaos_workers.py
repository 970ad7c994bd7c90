"""What a sweep's workers survive: one killed every few seconds, on SQLite, on PostgreSQL and on Ray."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from adamtune.engines.local_workers import LocalWorkers
from adamtune.engines.plain import result_data
from adamtune.engines.sequential import SequentialEngine
from adamtune.engines.spread import SpreadEngine
from adamtune.engines.work_queue import WorkQueue
from adamtune.history import TrialRequest, TrialResult
from adamtune.recipe import Recipe
from adamtune.search import open_storage
from adamtune.task import load_task

REF, ARGS = "adamtune.tasks.digits:task", {"hidden": 8}
CPU = torch.device("cpu")
BATCH, RUNGS = 100, (4, 10)


def storage_workers(name: str, url: str, folder: Path, trials: int, workers: int, every: float) -> bool:
    """Train so many short trials by workers on a storage, killing one every few seconds; prints survived of total."""
    folder.mkdir(parents=True, exist_ok=True)
    task, log = load_task(REF, ARGS), folder / "workers.log"
    requests = [TrialRequest(_recipe(number), number % 5, RUNGS[-1]) for number in range(trials)]
    local = LocalWorkers(workers, url, "chaos", REF, CPU, log)
    noted: list[str] = []
    queue = WorkQueue(open_storage(url, folder), "chaos", {"ref": REF, "args": ARGS, "name": task.name}, local)
    kills, began, found, chance = 0, time.monotonic(), [], random.Random(0)

    def kill_one(steps: int) -> None:
        nonlocal kills
        if time.monotonic() - began > (kills + 1) * every:
            kills += 1
            chance.choice(local.processes()).kill()

    with closing(SpreadEngine("workers", queue, kill_one, noted.append)) as engine:
        for start in range(0, trials, BATCH):
            batch = engine.open(requests[start : start + BATCH])
            for rung in RUNGS:
                batch.advance(rung)
            found += batch.results()
    seconds = time.monotonic() - began
    alone = SequentialEngine(task, CPU).open(requests)
    for rung in RUNGS:
        alone.advance(rung)
    same = sum(_numbers(a) == _numbers(b) for a, b in zip(found, alone.results(), strict=True))
    locked = sum("locked" in line or "Error" in line for line in log.read_text().splitlines())
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in Counter(r.outcome for r in found).items())
    print(
        f"{name}: {workers} workers, {kills} killed, {len(noted)} trials begun again; the numbers of one process: "
        f"{same}/{trials} ({outcomes}); errors in the workers' log: {locked}; {seconds:.0f} s",
        flush=True,
    )
    return same == trials == len(found) and locked == 0


def ray_workers(start: Callable[..., subprocess.Popen[bytes]], told: Callable[[Path], object], folder: Path) -> bool:
    """The sweep on a local Ray cluster, one of whose worker processes is killed midway."""
    start(folder, "unbroken").wait()
    child = start(folder, "ray", "--engine", "ray", "--workers", "2")
    killed = 0
    while child.poll() is None:
        time.sleep(0.2)
        log = folder / "ray" / "log.txt"
        if not killed and log.exists() and "trial" in log.read_text():
            killed += _kill_actor()
    again = "starts again elsewhere" in (folder / "ray" / "log.txt").read_text()
    same = told(folder / "ray") == told(folder / "unbroken")
    print(
        f"ray: {killed} worker process killed midway, trials begun again: {again}; "
        f"ended as without interruption: {int(same)}/1",
        flush=True,
    )
    return bool(same and killed and again)


def postgres_url(folder: Path) -> str:
    """The URL of a server that lives in a folder until this process ends."""
    import pgserver

    uri: str = pgserver.get_server(folder, cleanup_mode="stop").get_uri()
    return uri


def _recipe(number: int) -> Recipe:
    return Recipe(lr=10 ** (-4 + 3 * ((0.6180339887 * number) % 1)))


def _numbers(result: TrialResult) -> str:
    return json.dumps(result_data(result) | {"seconds": 0.0})


def _kill_actor() -> int:
    """Kill one process that runs a trial for Ray; how many it was."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::TrialActor.do"):
                os.kill(int(entry.name), signal.SIGKILL)
                return 1
        except OSError:
            continue
    return 0
