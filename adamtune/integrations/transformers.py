"""transformers: a callback that logs Adam's state through the Trainer, to wherever it reports."""

from __future__ import annotations

from typing import Any, Literal

try:
    from transformers import TrainerCallback
except ImportError:
    raise ImportError("adamtune.integrations.transformers needs transformers: pip install transformers") from None

from adamtune.errors import ProbeError
from adamtune.probe import AdamProbe


class AdamProbeCallback(TrainerCallback):
    """Logs a record of `AdamProbe` at every N-th optimizer step, under `adam/GROUP/STATISTIC`.

        trainer.add_callback(AdamProbeCallback(trainer, every=50))

    It needs the trainer to log by, as callbacks of one's own come after those that report. `group0` has the weights
    that decay, `group1` biases and norms. Steps that a GradScaler skips are left out. Only the process of rank zero
    measures and logs.
    """

    def __init__(
        self, trainer: Any, every: int = 50, exact: bool = False, by: Literal["group", "layer"] = "group"
    ) -> None:
        """`every` in optimizer steps; `exact` and `by` as `AdamProbe` takes them. Raises `ProbeError`."""
        if every < 1:
            raise ProbeError(f"every must be at least 1, not {every}")
        self._trainer = trainer
        self._every, self._exact, self._by = every, exact, by
        self._probe: AdamProbe | None = None
        self._fresh: dict[str, float] = {}
        self.records: list[tuple[int, dict[str, float]]] = []
        """(the trainer's global step, what was logged there)."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Every training makes an optimizer of its own."""
        self._probe = None
        self._fresh = {}

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: object
    ) -> None:
        """Measure, with the gradients still there and lr as it was; the step is counted only later."""
        skipped = getattr(optimizer, "step_was_skipped", False)
        if (state.global_step + 1) % self._every or skipped or not state.is_world_process_zero:
            return
        if self._probe is None:
            self._probe = AdamProbe(optimizer, model, exact=self._exact, by=self._by)
        self._fresh = {f"adam/{key}": value for key, value in self._probe.record().items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Log what was measured."""
        if not self._fresh:
            return
        self.records.append((state.global_step, self._fresh))
        due = control.should_log
        self._trainer.log(dict(self._fresh))
        control.should_log = due  # logging resets it, and the trainer's own loss would not be logged at this step
        self._fresh = {}
