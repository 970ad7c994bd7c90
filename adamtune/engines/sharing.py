"""Which process trains which trials of a batch, and which of them can share a stack."""

from __future__ import annotations

from collections.abc import Sequence

from adamtune.history import TrialRequest


def shares(requests: Sequence[TrialRequest], processes: int, noisy: bool) -> list[list[int]]:
    """Places of the requests by process: in turn, so that what is pruned later thins all alike; those of one seed
    together where only they can share a stack.
    """
    places = list(range(len(requests)))
    if not noisy:
        return [places[start::processes] for start in range(min(processes, len(places)))]
    places.sort(key=lambda place: requests[place].seed)
    size = -(-len(places) // processes)
    return [places[start : start + size] for start in range(0, len(places), size)]


def groups(requests: Sequence[TrialRequest], parts: Sequence[Sequence[int]], noisy: bool) -> list[int]:
    """How many members can share a stack, for each group of them in each process."""
    counts: dict[tuple[object, ...], int] = {}
    for part, places in enumerate(parts):
        for place in places:
            request = requests[place]
            seed = request.seed if noisy else None
            key = (part, seed, request.horizon, *kind(request))
            counts[key] = counts.get(key, 0) + 1
    return list(counts.values())


def largest_group(requests: Sequence[TrialRequest], processes: int, noisy: bool) -> int:
    """The most trials of the first one's kind that can share a stack, where all are spread over so many processes."""
    parts = shares(requests, processes, noisy)
    alike = [[place for place in part if kind(requests[place]) == kind(requests[0])] for part in parts]
    return max(groups(requests, alike, noisy))


def kind(request: TrialRequest) -> tuple[str, int]:
    """What a stack's members share, and step times hang on."""
    return request.recipe.precision, request.recipe.accumulate
