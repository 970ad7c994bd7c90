from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adamtune.report.findings import findings_section, related_statistics

RESULT = {"horizon": 8, "objective": {"name": "loss"}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Twelve trials: `a/r` falls with the loss, `a/m_hat` has nothing to do with it, and the last rung misleads."""
    rng = np.random.default_rng(0)
    losses, chance = rng.uniform(1, 2, 12), rng.permutation(12)
    trials = [
        {"study": "s", "trial": t, "outcome": "completed", "horizon": 8, "value": v} for t, v in enumerate(losses)
    ]
    trials.append({"study": "s", "trial": 12, "outcome": "pruned", "horizon": 8, "value": np.nan})
    rows = [
        {"study": "s", "trial": t, "step": step, "group": "a", "statistic": name, "percentile": place, "value": value}
        for t in range(12)
        for step, name, place, value in (
            (4, "r", "p50", chance[t]),
            (7, "r", "p50", -(losses[t] ** 3)),
            (8, "r", "p50", losses[t]),
            (7, "grad_norm", "", chance[t]),
            (7, "never", "", 0.0),
        )
    ]
    pd.DataFrame(trials).to_csv(tmp_path / "trials.csv", index=False)
    pd.DataFrame(rows).to_csv(tmp_path / "probe.csv", index=False)
    return tmp_path


def test_statistics_are_ranked_by_how_they_go_with_the_objective(run: Path) -> None:
    related = related_statistics(run, 8)
    assert list(related["statistic"]) == ["a r p50", "a grad_norm"]
    assert related["rho"][0] == pytest.approx(-1)
    assert abs(related["rho"][1]) < 0.6
    assert set(related["trials"]) == {12}


def test_few_trials_say_nothing(run: Path) -> None:
    trials = pd.read_csv(run / "trials.csv")
    trials.head(9).to_csv(run / "trials.csv", index=False)
    assert related_statistics(run, 8).empty
    assert findings_section(run, RESULT) is None


def test_statistics_that_never_vary_say_nothing(run: Path) -> None:
    probe = pd.read_csv(run / "probe.csv")
    probe.assign(value=1.0).to_csv(run / "probe.csv", index=False)
    assert related_statistics(run, 8).empty
    assert findings_section(run, RESULT) is None


def test_findings_are_told_and_escaped(run: Path) -> None:
    finding = {
        **{"rule": "eps-size", "severity": "warning", "told": "<b>eps</b> is large", "advice": "lower it"},
        **{"remedy": {"eps": 1e-8}, "seeds": {"raised": 4, "of": 5}},
    }
    section = findings_section(run, {**RESULT, "findings": [finding]})
    assert section is not None
    page = section.body
    assert "&lt;b&gt;eps&lt;/b&gt; is large" in page
    assert "4 of 5" in page
    assert "eps 1e-08" in page
    assert "-1.00" in page
    section = findings_section(run, {**RESULT, "findings": []})
    assert section is not None
    assert "Nothing was found" in section.body
