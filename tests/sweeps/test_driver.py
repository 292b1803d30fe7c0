"""Sweeps on a real Ray: records, sharing, failures, dead processes, Ctrl-C, a killed driver."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml

import analysis
from benchmarks.nursery import Nursery
from sweeps.check import check_spec
from sweeps.drive.driver import SweepResult, run_sweep
from sweeps.drive.trial_events import TrialEvents
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import Outcome, TrialRecord, trial_records
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.helpers import plan, records

ROOT = Path(__file__).parents[2]


def sweep(raw: dict[str, Any], **options: Any) -> SweepResult:
    return run_sweep(check_spec(spec_from(raw)), **options)


def ended(run: Path) -> dict[str, str | None]:
    return {trial_id: record.ended for trial_id, record in records(run).items()}


def assert_classes_make_the_accuracy(run: analysis.Run) -> None:
    """The mean of a trial's classes, weighted by their images, is its accuracy."""
    counts = run.classes.groupby("trial_id").size()
    assert counts.to_dict() == dict.fromkeys(run.trials["trial_id"], 10)
    known = run.trials.set_index("trial_id")
    for prefix in ("", "test_"):
        images = run.classes[f"{prefix}images"]
        right = images * run.classes[f"{prefix}accuracy"]
        ids = run.classes["trial_id"]
        means = right.groupby(ids).sum() / images.groupby(ids).sum()
        accuracy = known.loc[means.index, f"metric/{prefix}accuracy"]
        assert means.tolist() == pytest.approx(accuracy.tolist())


def test_end_to_end(
    raw: dict[str, Any], ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert_classes_make_the_accuracy(loaded)
    assert 1 <= len(loaded.front()) <= 4
    assert {"trials", "epochs", "stages"} <= {
        p.name for p in (run / "parquet").iterdir()
    }
    assert list((run / "tensorboard").glob("00000/events.*"))
    assert not (run / "driver.json").exists()
    assert outcome.report.read_text().startswith("<!DOCTYPE html>")
    header = json.loads((run / "run.json").read_text())
    assert header["schema"] == 2
    described = header["metrics"]
    assert described["latency_ms"]["is_time"]
    assert set(loaded.epochs) & {"accuracy", "train_loss"} <= set(described)
    assert all(
        set(record.outcome.metrics) <= set(described)
        for record in records(run).values()
    )
    before = ended(run)
    nothing = "all 4 configurations have ended; search.trials=N goes on"
    assert nothing not in capsys.readouterr().out
    again = sweep(raw)  # all there: nothing runs
    assert nothing in capsys.readouterr().out
    used_up = sweep(raw | {"search": raw["search"] | {"trials": 9, "hours": 1e-6}})
    said = capsys.readouterr().out
    assert "the budget of 0.0 s is used up (" in said
    assert "is not known yet" not in said
    assert "the search took" not in said
    assert not used_up.interrupted
    assert ended(run) == before
    assert not again.interrupted
    more = sweep(raw | {"search": raw["search"] | {"trials": 5}})
    assert len(records(more.folder)) == 5
    assert before.items() <= ended(run).items()
    with pytest.raises(SpecError, match=r"holds another sweep.*--overwrite"):
        sweep(raw | {"seed": 1})
    replaced = sweep(
        raw | {"seed": 1, "search": raw["search"] | {"trials": 1}}, overwrite=True
    )
    assert len(records(replaced.folder)) == 1


def ends_in_its_own_way(plan: TrialPlan, site: Site) -> Outcome:
    """Trial 1 kills its process each time, 2 fails always, 3 fails once, and 4 kills its process
    before its record begins; the others are fine.
    """
    import sweeps.run.record as r
    from sweeps.trial.attempt import run_trial
    from sweeps.trial.execute import Execution

    number = plan.number
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)

    def attempt(plan: TrialPlan, site: Site, on_epoch: Any, on_stage: Any) -> Execution:
        record = r.TrialRecord.read(trial_folder(site.run, plan.trial_id))
        assert record is not None
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 2 or (number == 3 and record.attempts == 1):
            raise RuntimeError(f"<b>trial {number} fails</b>")
        metrics = {"accuracy": 0.5 + number / 10, "gmacs": 1.0}
        return Execution(metrics, [], 0.0, 0.0, {})

    return run_trial(plan, site, attempt)


def test_failures_are_recorded_and_the_sweep_goes_on(
    raw: dict[str, Any], ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    search = raw["search"] | {"trials": 6, "max_failures": 1}
    outcome = sweep(
        raw | {"name": "failing", "search": search}, trial=ends_in_its_own_way
    )
    found = records(outcome.folder)
    assert {k: (r.status, r.attempts) for k, r in found.items()} == {
        "00000": ("complete", 1),
        "00001": ("failed", 2),
        "00002": ("failed", 2),
        "00003": ("complete", 2),
        "00004": ("failed", 2),
        "00005": ("complete", 1),
    }
    errors = {k: r.outcome.error for k, r in found.items() if r.outcome.error}
    assert "process died 2 times" in errors["00001"].message
    assert "process died 2 times" in errors["00004"].message
    assert found["00004"].machine is None  # it died before it could say where it ran
    said = "".join(capfd.readouterr())
    for trial_id in ("00001", "00004"):
        # no line of Tune's, with its traceback, beside
        assert said.count(f"{trial_id}  its process died") == 1
    assert "Trial task failed" not in said
    assert "did not complete" not in said
    assert "RayActorError" not in said
    assert errors["00002"].type == "RuntimeError"
    assert "in attempt" in errors["00002"].traceback
    loaded = analysis.load(outcome.folder)
    assert not loaded.problems
    trials = loaded.trials.set_index("trial_id")
    assert len(trials) == len(list((outcome.folder / "trials").iterdir())) == 6
    assert trials.loc["00004", "status"] == "failed"
    assert "process died 2 times" in trials.loc["00004", "error"]
    assert trials.loc["00004", "config/finetune.lr"] > 0  # what would have run
    assert "<b>trial 2" not in outcome.report.read_text()  # escaped


def finds_the_disk_full(plan: TrialPlan, site: Site) -> Outcome:
    """Trial 1 cannot write while there is a file `no-space` beside the run folder."""
    import errno

    from sweeps.trial.attempt import run_trial
    from sweeps.trial.execute import Execution

    def work(plan: TrialPlan, site: Site, on_epoch: Any, on_stage: Any) -> Execution:
        if plan.number == 1 and (site.run.parent / "no-space").exists():
            full = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, full, "/storage/model.safetensors")
        metrics = {"accuracy": 0.5 + plan.number / 10, "gmacs": 1.0}
        return Execution(metrics, [], 0.0, 0.0, {})

    return run_trial(plan, site, work)


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
    assert {k: r.status for k, r in before.items()} == {
        "00000": "complete",
        "00001": "interrupted",
    }
    (storage / "no-space").unlink()
    after = records(sweep(raw, trial=finds_the_disk_full).folder)
    assert [r.status for r in after.values()] == ["complete"] * 4
    assert after["00000"] == before["00000"]
    assert after["00001"].plan == before["00001"].plan


def does_nothing(plan: TrialPlan, site: Site) -> Outcome:
    from sweeps.run.record import TrialRecord

    record = TrialRecord.begin(trial_folder(site.run, plan.trial_id), plan)
    record.finish("complete", metrics={"accuracy": 0.5, "gmacs": 1.0})
    return record.outcome


GROWTH_BYTES = 40_000
"""What the driver may keep of a trial that has ended. Tune itself keeps some 23 kB."""


def test_the_driver_keeps_little_of_a_trial(
    raw: dict[str, Any], ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twice `half` trials: what is allocated for the second half and still held at the end."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    half = 60
    held, count, end = 0, 0, TrialEvents.ended

    def measured(self: TrialEvents, trial_id: str, *, died: bool) -> None:
        nonlocal held, count
        end(self, trial_id, died=died)
        count += 1
        if count == half:
            tracemalloc.start()
        if count == 2 * half:
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()  # tables and report would take four times as long

    monkeypatch.setattr(TrialEvents, "ended", measured)
    raw |= {"name": "many", "search": raw["search"] | {"trials": 2 * half}}
    try:
        sweep(raw, trial=does_nothing)
    finally:
        tracemalloc.stop()
    assert 0 < held / half < GROWTH_BYTES, f"{held / half:.0f} bytes a trial"


def start(
    raw: dict[str, Any], folder: Path, nursery: Nursery | None
) -> subprocess.Popen[str]:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    program = "from sweeps.cli.main import main; main()"
    if nursery is not None:
        given = f"{str(nursery.path)!r}, {str(nursery.client)!r}"
        program = f"from benchmarks.nursery import use_nursery; use_nursery({given}); {program}"
    return subprocess.Popen(
        [sys.executable, "-c", program, "run", str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_complete(run: Path, process: subprocess.Popen[str], count: int) -> None:
    for _ in range(3600):
        if sum(r.status == "complete" for r in trial_records(run)) >= count:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("no trial completed in three minutes")


@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_interrupted_and_started_again(
    raw: dict[str, Any],
    tmp_path: Path,
    how: signal.Signals,
    nursery: Nursery | None,
    ray_session: None,
) -> None:
    search = raw["search"] | {"trials": 5}
    raw |= {"name": "cut", "search": search, "resources": {"cpus": 2}}
    raw["stages"]["finetune"]["epochs"] = 12
    run = Path(raw["storage"]) / "cut"
    process = start(raw, tmp_path, nursery)
    wait_for_complete(run, process, 2)
    os.kill(process.pid, how)
    output = process.communicate(timeout=30)[0]
    before = records(run)
    done = {k: r.ended for k, r in before.items() if r.status == "complete"}
    assert 2 <= len(done) < 5, "the interruption came too late to show anything"
    if how == signal.SIGINT:
        assert process.returncode == 130, output
        assert "Traceback" not in output
        assert "the same command goes on from here" in output
        assert {r.status for r in before.values()} <= {"complete", "interrupted"}
        assert len(analysis.load(run).trials) == len(before)
        process = start(raw, tmp_path, nursery)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
    else:  # at once, while trials of the killed driver may still run
        assert not sweep(raw).interrupted
    after = records(run)
    assert sorted(after) == [f"{i:05d}" for i in range(5)]
    assert {r.status for r in after.values()} == {"complete"}
    # finished ones did not run again
    assert {k: after[k].ended for k in done} == done
    assert all(after[k].plan == record.plan for k, record in before.items())
    computed = [
        stage
        for record in after.values()
        for stage in record.outcome.stage_runs
        if stage.name == "teacher" and not stage.cached
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
    record = TrialRecord.begin(trial_folder(tmp_path, "00000"), plan())
    written = json.loads((tmp_path / "trials/00000/record.json").read_text())
    assert (written["schema"], written["status"]) == (2, "running")
    (tmp_path / "trials/00001").mkdir()
    # half a file from elsewhere
    (tmp_path / "trials/00001/plan.json").write_text('{"trial_id": "000')
    assert list(records(tmp_path)) == ["00000"]
    record.finish("failed", error=ValueError("no"))
    again = TrialRecord.begin(record.folder, record.plan)
    assert again.attempts == 2
    assert again.outcome.error is None
    assert TrialRecord.read(record.folder) == again
    (tmp_path / "trials/00001/plan.json").write_text('{"trial_id": "00001"}')
    with pytest.raises(ValueError, match=r"00001/plan\.json: is no plan .* number"):
        records(tmp_path)
