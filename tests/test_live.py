"""A sweep while it runs, at a terminal and in a pipe."""

from __future__ import annotations

import io
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Group

from adamtune.diagnosis import Finding, Severity, Told
from adamtune.evidence import Verdict
from adamtune.history import Outcome, TrialResult
from adamtune.plan import make_plan
from adamtune.report.console import PlainConsole
from adamtune.report.live import SweepLines
from adamtune.report.screen import screen_lines
from adamtune.report.so_far import SoFar, clock, spent_told, standing_told
from adamtune.report.sparkline import ASCII, binned, sparkline
from adamtune.report.terminal import print_result
from adamtune.spec import Spec, load_spec
from adamtune.stages.context import Seeds, StageAnswer, TrialRecord
from adamtune.trial import RungReport, TrialRequest
from tests.terminals import OTHER_SCREEN, OWN_SCREEN, said_at, terminal, without_codes
from tests.test_report import make_result

TASKS = Path(__file__).parent / "tasks_for_tests.py"
SIZES = [(80, 24), (40, 24), (40, 8), (120, 50), (20, 3), (1, 1), (200, 12)]


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    path = tmp_path / "spec.yaml"
    path.write_text(
        f"task: {{ref: '{TASKS}:separable'}}\nhorizon: 80\nbudget: {{trials: 100, time: 10m}}\n"
        "stages: [lr, findings, beta1, eps, beta2, weight_decay, schedule]\n"
    )
    return load_spec(path)


class Watched:
    """A sweep of which everything is told by the test, and its clock."""

    def __init__(self, spec: Spec) -> None:
        self.now = 100.0
        self.spec, self.so_far = spec, SoFar(spec, Path("runs/test"), lambda: self.now)
        self.so_far.on_plan(make_plan(spec), [])

    def trained(self, *requests: TrialRequest, rungs: int = 8) -> None:
        """To so many of eight rungs, the loss falling from 1 by a tenth each."""
        self.so_far.on_begin(requests)
        for rung in range(rungs):
            self.so_far.on_steps(10 * len(requests))
            report = RungReport(10 * (rung + 1), [1 - rung / 10] * 10, {"loss": 1 - rung / 10})
            self.so_far.on_rung(requests, [report] * len(requests))

    def ended(self, *requests: TrialRequest, value: float = 0.5) -> None:
        self.trained(*requests)
        self.so_far.on_end(requests)
        for number, request in enumerate(requests):
            result = TrialResult(request, Outcome.COMPLETED, 80, (), 1.0)
            self.so_far.on_trial(TrialRecord("lr", "test/lr", number, result, value))

    def screen(self, width: int = 80, height: int = 24) -> list[str]:
        return [line.plain for line in screen_lines(self.so_far, width, height)]


@pytest.fixture
def watched(spec: Spec) -> Watched:
    return Watched(spec)


def test_a_sparkline_has_the_height_of_its_values_on_a_log_scale() -> None:
    assert sparkline([1, 10, 100], 1, 100) == "▁▅█"
    assert sparkline([-1, 0, 1], -1, 1) == "▁▅█"  # where it cannot be a log scale
    assert sparkline([1e9, 1e-9, math.nan, math.inf, 0], 1, 2, ASCII) == "#_xx_"
    assert sparkline([3, 3], 3, 3) == "▁▁"
    assert binned([1, 3, 5, 7, math.nan, math.nan], 3) == pytest.approx([2, 6, math.nan], nan_ok=True)
    assert (binned([], 3), binned([1, 2], 3), binned([1], 0)) == ([], [1, 2], [])


def test_steps_and_time_are_told_beside_their_budget(watched: Watched) -> None:
    assert spent_told(watched.so_far) == ["0 of 8,000 steps", "0:00 of 10:00", "ETA -:--"]
    watched.so_far.on_stage("lr", "?")
    watched.now += 10
    watched.trained(*(TrialRequest(watched.spec.base, seed, 80) for seed in range(5)), rungs=4)
    steps, seconds, _ = spent_told(watched.so_far)
    assert (steps, seconds) == ("200 of 8,000 steps", "0:10 of 10:00")
    left = watched.so_far.expected - 200
    assert left == 7_800  # the stages would take more than there is
    assert watched.so_far.eta == pytest.approx(left * 10 / 200)
    watched.now += 580
    assert watched.so_far.eta <= 10 + 600 / 200 * watched.so_far.plan.final_steps  # type: ignore[union-attr]
    assert [clock(each) for each in (59.6, 3723, math.nan)] == ["1:00", "1:02:03", "-:--"]


def test_steps_of_a_batch_are_counted_once(watched: Watched) -> None:
    first, second = (TrialRequest(watched.spec.base, seed, 80) for seed in (1, 2))
    watched.ended(first)
    assert watched.so_far.spent == 80
    watched.trained(second, rungs=3)
    assert watched.so_far.spent == 110
    assert watched.so_far.trials == 1


def test_what_an_answer_leaves_unspent_is_no_longer_expected(watched: Watched) -> None:
    plan = watched.so_far.plan
    assert plan is not None
    for stage in plan.stages:
        watched.so_far.on_stage(stage.name, "?")
        watched.so_far.on_answer(StageAnswer(stage.name, "?", Verdict.UNASKED, "", watched.spec.base))
    assert watched.so_far.expected == plan.final_steps


def test_the_incumbent_is_compared_on_seeds_that_chose_nothing(watched: Watched) -> None:
    base, other = watched.spec.base, watched.spec.base.with_knob("lr", 0.02)
    assert standing_told(watched.so_far) == ["incumbent: the default"]
    watched.so_far.on_answer(StageAnswer("lr", "?", Verdict.CHANGED, "", other, 0.001, 0.02))
    seeds = Seeds.of(watched.spec, 0)
    for recipe, value in ((base, 0.1), (other, 0.01)):
        watched.ended(*(TrialRequest(recipe, seed, 80) for seed in seeds.search), value=value)
    assert standing_told(watched.so_far) == ["incumbent: not compared with the default yet"]
    watched.ended(*(TrialRequest(base, seed, 80) for seed in seeds.confirm[:3]), value=0.4)
    watched.ended(*(TrialRequest(other, seed, 80) for seed in seeds.confirm[:2]), value=0.1)
    assert standing_told(watched.so_far) == ["incumbent: loss 0.1", "default: 0.4", "ratio 0.250", "2 seeds"]


def test_trials_that_end_leave_the_screen_and_others_stay(watched: Watched) -> None:
    watched.so_far.on_stage("lr", "?")
    one, two, three = (TrialRequest(watched.spec.base.with_knob("lr", lr), 0, 80) for lr in (0.01, 0.02, 0.03))
    watched.trained(one, two, rungs=1)
    watched.trained(three, rungs=2)  # another batch
    assert [each.step for each in watched.so_far.running] == [20, 10, 10]  # the best first
    watched.so_far.on_rung([one, two], [None, RungReport(20, [], {"loss": 0.1})])
    assert [each.request for each in watched.so_far.running] == [two, three]
    watched.so_far.on_end([one, two])
    assert [each.request for each in watched.so_far.running] == [three]


def filled(watched: Watched) -> None:
    """Everything that a screen can show, and more than fits."""
    recipe = watched.spec.base.with_knob("lr", 0.02).with_knob("beta1", 0.8)
    watched.so_far.on_stage("lr", "Which learning rate trains best over the whole run?")
    watched.so_far.on_answer(StageAnswer("lr", "?", Verdict.CHANGED, "", recipe, 0.001, 0.02))
    watched.so_far.on_note("a note of which nobody knows how long it is " * 3)
    for group in ("head", "\x1b[31mred", "埋め込み" * 30):
        finding = Finding("rule", Severity.WARNING, f"something is wrong in {group}", "mend it", group)
        watched.so_far.on_findings([Told(finding, 2, 3)])
    watched.so_far.on_stage("beta1", "Does a shorter or longer memory of the gradient train better?")
    watched.trained(*(TrialRequest(recipe.with_knob("beta1", b), 3, 80) for b in (0.1, 0.2, 0.3, 0.4, 0.5)), rungs=5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("full", [True, False])
def test_no_screen_is_larger_than_the_terminal(watched: Watched, size: tuple[int, int], full: bool) -> None:
    if full:
        filled(watched)
    width, height = size
    for ascii_only in (False, True):
        lines = [line.plain for line in screen_lines(watched.so_far, width, height, ascii_only)]
        assert 0 < len(lines) <= height
        assert max(map(cell_len, lines)) <= width
        assert "\x1b" not in "".join(lines)
        assert not ascii_only or re.sub("[埋め込み]", "", "".join(lines)).isascii()


def test_the_screen_has_plan_trials_budget_incumbent_and_findings(watched: Watched) -> None:
    filled(watched)
    screen = "\n".join(watched.screen())
    assert "250 of 8,000 steps" in screen
    assert "lr           changed 0.001 -> 0.02" in screen
    assert "▸ beta1        under way" in screen
    assert "· weight_decay" in screen
    assert "· final" in screen
    assert "beta1, 5 trials under way, 0 ended: Does a shorter" in screen
    assert re.search(r"seed 3 beta1 0\.\d +█+▇?[▁-█]+ █[▁-█]{4} +0\.6 50/80", screen)
    assert "warning: something is wrong in head" in screen
    assert "lr 0.001 -> 0.02, beta1 0.9 -> 0.8" in screen


def test_a_long_plan_is_shown_around_the_stage_under_way(watched: Watched) -> None:
    filled(watched)
    for width, height in ((40, 14), (120, 12)):
        assert any("▸ beta1" in line for line in watched.screen(width, height)), (width, height)


def test_what_was_said_last_stays(watched: Watched) -> None:
    filled(watched)
    watched.so_far.on_note("stopping after this rung")
    assert watched.screen()[-1] == "stopping after this rung"


def test_no_color_takes_the_colours_off(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(watched)
    drawn = {}
    for no_color in (False, True):
        monkeypatch.delenv("NO_COLOR", raising=False)
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        console = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard", width=80, height=24)
        with console.capture() as capture:
            console.print(Group(*screen_lines(watched.so_far, 80, 24)))
        drawn[no_color] = capture.get()
    assert "\x1b[32m" in drawn[False]
    assert set(re.findall(r"\x1b\[[\d;]*m", drawn[True])) == {"\x1b[1m", "\x1b[2m", "\x1b[0m"}
    assert without_codes(drawn[False]) == without_codes(drawn[True])


# --- the command


def a_spec(folder: Path, pause: float = 0.0, rest: str = "") -> Path:
    path = folder / "slow.yaml"
    path.write_text(
        f"task: {{ref: '{TASKS}:separable', args: {{pause: {pause}}}}}\nhorizon: 20\n"
        f"budget: {{trials: 300}}\nseeds: 2\nengine: sequential\n{rest or 'stages: [beta1, eps]'}\n"
    )
    return path


def test_at_a_terminal_a_sweep_has_a_screen_that_is_gone_at_the_end(tmp_path: Path) -> None:
    said = said_at("sweep", a_spec(tmp_path, 0.001), "--run-dir", "run", cwd=tmp_path)
    before, _, rest = said.partition(OTHER_SCREEN)
    screens, _, after = rest.rpartition(OWN_SCREEN)
    assert before == ""
    assert re.search(r"^[\d,]+ of 6,000 steps, 0:\d\d, ETA ", without_codes(screens), re.MULTILINE)
    assert "▸ beta1" in screens
    assert "trials under way" in screens
    assert "run directory:" not in without_codes(after)
    assert "recommended: loss" in after
    assert without_codes(after).splitlines()[-1].endswith("run/recipe.yaml")
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")  # the cursor is back


def frames(said: str) -> list[list[str]]:
    """The screens drawn, line by line."""
    drawn = [without_codes(frame).splitlines() for frame in said.split("\x1b[H")[1:]]
    return [frame for frame in drawn if frame]


def test_the_screen_follows_the_terminal_in_size(tmp_path: Path) -> None:
    spec = a_spec(tmp_path, 0.01)
    with terminal("sweep", spec, "--run-dir", "run", cwd=tmp_path, columns=80, rows=24) as at:
        at.read_until(lambda said: "under way" in said)
        at.resize(40, 12)
        drawn = len(frames(at.said))
        at.read_until(lambda said: len(frames(said)) > drawn + 4)
        first, last = frames(at.said)[0], frames(at.said)[-2]
    assert max(map(cell_len, first)) == 80
    assert len(last) <= 12
    assert max(map(cell_len, last)) == 40


def test_ctrl_c_is_answered_on_the_screen_and_lets_the_rung_end(tmp_path: Path) -> None:
    with terminal("sweep", a_spec(tmp_path, 0.8), "--run-dir", "run", cwd=tmp_path) as at:
        at.read_until(lambda said: re.search(r"[1-9]\d* of 6,000", said) is not None)
        at.press("\x03")
        assert at.code() == 130
        screens, _, after = at.said.rpartition(OWN_SCREEN)
    assert "stopping after this rung; press Ctrl-C again to stop at once" in without_codes(screens)
    assert without_codes(after).startswith("adamtune: interrupted; what has been measured is in run;")


def test_a_sweep_that_is_killed_gives_the_terminal_back(tmp_path: Path) -> None:
    with terminal("sweep", a_spec(tmp_path, 0.02), "--run-dir", "run", cwd=tmp_path) as at:
        at.read_until(lambda said: "under way" in said)
        os.kill(at.process.pid, signal.SIGTERM)
        assert at.code() == -signal.SIGTERM
    assert at.said.rindex(OWN_SCREEN) > at.said.rindex(OTHER_SCREEN)


def test_what_a_task_prints_is_let_out_when_the_screen_is_gone(tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(
        "import sys\nimport tasks_for_tests\n\ndef task():\n    made = tasks_for_tests.separable()\n"
        "    print('said by the task')\n    loss = made.loss\n"
        "    def telling(model, batch):\n        print('in training', file=sys.stderr, flush=True)\n"
        "        return loss(model, batch)\n"
        "    object.__setattr__(made, 'loss', telling)\n    return made\n"
    )
    spec = a_spec(tmp_path)
    spec.write_text(spec.read_text().replace(f"{TASKS}:separable", "talks.py:task").replace("pause: 0.0", ""))
    env = {"PYTHONPATH": str(TASKS.parent)}
    said = said_at("sweep", spec, "--run-dir", "run", cwd=tmp_path, env=env)
    screens, _, after = said.rpartition(OWN_SCREEN)
    assert "in training" not in screens
    assert without_codes(after).count("in training\n") > 100
    assert without_codes(after).index("said by the task") < without_codes(after).index("recommended:")


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "true", "NO_COLOR": "1"}], ids=["dumb", "CI"])
def test_where_no_screen_can_be_drawn_there_are_lines(tmp_path: Path, env: dict[str, str]) -> None:
    said = said_at("sweep", a_spec(tmp_path), "--run-dir", "run", cwd=tmp_path, env=env)
    assert OTHER_SCREEN not in said
    assert "TERM" not in env or "\x1b" not in said
    text = without_codes(said)
    assert text.startswith("run directory: run\n")
    assert max(map(len, text.splitlines())) <= 80


def test_in_a_pipe_lines_say_stage_trials_steps_and_incumbent(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "adamtune", "sweep", str(a_spec(tmp_path)), "--run-dir", "run"]
    clean = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    line = r"^  (beta1|eps|final): 25 trials, \d+ of 6,000 steps, 0:\d\d, ETA [0:\d-]+, incumbent: .*$"
    assert re.search(line, done.stderr, re.MULTILINE), done.stderr
    assert re.search(r"^beta1: Does .*\?\n  kept: .*$", done.stderr, re.MULTILINE) or "changed" in done.stderr


@pytest.mark.parametrize(
    ("stage", "before", "after", "reason", "line"),
    [
        ("lr", 0.001, 0.09, "lr 0.09: better by evidence", "changed: 0.001 -> 0.09: better by evidence"),
        ("beta1", 0.9, 0.8, "beta1 0.8 at lr 0.02: better", "changed: 0.9 -> 0.8 at lr 0.02: better"),
        ("weight_decay", 0.01, 0.056234, "weight_decay 0.056234: better", "changed: 0.01 -> 0.05623: better"),
        ("warmup", 0.05, {"steps": 500}, "warmup 500 steps: better", "changed: 0.05 -> 500 steps: better"),
        ("beta1", 0.9, 0.8, "beta1 0.85 at lr 0.02: better", "changed: 0.9 -> 0.8, beta1 0.85 at lr 0.02: better"),
        ("precision", "fp32", "bf16", "bf16 takes 0.6 of it", "changed: fp32 -> bf16, bf16 takes 0.6 of it"),
        ("beta1", 0.9, 0.9, "beta1 0.8: lr alone: better", "changed: beta1 0.8: lr alone: better"),
    ],
)
def test_a_change_is_said_once_in_its_line_and_in_its_row(
    spec: Spec, stage: str, before: object, after: object, reason: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = io.StringIO()
    lines = SweepLines(spec, Path("run"), PlainConsole(file=said, soft_wrap=True))
    lines.on_answer(StageAnswer(stage, "?", Verdict.CHANGED, reason, spec.base, before, after))
    assert said.getvalue() == f"  {line}\n"
    answered = {"stage": stage, "verdict": "changed", "before": before, "after": after, "reason": reason}
    print_result(make_result() | {"stages": [answered]}, Path("run"))
    (row,) = (row for row in capsys.readouterr().out.splitlines() if row.startswith(f" {stage} "))
    why = re.sub(r"^changed: (\S+ -> \S+( steps)?)?[:, ]*", "", line)
    assert row.rstrip().endswith(f"  {why}")
