"""A run in numbers and words."""

from __future__ import annotations

import pytest

import analysis
from analysis import summary


def test_summary(make_run):
    run = analysis.load(make_run())
    table = summary.front_table(run)
    assert list(table.columns[:4]) == ["trial_id", "accuracy", "gmacs", "init"]
    assert len(table) == len(run.front())
    total = summary.totals(run)
    assert total["seconds_saved"] == pytest.approx(
        (run.trials["seconds_full"] - run.trials["seconds"]).sum()
    )
    stages = summary.stage_table(run).set_index("name")
    assert stages.loc["finetune", "runs"] == 40
    assert stages.loc["finetune", "hits"] == 9
    assert stages.loc["finetune", "saved"] == pytest.approx(9 * (30 - 0.02))
    failures = summary.failures(run)
    assert failures[["count", "alike"]].to_numpy().tolist() == [[3, 3]]
    assert failures.loc[0, "error"] == run.trials["error"].dropna().iloc[0]
