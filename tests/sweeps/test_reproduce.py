"""A trial again from its plan and record alone: the same bits, or which condition differs, or
why it cannot be.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compress.pipeline import stages
from sweeps.check import load_spec
from sweeps.cli.main import app
from sweeps.run.plan import TrialPlan
from sweeps.run.record import TrialRecord, trial_records
from sweeps.run.storage import RunStorage
from sweeps.search.searcher import StudySearch
from sweeps.spec.load import preset_names
from sweeps.trial.attempt import run_trial
from sweeps.trial.reproduce import (
    CannotReproduceError,
    allowed_difference,
    plan_again,
    read_record,
    reproduce,
    times_of,
)
from tests.sweeps.helpers import plan, searcher, site

QUICK = ("evaluate", "wfn-cifar10", "ws-vit-t-cifar100")


def tiny_records(name: str, storage: Path, data_cache: Path) -> list[TrialRecord]:
    """Records of a preset's tiny variant: one for each sequence of methods among its trials."""
    sweep = load_spec(name, [f"storage={storage}"], tiny=True)
    run = storage / name
    run.mkdir()
    search = StudySearch(sweep, RunStorage(run))
    seen: set[tuple[str, ...]] = set()
    while (plan := search.ask()) is not None:
        methods = tuple(stage.kind for stage in plan.stages)
        if methods not in seen:
            seen.add(methods)
            outcome = run_trial(without_latency(plan), site(run, data_cache=data_cache))
            assert outcome.status == "complete", outcome.error
    return [record for record in trial_records(run) if record.status == "complete"]


def without_latency(plan: TrialPlan) -> TrialPlan:
    measure = plan.measure.model_copy(update={"latency": False})
    return plan.model_copy(update={"measure": measure})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in preset_names()
    ],
)
def test_bit_identical(name: str, tmp_path: Path, data_cache: Path) -> None:
    for record in tiny_records(name, tmp_path, data_cache):
        found = reproduce(record, data_cache=data_cache)
        assert found.conditions == []
        assert found.is_exact
        compared = record.outcome.metrics.keys() - times_of(record)
        assert {row.name for row in found.rows} == compared
        assert found.same, [row for row in found.rows if not row.same]
        assert all(row.new == row.old or row.new != row.new for row in found.rows)
        assert not [note for note in found.notes if "inputs differ" in note]


@pytest.fixture
def run(raw: dict[str, Any], tmp_path: Path, data_cache: Path) -> Path:
    """A run with one complete trial, 00000, and a failed one."""
    folder = Path(raw["storage"]) / "small"
    search = searcher(raw, folder, trials=2)
    (folder / "run.json").write_text("{}")
    planned = search.ask()
    assert planned is not None
    outcome = run_trial(without_latency(planned), site(folder, data_cache=data_cache))
    assert outcome.status == "complete", outcome.error
    failed = TrialRecord.begin(folder / "trials" / "00001", plan("00001", number=1))
    failed.finish("failed", error="no")
    return folder


def edited(run: Path, change: dict[str, Any], file: str = "record.json") -> None:
    path = run / "trials/00000" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def again(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["reproduce", *arguments])


def test_the_exit_code_says_it(run: Path) -> None:
    same = again(str(run), "00000")
    assert same.exit_code == 0, same.output
    assert "trial 00000: reproduced" in same.output
    assert "equal to the last bit" in same.output
    record = read_record(run, "00000").to_json()
    metrics, machine = record["metrics"], record["machine"]
    edited(run, {"metrics": metrics | {"loss": metrics["loss"] * (1 + 1e-12)}})
    other = again(str(run), "00000")
    assert other.exit_code == 1
    assert "differs in loss" in other.output
    old_torch = machine | {"versions": machine["versions"] | {"torch": "1.0.0"}}
    edited(run, {"machine": old_torch})
    within = again(str(run), "00000")
    assert within.exit_code == 0, within.output
    assert "torch 1.0.0 then" in within.output
    edited(run, {"machine": old_torch, "metrics": metrics | {"loss": 9.0}})
    assert again(str(run), "00000").exit_code == 1
    assert again(str(run), "00000", "--tolerance", "10").exit_code == 0


def test_what_cannot_be_run_is_explained(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_record(run, "00000").to_json()
    for arguments, message in [
        ([str(run), "00007"], "no trial '00007'; its trials: 00000, 00001"),
        ([str(run), "00001"], "trial 00001 is failed; only a complete trial"),
        (["nowhere", "00000"], "nowhere: not a run folder"),
        ([str(run), "00000", "--tolerance", "-1"], "Invalid value for '--tolerance'"),
    ]:
        result = again(*arguments)
        assert result.exit_code == 2
        assert message in result.output
    inputs = record["inputs"]
    for change, message in [
        (
            {"inputs": inputs | {"data": "0" * 64}},
            r"the data in digits are not the trial's: fingerprint .* 0000",
        ),
        (
            {"inputs": inputs | {"source": "0" * 64}},
            r"the source model vit_tiny.* is not the trial's",
        ),
        ({"inputs": {}}, "lacks the hashes of its inputs"),
    ]:
        edited(run, record | change)
        result = again(str(run), "00000")
        assert result.exit_code == 2, result.output
        with pytest.raises(CannotReproduceError, match=message):
            reproduce(read_record(run, "00000"))
    device = record["machine"]["device"] | {"type": "cuda"}
    edited(run, record | {"machine": record["machine"] | {"device": device}})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = again(str(run), "00000")
    assert result.exit_code == 2
    assert "--device cpu compares within a tolerance" in result.output
    source = json.loads((run / "trials/00000/plan.json").read_text())["source"]
    edited(run, {"source": source | {"checkpoint": "/no/file"}}, "plan.json")
    edited(run, record)
    with pytest.raises(ValueError, match="no/file"):
        reproduce(read_record(run, "00000"))


def test_workers_become_accumulation(run: Path) -> None:
    record = read_record(run, "00000")
    assert record.machine is not None
    record.machine = record.machine.model_copy(update={"world_size": 3})
    again = plan_again(record)
    sizes = {s.name: s.config.get("max_batch_per_worker") for s in again.stages}
    assert sizes["teacher"] == sizes["finetune"] == 10  # 30 over 3
    assert again.stopping is None


def test_times_are_not_compared() -> None:
    kinds = [{"name": kind, "kind": kind, "config": {}} for kind in stages()]
    times = times_of(TrialRecord(Path(), plan(stages=kinds)))
    assert {"latency_ms", "latency_p25_ms"} <= times
    assert not times & {"accuracy", "loss", "num_params", "gmacs"}


@pytest.mark.parametrize(
    ("name", "then", "now", "same"),
    [
        ("accuracy", 0.12, 0.16, False),  # of 10,000 validation images
        ("accuracy", 0.12, 0.125, True),
        ("test_accuracy", 0.12, 0.16, True),  # of 100 test images: within the error
        ("test_accuracy", 0.12, 0.4, False),
        ("accuracy", 1.0, 0.9999, True),  # one image
        ("num_params", 1000, 1001, False),
        ("num_params", 1000, 1000, True),
        ("gmacs", 1.0, 1.0 + 1e-9, True),
        ("gmacs", 1.0, 1.001, False),
        ("loss", 2.0, 2.05, True),
        ("loss", 0.1, 0.14, False),
    ],
)
def test_what_may_differ_follows_from_the_metric(
    name: str, then: float, now: float, same: bool
) -> None:
    images = {True: 100, False: 10_000}
    allowed, words = allowed_difference(name, then, now, num_images=images)
    assert (abs(now - then) <= allowed) == same, words
