"""How long `adamtune --help` takes, against importing the two libraries it is made of.

python -m benchmarks.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 10


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    pairs = [(seconds("-m", "adamtune", "--help"), seconds("-c", "import typer, rich")) for _ in range(RUNS)]
    ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"adamtune --help {ours * 1e3:.0f} ms, import typer and rich {peer * 1e3:.0f} ms, ratio {ratio:.2f} (goal 2)")


if __name__ == "__main__":
    main()
