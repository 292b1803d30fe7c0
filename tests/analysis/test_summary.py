"""A run in numbers and words."""

from __future__ import annotations

import pytest

from analysis import summary


def test_summary(demo_run):
    table = summary.front_table(demo_run)
    assert list(table.columns[:4]) == ["trial_id", "accuracy", "gmacs", "init"]
    assert len(table) == len(demo_run.front())
    total = summary.totals(demo_run)
    assert total["seconds_saved"] == pytest.approx(
        (demo_run.trials["seconds_full"] - demo_run.trials["seconds"]).sum()
    )
    stages = summary.stage_table(demo_run).set_index("name")
    assert stages.loc["finetune", "runs"] == 40
    assert stages.loc["finetune", "hits"] == 9
    assert stages.loc["finetune", "saved"] == pytest.approx(9 * (30 - 0.02))
    failures = summary.failures(demo_run)
    assert failures[["count", "alike"]].to_numpy().tolist() == [[3, 3]]
    assert failures.loc[0, "error"] == demo_run.trials["error"].dropna().iloc[0]
