"""Showing a sweep: what trackers hear, that none can end it, and the terminal's summary."""

import io
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from analysis.contract import Objective
from analysis.text import short_names
from sweeps.check import check_spec
from sweeps.drive.metrics import units
from sweeps.drive.progress import Progress, Standing
from sweeps.drive.running import MOST, RunningTrials
from sweeps.drive.trackers import (
    MlflowRuns,
    TensorBoard,
    Tracker,
    TrackerFeed,
    check_trackers,
    trackers,
    wanted_trackers,
)
from sweeps.run.folder import trial_folder
from sweeps.run.record import StageRow, TrialRecord
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.helpers import begin, plan, searcher
from trainers import plugins


class Heard(Tracker):
    """Notes all that it hears."""

    def __init__(self, break_at: str = "") -> None:
        self.calls: list[Any] = []
        self.break_at = break_at

    def _note(self, kind: str, *what: Any) -> None:
        if kind == self.break_at:
            raise ConnectionError("the server is away")
        self.calls.append((kind, *what))

    def begin(self, record: TrialRecord) -> None:
        self._note("begin", record.trial_id, record.attempts)

    def epoch(self, trial_id: str, scalars: dict[str, float], step: int) -> None:
        self._note("epoch", trial_id, scalars, step)

    def end(self, record: TrialRecord) -> None:
        self._note("end", record.trial_id, record.status)


def follow(
    run: Path, *followers: Tracker, warn: Any = lambda line: None
) -> TrackerFeed:
    feed = TrackerFeed(run, [lambda one=one: one for one in followers], warn)  # type: ignore[misc]
    feed.started("00000")
    return feed


def look(feed: TrackerFeed) -> None:
    feed._next_look = 0.0
    feed.look()


def started(run: Path) -> TrialRecord:
    return TrialRecord.begin(trial_folder(run, "00000"), plan())


def test_epochs_are_passed_on_once_and_anew_after_a_restart(tmp_path: Path) -> None:
    heard = Heard()
    feed = follow(tmp_path, heard)
    look(feed)  # no record yet
    record = started(tmp_path)
    teacher = {"stage": "teacher", "epoch": 0, "accuracy": 0.5}
    record.add_epoch(teacher | {"lr": float("nan"), "cached": False})
    look(feed)
    look(feed)
    record.add_epoch({"stage": "finetune", "epoch": 0, "accuracy": 0.6})
    record.add_epoch({"stage": "finetune", "epoch": 1, "accuracy": 0.7})
    look(feed)
    again = started(tmp_path)
    again.add_epoch(teacher)
    again.finish("complete", metrics={"accuracy": 0.8})
    feed.ended(again)
    assert heard.calls == [
        ("begin", "00000", 1),
        ("epoch", "00000", {"teacher/accuracy": 0.5}, 1),
        ("epoch", "00000", {"finetune/accuracy": 0.6}, 1),
        ("epoch", "00000", {"finetune/accuracy": 0.7}, 2),
        ("begin", "00000", 2),
        ("epoch", "00000", {"teacher/accuracy": 0.5}, 1),
        ("end", "00000", "complete"),
    ]


@pytest.mark.parametrize("at", ["begin", "epoch", "end"])
def test_a_broken_tracker_is_left_out(tmp_path: Path, at: str) -> None:
    broken, heard, lines = Heard(break_at=at), Heard(), []  # type: ignore[var-annotated]
    feed = follow(tmp_path, broken, heard, warn=lines.append)
    record = started(tmp_path)
    record.add_epoch({"stage": "finetune", "accuracy": 0.6})
    look(feed)
    record.finish("failed", error="no")
    feed.close()
    assert [c[0] for c in heard.calls] == ["begin", "epoch", "end"]
    assert lines == [
        "Heard is left out from here on: ConnectionError: the server is away"
    ]


def test_a_tracker_that_cannot_start_is_named(tmp_path: Path) -> None:
    lines: list[str] = []

    def refuse() -> Tracker:
        raise ConnectionError("no server")

    assert TrackerFeed(tmp_path, [refuse], lines.append).trackers == []
    assert lines == ["a tracker is left out from here on: ConnectionError: no server"]


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What a folder's event files hold."""
    found: dict[tuple[str, int], float] = {}
    for path in folder.glob("events.*"):
        data, at = path.read_bytes(), 0
        while at < len(
            data
        ):  # TFRecord: length u64, its checksum u32, content, checksum u32
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            at += 12 + size + 4
    return found


def test_tensorboard_files(raw: dict[str, Any], tmp_path: Path) -> None:
    feed = follow(tmp_path, TensorBoard(spec_from(raw), tmp_path))
    record = started(tmp_path)
    for value in (0.25, 0.5):
        record.add_epoch({"stage": "finetune", "accuracy": value})
    look(feed)
    record.finish("complete", metrics={"gmacs": 1.5, "latency_dtype": "float32"})
    feed.ended(record)
    wanted = {
        ("finetune/accuracy", 1): 0.25,
        ("finetune/accuracy", 2): 0.5,
        ("final/gmacs", 0): 1.5,
    }
    assert scalars(tmp_path / "tensorboard" / "00000") == pytest.approx(wanted)


class Mlflow:
    """A client that takes the names that MLflow takes, and no others."""

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.params: dict[str, str] = {}
        self.metrics: dict[tuple[str, int], float] = {}
        self.ended = ""

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def create_run(self, experiment: str, tags: dict[str, str]) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="a"))

    def _check(self, name: str) -> None:
        # mlflow.utils.validation: alphanumerics, _, -, ., space, : and /
        assert re.fullmatch(r"[/\w.\- :]*", name), f"invalid name {name!r}"

    def log_param(self, run: str, name: str, value: str) -> None:
        self._check(name)
        assert isinstance(value, str)
        self.params[name] = value

    def log_metric(self, run: str, name: str, value: float, step: int = 0) -> None:
        self._check(name)
        self.metrics[name, step] = value

    def set_tag(self, run: str, name: str, value: str) -> None:
        self._check(name)

    def set_terminated(self, run: str, status: str) -> None:
        self.ended = status


def test_trackers_get_the_configuration_and_no_name_of_optuna(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer map is several parameters of Optuna, whose names MLflow refuses."""
    client = Mlflow()
    module = ModuleType("mlflow")
    module.__spec__ = ModuleSpec("mlflow", None)
    module.MlflowClient = lambda **_: client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    path = "stages.init.sws.sws_expand.layers_source"
    fit = {"epochs": 1, "batch_size": 30, "warmup": 0, "augment": "none"}
    shape = {"patch_size": 16, "embed_dim": 16, "num_heads": 2, "repeats": [1, 1]}
    aux = {"stage": "sws_aux", **shape, **fit}
    sws = {"stages": {"aux": aux, "sws_expand": {}}}
    raw["stages"] = {
        "init": {"one_of": {"sws": sws, "random_init": {}}},
        "finetune": fit,
    }
    raw["search"]["space"] = {
        path: {"layer_map": {"layers": 3, "stages": 2}},
        "stages.init.*.args.embed_dim": [16, 32],
        "stages.finetune.lr": [1e-3, 1e-2],
    }
    point = {"stages.init": "sws", path: [0, 1, 1]}
    search = searcher(raw | {"trackers": {"mlflow": {}}}, tmp_path, points=[point])
    lines: list[str] = []
    spec = search.spec
    feed = follow(tmp_path, MlflowRuns(spec, tmp_path), warn=lines.append)
    record = begin(search)
    assert any("[" in name for name in record.plan.draw)
    record.add_epoch({"stage": "finetune", "epoch": 0, "accuracy": 0.5})
    look(feed)
    record.finish("complete", metrics={"accuracy": 0.5})
    feed.ended(record)
    assert lines == []
    assert client.params[path] == "[0, 1, 1]"
    assert client.params["stages.init"] == "sws"
    assert set(client.params) == {
        name.replace("*", "any") for name in record.plan.configuration
    }
    assert client.metrics == {("finetune/accuracy", 1): 0.5, ("final/accuracy", 0): 0.5}
    assert client.ended == "FINISHED"
    out = io.StringIO()
    progress = Progress(spec.objectives, {}, Console(file=out, width=300))
    progress.ended(record)
    assert " layers_source=[0, 1, 1]" in out.getvalue()
    assert "#0" not in out.getvalue()


PLUGIN = """
from sweeps.drive.trackers import Tracker

class Lines(Tracker):
    def __init__(self, spec, run):
        self.path = run / f"{spec.name}.txt"

    def begin(self, record):
        self.path.write_text("")

    def epoch(self, trial_id, scalars, step):
        with self.path.open("a") as file:
            file.write(f"{trial_id} {step} {scalars}")

    def end(self, record):
        pass

TRACKERS = {"lines": Lines}
"""


def test_a_plugin_s_tracker_is_used(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "lines.py").write_text(PLUGIN)
    plugins.load([plugins.read("lines.py", tmp_path)])
    try:
        assert list(trackers()) == ["tensorboard", "mlflow", "wandb", "lines"]
        assert len(wanted_trackers(spec_from(raw), tmp_path)) == 1  # not asked for
        with pytest.raises(SpecError, match=r"trackers\.line: no such.*'lines'.*valid"):
            check_trackers(spec_from(raw | {"trackers": {"line": {}}}).trackers)
        spec = spec_from(raw | {"trackers": {"lines": {}}})
        makers = wanted_trackers(spec, tmp_path)
        feed = TrackerFeed(tmp_path, makers)
        assert [type(t).__name__ for t in feed.trackers] == ["TensorBoard", "Lines"]
        feed.started("00000")
        record = started(tmp_path)
        record.add_epoch({"stage": "finetune", "accuracy": 0.5})
        look(feed)
        said = (tmp_path / "small.txt").read_text()
        assert said == "00000 1 {'finetune/accuracy': 0.5}"
    finally:
        plugins.forget()


def test_missing_extras_are_named(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("mlflow", "wandb"):
        spec = spec_from(raw | {"trackers": {name: {}}})
        with pytest.raises(
            SpecError,
            match=(
                rf"trackers\.{name}: {name} is not installed; pip install"
                r" 'compression-sweeps\["
            ),
        ):
            check_trackers(spec.trackers)


def test_the_standing_front() -> None:
    standing = Standing(
        [
            Objective(metric="accuracy", mode="max", bound=0.2),
            Objective(metric="gmacs", mode="min"),
        ]
    )
    assert (standing.best(), standing.hypervolume()) == ({}, 0.0)
    for accuracy, gmacs in [
        (0.9, 4.0),
        (0.8, 2.0),
        (0.5, 1.0),
        (0.7, 3.0),
        (0.1, 0.1),
        (float("nan"), 0.1),
    ]:
        standing.add({"accuracy": accuracy, "gmacs": gmacs})
    assert standing.best() == {"accuracy": 0.9, "gmacs": 1.0}
    assert sorted(standing.front.tolist()) == [[0.5, 1.0], [0.8, 2.0], [0.9, 4.0]]
    # steps of a staircase from the reference (0.46, 4.3), 10 % of the range beyond the worst
    steps = 0.1 * 0.3 + 0.3 * 2.3 + 0.04 * 3.3
    assert np.isclose(standing.hypervolume(), steps)


def test_progress_on_a_pipe_and_on_a_terminal(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    sweep = check_spec(spec_from(raw))
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(
            file=out, force_terminal=terminal, width=200, color_system=None
        )
        progress = Progress(sweep.spec.objectives, units(sweep), console)
        old = TrialRecord.begin(tmp_path / "a", plan("00000"))
        old.finish("failed", error=ValueError("bad <thing>"))
        progress.resume([old])
        with progress.drawn(2):
            for i, accuracy in enumerate((0.5, 0.75)):
                progress.started(f"0000{i + 1}")
                record = TrialRecord.begin(tmp_path / str(i), plan(f"0000{i + 1}"))
                metrics = {"accuracy": accuracy, "gmacs": 1.0 + i}
                record.finish("complete", metrics=metrics, seconds=1.0)
                if i == 0:
                    progress.failed_over("00001", "its process died, or its node did")
                    progress.started("00001")
                progress.ended(record)
        assert progress.summary().splitlines() == [
            "2 complete · 1 failed",
            "best accuracy 0.75 · best gmacs 1 · hypervolume 0.0525",
        ]
        text = out.getvalue()
        assert "00001  its process died" in text
        assert re.search(r"00001 ★  accuracy 0.5 {8}gmacs 1 +1.0 s", text)
        assert re.search(r"00002 ★  accuracy 0.75 {7}gmacs 2 +1.0 s", text)
        assert ("2/2" in text) == terminal


def test_a_trial_on_the_front_has_a_star_and_a_narrow_terminal_one_line_each(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    sweep = check_spec(spec_from(raw))
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, color_system=None)
    progress = Progress(sweep.spec.objectives, units(sweep), console)
    drawn = {f"stages.init.weight_selection.args.name_{i}": 1.25 for i in range(9)}
    for number, accuracy in enumerate((0.5, 0.25, 0.75)):
        name = f"0000{number}"
        progress.started(name)
        record = TrialRecord.begin(tmp_path / name, plan(name, configuration=drawn))
        metrics = {"accuracy": accuracy, "gmacs": 1.0}
        record.finish("complete", metrics=metrics, seconds=12.34)
        progress.ended(record)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert ["★" in line for line in lines] == [True, False, True]
    assert all("12.3 s  name_0=1.25" in line and line.endswith("…") for line in lines)


def test_running_trials_say_how_far_they_are(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    search = searcher(raw, tmp_path, trials=1)
    plan_ = search.ask()
    assert plan_ is not None
    running = RunningTrials(tmp_path)
    running.started(plan_.trial_id)
    (trial,) = running.trials.values()
    assert running.look()
    assert not running.look()  # only now and then
    assert (running.share, trial.said([])) == (0.0, "for 0.0 s")  # not begun
    record = TrialRecord.begin(trial_folder(tmp_path, plan_.trial_id), plan_)
    record.add_epoch(
        {
            "stage": "teacher",
            "epoch": 0,
            "accuracy": 0.5,
            "seconds": 4.0,
            "images_per_second": 99.6,
        }
    )
    look_again(running)
    assert trial.said(search.spec.objectives) == (
        "teacher, epoch 1 of 2, accuracy 0.5, 100 images/s, 4.0 s left"
    )
    assert running.share == pytest.approx(1 / 3)  # teacher: 2 epochs, finetune: 1
    for name in ("teacher", *(s.name for s in plan_.stages[1:-1])):
        record.add_stage(stage_row(name))
    look_again(running)
    assert trial.said([]) == "finetune"
    assert running.share == pytest.approx(2 / 3)
    record.add_stage(stage_row("finetune"))
    look_again(running)
    assert (trial.said([]), running.share) == ("measuring", MOST)
    running.ended(plan_.trial_id)
    assert running.share == 0.0


def look_again(running: RunningTrials) -> None:
    running._next_look = 0.0
    assert running.look()


def stage_row(name: str) -> StageRow:
    return StageRow(
        index=0,
        name=name,
        stage="finetune",
        phase="train",
        key="k",
        cached=False,
        seconds=1.0,
        seconds_full=1.0,
    )


def test_names_are_as_short_as_tells_them_apart() -> None:
    names = ["stages.init", "stages.init.*.args.depth", "stages.a.lr", "stages.b.lr"]
    assert list(short_names(names).values()) == ["init", "depth", "a.lr", "b.lr"]
    assert short_names(["a.*.x", "a.x"]) == {"a.*.x": "a.*.x", "a.x": "a.x"}
    assert short_names([]) == {}
