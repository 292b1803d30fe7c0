"""What the stage cache saved, and what was there before a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

import analysis
from analysis import costs, summary
from analysis.baseline import Baseline, from_json

TEACHER, TRAINED = "t" * 64, "r" * 64


def taught_run(make_run) -> analysis.Run:
    """Three trials that read the same teacher (100 s), of which two share what follows (10 s)."""

    def stage(name: str, key: str, cached: bool, full: float) -> dict:
        spent = 0.0 if cached else full
        facts = {"stage": "finetune", "phase": "train", "key": key, "cached": cached}
        return {
            "name": name,
            **facts,
            "seconds": spent,
            "seconds_full": full,
            "metrics": {},
        }

    def change(record: dict) -> None:
        number = record["number"]
        record["stages"] = [
            {"index": 0, **stage("teacher", TEACHER, True, 100.0)},
            {
                "index": 1,
                **stage("train", TRAINED if number else "x" * 64, number > 1, 10.0),
            },
        ]
        record |= {"status": "complete", "error": None}
        record["seconds"] = 10.0 if number < 2 else 0.0
        record["seconds_full"] = 110.0

    return analysis.load(make_run("taught", trials=3, change=change))


def test_a_shared_teacher_is_counted_once(make_run) -> None:
    run = taught_run(make_run)
    assert costs.shared_stages(run) == {"teacher"}
    total = summary.totals(run)
    assert total["seconds_saved"] == pytest.approx(10)
    table = summary.stage_table(run).set_index("name")
    assert table["saved"].to_dict() == {"teacher": 0, "train": 10}
    assert costs.earlier_stages(run) == [("teacher", 1, 100)]
    page = analysis.write_report(run).read_text()
    assert "and 1 min 40 s before this run: teacher" in page
    assert "without it 30 s; teacher once, as all share it" in page
    assert "teacher, computed before this run" in page


def test_what_the_baseline_computed_is_of_this_run(make_run) -> None:
    run = taught_run(make_run)
    found = Baseline("the source after teacher", {}, 105.0, (TEACHER,))
    assert costs.earlier_stages(replace(run, baseline=found)) == []
    assert from_json(found.to_json(), []) == found


def test_without_stages_there_is_nothing(make_run) -> None:
    run = analysis.load(make_run(trials=0))
    assert costs.shared_stages(run) == set()
    assert costs.earlier_stages(run) == []
    assert costs.shared_reading(run) == 0
