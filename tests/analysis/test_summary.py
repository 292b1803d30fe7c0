"""A run in numbers and words."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

import analysis
from analysis import summary
from analysis.baseline import Baseline
from analysis.metrics import Metric
from analysis.report import words


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


def _with_baseline(run: analysis.Run, **metrics: float) -> analysis.Run:
    return replace(run, baseline=Baseline("the source", metrics))


def test_the_front_by_what_it_loses(demo_run: analysis.Run) -> None:
    """Against every pair by hand: no member that loses no more is cheaper than the one offered."""
    run = _with_baseline(demo_run, accuracy=0.9)
    kept, cost = summary.kept_and_cost(run) or pytest.fail("no metric to keep")
    assert (kept.metric, cost.mode) == ("accuracy", "min")
    offered = summary.within_loss(run)
    front = run.front()
    lost = (0.9 - front["metric/accuracy"]).clip(lower=0)
    prices = front[f"metric/{cost.metric}"]
    assert len(offered) > 2
    for allowed in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5):
        fitting = prices[lost <= allowed + 1e-9]
        found = summary.cheapest_within(offered, allowed)
        if fitting.empty:
            assert found is None
        else:
            assert found is not None
            assert prices[found.row] == fitting.min()
    assert [m.loss for m in offered] == sorted(m.loss for m in offered)


def test_without_a_baseline_nothing_is_offered_by_loss(demo_run: analysis.Run) -> None:
    assert summary.within_loss(demo_run) == []
    assert summary.within_loss(_with_baseline(demo_run, gmacs=1.0)) == []


@pytest.mark.parametrize(
    ("unit", "before", "after", "words"),
    [
        ("fraction", 0.9, 0.75, "−15 points"),
        ("fraction", 0.5, 0.5, "the same"),
        ("ms", 10.0, 2.5, "4 × lower"),
        ("ms", 10.0, 9.0, "10 % lower"),
        ("bytes", 100.0, 300.0, "3 × higher"),
        ("bytes", 7.0, 7.0, "the same"),
        ("1", 0.0, 4.0, "0 → 4"),
    ],
)
def test_differences_in_words(
    unit: str, before: float, after: float, words: str
) -> None:
    metric = Metric("m", "", unit)
    assert summary._difference(metric, before, after) == words


def test_a_report_without_a_front_says_why(make_run) -> None:
    def report(status: str, **changes: Any) -> str:
        def change(record: dict[str, Any]) -> None:
            record |= {"status": status, "error": None, "metrics": {}} | changes

        path = make_run(f"run-{status}-{len(changes)}", trials=3, change=change)
        return str(words.parts(analysis.load(path), None)["summary"])

    assert "--watch</code> shows what runs" in report("running")
    error = {"type": "ValueError", "message": "no", "traceback": ""}
    assert "stands under Failures" in report("failed", error=error)
    metrics = {"accuracy": 0.5, "gmacs": float("nan")}
    said = report("complete", metrics=metrics)
    assert "3 of 3 have accuracy, 0 of 3 have gmacs" in said


def test_a_bound_that_nothing_keeps_is_named(demo_run: analysis.Run) -> None:
    first, *others = demo_run.objectives
    bounded = replace(
        demo_run, objectives=[replace(first, bound=0.999), *others], baseline=None
    )
    said = str(words.parts(bounded, None)["summary"])
    assert re.search(r"0 of \d+ keep accuracy ≥ 99\.90\u00a0% \(best \d\d\.\d\d", said)


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (-0.012, "−1.2"),
        (-3 / 288, "−1.04"),
        (-0.01, "−1"),
        (-0.0100004, "−1.00004"),
        (0.0524, "+5.24"),
        (-0.409722, "−41"),
    ],
)
def test_points_do_not_round_onto_a_limit(difference: float, words: str) -> None:
    assert summary.points(difference) == words


def test_a_difference_names_its_part_and_the_test_set(demo_run: analysis.Run) -> None:
    classes = pd.DataFrame(
        {"trial_id": ["00000"] * 2, "images": [200, 88], "test_images": [9, 9]}
    )
    run = replace(
        _with_baseline(demo_run, accuracy=0.9, test_accuracy=0.8), classes=classes
    )
    row = pd.Series({"metric/accuracy": 0.89, "metric/test_accuracy": 0.77})
    said = "accuracy −1 points (validation, 288 images; test −3 points)"
    assert summary.beside_baseline(run, row, with_parts=True) == said
    assert summary.beside_baseline(run, row) == "accuracy −1 points"
