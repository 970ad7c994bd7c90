"""AdamProbe: reads an optimizer's state while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adamtune.errors import ProbeError
from adamtune.probe.elements import Elements, Settings, elements, summary
from adamtune.probe.exact import exact_summary
from adamtune.probe.frame import frame
from adamtune.probe.groups import Named, named_groups, unwrapped
from adamtune.probe.norms import norm
from adamtune.probe.sample import LAYER_SAMPLE, SAMPLE, Picks, pick, rank_error
from adamtune.probe.state import Moments, Update, coupled_decay, is_shard, moments_of, real, steps_made, update_of

if TYPE_CHECKING:
    import pandas as pd

PERCENTILES = (10, 50, 90)


class AdamProbe:
    """Measures Adam's state. `record()` reads it now; `step()` after each `optimizer.step()` keeps every N-th record.

    A record is flat: `GROUP/STATISTIC/pQ -> float`, percentiles over the elements of a param group (or layer) of

    - `m_hat`: |m| / (1 - beta1^t), Kingma & Ba 2014, algorithm 1; of NAdam what it has in its place, which has a part
      of the gradient, where the gradient is there
    - `sqrt_v_hat`: sqrt(v / (1 - beta2^t)); with amsgrad, of the largest v so far
    - `r`: m_hat / (sqrt_v_hat + eps), the step before lr, as the optimizer makes it: see `adamtune.probe.state`
    - `lr_r`: lr times r, the effective step of a parameter, without weight decay
    - `update_to_weight`: lr_r over the size of the weight after the step, zero weights left out

    and, as `GROUP/STATISTIC`, shares from 0 to 1 of these elements:

    - `below_eps`: sqrt_v_hat is below eps, but not zero
    - `never_updated`: m and v are zero
    - `nonfinite`: m or v is NaN or infinite; percentiles are of the others
    - `flips`: m has another sign than at the optimizer step before. Known from m and the gradient while that is there,
      so record before `zero_grad`. Left out where beta1 is 0

    and norms: `grad_norm`, the L2 norm of all the gradients that are there; `momentum_norm`, of SGD's momentum.

    Left out is what cannot be told: a group whose parameters have no Adam state (not yet, or no longer: after a
    hand-over to SGD) has norms only. `notes` says so. Statistics are computed in float32 whatever the state's type,
    over random elements, the same ones each time: `rank_error` tells how far percentiles can be from their rank.

    With a GradScaler call it after `scaler.step(optimizer)`, which has unscaled the gradients by then. Of DTensors
    (FSDP2) it measures the part that this process holds.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        every: int = 1,
        percentiles: Sequence[float] = PERCENTILES,
        exact: bool = False,
        by: Literal["group", "layer"] = "group",
    ) -> None:
        """Read `optimizer` every `every` calls of `step`.

        `percentiles` are numbers from 0 to 100. `exact` reads all elements instead of a sample, in bounded memory, for
        percentiles within 0.4% of their value; see `adamtune.probe.exact`. `by` "layer" measures
        each parameter by itself, under its name in `model`, or in `param_names` where the optimizer was given named
        parameters. Raises `ProbeError` where one of them cannot be used.
        """
        if not isinstance(every, int) or every < 1:
            raise ProbeError(f"every must be a whole number of at least 1, not {every!r}")
        if not len(percentiles) or not all(0 <= each <= 100 for each in percentiles):
            raise ProbeError(f"percentiles must be numbers from 0 to 100, such as (10, 50, 90), not {percentiles!r}")
        if by not in ("group", "layer"):
            raise ProbeError(f"by must be 'group' or 'layer', not {by!r}")
        if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "state"):
            kind = type(optimizer).__name__
            raise ProbeError(f"AdamProbe reads a torch optimizer, not {kind}: AdamProbe(optimizer, model)")
        if model is not None and not isinstance(model, nn.Module):
            raise ProbeError(f"model must be a torch.nn.Module or None, not {type(model).__name__}")
        self.optimizer = unwrapped(optimizer)
        """The optimizer that is read, out of any wrapper."""
        self.model = model
        self.every = every
        self._percentiles = tuple(percentiles)
        self._exact = exact
        self.by: Literal["group", "layer"] = by
        self._steps = steps_made(self.optimizer)
        self._picked: dict[str, tuple[tuple[torch.device, tuple[int, ...]], Picks]] = {}
        self.records: list[tuple[int, Mapping[str, float]]] = []
        self.notes: tuple[str, ...] = ()
        """What the last record lacks, in sentences."""

    @property
    def rank_error(self) -> float:
        """How far percentiles are from their rank in a group too large to read whole, in percentage points, 99 times in
        100; see `adamtune.probe.sample.rank_error`.
        """
        return 0.0 if self._exact else rank_error(self._limit)

    @property
    def _limit(self) -> int:
        return SAMPLE if self.by == "group" else LAYER_SAMPLE

    def step(self, *_: object) -> None:
        """Count an optimizer step; at every N-th, append (step, record) to `records`. Counting goes on from the steps
        that the optimizer had made when it was given.

        Call it after `optimizer.step()`, or hook it in: `optimizer.register_step_post_hook(probe.step)`.
        """
        self._steps += 1
        if self._steps % self.every == 0:
            self.records.append((self._steps, self.record()))

    def to_frame(self) -> pd.DataFrame:
        """`records` as a table with the columns step, group, statistic, percentile and value: a row a value, and
        `percentile` NaN for shares and norms. For `to_csv`, `to_parquet`, or a plot.
        """
        return frame(self.records)

    @torch.no_grad()
    def record(self) -> dict[str, float]:
        """Measure now. One transfer from the device, whatever the number of groups.

        Raises `ProbeError` for moments kept in 8 bits.
        """
        names: list[str] = []
        values: list[Tensor] = []
        notes: list[str] = []
        for named in named_groups(self.optimizer, self.model, self.by):
            for statistic, value in self._measure(named, notes):
                names.append(f"{named.name}/{statistic}")
                values.append(value)
        self.notes = tuple(notes)
        if not values:
            return {}
        device = values[0].device
        measured = torch.stack([value.float().to(device, non_blocking=True) for value in values]).tolist()
        # A statistic of no elements is NaN, and left out; a norm that is NaN is told.
        return {
            name: value for name, value in zip(names, measured, strict=True) if value == value or name.endswith("_norm")
        }

    def _measure(self, named: Named, notes: list[str]) -> Iterator[tuple[str, Tensor]]:
        if not named.params:
            notes.append(f"{named.name}: it has no parameters")
            return
        gradients = [real(param.grad) for param in named.params if param.grad is not None]
        if gradients:
            yield "grad_norm", norm(gradients)
        states = [self.optimizer.state.get(param, {}) for param in named.params]
        momenta = [real(kept) for state in states if isinstance(kept := state.get("momentum_buffer"), Tensor)]
        if momenta:
            yield "momentum_norm", norm(momenta)
        elif named.settings.get("momentum") and not any(states) and self._has_momentum():
            yield "momentum_norm", torch.zeros((), device=named.params[0].device)  # none yet, though others have
        found = [moments_of(param, state, named.settings) for param, state in zip(named.params, states, strict=True)]
        moments = [each for each in found if each is not None]
        notes += self._lacks(named, moments, any(states))
        if sum(each.numel for each in moments):
            yield from self._statistics(named, moments)

    def _has_momentum(self) -> bool:
        return any("momentum_buffer" in state for state in self.optimizer.state.values())

    def _lacks(self, named: Named, moments: list[Moments], stated: bool) -> Iterator[str]:
        if any(is_shard(param) for param in named.params):
            yield f"{named.name}: only what this process holds of its shards is measured"
        if not moments:
            kind = type(self.optimizer).__name__
            adams = "betas" in named.settings and not stated
            why = "it has no state yet" if adams else f"{kind} keeps no moments as Adam does"
            yield f"{named.name}: {why}, so there are norms only"
        elif float(named.settings["betas"][0]) == 0:
            yield f"{named.name}: beta1 is 0, so flips are left out"
        elif all(each.gradient is None for each in moments):
            yield f"{named.name}: its gradients are gone, so flips are left out; record before zero_grad"

    def _statistics(self, named: Named, moments: list[Moments]) -> Iterator[tuple[str, Tensor]]:
        settings = self._settings(named, moments)
        update = update_of(self.optimizer, named.settings, moments, moments[0].first.device)
        if self._exact and sum(each.numel for each in moments) > self._limit:
            found = exact_summary(moments, update, settings, self._percentiles)
        else:
            found = summary(self._sampled(named.name, moments, update, settings), self._percentiles)
        for statistic, values in found.percentiles.items():
            for rank, value in zip(self._percentiles, values, strict=True):
                yield f"{statistic}/p{rank:g}", value
            if statistic == "r":
                for rank, value in zip(self._percentiles, values, strict=True):
                    yield f"lr_r/p{rank:g}", settings.lr * value
        yield from found.shares.items()

    def _settings(self, named: Named, moments: list[Moments]) -> Settings:
        group = named.settings
        lr = group["lr"]
        return Settings(
            lr=lr.to(moments[0].first.device, non_blocking=True) if isinstance(lr, Tensor) else float(lr),
            eps=float(group["eps"]),
            beta1=float(group["betas"][0]),
            decay=coupled_decay(self.optimizer, group),
            maximize=bool(group.get("maximize")),
            rounding=max(torch.finfo(dtype).eps for dtype in (torch.float32, *(each.first.dtype for each in moments))),
        )

    def _sampled(self, name: str, moments: list[Moments], update: Update, settings: Settings) -> Elements:
        picks = self._picks(name, moments)
        gradients = [each.gradient for each in moments]
        return elements(
            picks.take([each.first for each in moments]),
            picks.take([each.second for each in moments]),
            picks.take([each.param for each in moments]),
            picks.take(gradients) if any(each is not None for each in gradients) else None,
            update.each(picks.owner),
            settings,
        )

    def _picks(self, name: str, moments: list[Moments]) -> Picks:
        """Drawn once for the same sizes, so that records compare."""
        device = moments[0].first.device
        key = device, tuple(each.numel for each in moments)
        known = self._picked.get(name)
        if known is None or known[0] != key:
            known = self._picked[name] = key, pick(key[1], self._limit, device)
        return known[1]
