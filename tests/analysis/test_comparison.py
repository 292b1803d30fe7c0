"""Several runs as one, and groups compared by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

import analysis
from analysis import summary


def simple_run(make_run, name: str, rows: list[tuple[float, float, float]]):
    """A run whose complete trials have these (accuracy, gmacs, seconds), in this order."""

    def change(record):
        accuracy, gmacs, seconds = rows[record["number"]]
        start = pd.Timestamp("2026-03-04T09:00:00+00:00") + pd.Timedelta(
            seconds=100 * record["number"]
        )
        record |= {
            "status": "complete",
            "metrics": {"accuracy": accuracy, "gmacs": gmacs},
            "seconds": seconds,
        }
        record |= {
            "started": start.isoformat(),
            "ended": (start + pd.Timedelta(seconds=seconds)).isoformat(),
        }

    return analysis.load(make_run(name, trials=len(rows), change=change))


def test_compared_by_hand(make_run):
    """Reference: accuracy 0.5 - 0.04, gmacs 3 + 0.2, so the box is 0.44 x 2.2; volumes are
    rectangles in it.
    """
    a = simple_run(make_run, "a", [(0.5, 3.0, 10), (0.9, 2.0, 10), (0.7, 1.0, 20)])
    b = simple_run(make_run, "b", [(0.8, 1.5, 15)])
    found = analysis.compare_groups(analysis.merge([a, b]))
    assert found.reference == pytest.approx({"accuracy": 0.46, "gmacs": 3.2})
    box = 0.44 * 2.2
    first, second = found.groups
    assert (first.name, second.name) == ("a", "b")
    after_two = 0.44 * 1.2
    assert first.volume == pytest.approx((after_two + 0.24 * 1.0) / box)
    assert second.volume == pytest.approx(0.34 * 1.7 / box)
    assert (first.configurations, first.front, first.on_front) == (3, 2, 2)
    assert (second.configurations, second.front, second.on_front) == (1, 1, 1)
    assert (found.budget, found.time) == (1, 15)
    assert first.budget == pytest.approx(0.04 * 0.2 / box)  # one trial each
    assert first.at_time == pytest.approx(
        0.04 * 0.2 / box
    )  # its second trial ends after 20 s of trials
    assert second.at_time == pytest.approx(second.volume)
    assert first.best == pytest.approx((0.9, 1.0))
    assert (first.seconds, second.seconds) == (40, 15)
    assert first.curves["configurations"][0] == [1, 2, 3]
    assert first.curves["compute"][0] == [10, 20, 40]
    assert first.curves["wall"][0] == pytest.approx([10, 110, 220])
    assert math.isnan(first.spread)


def test_unequal_numbers_have_no_leader(make_run):
    a = simple_run(make_run, "a", [(0.5, 3.0, 10), (0.9, 2.0, 10), (0.7, 1.0, 20)])
    b = simple_run(make_run, "b", [(0.8, 1.5, 15)])
    both = analysis.merge([a, b])
    page = analysis.write_report(both).read_text()
    assert "which is better cannot be judged. After 1 configuration each" in page


def test_merge_keeps_trials_apart(make_run):
    a, b = analysis.load(make_run("a")), analysis.load(make_run("b/a", seed=1))
    merged = analysis.merge([a, b])
    assert len(merged.trials) == 80
    assert merged.trials["trial_id"].is_unique
    assert set(merged.trials["config/run"]) == {"a", "a (2)"}
    assert len(merged.configurations()) == len(a.configurations()) + len(
        b.configurations()
    )
    assert merged.source_of("a (2)/00003") == (b.path, "00003")
    assert len(merged.layers) == len(a.layers) + len(b.layers)
    best = merged.front().iloc[0]["trial_id"]
    assert summary.command(merged, best, "onnx").startswith(
        "sweeps export --format onnx -o "
    )


def test_merge_takes_shared_objectives_and_bounds(make_run):
    bounded = [
        {"metric": "gmacs", "mode": "min", "bound": 0.5},
        {"metric": "accuracy", "mode": "max", "bound": 0.5},
    ]
    a = analysis.load(make_run("a", header={"objectives": bounded}))
    b = analysis.load(
        make_run(
            "b",
            header={
                "objectives": [{"metric": "accuracy", "mode": "max", "bound": 0.5}]
            },
        )
    )
    merged = analysis.merge([a, b])
    assert [(o.metric, o.bound) for o in merged.objectives] == [
        ("gmacs", None),
        ("accuracy", 0.5),
    ]
    other = analysis.load(
        make_run("c", header={"objectives": [{"metric": "elsewhere", "mode": "min"}]})
    )
    with pytest.raises(ValueError, match="share no objective"):
        analysis.merge([other, b])
    with pytest.raises(ValueError, match="two runs or more"):
        analysis.merge([a])


def test_compared_by_a_parameter(make_run):
    run = analysis.load(make_run(trials=90, replicates=3))
    found = analysis.compare_groups(run, "init")
    assert {g.name for g in found.groups} == set(run.configurations()["config/init"])
    assert sum(g.configurations for g in found.groups) == len(run.configurations())
    assert [g.volume for g in found.groups] == sorted(
        (g.volume for g in found.groups), reverse=True
    )
    assert all(g.spread > 0 for g in found.groups)
    with pytest.raises(
        ValueError, match="no parameter 'nothing' to compare by; valid: init"
    ):
        analysis.compare_groups(run, "nothing")


def test_nothing_to_compare(make_run):
    run = analysis.load(make_run(trials=0))
    assert run.configurations().empty
    with pytest.raises(ValueError, match="nothing to compare"):
        analysis.compare_groups(run, "init")
