"""What Adam really does: percentiles of its state, per named param group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SAMPLE = 65_536
"""Elements looked at in a group. By the Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant (1990), every
percentile is then within sqrt(ln(2 / 0.01) / (2 * SAMPLE)) = 0.64 percentage points of its rank, 99 times in 100."""

PERCENTILES = (10, 50, 90)


@dataclass(frozen=True)
class _Moments:
    """The sampled state of one group, flattened and concatenated, fp32."""

    m_hat: Tensor
    root_v_hat: Tensor
    lr: float
    eps: float


class AdamProbe:
    """Measures Adam's state. `record()` reads it now; `step()` after each `optimizer.step()` keeps every N-th record.

    A record is flat: `group/statistic/p50 -> float` for the statistics

    - `m_hat`: |m| / (1 - beta1^t), Kingma & Ba 2014, algorithm 1
    - `sqrt_v_hat`: sqrt(v / (1 - beta2^t)); with amsgrad, of the largest v so far
    - `r`: |m_hat| / (sqrt(v_hat) + eps), the step before lr
    - `lr_r`: lr times r, the effective step of a parameter

    and `group/grad_norm`, the L2 norm of the gradients that are there. Groups whose parameters have no Adam state (not
    yet, or no longer: after a hand-over to SGD) have only that. Percentiles come from the same SAMPLE random elements
    each time (all, where a group has fewer).
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module | None = None, every: int = 1) -> None:
        """Read `optimizer` every `every` calls of `step`. `model` is not needed for the statistics above."""
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self._optimizer = optimizer
        self._every = every
        self._steps = 0
        self._picked: dict[tuple[str, tuple[int, ...]], list[Tensor | None]] = {}
        self.records: list[tuple[int, Mapping[str, float]]] = []

    def step(self, *_: object) -> None:
        """Count an optimizer step; at every N-th, append (step, record) to `records`.

        Call it after `optimizer.step()`, or hook it in: `optimizer.register_step_post_hook(probe.step)`.
        """
        self._steps += 1
        if self._steps % self._every == 0:
            self.records.append((self._steps, self.record()))

    def record(self) -> dict[str, float]:
        """Measure now. One transfer from the device, whatever the number of groups."""
        names: list[str] = []
        values: list[Tensor] = []
        for name, group in self._groups():
            for statistic, value in self._measure(name, group):
                names.append(f"{name}/{statistic}")
                values.append(value)
        if not values:
            return {}
        return dict(zip(names, torch.stack(values).tolist(), strict=True))

    def _groups(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for index, group in enumerate(self._optimizer.param_groups):
            yield str(group.get("name", f"group{index}")), group

    def _measure(self, name: str, group: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        gradients = [param.grad for param in group["params"] if param.grad is not None]
        if gradients:
            norms = torch.stack([torch.linalg.vector_norm(_dense(gradient).float()) for gradient in gradients])
            yield "grad_norm", torch.linalg.vector_norm(norms)
        moments = self._moments(name, group)
        if moments is None:
            return
        ratio = moments.m_hat / (moments.root_v_hat + moments.eps)
        ranks = torch.tensor(PERCENTILES, device=ratio.device) / 100
        for statistic, sample in (
            ("m_hat", moments.m_hat),
            ("sqrt_v_hat", moments.root_v_hat),
            ("r", ratio),
            ("lr_r", moments.lr * ratio),
        ):
            for rank, value in zip(PERCENTILES, torch.quantile(sample, ranks).unbind(), strict=True):
                yield f"{statistic}/p{rank}", value

    def _moments(self, name: str, group: dict[str, Any]) -> _Moments | None:
        stated = [param for param in group["params"] if self._has_state(param)]
        if not stated:
            return None
        beta1, beta2 = map(float, group["betas"])
        m_hats, roots = [], []
        for param, picked in zip(stated, self._picks(name, stated), strict=True):
            state = self._optimizer.state[param]
            second = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
            t = float(state["step"])
            m_hats.append(_pick(state["exp_avg"], picked).float().abs() / (1 - beta1**t))
            roots.append((_pick(second, picked).float() / (1 - beta2**t)).sqrt())
        return _Moments(torch.cat(m_hats), torch.cat(roots), float(group["lr"]), float(group["eps"]))

    def _has_state(self, param: Tensor) -> bool:
        return "exp_avg" in self._optimizer.state.get(param, {})

    def _picks(self, name: str, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Which elements of each parameter to read; None for all. Drawn once for the same parameters, so that records
        compare.
        """
        key = (name, tuple(map(id, params)))
        if key not in self._picked:
            sizes = torch.tensor([param.numel() for param in params])
            total = int(sizes.sum())
            picks: list[Tensor | None] = [None] * len(params)
            if total > SAMPLE:
                generator = torch.Generator().manual_seed(0)
                drawn = torch.randint(total, (SAMPLE,), generator=generator).sort().values
                ends = sizes.cumsum(0)
                owner = torch.searchsorted(ends, drawn, right=True)
                picks = [
                    (drawn[owner == place] - (ends[place] - sizes[place])).to(param.device)
                    for place, param in enumerate(params)
                ]
            self._picked[key] = picks
        return self._picked[key]


def _dense(gradient: Tensor) -> Tensor:
    """The values of a sparse gradient, which hold all of its norm."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _pick(tensor: Tensor, rows: Tensor | None) -> Tensor:
    flat = tensor.reshape(-1)
    return flat if rows is None else flat[rows]
