"""Adam for the dense parameters, torch's SparseAdam for tables with sparse gradients: one optimizer for both.

`nn.Embedding(sparse=True)` gives a gradient that holds the rows of the batch only, which Adam and AdamW refuse.
SparseAdam moves those rows and their moments, and leaves all others as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class AdamBesideSparseAdam(torch.optim.Optimizer):
    """Updates groups whose `sparse` is true as torch's SparseAdam, the others as torch's Adam or AdamW.

    Neither steps by code of our own: both of torch's optimizers work on the param groups and the state of this one.
    Hooks registered on this optimizer run once a step, torch's global step hooks three times.
    """

    def __init__(self, groups: list[dict[str, Any]], adam: type[torch.optim.Adam], lr: float) -> None:
        """`adam` is torch.optim.AdamW or Adam; `lr` is for groups without their own. Some are sparse, and some not."""
        self._kind = adam
        self._take(groups, lr)
        super().__init__(groups, self._dense.defaults)

    def _take(self, groups: list[dict[str, Any]], lr: float) -> None:
        self._dense = self._kind([group for group in groups if not group["sparse"]], lr=lr)
        self._rows = torch.optim.SparseAdam([group for group in groups if group["sparse"]], lr=lr)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; see `torch.optim.Optimizer.step`."""
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, sparse in ((self._dense, False), (self._rows, True)):
            # Anew each time, as others may have put other objects in place.
            part.param_groups = [group for group in self.param_groups if group["sparse"] is sparse]
            part.state = self.state
            part.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles keep."""
        return super().__getstate__() | {"_kind": self._kind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a copy, a pickle or a loaded state dict."""
        super().__setstate__(state)
        self._take(self.param_groups, self.defaults["lr"])
