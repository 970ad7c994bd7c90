"""General tuners on the space that adamtune searches. They ask for recipes and hear how those trained; none trains.

Every trial of a peer is one training run on one seed, as people do it. Its answer is the best completed trial so far.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from adamtune.history import Outcome, TrialResult
from adamtune.knobs import KNOBS, Scale
from adamtune.recipe import Recipe

optuna.logging.set_verbosity(optuna.logging.ERROR)  # a line a trial otherwise

SPACE = (
    KNOBS["lr"].narrowed(1e-5, 1.0),
    KNOBS["beta1"].narrowed(0.5, 0.98),
    KNOBS["beta2"].narrowed(0.7, 1 - 10**-3.5),
    KNOBS["eps"].narrowed(1e-10, 1e-2),
    KNOBS["weight_decay"].narrowed(1e-4, 1.0),
    KNOBS["warmup"].narrowed(0.0, 0.2),
)
"""What everyone searches, on each knob's own scale; cosine decay, and the default recipe's groups."""

RUNGS = 8
"""Equal parts of the horizon at whose ends a peer that stops trials early looks at them."""


def distributions() -> dict[str, FloatDistribution]:
    """The space as Optuna takes it: one minus beta in place of beta."""
    found = {}
    for knob in SPACE:
        low, high = sorted((knob.to_parameter(knob.low), knob.to_parameter(knob.high)))
        found[knob.parameter] = FloatDistribution(low, high, log=knob.scale is not Scale.LINEAR)
    return found


def recipe_of(params: Mapping[str, float]) -> Recipe:
    """The default recipe with the knobs that a study's parameters stand for."""
    recipe = Recipe.default()
    for knob in SPACE:
        recipe = recipe.with_knob(knob.name, knob.from_parameter(params[knob.parameter]))
    return recipe


def rungs(horizon: int) -> list[int]:
    """The steps at which trials are looked at, the horizon last."""
    return sorted({max(1, round(horizon * part / RUNGS)) for part in range(1, RUNGS + 1)})


@dataclass(frozen=True)
class Answer:
    """What a tuner would have said from `steps` training steps on."""

    steps: int
    recipe: Recipe


class Peer:
    """A tuner: asks for recipes, may drop some at a rung, hears the results, has an answer."""

    stops_early = False
    """Whether it wants to look at its trials at the rungs."""
    budgeted = False
    """Whether each answer is that of a budget given beforehand, rather than of one search going on."""

    def __init__(self) -> None:
        self.spent = 0
        """Training steps of all its trials so far."""
        self.answers: list[Answer] = []
        self._best = math.inf

    def ask(self) -> list[Recipe]:
        """Recipes to train next, side by side; none when it has nothing more to try."""
        raise NotImplementedError

    def drop(self, rung: int, losses: Sequence[float]) -> list[int]:
        """Which of the trials asked for to end at `rung`, from 1. `losses`: NaN for one that has ended."""
        return []

    def tell(self, results: Sequence[TrialResult]) -> None:
        """How the trials asked for ended, in that order."""
        for result in results:
            self.spent += result.steps
            self._answer(result)

    def _answer(self, result: TrialResult) -> None:
        if result.final() < self._best:  # false for the NaN of a trial that did not complete
            self._best = result.final()
            self.answers.append(Answer(self.spent, result.request.recipe))


class Study(Peer):
    """An Optuna study, one trial after another, or `at_once` where the sampler does not learn from results."""

    def __init__(self, name: str, sampler: BaseSampler, pruner: BasePruner | None = None, at_once: int = 1) -> None:
        super().__init__()
        self.stops_early = pruner is not None
        # Hyperband draws a trial's bracket from the study's name.
        self._study = optuna.create_study(study_name=name, sampler=sampler, pruner=pruner or NopPruner())
        self._at_once = at_once
        self._trials: list[optuna.Trial] = []

    def ask(self) -> list[Recipe]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Clip non-finite values")  # what the GP does with diverged trials
            self._trials = [self._study.ask(distributions()) for _ in range(self._at_once)]
        return [recipe_of(trial.params) for trial in self._trials]

    def drop(self, rung: int, losses: Sequence[float]) -> list[int]:
        dropped = []
        for place, (trial, loss) in enumerate(zip(self._trials, losses, strict=True)):
            if math.isfinite(loss):
                trial.report(loss, rung)
                if trial.should_prune():
                    dropped.append(place)
        return dropped

    def tell(self, results: Sequence[TrialResult]) -> None:
        super().tell(results)
        for trial, result in zip(self._trials, results, strict=True):
            if result.outcome is Outcome.PRUNED:
                self._study.tell(trial, state=TrialState.PRUNED)
            else:  # told as the worst there is, a divergence teaches every sampler; as a failure it would be forgotten
                self._study.tell(trial, result.final() if math.isfinite(result.final()) else math.inf)


class ConstantEpoch(Peer):
    """Random search that stops every trial at one early rung, an epoch or two here, and trains only the best three on
    (Egele et al. 2024, arXiv:2404.04111).

    How many to start follows from the budget, so it is run for each of `budgets` (in horizons): every one goes on with
    the candidates of the one before, and its answer comes when its budget is spent.
    """

    stops_early = True
    budgeted = True
    KEPT = 3
    AT_ONCE = 64
    """Candidates trained side by side, for the memory they take."""

    def __init__(self, seed: int, horizon: int, budgets: Iterable[float]) -> None:
        super().__init__()
        self._study = optuna.create_study(sampler=RandomSampler(seed=seed))
        self._early = rungs(horizon)[0]
        on = horizon - self._early
        self._counts = [max(self.KEPT, int((b * horizon - self.KEPT * on) / self._early)) for b in budgets]
        self._pool: list[tuple[float, Recipe]] = []
        self._losses: list[float] = []
        self._early_steps = 0
        self._going_on = False

    def ask(self) -> list[Recipe]:
        if not self._counts:
            return []
        missing = self._counts[0] - len(self._pool)
        self._going_on = missing <= 0
        if self._going_on:
            return [recipe for _, recipe in sorted(self._pool, key=lambda pair: pair[0])[: self.KEPT]]
        return [recipe_of(self._study.ask(distributions()).params) for _ in range(min(missing, self.AT_ONCE))]

    def drop(self, rung: int, losses: Sequence[float]) -> list[int]:
        if self._going_on or rung > 1:
            return []
        self._losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
        return list(range(len(losses)))

    def tell(self, results: Sequence[TrialResult]) -> None:
        if not self._going_on:
            self._early_steps += sum(result.steps for result in results)
            self.spent = self._early_steps
            self._pool += zip(self._losses, (result.request.recipe for result in results), strict=True)
            return
        # They are trained from the start again, to the same numbers: their first steps are counted already.
        self.spent = self._early_steps + sum(max(0, result.steps - self._early) for result in results)
        self._best = math.inf  # its budget alone decides
        self._answer(min(results, key=lambda result: result.final() if math.isfinite(result.final()) else math.inf))
        self._counts.pop(0)


_POINTS = (  # lr, one minus beta1, beta2, weight decay, warmup
    (0.001308209823469072, 0.02686663061, 0.9981232922116359, 0.16375311233774334, 0.1),
    (0.0008445074561975979, 0.11042418465, 0.9978504782314613, 0.08135402759553023, 0.05),
    (0.004958460849689891, 0.13625575743, 0.6291854735396584, 0.1147386261512052, 0.02),
    (0.0017486387539278373, 0.06733926164, 0.9955159689799007, 0.08121616522670176, 0.02),
)
ALGOPERF = tuple(
    {"lr": lr, "beta1": round(1 - rest, 12), "beta2": beta2, "weight_decay": decay, "warmup": warmup}
    for lr, rest, beta2, decay, warmup in _POINTS
)
"""The five fixed points of AlgoPerf's baseline for external tuning (Dahl et al. 2023, arXiv:2306.07179; in
mlcommons/algorithmic-efficiency: prize_qualification_baselines/external_tuning/tuning_search_space.json), in its order.
Here they are four: the third is the first without label smoothing, which is no knob of ours. It trains them by NAdamW;
here they are AdamW's, as is everything else."""


class FixedList(Peer):
    """Recipes tried in order, the same whatever the task."""

    def __init__(self, points: Iterable[Mapping[str, float]]) -> None:
        super().__init__()
        self._points = list(points)

    def ask(self) -> list[Recipe]:
        if not self._points:
            return []
        recipe = Recipe.default()
        for name, value in self._points.pop(0).items():
            recipe = recipe.with_knob(name, value)
        return [recipe]


def doubling(cap: int) -> list[int]:
    """5, 10, 20 and so on below `cap`, and `cap`."""
    found = [5]
    while 2 * found[-1] < cap:
        found.append(2 * found[-1])
    return [budget for budget in found if budget < cap] + [cap]


def _sobol(seed: int) -> QMCSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)  # the first point, drawn alone


PEERS: dict[str, Callable[[int, int, int], Peer]] = {  # called with a seed, the horizon and the cap in horizons
    "random": lambda seed, horizon, cap: Study("random", RandomSampler(seed=seed)),
    "quasi-random x2": lambda seed, horizon, cap: Study("quasi", _sobol(seed), at_once=2),
    "constant epoch": lambda seed, horizon, cap: ConstantEpoch(seed, horizon, doubling(cap)),
    "TPE": lambda seed, horizon, cap: Study("tpe", TPESampler(seed=seed)),
    "TPE+Hyperband": lambda seed, horizon, cap: Study(
        f"tpe-hyperband-{seed}", TPESampler(seed=seed), HyperbandPruner(min_resource=1, max_resource=RUNGS)
    ),
    "GP": lambda seed, horizon, cap: Study("gp", GPSampler(seed=seed)),
    "AlgoPerf's five": lambda seed, horizon, cap: FixedList(ALGOPERF),
}
TWICE = "quasi-random x2"
"""The peer that may spend twice the cap: what Google's tuning playbook holds up against cleverer search."""
