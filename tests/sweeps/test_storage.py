"""A sweep whose storage is a URI: records, study, tables and cache are in the store, and
any machine goes on from there.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.check import check_spec
from sweeps.drive.driver import run_sweep
from sweeps.resume import resumed_spec
from sweeps.run.folder import trial_folder
from sweeps.run.record import TrialRecord
from sweeps.run.storage import MirroredStorage, find_run, local_run, run_storage
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.helpers import plan, records
from trainers.remote import Remote, child_uri, parent_uri


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SWEEPS_MIRROR", str(tmp_path / "mirror"))
    return (tmp_path / "bucket").as_uri()


def test_a_sweep_lives_in_the_store(
    ray_session: None,
    uri: str,
    tmp_path: Path,
    raw: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw |= {"storage": uri, "search": raw["search"] | {"trials": 2}}
    first = run_sweep(check_spec(spec_from(raw)))
    run = Remote(uri)
    kept = {name.removeprefix(f"{raw['name']}/") for name in run.files(raw["name"])}
    assert {
        "run.json",
        "spec.yaml",
        "study.journal",
        "report.html",
        "parquet/trials/part-00000.parquet",
    } <= kept
    assert not any(
        name.startswith(("tune/", "workers/", "driver.json")) for name in kept
    )
    before = records(first.folder)
    for trial_id in before:
        stored = tmp_path / f"bucket/{raw['name']}/trials/{trial_id}"
        assert json.loads((stored / "plan.json").read_text())["trial_id"] == trial_id
        assert json.loads((stored / "record.json").read_text())["status"] == "complete"

    # another machine: nothing of the first is left
    monkeypatch.setenv("SWEEPS_MIRROR", str(tmp_path / "other"))
    shutil.rmtree(first.folder.parent)
    folder = find_run(f"{uri}/{raw['name']}")
    assert folder != first.folder
    trials = len(before) + 1
    again = run_sweep(resumed_spec(folder, [f"search.trials={trials}"]))
    after = records(again.folder)
    for trial_id, record in before.items():
        assert replace(after[trial_id], folder=record.folder) == record
    assert len(after) == trials
    (new,) = (after[trial_id] for trial_id in after if trial_id not in before)
    assert new.status == "complete"
    assert any(stage.cached for stage in new.outcome.stage_runs)  # the teacher


def test_final_records_here_are_newer_than_those_of_the_store(
    uri: str, tmp_path: Path
) -> None:
    node, driver = (
        MirroredStorage(uri, tmp_path / where / "run") for where in ("node", "driver")
    )
    for mirror in (node, driver):
        TrialRecord.begin(trial_folder(mirror.run, "00000"), plan())
    record = TrialRecord.read(trial_folder(node.run, "00000"))
    assert record is not None
    record.add_epoch({"stage": "finetune", "epoch": 1})
    record.finish("interrupted")
    node.push_trial("00000")
    mine = TrialRecord.read(trial_folder(driver.run, "00000"))
    assert mine is not None
    mine.finish("pruned")
    driver.pull()
    here = TrialRecord.read(trial_folder(driver.run, "00000"))
    assert here is not None
    assert (here.status, len(here.epochs())) == ("pruned", 1)
    fresh = MirroredStorage(uri, tmp_path / "fresh" / "run")
    fresh.pull()
    there = TrialRecord.read(trial_folder(fresh.run, "00000"))
    assert there is not None
    assert there.status == "pruned"


def test_running_trials_are_fetched_again(uri: str, tmp_path: Path) -> None:
    node, driver = (
        MirroredStorage(uri, tmp_path / where / "run") for where in ("node", "driver")
    )
    record = TrialRecord.begin(trial_folder(node.run, "00000"), plan())
    node.push_trial("00000")
    driver.pull()
    record.finish("complete", metrics={"accuracy": 0.5})
    node.push_trial("00000")
    driver.pull()
    here = TrialRecord.read(trial_folder(driver.run, "00000"))
    assert here is not None
    assert here.to_json() == record.to_json()


def test_overwriting_deletes_both_sides(uri: str, tmp_path: Path) -> None:
    mirror = MirroredStorage(uri, tmp_path / "run")
    mirror.run.mkdir()
    for name in ("run.json", "spec.yaml"):
        (mirror.run / name).write_text("{}")
    (mirror.run / "tune").mkdir()
    mirror.push_run(everything=True)
    mirror.remote.upload(mirror.run / "run.json", "run/tune/a")
    mirror.delete("tune", "workers")
    assert mirror.remote.files("run") == ["run/run.json", "run/spec.yaml"]
    mirror.delete()
    assert mirror.remote.files("run") == []
    assert not mirror.run.exists()


def test_folders_need_no_copy(tmp_path: Path) -> None:
    storage = run_storage(str(tmp_path), tmp_path / "run")
    assert storage.shared
    assert storage.tune_storage() == str(tmp_path / "run")
    assert local_run(str(tmp_path)) == tmp_path


def test_stores_out_of_reach_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(
        SpecError, match=r"storage: nowhere://x/runs is no storage that can be reached"
    ):
        check_spec(spec_from(raw | {"storage": "nowhere://x/runs"}))
    with pytest.raises(SpecError, match=r"nowhere://x"):
        find_run("nowhere://x/runs/mine")


@pytest.mark.parametrize(
    ("uri", "child", "parent"),
    [
        ("s3://bucket/runs", "s3://bucket/runs/demo", "s3://bucket/runs"),
        ("s3://bucket/runs/", "s3://bucket/runs/demo", "s3://bucket/runs"),
        ("s3://b/r?scheme=http", "s3://b/r/demo?scheme=http", "s3://b/r?scheme=http"),
        ("s3://b/?a=x/y&c=d", "s3://b/demo?a=x/y&c=d", "s3://b?a=x/y&c=d"),
    ],
)
def test_a_query_stays_at_the_end_of_a_uri(uri: str, child: str, parent: str) -> None:
    assert child_uri(uri, "demo") == child
    assert parent_uri(child) == (parent, "demo")


@pytest.mark.parametrize(
    "uri",
    [
        "https://host/x",
        "ftp://host/x",
        "HTTP://host",
        "memory://x",
        "://x",
        "s3://?a=b",
    ],
)
def test_what_is_no_storage_is_refused_in_a_line(uri: str) -> None:
    with pytest.raises(
        ValueError, match=r"cannot be written to: .*; give a folder, or s3://"
    ):
        Remote(uri)


def test_a_store_with_a_query_is_opened(tmp_path: Path) -> None:
    run = tmp_path / "run"
    storage = MirroredStorage(
        "s3://bucket/runs?endpoint_override=host:9&scheme=http", run
    )
    assert storage.tune_storage("tune") == (
        "s3://bucket/runs/run/tune?endpoint_override=host:9&scheme=http"
    )


def test_a_store_that_fails_at_the_end_loses_nothing(
    ray_session: None,
    uri: str,
    raw: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(self: MirroredStorage) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION during PutObject")

    monkeypatch.setattr(MirroredStorage, "_push_all", fails)
    raw |= {"storage": uri, "search": raw["search"] | {"trials": 1}}
    outcome = run_sweep(check_spec(spec_from(raw)))
    assert [r.status for r in records(outcome.folder).values()] == ["complete"]
    assert outcome.report.exists()
    said = capsys.readouterr().out
    assert said.count("storage: the last files could not be sent to file://") == 1
