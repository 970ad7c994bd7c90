"""Adam at first, then SGD with momentum: one optimizer that a training loop uses like any other of torch's.

Why: Adam gets far quickly, SGD with momentum often ends where the model generalises better (Keskar & Socher 2017,
"Improving Generalization Performance by Switching from Adam to SGD").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


class AdamThenSGD(torch.optim.Optimizer):
    """Updates as torch's Adam or AdamW before update `switch_at` (from 0), as torch's SGD from there on.

    Neither steps by code of our own: both of torch's optimizers work on the param groups and the state of this one. At
    the hand-over Adam's moments are let go and momentum starts empty. Counted are the updates made, so a step that a
    GradScaler skips puts the hand-over off by one. The count is in the param groups, and with them in the state dict:
    a run resumed on either side goes on as if unbroken. Hooks registered on this optimizer run once a step; torch's
    global step hooks (`register_optimizer_step_post_hook`) run twice, for torch's optimizer within as well.

    Every group has the settings of both, and SGD's base lr as `sgd_lr`; `HandoverLR` moves `lr` from one to the other.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        adam: type[torch.optim.Adam],
        switch_at: float,
        lr: float,
        sgd_lr: float,
        momentum: float,
    ) -> None:
        """`adam` is torch.optim.AdamW or Adam; `lr`, `sgd_lr` and `momentum` are for groups without their own."""
        self._kind = adam
        self._adam = adam(groups, lr=lr)
        self._sgd = torch.optim.SGD(self._adam.param_groups, lr=lr, momentum=momentum)
        own = {"sgd_lr": sgd_lr, "switch_at": switch_at, "updates": 0}
        super().__init__(self._adam.param_groups, self._sgd.defaults | self._adam.defaults | own)

    @property
    def handed_over(self) -> bool:
        """Whether the next update is SGD's."""
        return bool(self.param_groups[0]["updates"] >= self.param_groups[0]["switch_at"])

    def stay(self) -> None:
        """Call the hand-over off, if it has not come yet."""
        if not self.handed_over:
            for group in self.param_groups:
                group["switch_at"] = math.inf

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; see `torch.optim.Optimizer.step`."""
        first = self.param_groups[0]
        done = first["updates"]
        if done == first["switch_at"]:
            self.state.clear()  # of Adam's moments; SGD makes its own
        for part in (self._adam, self._sgd):  # anew each time, as others may have put other objects in place
            part.param_groups, part.state = self.param_groups, self.state
        loss: float | None = (self._sgd if self.handed_over else self._adam).step(closure)
        for group in self.param_groups:
            group["updates"] = done + 1
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles keep."""
        return super().__getstate__() | {"_kind": self._kind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a copy, a pickle or a loaded state dict."""
        super().__setstate__(state)
        self._adam, self._sgd = self._kind(self.param_groups), torch.optim.SGD(self.param_groups)


class HandoverLR(LambdaLR):
    """LambdaLR that goes on from each group's `sgd_lr` once its AdamThenSGD has handed over."""

    optimizer: AdamThenSGD

    def get_lr(self) -> list[float | torch.Tensor]:
        """See `LambdaLR.get_lr`."""
        if not self.optimizer.handed_over:
            return super().get_lr()
        groups = zip(self.optimizer.param_groups, self.lr_lambdas, strict=True)
        return [group["sgd_lr"] * multiplier(self.last_epoch) for group, multiplier in groups]
