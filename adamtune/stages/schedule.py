"""schedule: along which curve lr decays."""

from __future__ import annotations

from typing import get_args

from adamtune.knobs import Choice
from adamtune.recipe import Recipe, Schedule
from adamtune.spec import Spec
from adamtune.stages.choose import Candidate, Question, candidates_cost, choose
from adamtune.stages.context import StageAnswer, StageContext

NAME = "schedule"
QUESTION = "Along which curve should lr decay?"

KINDS = Choice(NAME, get_args(Schedule.model_fields["kind"].annotation))


def cost(spec: Spec) -> int:
    """Steps at most."""
    return candidates_cost(spec, len(KINDS.values) - 1)


def run(context: StageContext, incumbent: Recipe) -> StageAnswer:
    """Every other kind, with the incumbent's warmup and floor; see `adamtune.stages.choose`.

    None is dropped on the way: a loss midway tells how far lr has decayed by then, not how the run will end.
    """
    candidates = [
        Candidate(kind, incumbent.with_knob(NAME, kind), {NAME: kind})
        for kind in KINDS.values
        if kind != incumbent.schedule.kind
    ]
    return choose(context, Question(NAME, QUESTION, [KINDS], prune=False), incumbent, candidates)
