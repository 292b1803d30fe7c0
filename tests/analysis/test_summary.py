"""A run in numbers and words."""

from __future__ import annotations

import pytest

import analysis
from analysis import summary
from analysis.metrics import Metric


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


@pytest.mark.parametrize(
    ("unit", "before", "after", "text"),
    [
        ("fraction", 0.9, 0.932, "+3.2 points m"),
        ("ms", 2.0, 4.8, "2.4 × the m"),
        ("ms", 2.0, 1.24, "−38 % m"),
        ("ms", 2.0, 2.0, ""),
        ("ms", -1.0, 3.0, "m -1 ms → 3 ms"),
    ],
)
def test_change(unit, before, after, text):
    assert summary.change(Metric("m", "", unit), before, after) == text


def test_seeds_stand_in_the_front_table(make_run):
    run = analysis.load(make_run(trials=30, replicates=3))
    assert {"seeds", "accuracy sd", "gmacs sd"} <= set(summary.front_table(run))
    text = summary.front_text(run)
    assert text["accuracy"].str.contains("±").any()
    assert "seeds" in text
    assert summary.command(run, "-a", "reproduce").startswith("sweeps reproduce -- ")
