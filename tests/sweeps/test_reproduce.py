"""A trial again from its record alone: the same bits, or which condition differs, or why it
cannot be.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sweeps.check import load_spec
from sweeps.cli.main import app
from sweeps.run.record import TrialRecord, trial_records
from sweeps.search.searcher import StudySearch
from sweeps.spec.load import preset_names
from sweeps.trial.attempt import run_trial
from sweeps.trial.reproduce import (
    CannotReproduceError,
    is_measured,
    plan_of,
    read_record,
    reproduce,
)
from tests.sweeps.helpers import COMMON, searcher

QUICK = ("evaluate", "wfn-cifar10", "ws-vit-t-cifar100")


def tiny_records(name: str, storage: Path, data_cache: Path) -> list[dict[str, Any]]:
    """Records of a preset's tiny variant: one for each sequence of methods among its trials."""
    checked = load_spec(name, [f"storage={storage}"], tiny=True)
    run = storage / name
    run.mkdir()
    common = COMMON | {
        "run": str(run),
        "cache": str(storage / "_cache"),
        "data_cache": str(data_cache),
    }
    search = StudySearch(checked, run, common | {"measure": {"latency": False}})
    seen: set[tuple[str, ...]] = set()
    while isinstance(suggestion := search.suggest(str(len(seen))), dict):
        methods = tuple(stage["stage"] for stage in suggestion["plan"]["stages"])
        if methods not in seen:
            seen.add(methods)
            assert run_trial(suggestion["plan"])["status"] == "complete"
    return [record.content for record in trial_records(run)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in preset_names()
    ],
)
def test_bit_identical(name: str, tmp_path: Path, data_cache: Path) -> None:
    for record in tiny_records(name, tmp_path, data_cache):
        found = reproduce(json.loads(json.dumps(record)), data_cache=data_cache)
        assert found.conditions == []
        assert found.tolerance == 0
        assert {row.name for row in found.rows} == {
            name for name in record["metrics"] if not is_measured(name)
        }
        assert found.same, [row for row in found.rows if not row.same]
        assert all(row.new == row.old or row.new != row.new for row in found.rows)
        assert not [note for note in found.notes if "inputs differ" in note]


@pytest.fixture
def run(raw: dict[str, Any], tmp_path: Path, data_cache: Path) -> Path:
    """A run with one complete trial, 00000, and a failed one."""
    folder = Path(raw["storage"]) / "small"
    search = searcher(raw, folder, trials=2)
    (folder / "run.json").write_text("{}")
    common = {
        "cache": str(folder.parent / "_cache"),
        "data_cache": str(data_cache),
        "measure": {"latency": False},
    }
    plan = search.suggest("a")["plan"] | common  # type: ignore[index]
    assert run_trial(plan)["status"] == "complete"
    TrialRecord.begin(
        folder / "trials" / "00001", {"trial_id": "00001", "number": 1}
    ).finish("failed", error="no")
    return folder


def edited(run: Path, change: dict[str, Any]) -> None:
    path = run / "trials/00000/record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def again(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["reproduce", *arguments])


def test_the_exit_code_says_it(run: Path) -> None:
    same = again(str(run), "00000")
    assert same.exit_code == 0, same.output
    assert "trial 00000: reproduced" in same.output
    assert "equal to the last bit" in same.output
    record = read_record(run, "00000")
    edited(
        run,
        {
            "metrics": (
                record["metrics"] | {"loss": record["metrics"]["loss"] * (1 + 1e-12)}
            )
        },
    )
    other = again(str(run), "00000")
    assert other.exit_code == 1
    assert "differs in loss" in other.output
    edited(run, {"versions": record["versions"] | {"torch": "1.0.0"}})
    within = again(str(run), "00000")
    assert within.exit_code == 0, within.output
    assert "torch 1.0.0 then" in within.output
    edited(
        run,
        {
            "versions": record["versions"] | {"torch": "1.0.0"},
            "metrics": record["metrics"] | {"loss": 9.0},
        },
    )
    assert again(str(run), "00000").exit_code == 1
    assert again(str(run), "00000", "--tolerance", "10").exit_code == 0


def test_what_cannot_be_run_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = read_record(run, "00000")
    for arguments, message in [
        ([str(run), "00007"], "no trial '00007'; its trials: 00000, 00001"),
        ([str(run), "00001"], "trial 00001 is failed; only a complete trial"),
        (["nowhere", "00000"], "nowhere: not a run folder"),
        ([str(run), "00000", "--tolerance", "-1"], "Invalid value for '--tolerance'"),
    ]:
        result = again(*arguments)
        assert result.exit_code == 2
        assert message in result.output
    for change, message in [
        (
            {"inputs": record["inputs"] | {"data": "0" * 64}},
            r"the data in digits are not the trial's: fingerprint .* 0000",
        ),
        (
            {"inputs": record["inputs"] | {"source": "0" * 64}},
            r"the source model vit_tiny.* is not the trial's",
        ),
        ({"inputs": {}}, "lacks the hashes of its inputs"),
        ({"source": record["source"] | {"checkpoint": "/no/file"}}, "no/file"),
    ]:
        edited(run, record | change)
        result = again(str(run), "00000")
        assert result.exit_code == 2, result.output
        with pytest.raises((CannotReproduceError, ValueError), match=message):
            reproduce(read_record(run, "00000"))
    edited(run, record | {"device": record["device"] | {"type": "cuda"}})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = again(str(run), "00000")
    assert result.exit_code == 2
    assert "--device cpu compares within a tolerance" in result.output


def test_workers_become_accumulation(run: Path, tmp_path: Path) -> None:
    record = read_record(run, "00000") | {"world_size": 3}
    plan = plan_of(record, tmp_path, "cpu", tmp_path)
    assert plan["workers"] == 1
    sizes = {s["name"]: s["config"].get("max_batch_per_worker") for s in plan["stages"]}
    assert sizes["teacher"] == sizes["finetune"] == 10  # 30 over 3


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("latency_ms", True),
        ("wfn_seconds", True),
        ("latency_p25_ms", True),
        ("accuracy", False),
        ("latency_estimated", False),
    ],
)
def test_times_are_not_compared(name: str, measured: bool) -> None:
    assert is_measured(name) == measured
