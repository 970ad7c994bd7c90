"""The stages that try another optimizer: `switch` for the end of the run, `optimizer` for all of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
from formulas import NAN, Bench, Formula, bench, noise
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch import nn

from adamtune import Task
from adamtune.diagnosis.finding import Record
from adamtune.diagnosis.settling import late_to_middle, unready
from adamtune.engines import make_engine
from adamtune.evidence import Verdict
from adamtune.groups import param_groups
from adamtune.plan import Progress, make_plan, run_plan
from adamtune.recipe import GroupRule, Match, Recipe, Schedule, Switch
from adamtune.report.tables import trials_table
from adamtune.search import close_storage, open_storage
from adamtune.spec import Spec, StageName, TaskSpec
from adamtune.stages import REGISTRY, optimizer, switch
from adamtune.stages.context import Budget, Seeds, StageAnswer, StageContext
from adamtune.stages.optimizer import as_adamw, as_sgd, at_lr
from adamtune.stages.own_lr import SGD_LR, matching_lr
from adamtune.trial import Outcome

ADAMW = Recipe(
    lr=1e-2,
    weight_decay=0.1,
    groups=(
        GroupRule(name="no_decay", match=Match(kind=("bias",)), weight_decay=0.0),
        GroupRule(name="head", match=Match(kind=("head",)), weight_decay=0.4),
    ),
)
SGD = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3)


def bowl(lr: float, best: float) -> float:
    return math.log10(lr / best) ** 2


def with_noise(effect: Callable[[Recipe], float], scale: float = 1e-3) -> Formula:
    """1, plus what the recipe is worth, plus the seed's own level, plus noise that no two recipes share."""
    return lambda recipe, seed: 1 + effect(recipe) + noise(0.5, seed) + noise(scale, seed, recipe.training_key())


def at_rest(share: float) -> dict[str, float]:
    """A probe of a run whose gradients cancel more and more while their size stays."""
    return {
        "default/m_hat/p50": 1e-3 if share < 0.75 else 1e-4,
        "no_decay/m_hat/p50": 2e-3 if share < 0.75 else 2e-4,
        "default/sqrt_v_hat/p50": 2e-3,
        "default/sqrt_v_hat/p90": 1e-2,
    }


def lab_of(effect: Callable[[Recipe], float], **options: object) -> Bench:
    lab = bench(with_noise(effect), **{"horizon": 100, "base": ADAMW, **options})
    lab.engine.probe_at = at_rest
    return lab


def ask(lab: Bench, stage: StageName, incumbent: Recipe = ADAMW) -> StageAnswer:
    return REGISTRY[stage].run(lab.context, incumbent)


def tried(lab: Bench, stage: str, **wanted: object) -> list[Recipe]:
    recipes = [record.result.request.recipe for record in lab.records if record.stage == stage]
    return [recipe for recipe in recipes if all(recipe.knob(key) == value for key, value in wanted.items())]


# --- where SGD's lr is looked for


def test_sgd_starts_where_it_moves_weights_as_far_as_adam_did() -> None:
    probes = [{"a/sqrt_v_hat/p90": value, "a/sqrt_v_hat/p50": 1.0} for value in (1e-3, 2e-3, 9.0)]
    assert matching_lr(Recipe(lr=1e-2, eps=0.0), probes) == pytest.approx(1e-2 * 0.1 / 2e-3)
    assert matching_lr(Recipe(lr=1e-2, eps=2e-3), probes) == pytest.approx(1e-2 * 0.1 / 4e-3)
    for nothing in ([], [{"a/m_hat/p50": 1.0}], [{"a/sqrt_v_hat/p90": 0.0}]):
        assert matching_lr(ADAMW, nothing) == SGD_LR
    assert matching_lr(SGD, probes) == SGD_LR  # its lr says nothing of Adam's steps


def test_a_matched_lr_scales_with_the_loss_as_sgds_best_does() -> None:
    def start(scale: float) -> float:
        return matching_lr(ADAMW, [{"a/sqrt_v_hat/p90": 1e-2 * scale}])

    assert start(100.0) == pytest.approx(start(1.0) / 100, rel=1e-3)


# --- optimizer: what is kept and what is not


def decays(recipe: Recipe) -> list[float | None]:
    return [recipe.weight_decay, *(rule.weight_decay for rule in recipe.groups)]


def shrinkage(recipe: Recipe) -> list[float]:
    """Of a weight left alone, a step, in torch: SGD's momentum adds each decay 1 / (1 - momentum) times."""
    memory = 1 - recipe.momentum if recipe.optimizer == "sgd" else 1.0
    return [recipe.lr * (decay or 0.0) / memory for decay in decays(recipe)]


def test_sgd_and_adamw_shrink_weights_as_fast_at_whatever_lr() -> None:
    sgd = as_sgd(ADAMW, 0.25)
    assert (sgd.optimizer, sgd.lr, sgd.momentum) == ("sgd", 0.25, 0.9)
    assert shrinkage(sgd) == pytest.approx(shrinkage(ADAMW))
    assert shrinkage(at_lr(sgd, 0.7)) == pytest.approx(shrinkage(ADAMW), rel=0.01)
    back = as_adamw(sgd, ADAMW.lr)
    assert decays(back) == pytest.approx(decays(ADAMW))
    assert shrinkage(at_lr(ADAMW, 3e-2)) == pytest.approx(shrinkage(ADAMW), rel=0.01)


@pytest.mark.parametrize("recipe", [ADAMW, as_sgd(ADAMW, 0.25)])
def test_torch_shrinks_an_idle_weight_as_told(recipe: Recipe) -> None:
    plain = recipe.model_copy(update={"groups": (), "schedule": Schedule(kind="constant", warmup=0.0)})
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer, _ = plain.build(model, total_steps=400)
    for _ in range(400):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    assert -math.log(model.weight.item()) == pytest.approx(400 * shrinkage(plain)[0], rel=0.03)


def test_sgd_keeps_the_l2_of_adam_and_drops_a_switch() -> None:
    adam = ADAMW.model_copy(update={"optimizer": "adam", "switch": Switch(at=0.8, lr=0.1)})
    sgd = as_sgd(adam, 0.25)
    assert (decays(sgd), sgd.switch) == (decays(adam), None)
    assert decays(at_lr(adam, 3e-2)) == decays(adam)
    assert Recipe.from_yaml(sgd.to_yaml()) == sgd


def test_adam_is_tried_without_decay_and_with_a_little_and_keeps_every_knob() -> None:
    incumbent = ADAMW.model_copy(update={"betas": (0.8, 0.99), "clip_norm": 1.0, "switch": Switch(at=0.9, lr=0.1)})
    lab = lab_of(lambda r: 0.0)
    answer = ask(lab, "optimizer", incumbent)
    assert answer.details["candidates"] == ["adam", "adam with L2 0.0001", "sgd"]
    adams = tried(lab, "optimizer", optimizer="adam", lr=1e-2)
    assert {tuple(decays(recipe)) for recipe in adams} == {(0.0, 0.0, 0.0), (1e-4, 0.0, 1e-4)}
    for recipe in adams:
        assert set(incumbent.diff(recipe)) <= {"optimizer", "weight_decay", "groups.head.weight_decay"}
    (sgd, *_) = tried(lab, "optimizer", optimizer="sgd")
    assert (sgd.switch, sgd.clip_norm, sgd.schedule) == (None, 1.0, incumbent.schedule)


def test_an_adamw_without_decay_is_not_tried_as_adam_without() -> None:
    lab = lab_of(lambda r: 0.0)
    assert ask(lab, "optimizer", Recipe(weight_decay=0.0)).details["candidates"] == ["adam with L2 0.0001", "sgd"]


def test_adamw_in_place_of_adam_decays_over_about_the_run() -> None:
    adam = ADAMW.model_copy(update={"optimizer": "adam", "weight_decay": 1e-4})
    lab = lab_of(lambda r: bowl(r.lr, 1e-2) - 0.3 * (r.optimizer == "adamw"))
    answer = ask(lab, "optimizer", adam)
    assert (answer.before, answer.after, answer.verdict) == ("adam", "adamw", Verdict.CHANGED)
    assert decays(answer.recipe) == [1.0, 0.0, 1.0]  # 1 / (lr * horizon)
    assert answer.recipe.lr == adam.lr


# --- optimizer: what is decided


def test_sgd_is_taken_where_it_is_better_at_an_lr_of_its_own() -> None:
    def effect(recipe: Recipe) -> float:
        return bowl(recipe.lr, 0.3) - 0.4 if recipe.optimizer == "sgd" else bowl(recipe.lr, 1e-2)

    lab = lab_of(effect)
    answer = ask(lab, "optimizer")
    assert (answer.verdict, answer.before, answer.after) == (Verdict.CHANGED, "adamw", "sgd")
    assert answer.recipe.lr == pytest.approx(0.3, rel=0.1)
    assert shrinkage(answer.recipe) == pytest.approx(shrinkage(ADAMW), rel=0.02)
    assert answer.reason.startswith(f"optimizer sgd at lr {answer.recipe.lr:.3g}: better by evidence")
    assert not tried(lab, "optimizer", optimizer="adamw", lr=answer.recipe.lr)  # which would tell nothing
    (response,) = answer.details["responses"]
    assert response["horizon"] == 25
    assert len(response["lrs"]) == len([r for r in lab.engine.opened if r.horizon == 25]) <= 5
    assert lab.engine.steps <= REGISTRY["optimizer"].cost(lab.context.spec)


def test_an_sgd_behind_midway_is_judged_at_the_end() -> None:
    lab = lab_of(lambda r: -0.4 * (r.optimizer == "sgd"))
    lab.engine.early = lambda recipe, step: 5.0 * (recipe.optimizer == "sgd")
    assert ask(lab, "optimizer").after == "sgd"


def test_the_specs_range_of_lr_is_adams_and_does_not_bound_sgd() -> None:
    lab = lab_of(
        lambda r: bowl(r.lr, 0.3) - 0.4 if r.optimizer == "sgd" else bowl(r.lr, 1e-2),
        space={"lr": {"low": 8e-3, "high": 1.2e-2}},
    )
    assert ask(lab, "optimizer").recipe.lr == pytest.approx(0.3, rel=0.1)
    assert {recipe.lr for recipe in tried(lab, "optimizer", optimizer="adam")} == {1e-2}


def test_adam_at_another_lr_must_beat_adamw_at_that_lr() -> None:
    lab = lab_of(lambda r: bowl(r.lr, 1.3e-2) + 9.0 * (r.optimizer == "sgd"))
    answer = ask(lab, "optimizer")
    assert answer.after == "adamw"
    assert answer.recipe.lr == pytest.approx(1.3e-2, rel=0.1)
    assert "does not bring alone" in answer.reason


def test_what_is_no_better_is_kept() -> None:
    changed = 0
    for run in range(10):
        lab = lab_of(lambda r: 0.0, seed=run)
        lab.engine.formula = with_noise(lambda r: 0.0, scale=0.1)
        answer = ask(lab, "optimizer")
        assert (answer.after == "adamw") == (answer.verdict is Verdict.KEPT)
        changed += answer.verdict is Verdict.CHANGED
    assert changed <= 1
    worse = ask(lab_of(lambda r: 0.5 * (r.optimizer != "adamw")), "optimizer")
    assert (worse.verdict, worse.recipe) == (Verdict.KEPT, ADAMW)
    assert worse.reason == "none of adam, adam with L2 0.0001, sgd did better on 2 seeds"


def test_from_sgd_adam_and_adamw_are_tried_at_an_lr_of_theirs() -> None:
    lab = lab_of(lambda r: bowl(r.lr, 3e-3) - 0.4 if r.optimizer == "adamw" else bowl(r.lr, 0.1), base=SGD)
    answer = ask(lab, "optimizer", SGD)
    assert answer.details["candidates"] == ["adamw", "adam with L2 0.001"]
    assert (answer.verdict, answer.after) == (Verdict.CHANGED, "adamw")
    assert answer.recipe.lr == pytest.approx(3e-3, rel=0.1)
    assert shrinkage(answer.recipe) == pytest.approx(shrinkage(SGD), rel=0.02)
    plain = ask(lab_of(lambda r: 0.0, base=SGD), "optimizer", SGD.with_knob("weight_decay", 0.0))
    assert plain.details["candidates"] == ["adamw"]


def test_an_sgd_that_always_diverges_is_left_out_and_the_reason_says_so() -> None:
    lab = lab_of(lambda r: NAN if r.optimizer == "sgd" else 0.5 * (r.optimizer == "adam"))
    answer = ask(lab, "optimizer")
    assert (answer.verdict, answer.recipe) == (Verdict.KEPT, ADAMW)
    assert answer.reason == (
        "none of adam, adam with L2 0.0001 did better on 2 seeds; "
        "sgd was left out: every short trial diverged, from lr 0.1 downwards"
    )
    assert len(tried(lab, "optimizer", optimizer="sgd")) == 5
    assert {r.horizon for r in lab.engine.opened if r.recipe.optimizer == "sgd"} == {25}
    from_sgd = ask(lab_of(lambda r: NAN if r.optimizer != "sgd" else 0.0, base=SGD), "optimizer", SGD)
    assert from_sgd.reason == "adam and adamw were left out: every short trial diverged, from lr 0.001 downwards"
    assert (from_sgd.verdict, from_sgd.recipe) == (Verdict.KEPT, SGD)


def test_sparse_embeddings_leave_nothing_to_ask() -> None:
    class Rows(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            self.rows, self.head = nn.EmbeddingBag(10, 4, sparse=sparse, mode="sum"), nn.Linear(4, 2)

    spec = Spec(task=TaskSpec(ref="a:b"), horizon=100, base=SGD)
    sparse = "the model has tables with sparse gradients, of which SGD keeps ever longer momenta"
    assert optimizer.missing(spec, param_groups(SGD, Rows(True))) == sparse
    assert optimizer.missing(spec, param_groups(SGD, Rows(False))) == ""


# --- switch: when it is asked


def rungs(**values: list[float]) -> list[tuple[int, Record]]:
    """Records at eighths of 80 steps; values of `group__statistic` at the last six."""
    return [
        (10 * (place + 3), {f"{name.replace('__', '/')}/p50": row[place] for name, row in values.items()})
        for place in range(6)
    ]


def test_late_is_told_from_midway_group_by_group() -> None:
    seen = rungs(a__m_hat=[4.0, 4.0, 4.0, 1.0, 1.0, 9.0], b__m_hat=[1.0, 1.0, 1.0, 4.0, 4.0, 4.0])
    assert late_to_middle(seen, "m_hat", 80) == pytest.approx(math.sqrt(0.25 * 4.0))
    assert late_to_middle(seen, "sqrt_v_hat", 80) is None
    assert late_to_middle(seen[:3], "m_hat", 80) is None  # nothing late
    assert late_to_middle(rungs(a__m_hat=[0.0] * 6), "m_hat", 80) is None
    both = seen + rungs(a__m_hat=[4.0] * 3 + [2.0] * 3, b__m_hat=[1.0] * 6)
    assert late_to_middle(both, "m_hat", 80) == pytest.approx(math.sqrt(0.5 * 2.5))


@pytest.mark.parametrize(
    ("m_hat", "root_v_hat", "reason"),
    [
        (0.3, 0.8, ""),
        (0.75, 1.7, ""),
        (0.76, 0.8, "m_hat has not decayed: late in the run it is 0.76 times what it was midway (at most 0.75)"),
        (0.3, 0.5, "v_hat has not settled: late in the run sqrt(v_hat) is 0.50 times what it was midway"),
        (0.3, 1.8, "v_hat has not settled: late in the run sqrt(v_hat) is 1.80 times what it was midway"),
        (None, 0.8, "nothing was recorded of Adam's state late in the run"),
        (0.3, None, "nothing was recorded of Adam's state late in the run"),
    ],
)
def test_sgd_may_take_over_when_m_has_decayed_and_v_has_settled(
    m_hat: float | None, root_v_hat: float | None, reason: str
) -> None:
    told = unready(m_hat, root_v_hat)
    assert told.startswith(reason)
    assert bool(told) == bool(reason)


def test_where_adam_is_still_on_its_way_nothing_but_the_incumbent_is_trained() -> None:
    lab = lab_of(lambda r: -0.3 * (r.switch is not None))
    lab.engine.probe_at = lambda share: {**at_rest(0.0), "default/m_hat/p50": 1e-3 + share * 1e-4}
    answer = ask(lab, "switch")
    assert (answer.verdict, answer.recipe) == (Verdict.UNASKED, ADAMW)
    assert answer.reason.startswith("m_hat has not decayed: late in the run it is 1.0")
    assert answer.details["late_to_middle"]["sqrt_v_hat"] == 1.0
    assert lab.engine.steps == 2 * 100
    lab.engine.probe_at = None
    assert ask(lab, "switch", Recipe()).reason == "nothing was recorded of Adam's state late in the run"


def test_records_are_those_of_whatever_trial_of_the_incumbent_was_probed() -> None:
    """One that was a candidate before has them on the confirmation seeds alone."""
    lab = lab_of(lambda r: -0.3 * (r.betas[0] == 0.8))
    incumbent = ask(lab, "beta1").recipe
    assert incumbent.betas[0] == 0.8
    assert ask(lab, "switch", incumbent).verdict is not Verdict.UNASKED


@pytest.mark.parametrize(
    ("base", "horizon", "reason"),
    [
        (SGD, 100, "the recipe's optimizer, sgd, makes all of the run"),
        (ADAMW.with_knob("switch", {"at": 0.6, "lr": 0.1}), 100, "the recipe hands over already, at 0.6 of the run"),
        (ADAMW, 7, "a run of 7 steps is too short to hand over in"),
    ],
)
def test_a_recipe_that_cannot_hand_over_is_not_asked(base: Recipe, horizon: int, reason: str) -> None:
    lab = lab_of(lambda r: 0.0, base=base, horizon=horizon, stages=["switch"])
    assert run_plan(make_plan(lab.context.spec), lab.context, Progress()) == base
    answer = lab.context.answers["switch"]
    assert (answer.verdict, answer.reason, lab.engine.steps) == (Verdict.UNASKED, reason, 0)


# --- switch: what is decided


def handed(recipe: Recipe, at: float = 0.8, lr: float = 0.2, gain: float = 0.3) -> float:
    """A switch is best at `at` with `lr`; Adam alone is worth 0."""
    if recipe.switch is None:
        return 0.0
    return bowl(recipe.switch.lr, lr) + 3 * abs(recipe.switch.at - at) - gain


@pytest.mark.parametrize("at", [0.7, 0.8, 0.9])
def test_a_hand_over_that_is_better_is_taken_where_it_is_best_at_sgds_own_lr(at: float) -> None:
    lab = lab_of(lambda r: handed(r, at))
    answer = ask(lab, "switch")
    assert (answer.verdict, answer.before) == (Verdict.CHANGED, None)
    assert answer.after == answer.recipe.switch.model_dump()  # type: ignore[union-attr]
    assert answer.after["at"] == at
    assert answer.after["lr"] == pytest.approx(0.2, rel=0.1)
    assert answer.recipe.with_knob("switch", None) == ADAMW
    assert answer.reason.startswith(f"switch {at} at lr {answer.after['lr']:.3g}: better by evidence")
    assert lab.engine.steps <= REGISTRY["switch"].cost(lab.context.spec)
    assert {r.result.outcome for r in lab.records if r.result.request.recipe.switch} == {Outcome.COMPLETED}


def test_the_short_test_is_long_enough_for_sgd_to_step() -> None:
    lab = lab_of(handed, horizon=300)
    ask(lab, "switch")
    short = [r for r in lab.engine.opened if r.horizon < 300]
    assert {r.horizon for r in short} == {100}
    assert {r.recipe.switch.at for r in short} == {0.8}  # type: ignore[union-attr]
    assert all(r.switch_at == 80 for r in short)
    start = 1e-2 * 0.1 / 1e-2  # by the probe
    first = [r.recipe.switch.lr for r in short[:2]]  # type: ignore[union-attr]
    assert first == pytest.approx([start * 10**-0.25, start * 10**0.25], rel=1e-4)


def test_the_gap_is_told_and_the_objective_decides() -> None:
    lab = lab_of(lambda r: handed(r, gain=-0.2))
    lab.engine.early = lambda recipe, step: -1.0 if recipe.switch is None else -0.125
    answer = ask(lab, "switch")
    assert (answer.verdict, answer.recipe) == (Verdict.KEPT, ADAMW)
    assert answer.reason == (
        "none of 0.7, 0.8, 0.9 did better on 2 seeds; "
        "gap between validation and training loss 0.115, without a switch 0.917"  # 11 of the last 12 steps
    )
    assert set(answer.details["gaps"]) == {"none", "0.7", "0.8", "0.9"}
    taken = ask(lab_of(handed), "switch")
    assert set(taken.details["gaps"]) == {*answer.details["gaps"], "taken, confirmed", "none, confirmed"}
    confirmed = taken.details["gaps"]["taken, confirmed"]
    assert taken.evidence is not None
    assert confirmed["validation"] == pytest.approx(sum(taken.evidence.challenger) / len(taken.evidence.challenger))


def test_a_gap_is_validation_less_the_last_eighth_of_training() -> None:
    lab = lab_of(lambda r: 0.0, seeds=1)
    lab.engine.early = lambda recipe, step: -0.5 if step > 88 else -40.0
    (result,) = lab.context.measure("x", ADAMW, lab.context.seeds.search)
    found = switch.gap(lab.context, ADAMW, lab.context.seeds.search)
    assert found is not None
    assert result.rungs[-2].step == 88
    assert found["validation"] == result.final()
    assert found["gap"] == found["validation"] - found["training"] == pytest.approx(0.5 * 11 / 12)
    assert switch.gap(lab.context, SGD, lab.context.seeds.search) is None


def test_an_sgd_that_cannot_take_over_leaves_the_recipe_as_it_is() -> None:
    lab = lab_of(lambda r: NAN if r.switch else 0.0)
    answer = ask(lab, "switch")
    assert (answer.verdict, answer.recipe) == (Verdict.KEPT, ADAMW)
    assert answer.reason == "SGD cannot take over: every short trial diverged, from lr 0.1 downwards"
    assert len(tried(lab, "switch")) == 2 + 5


def test_optuna_alone_reads_both_stages(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    lab = lab_of(lambda r: handed(r) - 0.5 * (r.optimizer == "sgd"))
    spec = lab.context.spec
    storage = open_storage(None, path)
    context = StageContext(spec, lab.engine, storage, Budget(), Seeds.of(spec, 5))
    REGISTRY["optimizer"].run(context, REGISTRY["switch"].run(context, ADAMW).recipe)
    close_storage(storage)
    stock = JournalStorage(JournalFileBackend(str(path)))

    def params(study: str) -> list[dict[str, object]]:
        return [trial.params for trial in optuna.load_study(study_name=f"run/{study}", storage=stock).trials]

    assert {row["at"] for row in params("switch/candidates")} == set(switch.FRACTIONS)
    assert all(set(row) == {"at", "sgd_lr"} for row in params("switch/candidates"))
    assert all(set(row) == {"sgd_lr"} for row in params("switch/100-steps"))
    assert all(set(row) == {"lr"} for row in params("optimizer/25-steps"))
    rows = params("optimizer/candidates")
    assert {(row["optimizer"], *sorted(set(row) - {"optimizer", "lr"})) for row in rows} == {
        ("adam",),
        ("adam", "weight_decay"),
        ("sgd", "lr_times_weight_decay"),
    }
    best = optuna.load_study(study_name="run/optimizer/candidates", storage=stock).best_params
    assert best["optimizer"] == "sgd"


def test_the_table_of_trials_tells_which_optimizer_and_where_it_hands_over() -> None:
    lab = lab_of(lambda r: handed(r) - 0.5 * (r.optimizer == "sgd"))
    REGISTRY["optimizer"].run(lab.context, REGISTRY["switch"].run(lab.context, ADAMW).recipe)
    table = trials_table(lab.records)
    assert set(table["optimizer"]) == {"adamw", "adam", "sgd"}
    assert set(table.query("optimizer == 'sgd'")["momentum"]) == {0.9}
    assert table.query("optimizer != 'sgd'")["momentum"].isna().all()
    assert table.query("optimizer == 'sgd'")[["beta1", "beta2", "eps"]].isna().all(axis=None)
    assert set(table.query("optimizer == 'adamw'")["beta1"]) == {0.9}
    told = table.query("stage == 'switch'")["switch"]
    assert (told == "").sum() == sum(r.result.request.recipe.switch is None for r in lab.records if r.stage == "switch")
    assert told.str.match(r"to sgd, at 0\.[789], lr [\d.e-]+, momentum 0\.9").sum() == (told != "").sum() > 0
    assert set(table.query("optimizer == 'sgd'")["switch"]) == {""}


# --- trained for real


def round_bowl() -> Task:
    """A quadratic curved alike in all directions: SGD slows down as it comes near, Adam only as its schedule does."""
    centre = torch.linspace(-20.0, 20.0, 50)

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.at = nn.Parameter(torch.zeros(50, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.at.squeeze(1) + x

    noise_of = torch.Generator().manual_seed(0)
    rows = 0.1 * torch.randn(256, 50, generator=noise_of)
    rows -= rows.mean(0)
    return Task.supervised(
        Point,
        (rows, torch.zeros(256)),
        (torch.zeros(8, 50), torch.zeros(8)),
        lambda output, target: (output - centre).pow(2).mean(),
        batch_size=32,
        name="quadratic",
    )


def test_on_a_round_bowl_sgd_is_found_and_taken() -> None:
    base = Recipe(lr=1.0, weight_decay=0.0)  # AdamW at 0.3 gives 1.0, at 0.6 gives 0.003, at 3 gives 0.00007
    spec = Spec(task=TaskSpec(ref="a:b"), horizon=150, seeds=2, base=base)
    engine = make_engine("sequential", round_bowl(), torch.device("cpu"), lambda n: None, lambda note: None, 0.5)
    context = StageContext(spec, engine, InMemoryStorage(), Budget(), Seeds.of(spec, 5))
    answer = optimizer.run(context, base)
    assert (answer.verdict, answer.after) == (Verdict.CHANGED, "sgd")
    assert answer.evidence is not None
    assert max(answer.evidence.challenger) < 0.5 * min(answer.evidence.incumbent)
