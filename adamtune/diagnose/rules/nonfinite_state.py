"""NaN or infinity in Adam's state: those elements never recover."""

from __future__ import annotations

from collections.abc import Iterator

from adamtune.diagnose.finding import Finding, Observed, Rule, Severity

NAME = "nonfinite-state"


def _find(observed: Observed) -> Iterator[Finding]:
    for group in observed.groups:
        hit = next(((step, share) for step, share in observed.series(group, "nonfinite") if share > 0), None)
        if hit is None:
            continue
        step, share = hit
        yield Finding(
            NAME,
            Severity.WARNING,
            f"{share:.2g} of Adam's state of {group} is NaN or infinite at step {step}, and stays so: m and v keep "
            "what they once averaged",
            "go back to a checkpoint before it, and find the operation that gave it with "
            "torch.autograd.set_detect_anomaly(True); gradients beyond 1e19 overflow v in fp32, beyond 256 in fp16",
            group,
            {},
            {"nonfinite": share, "step": float(step)},
        )


RULE = Rule(
    NAME,
    "any element of m or v is NaN or infinite",
    "Kingma & Ba 2014, algorithm 1: a moving average of NaN is NaN, of infinity infinite",
    _find,
)
