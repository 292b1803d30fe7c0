"""First configurations from runs with other objectives or data, and from tables."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeps.search.searcher import StudySearch
from tests.sweeps.helpers import finish, searcher


def earlier(raw: dict[str, Any], run: Path, **header: Any) -> None:
    """A run of six trials, accuracy and operations rising together; its front is all of them."""
    search = searcher(raw, run, trials=6)
    for number in range(6):
        finish(search, accuracy=number / 10, gmacs=float(number))
    goals = [
        {"metric": m, "mode": o} for m, o in (("accuracy", "max"), ("gmacs", "min"))
    ]
    said = {"objectives": goals, "spec": {"source": raw["source"], "data": raw["data"]}}
    (run / "run.json").write_text(json.dumps(said | header))


def first(search: StudySearch, count: int) -> list[dict[str, Any]]:
    return [finish(search, accuracy=0.5, gmacs=1.0).plan.draw for _ in range(count)]


def test_of_a_run_on_other_data_the_front_is_tried_first(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    old = tmp_path / "old"
    earlier(raw, old, spec={"source": raw["source"], "data": {"dataset": "cifar10"}})
    search = searcher(raw, tmp_path / "new", **{"from": [str(old)], "trials": 6})
    assert not search.study.get_trials()  # its values mean nothing here
    assert search.notes == [f"{old}: 4 of its front's configurations are tried first"]
    drawn = first(search, 2)
    plans = [json.loads(p.read_text()) for p in sorted(old.glob("trials/*/plan.json"))]
    # from one end of the front to the other
    assert drawn == [plans[5]["draw"], plans[3]["draw"]]
    search = searcher(raw, tmp_path / "new", **{"from": [str(old)], "trials": 6})
    assert first(search, 2) == [plans[2]["draw"], plans[0]["draw"]]  # each once
    assert search.num_trials == 2  # they count


def test_of_a_run_with_the_same_data_the_values_are_known(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    earlier(raw, tmp_path / "old")
    search = searcher(raw, tmp_path / "new", **{"from": [str(tmp_path / "old")]})
    assert len(search.study.get_trials()) == 6


def test_of_a_table_what_the_space_contains_is_taken(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    low = raw["search"]["space"]["stages.finetune.lr"]["low"]
    table = pd.DataFrame(
        {
            "config/finetune.lr": [low * 1.5, 1e9, low * 1.2],
            "config/elsewhere.width": [1, 2, 3],
            "metric/accuracy": [0.9, 0.95, 0.1],
        }
    )
    table.to_parquet(tmp_path / "records.parquet")
    options = {"from": [str(tmp_path / "records.parquet")], "trials": 4}
    search = searcher(raw, tmp_path / "a", **options)
    # the best has a learning rate that is none here
    assert "0 of its front" in search.notes[0]
    table["metric/gmacs"] = [1.0, 2.0, 0.5]
    table.to_parquet(tmp_path / "records.parquet")
    drawn = first(searcher(raw, tmp_path / "b", **options), 2)
    rates = [draw["stages.finetune.lr"] for draw in drawn]
    assert rates == pytest.approx([low * 1.5, low * 1.2])
