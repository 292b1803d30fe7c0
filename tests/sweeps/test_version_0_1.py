"""A run folder that version 0.1 made: it loads, goes on, and its trials are reproduced."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import analysis
from sweeps.cli.main import app
from sweeps.drive.driver import run_sweep
from sweeps.resume import reopen, resumed_spec
from sweeps.run.plan import plan_of_schema_1, read_plan
from sweeps.run.record import TrialRecord
from sweeps.trial.reproduce import read_record, reproduce
from tests.sweeps.helpers import records

MADE_BY_0_1 = Path(__file__).parent.parent / "fixtures" / "run-0.1"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy, in a folder that may be written to."""
    folder = tmp_path / "runs" / "run-0.1"
    shutil.copytree(MADE_BY_0_1, folder)
    return folder


def test_its_records_have_today_s_types(run: Path) -> None:
    found = records(run)
    assert {trial_id: record.status for trial_id, record in found.items()} == {
        "00000": "complete",
        "00001": "failed",
        "00002": "complete",
        "00003": "pruned",
        "00004": "complete",
    }
    first, failed, pruned = found["00000"], found["00001"], found["00003"]
    assert [stage.kind for stage in first.plan.stages] == [
        "finetune",
        "weight_selection",
        "finetune",
    ]
    assert first.plan.configuration["stages.init"] == "weight_selection"
    assert first.plan.stopping is not None
    assert first.plan.stopping.stage == "finetune"
    assert first.machine is not None
    assert first.machine.device.type == "cpu"
    assert set(first.outcome.inputs) == {"source", "data"}
    assert len(first.outcome.stage_runs) == 3
    assert failed.outcome.error is not None
    assert failed.outcome.error.type == "NonFiniteLossError"
    assert pruned.outcome.pruned is not None
    assert pruned.outcome.pruned.epoch == 1


def test_what_is_written_again_is_of_today(run: Path) -> None:
    before = records(run)["00001"]
    assert reopen(run, "failed") == 1
    folder = run / "trials" / "00001"
    assert json.loads((folder / "record.json").read_text())["schema"] == 2
    assert read_plan(folder) == before.plan
    after = TrialRecord.read(folder)
    assert after is not None
    assert (after.status, after.attempts) == ("interrupted", before.attempts)


def test_a_layer_map_is_read_from_the_stage_that_it_became() -> None:
    """Of a sub-pipeline's stage, of a slot's alternative, and of a stage."""
    numbers = {"a.x[3 onto 2 #0]": 0.4, "stages.lr": 1.0}
    paths = ["stages.init.sws.expand.map", "stages.start.lets.map", "stages.last.map"]
    draw: dict[str, Any] = {f"{path}[3 onto 2 #0]": 0.4 for path in paths}
    pipeline = [
        {"name": name, "stage": "s", "config": {"map": [0, i, i]}}
        for i, name in enumerate(("expand", "start", "last"))
    ]
    record = {"trial_id": "0", "number": 0, "params": draw | {"stages.init": "sws"}}
    found = plan_of_schema_1(record | {"pipeline": pipeline})["configuration"]
    assert found == {"stages.init": "sws"} | {
        path: [0, i, i] for i, path in enumerate(paths)
    }
    assert numbers


def test_it_goes_on(run: Path, ray_session: None) -> None:
    before = records(run)
    budget = ["search.trials=6", "search.early_stopping=null", "resources.cpus=2"]
    outcome = run_sweep(resumed_spec(run, budget))
    after = records(run)
    assert list(after) == [f"{i:05d}" for i in range(6)]
    assert all(after[trial_id] == record for trial_id, record in before.items())
    assert after["00005"].status in ("complete", "failed")
    assert (run / "trials/00005/plan.json").is_file()
    loaded = analysis.load(outcome.folder)
    assert not loaded.problems
    assert len(loaded.trials) == 6
    # the new trial's columns are those of the old ones
    columns = loaded.trials.set_index("trial_id")
    shared = ["config/init", "config/finetune.lr", "config/source.model"]
    assert columns.loc[["00000", "00005"], shared].notna().all(axis=None)


def test_its_trials_are_reproduced(run: Path, data_cache: Path) -> None:
    found = reproduce(read_record(run, "00002"), data_cache=data_cache, tolerance=1e-3)
    assert found.same, [row for row in found.rows if not row.same]
    result = CliRunner().invoke(app, ["reproduce", str(run), "00002"])
    assert result.exit_code == 0, result.output
