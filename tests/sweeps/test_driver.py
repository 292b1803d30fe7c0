"""Sweeps on a real Ray: records, sharing, failures, dead processes, Ctrl-C, a killed driver."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import analysis
from sweeps.check import check_spec
from sweeps.drive.driver import Outcome, run_sweep
from sweeps.run.record import TrialRecord, trial_folder, trial_records
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError


def sweep(raw: dict[str, Any], **options: Any) -> Outcome:
    return run_sweep(check_spec(spec_from(raw)), **options)


def records(run: Path) -> dict[str, dict[str, Any]]:
    return {r.content["trial_id"]: r.content for r in trial_records(run)}


def test_end_to_end(raw: dict[str, Any], ray_session: None) -> None:
    outcome = sweep(raw)
    run = outcome.folder
    loaded = analysis.load(run)
    assert not loaded.problems
    assert list(loaded.trials["status"]) == ["complete"] * 4
    assert {
        "trial_id",
        "config/finetune.lr",
        "config/init",
        "metric/accuracy",
        "metric/test_accuracy",
    } <= set(loaded.trials.columns)
    teacher = loaded.stages[loaded.stages["name"] == "teacher"]
    assert sorted(teacher["cached"]) == [
        False,
        True,
        True,
        True,
    ]  # trained once, though two trials started together
    assert set(loaded.epochs["stage"]) == {"teacher", "finetune"}
    assert len(loaded.epochs) == 4 * (2 + 1)  # every trial tells its whole history
    assert 1 <= len(loaded.front()) <= 4
    assert {"trials", "epochs", "stages"} <= {
        p.name for p in (run / "parquet").iterdir()
    }
    assert list((run / "tensorboard").glob("00000/events.*"))
    assert not (run / "driver.json").exists()
    assert outcome.report.read_text().startswith("<!DOCTYPE html>")
    before = {k: v["ended"] for k, v in records(run).items()}
    again = sweep(raw)  # all there: nothing runs
    assert {k: v["ended"] for k, v in records(run).items()} == before
    assert not again.interrupted
    more = sweep(raw | {"search": raw["search"] | {"trials": 5}})
    assert len(records(more.folder)) == 5
    assert before.items() <= {k: v["ended"] for k, v in records(run).items()}.items()
    with pytest.raises(SpecError, match=r"holds another sweep.*--overwrite"):
        sweep(raw | {"seed": 1})
    replaced = sweep(
        raw | {"seed": 1, "search": raw["search"] | {"trials": 1}}, overwrite=True
    )
    assert len(records(replaced.folder)) == 1


def ends_in_its_own_way(plan: dict[str, Any]) -> dict[str, Any]:
    """Trial 1 kills its process each time, 2 fails always, 3 fails once; the others are fine."""
    import sweeps.run.record as r
    from sweeps.trial.attempt import run_trial
    from sweeps.trial.execute import Execution

    number = plan["number"]
    folder = r.trial_folder(Path(plan["run"]), plan["trial_id"])

    def attempt(plan: dict[str, Any], on_epoch: Any, on_stage: Any) -> Execution:
        record = r.TrialRecord.read(folder)
        assert record is not None
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 2 or (number == 3 and record.content["attempts"] == 1):
            raise RuntimeError(f"<b>trial {number} fails</b>")
        return Execution(
            {"accuracy": 0.5 + number / 10, "gmacs": 1.0}, [], 0.0, 0.0, {}
        )

    return run_trial(plan, attempt)


def test_failures_are_recorded_and_the_sweep_goes_on(
    raw: dict[str, Any], ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    outcome = sweep(
        raw
        | {
            "name": "failing",
            "search": raw["search"] | {"trials": 6, "max_failures": 2},
        },
        trial=ends_in_its_own_way,
    )
    found = records(outcome.folder)
    assert {k: v["status"] for k, v in found.items()} == {
        "00000": "complete",
        "00001": "failed",
        "00002": "failed",
        "00003": "complete",
        "00004": "complete",
        "00005": "complete",
    }
    assert {k: v["attempts"] for k, v in found.items()} == {
        "00000": 1,
        "00001": 3,
        "00002": 3,
        "00003": 2,
        "00004": 1,
        "00005": 1,
    }
    assert "process died 3 times" in found["00001"]["error"]["message"]
    said = "".join(capfd.readouterr())
    assert (
        said.count("00001  its process died") == 2
    )  # no line of Tune's, with its traceback, beside
    assert "Trial task failed" not in said
    assert "RayActorError" not in said
    assert found["00002"]["error"]["type"] == "RuntimeError"
    assert "in attempt" in found["00002"]["error"]["traceback"]
    trials = analysis.load(outcome.folder).trials
    assert len(trials) == 6
    assert "<b>trial 2" not in outcome.report.read_text()  # escaped


def finds_the_disk_full(plan: dict[str, Any]) -> dict[str, Any]:
    """Trial 1 cannot write while there is a file `no-space` beside the run folder."""
    import errno

    from sweeps.trial.attempt import run_trial
    from sweeps.trial.execute import Execution

    def work(plan: dict[str, Any], on_epoch: Any, on_stage: Any) -> Execution:
        if plan["number"] == 1 and (Path(plan["run"]).parent / "no-space").exists():
            raise OSError(
                errno.ENOSPC, os.strerror(errno.ENOSPC), "/storage/model.safetensors"
            )
        return Execution(
            {"accuracy": 0.5 + plan["number"] / 10, "gmacs": 1.0}, [], 0.0, 0.0, {}
        )

    return run_trial(plan, work)


def test_a_full_disk_ends_the_sweep_and_loses_nothing(
    raw: dict[str, Any], ray_session: None
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    raw |= {"name": "filled", "resources": {"concurrent": 1}}
    storage = Path(raw["storage"])
    storage.mkdir()
    (storage / "no-space").touch()
    with pytest.raises(
        SpecError,
        match=(
            r"storage: .*No space left on device: '/storage/model.safetensors'; all"
            r" that was"
        ),
    ):
        sweep(raw, trial=finds_the_disk_full)
    before = records(storage / "filled")
    assert {k: r["status"] for k, r in before.items()} == {
        "00000": "complete",
        "00001": "interrupted",
    }
    (storage / "no-space").unlink()
    after = records(sweep(raw, trial=finds_the_disk_full).folder)
    assert [r["status"] for r in after.values()] == ["complete"] * 4
    assert after["00000"] == before["00000"]
    assert after["00001"]["params"] == before["00001"]["params"]


def start(raw: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    command = [
        sys.executable,
        "-c",
        "from sweeps.cli.main import main; main()",
        "run",
        str(path),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_complete(run: Path, process: subprocess.Popen[str], count: int) -> None:
    for _ in range(1800):
        if sum(r["status"] == "complete" for r in records(run).values()) >= count:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    raise AssertionError("no trial completed in three minutes")


@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_interrupted_and_started_again(
    raw: dict[str, Any], tmp_path: Path, how: signal.Signals
) -> None:
    raw = raw | {
        "name": "cut",
        "search": raw["search"] | {"trials": 5},
        "resources": {"cpus": 2},
    }
    raw["stages"]["finetune"]["epochs"] = 12
    run = Path(raw["storage"]) / "cut"
    process = start(raw, tmp_path)
    wait_for_complete(run, process, 2)
    os.kill(process.pid, how)
    output = process.communicate(timeout=30)[0]
    before = records(run)
    done = {k: v["ended"] for k, v in before.items() if v["status"] == "complete"}
    assert 2 <= len(done) < 5, "the interruption came too late to show anything"
    if how == signal.SIGINT:
        assert process.returncode == 130, output
        assert "Traceback" not in output
        assert "the same command goes on from here" in output
        assert {v["status"] for v in before.values()} <= {"complete", "interrupted"}
        assert len(analysis.load(run).trials) == len(before)
    process = start(raw, tmp_path)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    after = records(run)
    assert sorted(after) == [f"{i:05d}" for i in range(5)]
    assert {v["status"] for v in after.values()} == {"complete"}
    assert {
        k: after[k]["ended"] for k in done
    } == done  # finished ones did not run again
    assert all(after[k]["params"] == v["params"] for k, v in before.items())
    computed = [
        s
        for v in after.values()
        for s in v["stages"]
        if s["name"] == "teacher" and not s["cached"]
    ]
    assert len(computed) <= 1  # 0 where the one that trained it was cut and began anew


def test_a_foreign_folder_is_not_touched(
    raw: dict[str, Any], tmp_path: Path, ray_session: None
) -> None:
    folder = Path(raw["storage"]) / "small"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(
            SpecError, match="exists and is not a run; choose another name"
        ):
            sweep(raw, overwrite=overwrite)
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]


def test_records_are_whole_or_absent(tmp_path: Path) -> None:
    record = TrialRecord.begin(
        trial_folder(tmp_path, "00000"), {"trial_id": "00000", "number": 0}
    )
    assert (
        json.loads((tmp_path / "trials/00000/record.json").read_text())["status"]
        == "running"
    )
    (tmp_path / "trials/00001").mkdir()
    (tmp_path / "trials/00001/record.json").write_text(
        '{"trial_id": "000'
    )  # half a file from elsewhere
    assert [r.content["trial_id"] for r in trial_records(tmp_path)] == ["00000"]
    record.finish("failed", error=ValueError("no"))
    again = TrialRecord.begin(record.folder, {"trial_id": "00000", "number": 0})
    assert again.content["attempts"] == 2
    assert again.content["error"] is None
