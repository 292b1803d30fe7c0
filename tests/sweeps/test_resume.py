"""Going on with a run: what may change, who may drive, and that no process doubles
another's work.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from optuna.trial import TrialState
from typer.testing import CliRunner

from analysis.contract import CLASSES_FILE, LAYERS_FILE
from sweeps.check import check_spec
from sweeps.cli.main import app
from sweeps.drive.driver import run_header, run_sweep
from sweeps.resume import (
    changed_keys,
    refuse_changes,
    reopen,
    resumed_spec,
    taken_up,
)
from sweeps.run import driving as run_state
from sweeps.run.driving import (
    driving,
    refuse_second_driver,
    request_stop,
    stop_requested,
)
from sweeps.run.faults import RecordTakenError
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import StageRow, TrialRecord, to_json, trial_records
from sweeps.run.storage import RunStorage, find_run
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from sweeps.trial.attempt import run_trial
from tests.sweeps.helpers import (
    begin,
    finish,
    plan,
    records,
    searcher,
    site,
    states,
)
from tests.trainers.data.pictures import class_folders
from trainers.models.arch import ModelState
from trainers.models.make import make_arch


@pytest.fixture
def run(raw: dict[str, Any]) -> Path:
    """A run folder as a driver leaves it, without trials."""
    folder = Path(raw["storage"]) / "small"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps({"spec": spec_from(raw).raw, "objectives": raw["objectives"]})
    )
    return folder


FREE = [
    "search.trials=9",
    "search.sampler=tpe",
    "search.max_failures=3",
    "resources.cpus_per_worker=2",
    "search.space.stages.finetune.lr={low: 1e-5, high: 1e-2, log: true}",
    "search.refine={top: 1, epochs: 4}",
    "search.early_stopping={scheduler: median}",
    "trackers.wandb=null",
    "search.space.stages.finetune.drop=[0, 0.1]",
    "stages.init.one_of.more={stage: random_init}",
]
BOUND = [
    ("seed=1", "seed"),
    ("stages.finetune.epochs=2", r"stages\.finetune\.epochs"),
    ("data.limit=100", r"data\.limit"),
    ("source.args.depth=3", r"source\.args\.depth"),
    ("measure.batch_size=8", r"measure\.batch_size"),
    ("objectives.0.bound=0.5", "objectives"),
    ("search.replicates=2", r"search\.replicates"),
    (
        "stages.init.weight_selection.args.depth=1",
        r"stages\.init\.weight_selection\.args",
    ),
]


@pytest.mark.parametrize("override", FREE)
def test_budget_and_space_may_change(run: Path, override: str) -> None:
    if "one_of" in override:
        raw = yaml.safe_load(
            yaml.safe_dump(json.loads((run / "run.json").read_text())["spec"])
        )
        raw["stages"]["init"]["one_of"]["more"] = {"stage": "random_init"}
        assert (
            changed_keys(
                json.loads((run / "run.json").read_text())["spec"], spec_from(raw)
            )
            == []
        )
        return
    resumed_spec(run, [override], local=False)


@pytest.mark.parametrize(("override", "key"), BOUND)
def test_what_finished_trials_mean_may_not(
    run: Path, raw: dict[str, Any], override: str, key: str
) -> None:
    with pytest.raises(
        SpecError, match=rf"resume: {key}\.? would change what the finished trials"
    ):
        resumed_spec(run, [override])


def test_another_sweep_is_refused(run: Path, raw: dict[str, Any]) -> None:
    old = json.loads((run / "run.json").read_text())["spec"]
    with pytest.raises(
        SpecError, match=r"holds another sweep: seed differs,.*--overwrite"
    ):
        refuse_changes(run, old, spec_from(raw | {"seed": 3}))
    refuse_changes(run, old, spec_from(raw | {"storage": "elsewhere"}))


def test_runs_are_found(
    run: Path, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_run(str(run)) == run
    monkeypatch.chdir(run.parent.parent)
    assert find_run("small") == run
    with pytest.raises(
        SpecError,
        match=r"small2: not a run folder: no run\.json in small2 or runs/small2; it is",
    ):
        find_run("small2")
    moved = run.parent.parent / "archive" / "small"
    moved.parent.mkdir()
    run.rename(moved)
    assert resumed_spec(moved, []).spec.run_folder == moved
    renamed = moved.rename(moved.parent / "large")
    with pytest.raises(SpecError, match="was renamed"):
        resumed_spec(renamed, [])
    (renamed / "run.json").write_text("{")
    with pytest.raises(SpecError, match=r"run\.json cannot be read"):
        resumed_spec(renamed, [])


def test_a_changed_space_keeps_what_it_contains(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    """Optuna refuses changed choices: the study moves, and knows all trials that are still
    possible.
    """
    space = {"stages.finetune.lr": [1e-4, 1e-3, 1e-2]}
    raw["stages"]["init"] = {"stage": "random_init"}
    first = searcher(raw, tmp_path, sampler="grid", trials=3, space=space)
    for _ in range(3):
        finish(first, accuracy=0.5, gmacs=1.0)
    second = searcher(
        raw,
        tmp_path,
        sampler="grid",
        trials=9,
        space={"stages.finetune.lr": [1e-3, 1e-2, 0.1]},
    )
    assert second.study.study_name == "small~2"
    assert sorted(
        t.params["stages.finetune.lr"] for t in second.study.get_trials()
    ) == [0.001, 0.01]
    last = finish(second, accuracy=0.6, gmacs=1.0)
    assert (last.plan.number, last.plan.draw) == (3, {"stages.finetune.lr": 0.1})
    assert second.ask() is None
    wider = searcher(
        raw,
        tmp_path,
        trials=5,
        space={"stages.finetune.lr": {"low": 1e-4, "high": 1.0, "log": True}},
    )
    assert wider.study.study_name == "small~3"
    finish(wider, accuracy=0.6, gmacs=1.0)
    narrower = {"stages.finetune.lr": {"low": 1e-4, "high": 0.5, "log": True}}
    assert (
        searcher(raw, tmp_path, trials=5, space=narrower).study.study_name == "small~3"
    )  # Optuna takes it


def test_an_interrupted_point_outside_the_new_space_is_told(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    first = searcher(raw, tmp_path, trials=2)
    begin(first).finish("interrupted")
    finish(first, accuracy=0.5, gmacs=1.0)
    second = searcher(
        raw, tmp_path, trials=2, space={"stages.finetune.lr": {"low": 0.5, "high": 1.0}}
    )
    assert any("configuration 0 is not run again" in line for line in second.notes)
    assert second.ask() is None
    assert records(tmp_path)["00000"].status == "interrupted"


def test_failed_ones_again(raw: dict[str, Any], tmp_path: Path) -> None:
    first = searcher(raw, tmp_path, trials=3)
    for status in ("failed", "complete", "failed"):
        finish(first, status, accuracy=0.5, gmacs=1.0)
    assert searcher(raw, tmp_path, trials=3).num_trials == 0
    before = records(tmp_path)
    assert reopen(tmp_path, "failed") == 2
    second = searcher(raw, tmp_path, trials=3)
    assert second.num_trials == 2
    plans = [finish(second, accuracy=0.7, gmacs=1.0) for i in range(2)]
    assert [p.trial_id for p in plans] == ["00000", "00002"]
    assert all(
        p.plan.draw == before[p.trial_id].plan.draw and p.attempts == 2 for p in plans
    )
    assert states(second).count(TrialState.COMPLETE) == 3


def test_an_attempt_that_was_replaced_writes_nothing(tmp_path: Path) -> None:
    """A process that outlives its driver, or a lost node's, cannot touch what its successor
    writes.
    """
    old = TrialRecord.begin(trial_folder(tmp_path, "00000"), plan())
    old.add_epoch({"epoch": 0, "by": "old"})
    old.set_layers([{"layer": "old"}])
    old.set_classes([{"class": "old"}])
    new = TrialRecord.begin(old.folder, old.plan)
    assert new.epochs() == []
    assert not (old.folder / LAYERS_FILE).exists()
    assert not (old.folder / CLASSES_FILE).exists()
    new.add_epoch({"epoch": 0, "by": "new"})
    stage = StageRow(
        index=0,
        name="x",
        stage="finetune",
        phase="train",
        key="k",
        cached=False,
        seconds=1.0,
        seconds_full=1.0,
    )
    for late in (
        lambda: old.add_epoch({"epoch": 1}),
        lambda: old.add_stage(stage),
        lambda: old.set_layers([]),
        lambda: old.set_classes([]),
        lambda: old.finish("complete"),
    ):
        with pytest.raises(RecordTakenError):
            late()
    new.finish("complete", metrics={"accuracy": 0.5})
    with pytest.raises(RecordTakenError):
        new.finish("failed")
    found = TrialRecord.read(old.folder)
    assert found is not None
    assert (found.status, found.attempts) == ("complete", 2)
    assert [row["by"] for row in found.epochs()] == ["new"]


def test_a_late_process_says_what_stands(raw: dict[str, Any], tmp_path: Path) -> None:
    planned = searcher(raw, tmp_path).ask()
    assert planned is not None

    def overtaken(plan: TrialPlan, site: Site, on_epoch: Any, on_stage: Any) -> Any:
        other = TrialRecord.begin(trial_folder(tmp_path, plan.trial_id), plan)
        other.finish("complete", metrics={"accuracy": 0.25})
        on_epoch({"stage": "finetune", "epoch": 0})

    outcome = run_trial(planned, site(tmp_path), overtaken)
    assert (outcome.status, outcome.metrics) == ("complete", {"accuracy": 0.25})
    (found,) = records(tmp_path).values()
    assert found.outcome == outcome


def test_stopping(raw: dict[str, Any], run: Path) -> None:
    with pytest.raises(SpecError, match="no sweep runs there; nothing to stop"):
        request_stop(run)
    search = searcher(raw, run)
    with driving(run):
        only = finish(search, accuracy=0.5, gmacs=1.0)
        result = CliRunner().invoke(app, ["stop", str(run)])
        assert result.exit_code == 0, result.output
        assert "no more trials start" in result.output
        assert stop_requested(run)
        assert search.ask() is None
        assert search.halted
    assert not stop_requested(run)
    assert searcher(raw, run).num_trials == 3
    assert [r.trial_id for r in trial_records(run)] == [only.trial_id]


def test_one_driver_at_a_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "_HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(run_state, "_SILENCE_SECONDS", 20.0)
    with (
        driving(run),
        pytest.raises(
            SpecError, match=rf"is being run by process {os.getpid()} on .*sweeps stop"
        ),
        driving(run),
    ):
        pass
    with driving(run):  # the first one has gone
        pass
    assert not (run / "driver.json").exists()


def test_a_driver_that_slept_for_too_long_gives_way(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(run) as successor:
        assert successor() is None
        other = {"host": "elsewhere", "pid": 7, "token": "x", "since": "12:00"}
        (run / "driver.json").write_text(json.dumps(other))
        assert "process 7 on elsewhere took the run over" in str(successor())
        (run / "stop").touch()
    assert (run / "driver.json").exists()  # of the other one, as is the wish to stop
    assert stop_requested(run)


def test_a_dead_driver_is_replaced(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    me = {"host": socket.gethostname(), "pid": dead.pid, "token": "x"}
    (run / "driver.json").write_text(json.dumps(me))
    begun = time.monotonic()
    refuse_second_driver(run)
    with driving(run):
        assert time.monotonic() - begun < 5  # no wait: its process is seen to be gone
    monkeypatch.setattr(run_state, "_SILENCE_SECONDS", 0.3)
    (run / "driver.json").write_text(json.dumps(me | {"host": "elsewhere", "pid": 1}))
    with driving(run):  # on another machine: it was silent
        pass


def test_earlier_runs_are_known(raw: dict[str, Any], tmp_path: Path) -> None:
    old = tmp_path / "old"
    first = searcher(raw, old, trials=3, replicates=2)
    for accuracy in (0.2, 0.4, 0.6, 0.8):
        finish(first, accuracy=accuracy, gmacs=1.0)
    finish(first, "failed")
    finish(first, "failed")
    (old / "run.json").write_text(json.dumps({"objectives": raw["objectives"]}))
    new = tmp_path / "new"
    second = searcher(raw, new, **{"from": [str(old)], "trials": 2})
    assert [t.values for t in second.study.get_trials()] == [
        pytest.approx([0.3, 1.0]),
        pytest.approx([0.7, 1.0]),
    ]
    assert second.notes == [f"{old}: 2 configurations known, 1 not (1 × failed)"]
    assert second.num_trials == 2  # they cost no budget
    plans = [finish(second, accuracy=0.5, gmacs=1.0) for _ in range(2)]
    assert [p.plan.number for p in plans] == [0, 1]
    assert (
        len(searcher(raw, new, **{"from": [str(old)]}).study.get_trials()) == 4
    )  # once
    narrow = searcher(
        raw,
        tmp_path / "n",
        **{
            "from": [str(old)],
            "space": {"stages.finetune.lr": {"low": 0.5, "high": 1.0}},
        },
    )
    assert len(narrow.study.get_trials()) == 0
    assert "0 configurations known, 3 not" in narrow.notes[0]


def test_what_is_no_earlier_run_is_refused(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["search"]["from"] = [str(tmp_path)]
    with pytest.raises(SpecError, match=r"search\.from: .* is not a run folder"):
        check_spec(spec_from(raw))
    table = tmp_path / "records.parquet"
    raw["search"]["from"] = [str(table)]
    with pytest.raises(SpecError, match=r"search\.from: there is no file"):
        check_spec(spec_from(raw))
    pd.DataFrame({"metric/loss": [1.0]}).to_parquet(table)
    with pytest.raises(SpecError, match=r"none of the columns metric/accuracy"):
        check_spec(spec_from(raw))


# --- data and models that have changed


@pytest.fixture
def pictured(raw: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A spec of a checkpoint that is tuned on a folder of images."""
    args = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    images = class_folders(tmp_path / "images")
    del raw["search"]["space"]
    return raw | {
        "source": {
            "model": "vit_tiny_patch16_224",
            "args": args,
            "checkpoint": str(checkpoint(tmp_path / "first.pt", 0, args)),
        },
        "data": {"dataset": "folder", "root": str(images), "val_fraction": 0.25},
        "stages": {"finetune": raw["stages"]["finetune"] | {"batch_size": 3}},
        "measure": {"latency": False},
    }


def checkpoint(file: Path, seed: int, args: dict[str, int]) -> Path:
    """A file with the weights of a tiny model."""
    arch = make_arch("vit_tiny_patch16_224", num_classes=2, image_size=8, args=args)
    torch.save(ModelState.initialised(arch, seed).weights, file)
    return file


def begun(raw: dict[str, Any], data_cache: Path) -> Path:
    """A run of which one trial is complete."""
    run = Path(raw["storage"]) / "small"
    search = searcher(raw, run)
    planned = search.ask()
    assert planned is not None
    outcome = run_trial(planned, site(run, data_cache=data_cache))
    assert outcome.status == "complete", outcome.error
    (run / "run.json").write_bytes(to_json(run_header(search.sweep, [])))
    return run


def refused(raw: dict[str, Any]) -> str:
    """In what line a sweep is refused that is to go on in its run folder."""
    run = Path(raw["storage"]) / "small"
    before = {file: file.read_bytes() for file in run.iterdir() if file.is_file()}
    more = raw | {"search": raw["search"] | {"trials": 9}}
    with pytest.raises(SpecError) as error:
        run_sweep(check_spec(spec_from(more)))
    resumed = CliRunner().invoke(app, ["resume", str(run), "search.trials=9"])
    assert resumed.exit_code == 2, resumed.output
    assert str(error.value) in " ".join(resumed.output.split())
    after = {file: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert after == before
    assert "\n" not in str(error.value)
    return str(error.value)


def may_go_on(raw: dict[str, Any], data_cache: Path, overwrite: bool = False) -> bool:
    storage = RunStorage(Path(raw["storage"]) / "small")
    sweep = check_spec(spec_from(raw))
    return taken_up(sweep, storage, data_cache, overwrite=overwrite) is not None


def test_a_run_does_not_go_on_with_other_images(
    pictured: dict[str, Any], data_cache: Path
) -> None:
    run = begun(pictured, data_cache)
    assert may_go_on(pictured, data_cache)
    lost = Path(pictured["data"]["root"]) / "train" / "dark" / "0.png"
    kept = lost.read_bytes()
    lost.unlink()
    said = refused(pictured)
    assert said.startswith(
        f"data.root: the data in {pictured['data']['root']} have changed"
    )
    assert f"since trial 00000 of {run} ended (hash " in said
    assert said.endswith("or with --overwrite, or put the old files back")
    lost.write_bytes(kept)
    assert may_go_on(pictured, data_cache)
    lost.unlink()
    assert not may_go_on(pictured, data_cache, overwrite=True)  # it begins anew
    assert not run.exists()


def test_a_run_does_not_go_on_with_another_model(
    pictured: dict[str, Any], data_cache: Path
) -> None:
    """Of models that are searched those count that a complete trial had."""
    source = pictured["source"]
    first = Path(source["checkpoint"])
    other = checkpoint(first.with_name("other.pt"), 1, source["args"])
    space = {"source.checkpoint": [str(first), str(other)]}
    pictured["search"] = pictured["search"] | {"space": space, "sampler": "grid"}
    del source["checkpoint"]
    run = begun(pictured, data_cache)
    (record,) = records(run).values()
    used = record.plan.source.checkpoint
    assert used is not None
    unused = other if used == first else first
    checkpoint(unused, 2, source["args"])
    assert may_go_on(pictured, data_cache)
    checkpoint(used, 3, source["args"])
    assert refused(pictured).startswith(
        f"source.checkpoint: the model in {used} has changed since trial 00000"
    )
    # without the model in its space the run goes on beside what it found with it
    used.unlink()
    pictured["search"]["space"] = {"source.checkpoint": [str(unused)]}
    assert may_go_on(pictured, data_cache)
