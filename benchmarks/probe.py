"""What the probe costs on GPT-2 small (124M parameters), and how far off it is, beside the usual snippet.

python -m benchmarks.probe [--steps 20] [--tokens 256]

The model has GPT-2 small's shapes (12 layers of 768, 50,257 tokens, output tied to the embedding) in two param groups,
with and without weight decay, trained by AdamW on one sequence of random tokens a step, on all cores. The probe records
every tenth step. A longer sequence or a larger batch makes a step dearer and the probe's share smaller.

share added    time within `probe.step()` over the time of forward, backward and optimizer step, in one loop
host           a record over as many parameters of one element each: Python and dispatch, which no GPU would take over
percentiles    a record once the gradients are gone; with them a record has flips and gradient norms too
kthvalue       the same percentiles exactly, as one writes them: each statistic concatenated, torch.kthvalue for each
snippet        concatenate r of a group, torch.quantile
exact          `AdamProbe(exact=True)`; beside it reading each tensor that it reads once (a sum), in the same threads
file           `read_checkpoint(exact=True)` of the saved state; beside it torch.load of the same file, both from cache
extra memory   anonymous memory of this process at its peak over that before, looked at every millisecond

A figure is the median over the repeats. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from adamtune.diagnosis.checkpoint import read_checkpoint
from adamtune.probe import PERCENTILES, AdamProbe

EVERY = 10
REPEATS = 7
NAMES = ("m_hat", "sqrt_v_hat", "r", "update_to_weight")


class GPT(nn.Module):
    """GPT-2 small's shapes."""

    def __init__(self, width: int = 768, layers: int = 12, tokens: int = 50_257, longest: int = 1_024) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(tokens, width), nn.Embedding(longest, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        for table in (self.token, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.token(tokens) + self.place.weight[:length]
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.norm(x) @ self.token.weight.T


def adamw(params: list[nn.Parameter]) -> AdamW:
    decayed = [param for param in params if param.dim() > 1]
    others = [param for param in params if param.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "name": "decay", "weight_decay": 0.1},
        {"params": others, "name": "no_decay", "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=6e-4, betas=(0.9, 0.95))


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def median(run: Callable[[], object], repeats: int = REPEATS) -> float:
    run()
    return statistics.median(seconds(run) for _ in range(repeats))


def training(model: GPT, optimizer: AdamW, probe: AdamProbe, steps: int, length: int) -> tuple[float, float, float]:
    """Seconds a step takes, those of them that are the optimizer's, and those of the probe, as means."""
    trained = stepped = probed = 0.0
    for step in range(EVERY + steps):
        if step == EVERY:  # the first record draws the sample
            trained = stepped = probed = 0.0
        tokens = torch.randint(50_257, (1, length + 1))

        def backward(tokens: Tensor = tokens) -> None:
            optimizer.zero_grad()
            logits = model(tokens[:, :-1])
            nn.functional.cross_entropy(logits[0], tokens[0, 1:]).backward()

        trained += seconds(backward)
        took = seconds(optimizer.step)
        trained, stepped, probed = trained + took, stepped + took, probed + seconds(probe.step)
    return trained / steps, stepped / steps, probed / steps


def host_seconds(params: list[nn.Parameter]) -> float:
    ones = [nn.Parameter(torch.ones([1] * param.dim())) for param in params]
    optimizer = adamw(ones)
    for param in ones:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return median(AdamProbe(optimizer).record, 50)


def of_group(optimizer: AdamW, group: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Each statistic of all the group's elements, one after another."""
    beta1, beta2 = group["betas"]
    states = [optimizer.state[param] for param in group["params"]]
    step = float(states[0]["step"])
    m_hat = torch.cat([state["exp_avg"].flatten() for state in states]).abs_().div_(1 - beta1**step)
    yield "m_hat", m_hat
    root = torch.cat([state["exp_avg_sq"].flatten() for state in states]).div_(1 - beta2**step).sqrt_()
    yield "sqrt_v_hat", root
    r = m_hat.div_(root.add_(group["eps"]))
    yield "r", r
    theta = torch.cat([param.detach().flatten() for param in group["params"]]).abs_()
    ratio = r.mul_(group["lr"]).div_(theta)
    yield "update_to_weight", ratio[theta > 0]


def by_kthvalue(optimizer: AdamW) -> dict[str, float]:
    found = {}
    for group in optimizer.param_groups:
        for name, values in of_group(optimizer, group):
            for p in PERCENTILES:
                k = round(p / 100 * (len(values) - 1)) + 1
                found[f"{group['name']}/{name}/p{p}"] = float(values.kthvalue(k).values)
    return found


def rank_error(optimizer: AdamW, record: dict[str, float]) -> float:
    """How far a record's percentiles are from their rank at most, in percentage points."""
    worst = 0.0
    for group in optimizer.param_groups:
        for name, values in of_group(optimizer, group):
            for p in PERCENTILES:
                found = record[f"{group['name']}/{name}/p{p}"]
                low, high = (float(each.sum()) / len(values) for each in (values < found, values <= found))
                worst = max(worst, 100 * low - p, p - 100 * high)
    return worst


def snippet(optimizer: AdamW) -> str:
    try:
        for group in optimizer.param_groups:
            _, _, (_, r), *_ = of_group(optimizer, group)
            torch.quantile(r, torch.tensor([0.1, 0.5, 0.9]))
    except RuntimeError as problem:
        return f"raises: {problem}"
    return "runs"


def read_once(optimizer: AdamW, more: bool) -> None:
    """Moments; and, as the exact mode does, weights and gradients."""
    for param, state in optimizer.state.items():
        for tensor in (state["exp_avg"], state["exp_avg_sq"], *((param.detach(), param.grad) if more else ())):
            tensor.sum()


def anonymous_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1024


def extra_mb(run: Callable[[], object]) -> float:
    before, peak, done = anonymous_mb(), 0.0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, anonymous_mb())

    watcher = threading.Thread(target=look)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max(peak, anonymous_mb()) - before


def file_seconds(optimizer: AdamW) -> tuple[float, float]:
    """To measure the saved state exactly, and to load it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimizer.pt"
        torch.save(optimizer.state_dict(), file)
        loading = median(lambda: torch.load(file, weights_only=True), 3)
        return median(lambda: read_checkpoint(file, exact=True), 3), loading


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=256)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    model = GPT()
    params = list(model.parameters())
    optimizer = adamw(params)
    probe, exact = AdamProbe(optimizer, model, every=EVERY), AdamProbe(optimizer, model, exact=True)
    print(f"{sum(map(torch.numel, params)) / 1e6:.1f}M parameters, {torch.get_num_threads()} threads", flush=True)

    step, stepped, probed = training(model, optimizer, probe, chosen.steps, chosen.tokens)
    host = host_seconds(params)
    print(f"a training step of {chosen.tokens} tokens {step:.2f} s, of it the optimizer {stepped:.3f} s")
    print(
        f"share added, every {EVERY}: {probed / step:.2%} (goal 1%), host {host / EVERY / step:.2%} (goal 0.4%)",
        flush=True,
    )

    extra = extra_mb(exact.record)  # before anything else has used as much memory
    whole, all_exactly = median(probe.record), median(exact.record)
    reading, moments = (median(lambda more=more: read_once(optimizer, more)) for more in (True, False))  # type: ignore[misc]
    optimizer.zero_grad()
    found, close = probe.record(), exact.record()
    percentiles = median(probe.record)
    true: dict[str, float] = {}
    naive = seconds(lambda: true.update(by_kthvalue(optimizer)))
    print(f"exactly by kthvalue {naive:.1f} s, as long as {naive / stepped:.0f} optimizer steps")
    print(f"percentiles {percentiles * 1e3:.1f} ms, {naive / percentiles:.0f} times cheaper (goal 200)")
    print(f"whole record {whole * 1e3:.1f} ms, {naive / whole:.0f} times cheaper (goal 40)")
    print(f"rank error {rank_error(optimizer, found):.2f} points (goal {probe.rank_error:.2f})", flush=True)
    off = max(abs(close[name] / value - 1) for name, value in true.items())
    print(
        f"exact {all_exactly:.2f} s, {all_exactly / reading:.1f} times reading state, weights and gradients "
        f"({reading:.2f} s; goal 3), {all_exactly / moments:.1f} times reading moments alone ({moments:.2f} s); "
        f"relative error {off:.2%} (goal 0.5%), extra memory {extra:.0f} MB (goal 64)"
    )
    measuring, loading = file_seconds(optimizer)
    print(f"file {measuring:.2f} s, {measuring / loading:.1f} times torch.load ({loading:.2f} s)")
    print(f"snippet {snippet(optimizer)}")


if __name__ == "__main__":
    main()
