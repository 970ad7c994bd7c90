"""What the command line survives: mutated specs, recipes and results, damaged and hostile checkpoints. `make fuzz`.

A case survives when the command answers with exit code 0 or 2, without a traceback, within a second of processor time;
a hostile one when it is refused (2), runs nothing and takes no more memory than MOST_MEMORY. Everything is drawn from
--seed, and each case by its own number, so that one that fails can be looked at alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from adamtune import rundir
from adamtune.cli.app import run
from benchmarks import fuzz_checkpoints, fuzz_texts

MOST_SECONDS, MOST_MEMORY = 1.0, 256 * 2**20
"""Of processor time a case; bytes that a hostile one may add to the memory of the process."""

_HANG = 20.0
"""Seconds after which a case is ended."""

_FORMATS = ["python", "yaml", "hf", "accelerate", "deepspeed", "lightning", "timm", "torchtune", "axolotl", "hydra"]
_FORMATS += ["megatron", "nanogpt"]


@dataclass
class Count:
    """Cases of one kind, and those that did not survive."""

    name: str
    cases: int = 0
    codes: dict[int, int] = field(default_factory=dict)
    slowest: float = 0.0
    failed: list[str] = field(default_factory=list)

    def told(self) -> str:
        codes = ", ".join(f"{number} exit {code}" for code, number in sorted(self.codes.items()))
        survived = f"{self.cases - len(self.failed)}/{self.cases} survived"
        return f"{self.name}: {survived} ({codes}; slowest {self.slowest:.2f} s)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--specs", type=int, default=10_000)
    parser.add_argument("--recipes", type=int, default=2_000)
    parser.add_argument("--results", type=int, default=1_000)
    parser.add_argument("--checkpoints", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = []
    for fuzz, cases in (
        (fuzz_specs, options.specs),
        (fuzz_recipes, options.recipes),
        (fuzz_results, options.results),
        (fuzz_damaged, options.checkpoints),
    ):
        counts.append(fuzz(cases, options.seed))
        print(counts[-1].told(), flush=True)
    counts.append(fuzz_hostile())
    print(counts[-1].told(), flush=True)
    for count in counts:
        for failed in count.failed[:10]:
            print(f"  {failed}")
    return int(any(count.failed for count in counts))


def fuzz_specs(cases: int, seed: int) -> Count:
    """Mutated specs through `sweep --dry-run`."""

    def case(chance: random.Random) -> list[str]:
        Path("s.yaml").write_text(fuzz_texts.changed(chance.choice(fuzz_texts.SPECS), chance), errors="surrogatepass")
        return ["sweep", "s.yaml", "--dry-run"]

    return _cases("mutated specs", case, cases, seed)


def fuzz_recipes(cases: int, seed: int) -> Count:
    """Mutated recipes through `export`, `compare`, and a dry run that starts from them."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as spec:
        spec.write(f"task: {{ref: '{fuzz_texts.TASK}'}}\nhorizon: 60\nbudget: {{trials: 80}}\nbase: r.yaml\n")
        spec.flush()

        def case(chance: random.Random) -> list[str]:
            Path("r.yaml").write_text(fuzz_texts.changed(chance.choice(fuzz_texts.RECIPES), chance))
            steps = ["--total-steps", str(chance.choice([1, 10, 1000, 10**9]))]
            export = ["export", "r.yaml", "--format", chance.choice(_FORMATS), *steps]
            return chance.choice([export, export, ["compare", "default", "r.yaml"], ["sweep", spec.name, "--dry-run"]])

        return _cases("mutated recipes", case, cases, seed)


def fuzz_results(cases: int, seed: int) -> Count:
    """Mutated results of runs through whatever looks at a run."""
    whole = finished_run()

    def case(chance: random.Random) -> list[str]:
        folder = Path("run")
        folder.mkdir(exist_ok=True)
        for name, text in whole.items():
            (folder / name).write_text(text)
        if chance.random() < 0.7:
            changed = fuzz_texts.change_json(json.loads(whole[rundir.RESULT]), chance)
            (folder / rundir.RESULT).write_text(changed)
        else:
            name = chance.choice([rundir.TRIALS, rundir.CURVES, rundir.PROBE, rundir.RECIPE])
            (folder / name).write_bytes(fuzz_checkpoints.damaged(whole[name].encode(), chance))
        looks = [["show", "run"], ["show", "run", "--json"], ["compare", "run", "default"], ["compare", "run", "run"]]
        return chance.choice([*looks, ["diagnose", "run"], ["export", "run"], ["report", "run", "--open", "never"]])

    return _cases("mutated runs", case, cases, seed)


def finished_run() -> dict[str, str]:
    """The files of a small run."""
    with tempfile.TemporaryDirectory() as folder:
        spec = {
            "task": {"ref": fuzz_texts.TASK},
            "horizon": 16,
            "budget": {"trials": 60},
            "seeds": 2,
            "engine": "sequential",
        }
        path = Path(folder) / "s.yaml"
        path.write_text(json.dumps(spec | {"stages": ["lr_range", "lr", "eps"]}))
        with contextlib.redirect_stdout(io.StringIO()):
            assert run(["sweep", str(path), "--run-dir", f"{folder}/r", "--json"]) == 0
        names = (rundir.RESULT, rundir.RECIPE, rundir.SPEC, rundir.TRIALS, rundir.CURVES, rundir.PROBE)
        return {name: (Path(folder) / "r" / name).read_text() for name in names}


def fuzz_damaged(cases: int, seed: int) -> Count:
    """Damaged checkpoints through `diagnose`."""
    formats = [fuzz_checkpoints.saved(legacy) for legacy in (False, True)]

    def case(chance: random.Random) -> list[str]:
        Path("c.pt").write_bytes(fuzz_checkpoints.damaged(chance.choice(formats), chance))
        return ["diagnose", "c.pt", *chance.choice([[], ["--exact"], ["--json"]])]

    return _cases("damaged checkpoints", case, cases, seed)


def fuzz_hostile() -> Count:
    """Checkpoints that were made to do harm, each in a process of its own, whose memory is watched."""
    count = Count("hostile checkpoints")
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "sang"
        for name, data in fuzz_checkpoints.hostile(canary).items():
            file = Path(folder) / "c.pt"
            file.write_bytes(data)
            here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
            child = multiprocessing.get_context("fork").Process(target=_look, args=(file, there))
            child.start()
            there.close()
            code, told, seconds, grown = _heard(here)
            child.kill()
            child.join()
            why = told or "it was read" if code != 2 or "has a bug" in told or "Traceback" in told else ""
            why = why or ("it ran code" if canary.exists() else "")
            why = why or (f"{grown / 2**20:.0f} MB more memory" if grown > MOST_MEMORY else "")
            why = why or (f"{seconds:.1f} s" if seconds > MOST_SECONDS else "")
            _add(count, code if code is not None else -1, seconds, f"{name}: {why}" if why else "")
    return count


def _heard(end: Any) -> tuple[int | None, str, float, int]:
    try:
        heard: tuple[int | None, str, float, int] = end.recv() if end.poll(_HANG) else (None, "it hangs", _HANG, 0)
    except EOFError:
        return None, "it killed the process", 0.0, 0
    return heard


def _look(file: Path, end: Any) -> None:
    try:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        code, told, seconds = _answer(["diagnose", str(file)])
        end.send((code, told, seconds, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))
    except BaseException as problem:
        end.send((None, f"{type(problem).__name__}: {problem}", 0.0, 0))
    os._exit(0)


def _cases(name: str, case: Callable[[random.Random], list[str]], cases: int, seed: int) -> Count:
    count, before, path = Count(name), Path.cwd(), list(sys.path)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("warm.yaml").write_text(json.dumps(fuzz_texts.SPECS[0]))
            _answer(["sweep", "warm.yaml", "--dry-run"])  # what a first case imports is not its own time
            for number in range(-20, cases):
                arguments = case(random.Random(f"{seed} {name} {number}"))
                code, told, seconds = _answer(arguments)
                why = told.strip().splitlines()[-1][:300] if code not in (0, 2) or "has a bug" in told else ""
                why = why or ("no word of why" if code == 2 and not told.startswith("adamtune: ") else "")
                why = why or (f"{seconds:.1f} s" if seconds > MOST_SECONDS else "")
                if number >= 0:
                    _add(count, code, seconds, f"case {number}, {' '.join(arguments)}: {why}" if why else "")
        finally:
            os.chdir(before)
            sys.path[:] = path
    return count


def _add(count: Count, code: int, seconds: float, failed: str) -> None:
    count.cases += 1
    count.codes[code] = count.codes.get(code, 0) + 1
    count.slowest = max(count.slowest, seconds)
    count.failed += [failed] if failed else []


class _Hang(BaseException):
    """A case takes too long."""


def _answer(arguments: list[str]) -> tuple[int, str, float]:
    """What one command answers: exit code, errors, seconds of processor time. An exported module must compile."""
    out, err = io.StringIO(), io.StringIO()
    began = time.process_time()
    with _ended_after(_HANG), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run(arguments)
        except _Hang:
            return -1, "it hangs", _HANG
    seconds = time.process_time() - began
    if code == 0 and arguments[0] == "export" and "python" in arguments:
        compile(out.getvalue(), "exported", "exec")
    return code, err.getvalue(), seconds


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    sys.exit(main())
