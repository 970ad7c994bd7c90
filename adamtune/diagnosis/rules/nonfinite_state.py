"""NaN or infinity in Adam's state: those elements never recover.

A square beyond 3e38 (fp32; beyond 65504 in fp16) makes v infinite and the step zero, while the loss may stay finite.
"""

from __future__ import annotations

from collections.abc import Iterator

from adamtune.diagnosis.finding import Finding, Observed, Rule, Severity
from adamtune.diagnosis.readings import rounded, usual_norm

NAME = "nonfinite-state"


def _find(observed: Observed) -> Iterator[Finding]:
    for group in observed.groups:
        hit = next(((step, share) for step, share in observed.series(group, "nonfinite") if share > 0), None)
        if hit is None:
            continue
        step, share = hit
        usual = usual_norm(observed)
        recipe = observed.recipe
        clip = rounded(usual) if usual is not None and recipe and recipe.clip_norm is None else None
        yield Finding(
            NAME,
            Severity.WARNING,
            f"{100 * share:.3g}% of Adam's state of {group} is NaN or infinite at step {step} and stays so: m and v "
            "keep what they once averaged",
            (f"clip gradients at their usual norm, {clip:g}, which also keeps infinite ones out; " if clip else "")
            + "where it is NaN, find the operation that gives it with torch.autograd.set_detect_anomaly(True)",
            group,
            {"clip_norm": clip} if clip else {},
            {"nonfinite": share, "step": float(step)},
        )


RULE = Rule(
    NAME,
    "any element of m or v is NaN or infinite",
    "Kingma & Ba 2014, algorithm 1: a moving average of NaN is NaN, of infinity infinite",
    _find,
)
