"""Choosing among recipes that differ in one knob, and the stages that do it, on losses computed from a formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import optuna
import pytest
import torch
from formulas import NAN, Bench, Formula, bench, noise
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from torch import nn

from adamtune.evidence import Verdict
from adamtune.groups import ParamGroup, param_groups
from adamtune.plan import Progress, make_plan, run_plan
from adamtune.recipe import GroupRule, Match, Recipe
from adamtune.schedule import warmup_steps
from adamtune.search import close_storage, open_storage
from adamtune.spec import STAGES, Budget, Objective, Spec, StageName, TaskSpec
from adamtune.stages import REGISTRY, clip, eps, precision
from adamtune.stages.choose import Candidate, Question, candidates_cost, choose, inside, numbers
from adamtune.stages.context import CONFIRM_SEEDS, Seeds, StageAnswer, StageContext
from adamtune.stages.context import Budget as StepBudget
from adamtune.trial import Outcome

BASE = Recipe(lr=1e-2)


def bowl(lr: float, best: float = 1e-2) -> float:
    """Least at `best`, where it is 0."""
    return math.log10(lr / best) ** 2


def with_noise(effect: Callable[[Recipe], float], scale: float = 1e-3) -> Formula:
    """1, plus what the recipe is worth, plus the seed's own level, plus noise that no two recipes share."""
    return lambda recipe, seed: 1 + effect(recipe) + noise(0.5, seed) + noise(scale, seed, recipe.training_key())


def ask(lab: Bench, stage: StageName, incumbent: Recipe = BASE) -> StageAnswer:
    answer = REGISTRY[stage].run(lab.context, incumbent)
    assert lab.engine.steps <= REGISTRY[stage].cost(lab.context.spec.model_copy(update={"base": incumbent}))
    return answer


def trials_in(lab: Bench, study: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=f"run/{study}", storage=lab.storage).trials


# --- lr is re-centred for the best


def test_a_knob_that_moves_the_best_lr_is_taken_at_its_own_lr() -> None:
    def effect(recipe: Recipe) -> float:
        long = recipe.betas[0] > 0.94
        return bowl(recipe.lr, 8e-3 if long else 1e-2) - (0.3 if long else 0.0)

    lab = bench(with_noise(effect), horizon=40)
    answer = ask(lab, "beta1")
    assert (answer.verdict, answer.before) == (Verdict.CHANGED, 0.9)
    assert answer.after in (0.95, 0.98)
    assert answer.recipe.lr == pytest.approx(8e-3, rel=0.05)
    assert f"at lr {answer.recipe.lr:g}" in answer.reason
    for each in answer.details["recentred"]:
        assert each["lrs"] == [5.623e-3, 1e-2, 1.778e-2]
        assert each["lr"] == pytest.approx(8e-3, rel=0.05)
    assert {each["candidate"] for each in answer.details["recentred"]} == {"0.95", "0.98"}


def test_a_knob_worse_at_the_incumbents_lr_by_no_more_than_noise_may_win_at_another() -> None:
    def effect(recipe: Recipe) -> float:
        return bowl(recipe.lr, 1.78e-2) - 0.06 if recipe.betas[1] == 0.99 else bowl(recipe.lr)

    for run in range(20):
        lab = bench(with_noise(effect, scale=5e-3), horizon=40, seeds=3, seed=run)
        ask_for = Question("beta2", "?", [lab.context.spec.knob("beta2")])
        answer = choose(lab.context, ask_for, BASE, numbers("beta2", BASE, [0.99]))
        behind = answer.details["scores"][0] - answer.details["incumbent_score"]
        assert (answer.after == 0.99) == bool(answer.details["recentred"])
        if behind > 0 and answer.after == 0.99:
            assert answer.recipe.lr == pytest.approx(1.78e-2, rel=0.05)
            return
    pytest.fail("no candidate that was behind was given another lr")


def test_what_lr_does_alone_is_not_put_down_to_the_knob() -> None:
    lab = bench(with_noise(lambda recipe: bowl(recipe.lr, 1.2e-2), scale=1e-4), horizon=40)
    answer = ask(lab, "beta2")
    assert answer.before == answer.after == 0.999
    assert answer.verdict is Verdict.CHANGED
    assert answer.recipe == BASE.with_knob("lr", answer.recipe.lr)
    assert answer.recipe.lr == pytest.approx(1.2e-2, rel=0.05)
    assert "brings nothing by evidence that this lr does not bring alone; lr alone: better" in answer.reason
    assert answer.evidence is not None
    assert answer.evidence.verdict is Verdict.CHANGED


def test_a_candidate_of_lr_alone_needs_no_other_evidence_than_that_it_is_better() -> None:
    lab = bench(with_noise(lambda recipe: bowl(recipe.lr, 5e-3), scale=1e-4), horizon=40)
    remedy = Candidate("lr 0.005", BASE.with_knob("lr", 5e-3), {})
    answer = choose(lab.context, Question("findings", "?", read=lambda recipe: None), BASE, [remedy])
    assert (answer.verdict, answer.recipe) == (Verdict.CHANGED, remedy.recipe)
    assert "alone" not in answer.reason


def test_lr_stays_inside_the_range_of_the_spec() -> None:
    lab = bench(
        with_noise(lambda recipe: bowl(recipe.lr, 1.0) - 0.3 * (recipe.betas[0] == 0.8)),
        horizon=40,
        space={"lr": {"low": 8e-3, "high": 1.2e-2}},
    )
    answer = ask(lab, "beta1")
    assert (answer.after, answer.recipe.lr) == (0.8, 1e-2)
    assert {request.recipe.lr for request in lab.engine.opened} == {1e-2}


def test_where_nothing_beats_or_ties_no_lr_is_tried() -> None:
    lab = bench(with_noise(lambda recipe: 0.5 * (recipe.betas[0] != 0.9)))
    answer = ask(lab, "beta1")
    assert (answer.verdict, answer.recipe, answer.details["recentred"]) == (Verdict.KEPT, BASE, [])
    assert {request.recipe.lr for request in lab.engine.opened} == {1e-2}
    assert {request.seed for request in lab.engine.opened} == set(lab.context.seeds.search)


# --- pruned, but not inside warmup


def ended(lab: Bench) -> dict[float, tuple[Outcome, int]]:
    return {r.result.request.recipe.betas[0]: (r.result.outcome, r.result.steps) for r in lab.records}


@pytest.mark.parametrize(
    ("warmup", "rung"), [(0.0, 4), (0.25, 4), (0.5, 5), ({"steps": 6}, 7), ({"steps": 7}, None), ({"steps": 99}, None)]
)
def test_the_worse_half_is_dropped_behind_warmup_or_not_at_all(warmup: object, rung: int | None) -> None:
    incumbent = BASE.with_knob("warmup", warmup)
    lab = bench(with_noise(lambda recipe: 5 * abs(recipe.betas[0] - 0.9), scale=0.0), horizon=8)
    ask(lab, "beta1", incumbent)
    assert ended(lab)[0.5] == ((Outcome.PRUNED, rung) if rung else (Outcome.COMPLETED, 8))
    assert ended(lab)[0.95] == (Outcome.COMPLETED, 8)


def test_a_long_warmup_is_not_dropped_for_what_it_has_not_begun() -> None:
    def behind(recipe: Recipe, step: int) -> float:
        return 100.0 if step <= warmup_steps(recipe.schedule, 40) else 0.0

    lab = bench(
        with_noise(lambda recipe: -2.0 * warmup_steps(recipe.schedule, 40) / 40),
        horizon=40,
        space={"warmup": {"low": 0.0, "high": 0.8}},
    )
    lab.engine.early = behind
    ask_for = Question("warmup", "?", [lab.context.spec.knob("warmup")])
    answer = choose(lab.context, ask_for, BASE, numbers("warmup", BASE, (0.0, 0.1, 0.2, 0.3, 0.6)))
    assert answer.after == 0.6
    pruned = {record.result.steps for record in lab.records if record.result.outcome is Outcome.PRUNED}
    assert pruned == {25}  # the first of eight rungs behind 24 steps


# --- every trial is Optuna's


def test_every_training_run_of_a_choice_is_a_trial_that_names_its_candidate() -> None:
    lab = bench(with_noise(lambda recipe: bowl(recipe.lr, 6e-3) - 0.3 * (recipe.betas[0] == 0.95)), horizon=40)
    ask(lab, "beta1")
    candidates, fixed = trials_in(lab, "beta1/candidates"), trials_in(lab, "beta1")
    assert len(candidates) + len(fixed) == len(lab.engine.opened)
    asked = [request for request in lab.engine.opened if not request.probe]
    assert [trial.params for trial in candidates] == [
        {"one_minus_beta1": pytest.approx(1 - request.recipe.betas[0]), "lr": pytest.approx(request.recipe.lr)}
        for request in asked
    ]
    assert {trial.user_attrs["candidate"] for trial in candidates} >= {"0.5", "0.8", "0.95", "0.98", "0.95, lr 0.0178"}


def test_optuna_alone_reads_the_trials_of_names(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    lab = bench(with_noise(lambda recipe: -0.3 * (recipe.schedule.kind == "linear")), horizon=40)
    storage = open_storage(None, path)
    context = StageContext(lab.context.spec, lab.engine, storage, StepBudget(), Seeds.of(lab.context.spec, 5))
    assert REGISTRY["schedule"].run(context, BASE).after == "linear"
    close_storage(storage)
    stock = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.load_study(study_name="run/schedule/candidates", storage=stock)
    assert study.best_params["schedule"] == "linear"
    kinds = {trial.params["schedule"] for trial in study.trials}
    assert kinds == {"constant", "linear", "step"}
    for trial in study.trials:
        assert isinstance(trial.distributions["schedule"], CategoricalDistribution)
        assert isinstance(trial.distributions["lr"], FloatDistribution)
    frame = study.trials_dataframe()
    assert set(frame["params_schedule"]) == kinds


# --- which values


def test_a_range_that_holds_few_of_the_values_is_searched_evenly() -> None:
    def spec(**space: Mapping[str, float]) -> Spec:
        return Spec(task=TaskSpec(ref="a:b"), horizon=40, space=space)

    assert inside(spec(), "beta1", (0.5, 0.9)) == [0.5, 0.9]
    assert inside(spec(beta1={"low": 0.8}), "beta1", (0.5, 0.9)) == [0.9]
    narrow = inside(spec(beta2={"low": 0.9, "high": 0.999}), "beta2", (0.5, 0.99))
    assert narrow == pytest.approx([0.9, 0.99, 0.999])
    assert inside(spec(eps={"low": 1e-9, "high": 1e-7}), "eps", ()) == pytest.approx([1e-9, 1e-8, 1e-7])
    assert inside(spec(warmup={"low": 0.3, "high": 0.5}), "warmup", (0.0, 0.1)) == pytest.approx([0.3, 0.4, 0.5])


RMS = {"default/sqrt_v_hat/p50": 2e-3, "default/sqrt_v_hat/p10": 1e-4, "no_decay/sqrt_v_hat/p50": 0.0}


def test_eps_is_tried_relative_to_the_gradients_and_where_fp32_feels_it() -> None:
    assert eps.gradient_rms([]) is None
    assert eps.gradient_rms([{"default/r/p50": 1.0}]) is None
    assert eps.gradient_rms([RMS, {"default/sqrt_v_hat/p50": 4e-3}]) == (pytest.approx(3e-3), 1e-4)
    lab = bench(with_noise(lambda recipe: 0.1 * abs(math.log10(recipe.eps / 2e-4))), horizon=40)
    lab.engine.probe = lambda recipe: RMS
    answer = ask(lab, "eps")
    assert (answer.before, answer.after) == (1e-8, 2e-4)
    assert answer.details["gradient_rms"] == 2e-3
    assert answer.details["candidates"] == ["2e-09", "2e-07", "2e-06", "2e-05", "0.0002", "0.002"]
    large_gradients = {key: value * 1e7 for key, value in RMS.items()}
    lab.engine.probe = lambda recipe: large_gradients
    tried = [float(label) for label in ask(lab, "eps", Recipe(lr=1e-3)).details["candidates"]]
    assert tried
    assert min(tried) > 2**-24 * 1e-4 * 1e7  # whatever is below leaves every denominator as it is


def test_without_a_probe_eps_takes_the_plain_values() -> None:
    lab = bench(with_noise(lambda recipe: 0.0))
    assert ask(lab, "eps").details["candidates"] == ["1e-06", "1e-05"]


@pytest.mark.parametrize("horizon", [100, 4000, 20_000])
def test_warmups_are_distinct_and_tried_at_two_learning_rates(horizon: int) -> None:
    lab = bench(with_noise(lambda recipe: 0.0), horizon=horizon)
    ask(lab, "warmup")
    tried = trials_in(lab, "warmup/candidates")
    steps = {100: {0, 1, 2, 10}, 4000: {0, 40, 80, 400, 500}, 20_000: {0, 200, 400, 2000, 500}}[horizon]
    first = [trial for trial in tried if "," not in trial.user_attrs["candidate"]]
    assert {round(trial.params["warmup"] * horizon) for trial in first} == steps
    assert {round(trial.params["lr"], 6) for trial in first} == {1e-2, 1.778e-2}
    assert len(first) == 2 * len(lab.context.seeds.search) * len(steps)


@pytest.mark.parametrize(("low", "high", "tried"), [(0.1, 1.0, {1e-2}), (1e-2, 1.78e-2, {1e-2, 1.778e-2})])
def test_the_higher_lr_of_a_warmup_lies_inside_the_specs_range(low: float, high: float, tried: set[float]) -> None:
    lab = bench(with_noise(lambda recipe: 0.0), horizon=100, space={"lr": {"low": low, "high": high}})
    ask(lab, "warmup")
    assert {request.recipe.lr for request in lab.engine.opened} == tried


def test_a_warmup_in_steps_is_written_as_such() -> None:
    lab = bench(with_noise(lambda recipe: -0.3 * (warmup_steps(recipe.schedule, 4000) == 500)), horizon=4000)
    answer = ask(lab, "warmup")
    assert (answer.before, answer.after) == (0.05, {"steps": 500})


# --- each stage: where its knob matters it is changed, where it does not it is kept


def gpt() -> list[ParamGroup]:
    model = nn.ModuleDict({"tokens": nn.Embedding(7, 4), "mid": nn.Linear(4, 4), "head": nn.Linear(4, 7)})
    return param_groups(Recipe.default(), model)


def multiple(recipe: Recipe, group: str) -> float:
    return next((rule.lr_mult for rule in recipe.groups if rule.name == group), 1.0)


PROBE = {**RMS, "default/grad_norm": 3.0, "no_decay/grad_norm": 4.0}

MATTERS: dict[str, tuple[StageName, Callable[[Recipe], float], object]] = {
    "beta1": ("beta1", lambda r: abs(math.log10((1 - r.betas[0]) / 0.05)), 0.95),
    "beta2": ("beta2", lambda r: abs(math.log10((1 - r.betas[1]) / 0.05)), 0.95),
    "eps": ("eps", lambda r: 0.1 * abs(math.log10(r.eps / 2e-4)), 2e-4),
    "weight decay": ("weight_decay", lambda r: abs(math.log10(r.lr * (r.weight_decay + 1e-9) / 0.003)), 0.3),
    "no weight decay": ("weight_decay", lambda r: r.lr * r.weight_decay * 1e3, 0.0),
    "warmup": ("warmup", lambda r: 3 * abs(r.schedule.warmup - 0.1), 0.1),  # type: ignore[operator]
    "schedule": ("schedule", lambda r: 0.1 * ["step", "linear", "constant", "cosine"].index(r.schedule.kind), "step"),
    "head": ("groups", lambda r: abs(math.log10(multiple(r, "head") / 3)), "no_decay: weight_decay 0; head: lr x3"),
    "embedding": (
        "groups",
        lambda r: abs(math.log10(multiple(r, "embedding") / 0.1)),
        "no_decay: weight_decay 0; embedding: lr x0.1",
    ),
    "biases": ("groups", lambda r: abs(math.log10(multiple(r, "no_decay") / 3)), "no_decay: lr x3, weight_decay 0"),
    "decay of biases": ("groups", lambda r: 1.0 * (r.groups[0].weight_decay == 0), "no_decay: as the rest"),
    "clip": ("clip", lambda r: abs(math.log10((r.clip_norm or 100.0) / 2.5)), 2.5),
}


@pytest.mark.parametrize("name", MATTERS)
def test_a_knob_that_matters_is_changed_and_lr_stays_where_it_was_best(name: str) -> None:
    stage, effect, best = MATTERS[name]
    lab = bench(with_noise(lambda r: effect(r) + bowl(r.lr)), groups=gpt(), horizon=100)
    lab.engine.probe = lambda recipe: PROBE
    answer = ask(lab, stage, Recipe.default().with_knob("lr", 1e-2))
    assert answer.verdict is Verdict.CHANGED
    assert answer.after == best
    assert answer.recipe.lr == pytest.approx(1e-2, rel=0.15)


@pytest.mark.parametrize("stage", ["beta1", "beta2", "eps", "weight_decay", "warmup", "schedule", "groups", "clip"])
def test_a_knob_that_does_not_matter_is_kept(stage: StageName) -> None:
    changed, tried = 0, 0
    for run in range(12):
        lab = bench(
            lambda r, seed, run=run: 1 + bowl(r.lr) + noise(1, run, seed) + noise(0.05, run, seed, r.training_key()),
            groups=gpt(),
            horizon=100,
        )
        lab.engine.probe = lambda recipe: PROBE
        answer = ask(lab, stage, Recipe.default().with_knob("lr", 1e-2))
        tried += len(answer.details["candidates"])
        changed += answer.verdict is Verdict.CHANGED
    assert tried >= 12 * 2
    assert changed <= 2


def test_a_metric_is_maximized_and_ties_are_told_in_its_own_sign() -> None:
    objective = Objective(name="score", direction="maximize")
    lab = bench(with_noise(lambda r: 0.3 * (r.betas[0] == 0.95) - bowl(r.lr, 8e-3)), objective=objective, horizon=40)
    answer = ask(lab, "beta1")
    assert (answer.verdict, answer.after) == (Verdict.CHANGED, 0.95)
    assert answer.recipe.lr == pytest.approx(8e-3, rel=0.1)


# --- weight decay, warmup, groups, clip: what is particular to them


def test_lr_times_weight_decay_is_what_is_searched_and_what_another_lr_keeps() -> None:
    def effect(recipe: Recipe) -> float:
        product = recipe.lr * (recipe.weight_decay + 1e-9)
        return bowl(recipe.lr, 1.25e-2) + abs(math.log10(product / 0.01))

    lab = bench(with_noise(effect), horizon=100)
    answer = ask(lab, "weight_decay")
    assert answer.recipe.lr == pytest.approx(1.25e-2, rel=0.1)
    assert answer.recipe.lr * answer.recipe.weight_decay == pytest.approx(0.01, rel=0.02)
    assert answer.reason.startswith(f"weight_decay {answer.recipe.weight_decay:g} at lr {answer.recipe.lr:g}: better")
    trials = trials_in(lab, "weight_decay/candidates")
    off = [trial for trial in trials if trial.params["weight_decay"] == "off"]
    assert len(off) == len(lab.context.seeds.search)
    assert all("lr_times_weight_decay" not in trial.params for trial in off)
    on = {trial.user_attrs["candidate"]: trial for trial in trials if trial.params["weight_decay"] == "on"}
    assert on["1"].params["lr_times_weight_decay"] == pytest.approx(0.01)
    assert on["1, lr 0.0178"].params["lr_times_weight_decay"] == pytest.approx(0.01)
    assert on["1"].distributions["lr_times_weight_decay"].log  # type: ignore[attr-defined]


def test_a_spec_that_bounds_decay_from_below_is_not_asked_about_none() -> None:
    lab = bench(with_noise(lambda recipe: 0.0), horizon=100, space={"weight_decay": {"low": 0.01, "high": 2.0}})
    assert [float(x) for x in ask(lab, "weight_decay").details["candidates"]] == pytest.approx([0.1, 0.3, 1])
    assert "0" in ask(bench(with_noise(lambda recipe: 0.0)), "weight_decay").details["candidates"]


def test_weight_decay_stays_inside_the_range_of_the_spec_at_every_lr() -> None:
    lab = bench(
        with_noise(lambda r: bowl(r.lr, 8e-3) - r.weight_decay), horizon=100, space={"weight_decay": {"high": 1.0}}
    )
    assert ask(lab, "weight_decay").after == 1.0
    assert max(request.recipe.weight_decay for request in lab.engine.opened) == 1.0


def test_decays_that_a_narrow_range_would_make_alike_at_another_lr_both_contend() -> None:
    lab = bench(
        with_noise(lambda r: bowl(r.lr) - r.weight_decay),
        horizon=100,
        space={"weight_decay": {"low": 0.2, "high": 1.0}},
    )
    answer = ask(lab, "weight_decay", BASE.with_knob("weight_decay", 0.2))
    assert [each["candidate"] for each in answer.details["recentred"]] == ["1", "0.4472"]


def test_warmup_buys_a_higher_lr() -> None:
    def effect(recipe: Recipe) -> float:
        best = 1.8e-2 if recipe.schedule.warmup == 0.1 else 1e-2
        return bowl(recipe.lr, best) - 0.2 * math.log10(best / 1e-2)

    lab = bench(with_noise(effect), horizon=100)
    answer = ask(lab, "warmup")
    assert (answer.verdict, answer.after) == (Verdict.CHANGED, 0.1)
    assert answer.recipe.lr == pytest.approx(1.78e-2, rel=0.05)


def test_groups_of_the_recipes_own_are_multiplied_from_where_they_are() -> None:
    rule = GroupRule(name="top", match=Match(params=("head.*",)), lr_mult=2.0)
    recipe = BASE.model_copy(update={"groups": (rule,), "weight_decay": 0.0})
    lab = bench(with_noise(lambda r: abs(math.log10(multiple(r, "top") / 20))), groups=gpt(), horizon=100)
    answer = ask(lab, "groups", recipe)
    assert answer.recipe.groups == (rule.model_copy(update={"lr_mult": 20.0}),)
    labels = answer.details["candidates"]
    assert [label for label in labels if label.startswith("top")] == ["top lr x0.3", "top lr x3", "top lr x10"]
    assert [label for label in labels if label.startswith("embedding")]
    assert not [label for label in labels if label.startswith("head") or "decay" in label]
    trials = trials_in(lab, "groups/candidates")
    assert {(t.params["group"], t.params["lr_mult"]) for t in trials if t.params["group"] == "top"} == {
        ("top", 0.6), ("top", 6.0), ("top", 20.0),
    }  # fmt: skip


def test_a_rule_that_is_added_leaves_every_other_parameter_where_it_was() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(7, 4), "mid": nn.Linear(4, 4), "head": nn.Linear(4, 7)})
    lab = bench(with_noise(lambda r: abs(math.log10(multiple(r, "embedding") / 0.1))), groups=gpt(), horizon=100)
    answer = ask(lab, "groups", Recipe.default())
    before = {name: group.name for group in param_groups(Recipe.default(), model) for name in group.names}
    after = {name: group.name for group in param_groups(answer.recipe, model) for name in group.names}
    assert {name for name in before if before[name] != after[name]} == {"tokens.weight"}
    assert after["tokens.weight"] == "embedding"


def test_decay_of_biases_is_turned_off_where_it_is_on() -> None:
    lab = bench(with_noise(lambda r: -0.3 * any(g.weight_decay == 0 for g in r.groups)), groups=gpt(), horizon=100)
    answer = ask(lab, "groups", BASE)
    assert answer.reason.startswith("groups no decay on biases and norms")
    assert answer.after == "no_decay: weight_decay 0"
    assert {t.params.get("bias_norm_decay") for t in trials_in(lab, "groups/candidates")} == {None, "off"}


@pytest.mark.parametrize("model", [nn.Linear(8, 2), nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))])
def test_a_model_with_one_group_of_weights_is_asked_nothing(model: nn.Module) -> None:
    groups = param_groups(Recipe.default(), model)
    lab = bench(with_noise(lambda recipe: 0.0), groups=groups, stages=["groups"], base=Recipe.default())
    plan = make_plan(lab.context.spec, groups)
    assert (plan.stages[0].name, plan.stages[0].steps) == ("groups", 0)
    assert run_plan(plan, lab.context, Progress()) == Recipe.default()
    answer = lab.context.answers["groups"]
    assert answer.verdict is Verdict.UNASKED
    assert answer.reason == "the model has no embeddings, heads or named groups beside the rest"
    assert lab.engine.steps == 0


def test_the_norm_to_clip_at_is_the_90th_percentile_of_the_whole_gradients() -> None:
    records = [{"a/grad_norm": 3.0 * k, "b/grad_norm": 4.0 * k, "a/r/p50": 1.0} for k in range(1, 11)]
    assert clip.gradient_norms(records) == pytest.approx([5.0 * k for k in range(1, 11)])
    assert clip.gradient_norms([{"a/r/p50": 1.0}, {"a/grad_norm": NAN}]) == []
    lab = bench(with_noise(lambda recipe: 0.0), horizon=40)
    lab.engine.probe = lambda recipe: PROBE
    answer = ask(lab, "clip")
    assert answer.details["candidates"] == ["5 (the norm's 90th percentile)", "2.5 (half of it)"]
    assert answer.details["gradient_norm"] == {"p50": 5.0, "p90": 5.0, "records": 16}
    clipped = ask(bench(with_noise(lambda recipe: 0.0)), "clip", Recipe(clip_norm=1.0))
    assert clipped.details["candidates"] == ["none"]  # nothing was recorded


# --- 16 bits


def bits(seconds: Mapping[str, float], losses: Mapping[str, float], device: str = "cpu", **spec: object) -> Bench:
    lab = bench(with_noise(lambda r: losses.get(r.precision, 0.0)), horizon=40, **spec)
    lab.engine.seconds = lambda recipe: seconds[recipe.precision]
    return lab


@pytest.mark.parametrize(
    ("bf16", "loss", "verdict", "reason"),
    [
        (0.5, 0.0, "changed", "bf16 with eps 1e-06 takes 0.50 of the time of fp32; no better by evidence"),
        (0.5, -0.3, "changed", "bf16 with eps 1e-06 takes 0.50 of the time of fp32; better by evidence"),
        (0.5, 0.3, "kept", "no better by evidence"),
        (0.98, 0.0, "kept", "bf16 with eps 1e-06 takes 0.98 of the time of fp32, which is no gain"),
        (2.0, -0.3, "kept", "which is no gain"),
        (0.5, NAN, "kept", "bf16 diverged"),
    ],
)
def test_16_bits_are_taken_when_not_worse_and_faster(bf16: float, loss: float, verdict: str, reason: str) -> None:
    lab = bits({"fp32": 1.0, "bf16": bf16}, {"bf16": loss})
    answer = ask(lab, "precision", Recipe(lr=1e-2))
    assert (answer.verdict, answer.before) == (verdict, "fp32")
    assert answer.after == ("bf16" if verdict == "changed" else "fp32")
    assert reason in answer.reason
    assert answer.recipe.eps == (1e-6 if verdict == "changed" else 1e-8)
    assert answer.details["seconds_a_step"]["fp32"] == 1.0
    assert {trial.params["precision"] for trial in trials_in(lab, "precision/candidates")} == {"fp32", "bf16"}


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1.0), ("maximize", -1.0)])
def test_16_bits_pass_as_not_worse_on_all_seeds_of_confirmation(direction: str, sign: float) -> None:
    """Three seeds pass what is worse by twice the noise left between seeds more often than not."""

    def asked(worse: float, seed: int) -> StageAnswer:
        def effect(recipe: Recipe) -> float:
            return sign * worse * (recipe.precision == "bf16")

        objective = Objective(name="score", direction=direction)
        lab = bench(with_noise(effect, scale=1.0), horizon=40, seed=seed, objective=objective)
        lab.engine.seconds = lambda recipe: 0.5 if recipe.precision == "bf16" else 1.0
        return ask(lab, "precision")

    assert [asked(2 * math.sqrt(2), seed).after for seed in range(10)] == ["fp32"] * 10
    taken = [answer for answer in (asked(0.0, seed) for seed in range(10)) if answer.evidence]
    assert len(taken) >= 8
    assert all(len(each.evidence.seeds) == 12 or each.evidence.verdict is Verdict.CHANGED for each in taken)


def test_16_bits_whose_metric_is_no_number_have_not_diverged() -> None:
    lab = bits({"fp32": 1.0, "bf16": 0.5}, {}, objective=Objective(name="score", direction="minimize"))
    lab.engine.unscored = lambda request: request.recipe.precision == "bf16"
    assert ask(lab, "precision").reason == "bf16 had no finite score (let the metric return a number)"


def test_16_bits_that_leave_eps_as_it_is_do_not_name_it() -> None:
    answer = ask(bits({"fp32": 1.0, "bf16": 0.5}, {}), "precision", Recipe(lr=1e-2, eps=1e-5))
    assert answer.recipe.eps == 1e-5
    assert answer.reason.startswith("bf16 takes 0.50 of the time of fp32")


def test_fp32_is_gone_back_to_on_evidence_alone() -> None:
    sixteen = Recipe(precision="bf16", eps=1e-5)
    seconds = {"fp32": 2.0, "bf16": 1.0}
    assert ask(bits(seconds, {"fp32": 0.0}), "precision", sixteen).after == "bf16"
    better = ask(bits(seconds, {"fp32": -0.3}), "precision", sixteen)
    assert (better.after, better.recipe.eps) == ("fp32", 1e-5)


def test_fp16_is_tried_on_cuda_and_the_fastest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "pick_device", lambda wanted: torch.device("cuda"))
    lab = bits({"fp32": 1.0, "bf16": 0.6, "fp16": 0.5}, {})
    assert ask(lab, "precision").after == "fp16"
    lab = bits({"fp32": 1.0, "bf16": 0.6, "fp16": 0.5}, {"fp16": 0.3})
    assert ask(lab, "precision").after == "bf16"
    monkeypatch.setattr(precision, "pick_device", lambda wanted: torch.device("mps"))
    assert precision.missing(lab.context.spec, []) == "16 bits are not tried on mps"


# --- what cannot matter


SGD = Recipe(optimizer="sgd", lr=0.1)


@pytest.mark.parametrize(
    ("stage", "recipe", "horizon", "reason"),
    [
        ("beta1", SGD, 40, "the recipe's optimizer, sgd, has no beta1"),
        ("beta2", SGD, 40, "the recipe's optimizer, sgd, has no beta2"),
        ("eps", SGD, 40, "the recipe's optimizer, sgd, has no eps"),
        ("warmup", Recipe(), 2, "a run of 2 steps has no other warmup to try"),
        ("groups", Recipe(), 40, "the model has no embeddings, heads or named groups beside the rest"),
        (
            "weight_decay",
            Recipe(groups=(GroupRule(name="all", match=Match(params=("*",)), weight_decay=0.1),)),
            40,
            "every param group has weight_decay of its own",
        ),
    ],
)
def test_a_stage_that_cannot_matter_is_left_out_by_auto_and_says_why_where_it_is_listed(
    stage: StageName, recipe: Recipe, horizon: int, reason: str
) -> None:
    groups = param_groups(recipe, nn.Linear(8, 2))
    auto = Spec(task=TaskSpec(ref="a:b"), horizon=horizon, base=recipe, budget=Budget(trials=10_000))
    names = [planned.name for planned in make_plan(auto, groups).stages]
    assert stage not in names
    assert "clip" in names
    lab = bench(with_noise(lambda r: 0.0), groups=groups, horizon=horizon, base=recipe, stages=[stage, "schedule"])
    run_plan(make_plan(lab.context.spec, groups), lab.context, Progress())
    answer = lab.context.answers[stage]
    assert (answer.verdict, answer.reason, answer.recipe) == (Verdict.UNASKED, reason, recipe)
    assert lab.context.answers["schedule"].verdict is not Verdict.UNASKED  # it goes on


@pytest.mark.parametrize(
    ("trials", "asked"),
    [
        (9, []),
        (10, ["beta1"]),
        (24, ["beta1"]),
        (25, ["findings", "portfolio", "beta1", "eps"]),
        (39, ["findings", "portfolio", "beta1", "eps"]),
        (40, [stage for stage in STAGES if stage not in ("lr_range", "lr", "precision")]),
        (50, [stage for stage in STAGES if stage not in ("lr_range", "lr")]),
    ],
)
def test_auto_asks_more_the_more_full_trials_it_can_pay(
    trials: int, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {name: stage.__class__(**{**vars(stage), "cost": lambda spec: 0}) for name, stage in REGISTRY.items()}
    monkeypatch.setattr("adamtune.plan.REGISTRY", free)
    monkeypatch.setattr("adamtune.plan.final_steps", lambda spec: 0)
    spec = Spec(task=TaskSpec(ref="a:b"), horizon=100, budget=Budget(trials=trials))
    names = [planned.name for planned in make_plan(spec, gpt()).stages]
    assert names == ["lr_range", "lr", *asked]


def test_choosing_costs_what_it_is_reckoned_with_where_nothing_is_known() -> None:
    """But for the confirmations, two recipes and the incumbent at the new lr: so clear a case takes three seeds."""
    lab = bench(with_noise(lambda r: bowl(r.lr, 1.5e-2) - 0.3 * (r.betas[1] in (0.95, 0.98)), scale=0.0))
    ask_for = Question("beta2", "?", [lab.context.spec.knob("beta2")])
    choose(lab.context, ask_for, BASE, numbers("beta2", BASE, (0.95, 0.98)))
    saved = 3 * (CONFIRM_SEEDS - 3) * lab.context.horizon
    assert lab.engine.steps == candidates_cost(lab.context.spec, 2) - saved  # two are never pruned


def test_schedules_are_judged_at_the_end_alone() -> None:
    lab = bench(with_noise(lambda r: -0.3 * (r.schedule.kind == "step")), horizon=40)
    lab.engine.early = lambda recipe, step: 5.0 * (recipe.schedule.kind == "step")
    assert ask(lab, "schedule").after == "step"
    assert {record.result.outcome for record in lab.records} == {Outcome.COMPLETED}


def test_the_contenders_differ_in_more_than_lr() -> None:
    def effect(recipe: Recipe) -> float:
        return {0.1: -0.3, 0.02: -0.1}.get(recipe.schedule.warmup, 0.1)  # type: ignore[call-overload, no-any-return]

    answer = ask(bench(with_noise(effect), horizon=100), "warmup")
    first, second = (each["candidate"].split(" ")[0] for each in answer.details["recentred"])
    assert (first, second) == ("0.1", "0.02")
