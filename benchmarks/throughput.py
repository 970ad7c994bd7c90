"""How many training steps of trials a second: ours beside a plain loop under Optuna, and beside Ray Tune.

python -m benchmarks.throughput [--only CASE ...] [--trials K] [--steps HORIZON] [--repeats 2]

Everyone trains the same trials: K learning rates, on three seeds in turn, from the same initial weights on the
same batches, by AdamW with a cosine schedule, and evaluates the validation loss at the end.

optuna      what people write: an objective that trains, one trial after another, torch on all cores
ray         Ray Tune with the same function, one worker of one thread a core, workers kept between trials; all of
            `fit()` counts, which starts them, and `ray.init` does not (`pip install -e '.[ray]'`)
sequential  our engine that trains one trial after another, on one thread
auto        our engine as it comes: measures, then trains in stacks or one by one, over processes; measuring counts
stacked     our engine made to stack, in one process; only where the number of trials grows

Each run is a process of its own (`--one CASE PEER` does one and prints JSON), the peers take turns, and a figure is the
median over the repeats. Imports, the making of the task and, but for Ray's workers, torch's first step are not timed.
Run it on an idle machine: beside another process torch's threads, which only optuna has, wait for each other, and its
loop may take many times as long. The column /sequent(ial) does not depend on that.
Ray has seconds to pay once and auto half a second or more, so both gain with longer trials or more of them.
Memory is the peak of the whole process tree, each shared page counted once, files mapped (torch's libraries) left out,
what Python and torch take by themselves included; it is looked at after 1, 3, 7, 15 ... seconds. getrusage, kept in the
JSON, knows of children only the largest.

`--only growth` is the part where the number of trials grows. All of it takes about a quarter of an hour on two slow
cores, a third of that to start processes; `--repeats 1` halves it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from adamtune.engines import Engine, make_engine
from adamtune.engines.population import PopulationEngine
from adamtune.history import History, TrialRequest
from adamtune.population.feed import Feed
from adamtune.population.stack import Member, Stack
from adamtune.randomness import Stream, derive_seed
from adamtune.recipe import Recipe, Schedule
from adamtune.task import Task, batch_rows
from adamtune.tasks import chars, digits
from benchmarks import lr_tasks, residual

CASES: dict[str, tuple[Callable[[], Task], int, int]] = {  # the task, how many trials, steps of each
    "digits-mlp": (digits.task, 96, 300),
    "digits-cnn": (lambda: digits.task("cnn"), 48, 300),
    "digits-resnet": (residual.task, 24, 100),
    "char-gpt-8": (lambda: chars.task(batch_size=8), 32, 160),
    "char-gpt-32": (lambda: chars.task(batch_size=32), 16, 40),
    "digits-mlp-512": (lambda: digits.task(batch_size=512), 48, 80),
    "char-gru": (lambda: lr_tasks.CASES["char-gru"]().task, 16, 80),
}
PEERS = ("optuna", "ray", "sequential", "auto")
GROWTH = (1, 4, 16, 64, 256)
DICTATED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Left out of the environment of what is measured: all take the threads and kernels that they choose by themselves."""
CPU = torch.device("cpu")
CORES = len(os.sched_getaffinity(0))

Run = dict[str, Any]


def trials(count: int) -> list[tuple[float, int]]:
    """Learning rate and seed of each trial; no task here diverges at any of them."""
    return [(10 ** (-4 + 1.5 * place / max(1, count - 1)), place % 3) for place in range(count)]


def train(task: Task, lr: float, seed: int, steps: int) -> float:
    """What anybody writes; only the seeds are made our way, so that all train alike. The validation loss."""
    torch.manual_seed(derive_seed(seed, Stream.INIT))
    model = task.make_model()
    batches = iter(task.train_batches(torch.Generator().manual_seed(derive_seed(seed, Stream.DATA))))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, next(batches)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    model.eval()
    with torch.no_grad():
        found = [(batch_rows(batch), task.loss(model, batch).item()) for batch in task.val_batches()]
    return sum(rows * loss for rows, loss in found) / sum(rows for rows, _ in found)


def by_optuna(task: Task, count: int, steps: int) -> Run:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(CORES)
    train(task, 1e-3, 0, 2)

    def objective(trial: optuna.Trial) -> float:
        return train(task, trial.suggest_float("lr", 1e-5, 1e-1, log=True), trials(count)[trial.number][1], steps)

    began = time.perf_counter()
    study = optuna.create_study()
    for lr, _ in trials(count):
        study.enqueue_trial({"lr": lr})
    study.optimize(objective, n_trials=count)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "steps": count * steps, "losses": [trial.value for trial in study.trials]}


def by_ray(task: Task, count: int, steps: int) -> Run:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import tune

    def trainable(config: dict[str, Any], task: Task) -> dict[str, float]:
        torch.set_num_threads(1)
        began = time.perf_counter()
        lr, seed = config["trial"]
        return {"loss": train(task, lr, seed, steps), "seconds": time.perf_counter() - began}

    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
            object_store_memory=2**28, _temp_dir=folder, _node_ip_address="127.0.0.1",
        )  # fmt: skip
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, task=task), {"cpu": 1}),
            param_space={"trial": tune.grid_search(trials(count))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        began = time.perf_counter()
        results = tuner.fit()
        seconds = time.perf_counter() - began
        ray.shutdown()
    told = [results[place].metrics or {} for place in range(count)]
    busy = sum(metrics["seconds"] for metrics in told) / min(CORES, count)
    return {
        "seconds": seconds,
        "steps": count * steps,
        "losses": [metrics["loss"] for metrics in told],
        "busy": busy,
    }


def requests(count: int, steps: int) -> list[TrialRequest]:
    recipe = Recipe(schedule=Schedule(warmup=0.0))
    return [TrialRequest(recipe.with_knob("lr", lr), seed, steps) for lr, seed in trials(count)]


def by_engine(make: Callable[..., Engine], task: Task, count: int, steps: int) -> Run:
    torch.set_num_threads(1)
    train(task, 1e-3, 0, 2)
    notes: list[str] = []
    began = time.perf_counter()
    engine = make(task, CPU, on_note=notes.append)
    batch = engine.open(requests(count, steps))
    opened = time.perf_counter()
    batch.advance(steps)
    results = batch.results()
    ended = time.perf_counter()
    engine.close()
    return {
        "seconds": time.perf_counter() - began,
        "after_opening": ended - opened,
        "steps": sum(result.steps for result in results),
        "losses": [result.final() for result in results],
        "note": "; ".join(notes),
    }


RUNNERS: dict[str, Callable[[Task, int, int], Run]] = {
    "optuna": by_optuna,
    "ray": by_ray,
    "sequential": functools.partial(by_engine, functools.partial(make_engine, "sequential")),
    "auto": functools.partial(by_engine, functools.partial(make_engine, "auto")),
    "stacked": functools.partial(by_engine, functools.partial(PopulationEngine, always=True, processes=1)),
}


def one(case: str, peer: str, count: int, steps: int) -> None:
    """One run in this process, told as JSON."""
    run = RUNNERS[peer](dataclasses.replace(CASES[case][0](), metrics={}), count, steps)
    for name, who in {"own_mb": resource.RUSAGE_SELF, "largest_child_mb": resource.RUSAGE_CHILDREN}.items():
        run[name] = resource.getrusage(who).ru_maxrss / 1024
    print(json.dumps(run))


def measure(case: str, peer: str, count: int, steps: int) -> Run | str:
    """One run in a process of its own, or why there is none."""
    if peer == "ray" and not importlib.util.find_spec("ray"):
        return "not installed"
    command = [sys.executable, "-m", "benchmarks.throughput", "--one", case, peer]
    command += ["--trials", str(count), "--steps", str(steps)]
    environment = {name: value for name, value in os.environ.items() if name not in DICTATED}
    peak, pause = 0.0, 1.0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while True:
            try:
                out, problem = process.communicate(timeout=pause)
                break
            except subprocess.TimeoutExpired:  # to look takes 40 ms of a core, and holds up who asks for memory
                peak, pause = max(peak, tree_mb(process.pid)), 2 * pause
    if process.returncode:
        print(f"{case}, {peer}:\n{problem}", file=sys.stderr)
        return "failed"
    run: Run = json.loads(out.splitlines()[-1])
    return run | {"tree_mb": peak}


def tree_mb(root: int) -> float:
    """Memory of a process and its descendants: anonymous and shared, each page once; files they map left out."""
    parents, found = {}, {root}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    total = 0
    for pid in found:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total / 1024


def medians(case: str, peers: Sequence[str], count: int, steps: int, repeats: int) -> dict[str, Run | str]:
    """By peer, medians over runs taken in turns; a text where a run failed."""
    runs: dict[str, list[Run | str]] = {peer: [] for peer in peers}
    for _ in range(repeats):
        for peer in peers:
            runs[peer].append(measure(case, peer, count, steps))
    found: dict[str, Run | str] = {}
    for peer, got in runs.items():
        good = [run for run in got if isinstance(run, dict)]
        if len(good) < len(got):
            found[peer] = next(run for run in got if isinstance(run, str))
            continue
        keys = [key for key, value in good[0].items() if isinstance(value, int | float)]
        found[peer] = good[-1] | {key: statistics.median(run[key] for run in good) for key in keys}
        found[peer]["rate"] = statistics.median(run["steps"] / run["seconds"] for run in good)  # type: ignore[index]
    return found


def number(run: Run | str, key: str) -> str:
    return f"{run[key]:,.0f}" if isinstance(run, dict) else run


def compare(case: str, count: int, steps: int, repeats: int) -> None:
    """One case: a row of speeds, one of memory, and what there is to say."""
    found = medians(case, PEERS, count, steps, repeats)
    ours = found["auto"]
    ratios = "".join(
        f"{ours['rate'] / peer['rate']:9.2f}" if isinstance(peer, dict) and isinstance(ours, dict) else f"{'-':>9}"
        for peer in (found[name] for name in PEERS[:-1])
    )
    print(f"{case:<15}" + "".join(f"{number(found[peer], 'rate'):>14}" for peer in PEERS) + ratios)
    print(f"{'  peak MB':<15}" + "".join(f"{number(found[peer], 'tree_mb'):>14}" for peer in PEERS))
    good = [run for run in found.values() if isinstance(run, dict)]
    apart = max((max(each) / min(each) - 1 for each in zip(*(run["losses"] for run in good), strict=True)), default=0)
    told = [f"{count} trials of {steps} steps; final losses apart by up to {100 * apart:.2g}%"]
    if isinstance(ours, dict):
        told.append(ours["note"] or "auto: one by one, not worth measuring")
    if isinstance(ray := found["ray"], dict):
        told.append(f"of ray's {ray['seconds']:.1f} s its workers trained {ray['busy']:.1f} s")
    print("  " + "; ".join(told), flush=True)


def growth(counts: Sequence[int], steps: int, repeats: int) -> None:
    """How speed and memory grow with the number of trials on the digits MLP."""
    print(f"\ndigits-mlp, {steps} steps: trial-steps/s, the same once opened (measuring is done), peak MB")
    print(f"{'trials':>6}" + "".join(f"{peer:>12}{'opened':>12}{'MB':>10}" for peer in ("auto", "stacked")))
    own = {}
    for count in counts:
        found = medians("digits-mlp", ("auto", "stacked"), count, steps, repeats)
        row = f"{count:>6}"
        for run in found.values():
            opened = f"{run['steps'] / run['after_opening']:,.0f}" if isinstance(run, dict) else run
            row += f"{number(run, 'rate'):>12}{opened:>12}{number(run, 'tree_mb'):>10}"
        print(row, flush=True)
        stacked = found["stacked"]
        own[count] = stacked["own_mb"] if isinstance(stacked, dict) else float("nan")
    one_model, of_state = state_bytes(64)
    print(f"one model's parameters, gradients and two moments: {one_model / 1024:,.0f} KiB")
    print(f"a stack of 64 holds {of_state:.3f} times that a member (its tensors' bytes, and its template's)")
    low, high = counts[-2:]
    if low >= 16:  # below, what torch takes by itself hides it
        grown = (own[high] - own[low]) * 2**20 / (high - low) / one_model
        print(f"from {low} to {high} trials, stacked, peak RSS grew by {grown:.2f} times that a trial: with")
        print("the results of operations under way, batches drawn ahead, and records")


def state_bytes(width: int) -> tuple[int, float]:
    """Bytes of one model's training state, and how many times that a stack holds for each member."""
    task, asked = digits.task(), requests(width, 10)
    members = [Member(index, request, History(request)) for index, request in enumerate(asked)]
    feeds = {request.seed: Feed(task, request.seed, CPU) for request in asked}
    one_model = 4 * sum(param.nbytes for param in feeds[0].model.parameters())
    stack = Stack.start(task, members, feeds, False, CPU)
    stack.step({seed: feed.draw(0, 1, 1, 10, noisy=False)[0] for seed, feed in feeds.items()}, 0)
    state = stack.model.state
    tensors = [*state.params, *state.first, *state.second, *state.steps, *state.buffers.values()]
    tensors += [*stack.model.module.parameters(), *(param.grad for param in state.params if param.grad is not None)]
    return one_model, sum(tensor.nbytes for tensor in tensors) / width / one_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="CASE", choices=[*CASES, "growth"], help="may be repeated")
    parser.add_argument("--trials", type=int, help="trials in every case, and the most where their number grows")
    parser.add_argument("--steps", type=int, help="steps of each trial")
    parser.add_argument("--repeats", type=int, default=2, help="runs of every peer on every case")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "PEER"), help="one run in this process, told as JSON")
    options = parser.parse_args()

    def size(case: str) -> tuple[int, int]:
        return options.trials or CASES[case][1], options.steps or CASES[case][2]

    if options.one:
        case, peer = options.one
        one(case, peer, *size(case))
        return
    chosen = options.only or [*CASES, "growth"]
    began = time.perf_counter()
    load = f"load {os.getloadavg()[0]:.1f} before the start"
    print(f"{CORES} cores, {load}, torch {torch.__version__}: trial-steps/s, and ours (auto) over each other's")
    print(f"{'case':<15}" + "".join(f"{peer:>14}" for peer in PEERS) + "".join(f"{'/' + p[:7]:>9}" for p in PEERS[:-1]))
    for case in CASES:
        if case in chosen:
            compare(case, *size(case), options.repeats)
    if "growth" in chosen:
        counts = [count for count in GROWTH if count <= max(4, options.trials or GROWTH[-1])]
        growth(counts, size("digits-mlp")[1], options.repeats)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
