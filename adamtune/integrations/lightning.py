"""Lightning: a callback that logs Adam's state to the trainer's loggers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback  # type: ignore[assignment]
    except ImportError:
        raise ImportError("adamtune.integrations.lightning needs Lightning: pip install lightning") from None

from adamtune.errors import ProbeError
from adamtune.probe import AdamProbe


class AdamProbeCallback(Callback):
    """Logs a record of `AdamProbe` at every N-th step of each optimizer, under `adam/GROUP/STATISTIC`.

        Trainer(callbacks=[AdamProbeCallback(every=50)])

    Measured is what the optimizer did: after its step, with the lr of that step, before gradients are zeroed; by manual
    optimization too. With several optimizers the first's keys begin with `adam0/`, the second's with `adam1/`. Steps
    that a GradScaler skips do not count. Only the process of rank zero measures and logs.
    """

    def __init__(self, every: int = 50, exact: bool = False, by: Literal["group", "layer"] = "group") -> None:
        """`every` in optimizer steps; `exact` and `by` as `AdamProbe` takes them. Raises `ProbeError`."""
        if every < 1:
            raise ProbeError(f"every must be at least 1, not {every}")
        self._every, self._exact, self._by = every, exact, by
        self._steps: list[int] = []
        self._fresh: dict[str, float] = {}
        self._handles: list[Any] = []
        self.records: list[tuple[int, dict[str, float]]] = []
        """(the trainer's global step, what was logged there)."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Hook the probes in."""
        self._unhook()
        optimizers = list(trainer.optimizers)
        if len(self._steps) != len(optimizers):  # else they go on as resumed
            self._steps = [0] * len(optimizers)
        if not trainer.is_global_zero:
            return
        for place, optimizer in enumerate(optimizers):
            probe = AdamProbe(optimizer, pl_module, exact=self._exact, by=self._by)
            prefix = "adam" if len(optimizers) == 1 else f"adam{place}"
            self._handles.append(optimizer.register_step_post_hook(self._hook(probe, place, prefix)))

    def on_train_batch_end(self, trainer: Any, *_: object) -> None:
        """Log what the batch's optimizer steps left; only now is the trainer's step count right."""
        if not self._fresh:
            return
        self.records.append((trainer.global_step, self._fresh))
        for logger in trainer.loggers:
            logger.log_metrics(self._fresh, step=trainer.global_step)
        self._fresh = {}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the optimizers as they were."""
        self._unhook()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same when training breaks off."""
        self._unhook()

    def state_dict(self) -> dict[str, Any]:
        """The steps counted, for a run that is resumed."""
        return {"steps": list(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up again."""
        self._steps = list(state_dict["steps"])

    def _hook(self, probe: AdamProbe, place: int, prefix: str) -> Callable[..., None]:
        def after_step(*_: object) -> None:
            self._steps[place] += 1
            if self._steps[place] % self._every == 0:
                self._fresh |= {f"{prefix}/{key}": value for key, value in probe.record().items()}

        return after_step

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._fresh = {}
