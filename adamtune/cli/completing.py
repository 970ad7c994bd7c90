"""Words that the shell completes. They stand here because completing must not load torch; a test holds them to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

FORMATS = (
    *("python", "yaml", "hf", "accelerate", "deepspeed", "lightning"),
    *("timm", "torchtune", "axolotl", "hydra", "megatron", "nanogpt"),
)
ENGINES = ("auto", "sequential", "population", "workers", "ray")


def one_of(words: Sequence[str]) -> Callable[[str], list[str]]:
    """Typer's `autocompletion`: those that begin as what was typed."""

    def completed(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return completed


def recipe_names(incomplete: str) -> list[str]:
    """The same of the recipes that come with adamtune."""
    from adamtune.shipped import shipped_names

    return one_of(shipped_names())(incomplete)
