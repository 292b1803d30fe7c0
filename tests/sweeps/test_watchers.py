"""Watching a sweep: what listeners hear, that none can end it, and the terminal's summary."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from analysis.contract import Objective
from sweeps.check import check_spec
from sweeps.drive.progress import Progress, Standing
from sweeps.drive.trackers import Listener, TensorBoard, Watchers, check_trackers
from sweeps.run.record import TrialRecord, trial_folder
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError


class Heard(Listener):
    """Notes all that it is told."""

    def __init__(self, break_at: str = "") -> None:
        self.calls: list[Any] = []
        self.break_at = break_at

    def _note(self, kind: str, *what: Any) -> None:
        if kind == self.break_at:
            raise ConnectionError("the server is away")
        self.calls.append((kind, *what))

    def begin(self, record: dict[str, Any]) -> None:
        self._note("begin", record["trial_id"], record["attempts"])

    def epoch(self, trial_id: str, scalars: dict[str, float], step: int) -> None:
        self._note("epoch", trial_id, scalars, step)

    def end(self, record: dict[str, Any]) -> None:
        self._note("end", record["trial_id"], record["status"])


def follow(run: Path, *listeners: Listener, warn: Any = lambda line: None) -> Watchers:
    watchers = Watchers(run, [lambda one=one: one for one in listeners], warn)  # type: ignore[misc]
    watchers.started("00000")
    return watchers


def look(watchers: Watchers) -> None:
    watchers._next_look = 0.0
    watchers.look()


def test_epochs_are_told_once_and_anew_after_a_restart(tmp_path: Path) -> None:
    heard = Heard()
    watchers = follow(tmp_path, heard)
    look(watchers)  # no record yet
    record = TrialRecord.begin(trial_folder(tmp_path, "00000"), {"trial_id": "00000"})
    record.add_epoch(
        {
            "stage": "teacher",
            "epoch": 0,
            "accuracy": 0.5,
            "lr": float("nan"),
            "cached": False,
        }
    )
    look(watchers)
    look(watchers)
    record.add_epoch({"stage": "finetune", "epoch": 0, "accuracy": 0.6})
    record.add_epoch({"stage": "finetune", "epoch": 1, "accuracy": 0.7})
    look(watchers)
    again = TrialRecord.begin(trial_folder(tmp_path, "00000"), {"trial_id": "00000"})
    again.add_epoch({"stage": "teacher", "epoch": 0, "accuracy": 0.5})
    again.finish("complete", metrics={"accuracy": 0.8})
    watchers.ended("00000")
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
def test_a_broken_listener_is_left_out(tmp_path: Path, at: str) -> None:
    broken, heard, lines = Heard(break_at=at), Heard(), []  # type: ignore[var-annotated]
    watchers = follow(tmp_path, broken, heard, warn=lines.append)
    record = TrialRecord.begin(trial_folder(tmp_path, "00000"), {"trial_id": "00000"})
    record.add_epoch({"stage": "finetune", "accuracy": 0.6})
    look(watchers)
    record.finish("failed", error="no")
    watchers.close()
    assert [c[0] for c in heard.calls] == ["begin", "epoch", "end"]
    assert lines == [
        "Heard is left out from here on: ConnectionError: the server is away"
    ]


def test_a_listener_that_cannot_start_is_told(tmp_path: Path) -> None:
    lines: list[str] = []

    def refuse() -> Listener:
        raise ConnectionError("no server")

    assert Watchers(tmp_path, [refuse], lines.append).listeners == []
    assert lines == ["a watcher is left out from here on: ConnectionError: no server"]


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


def test_tensorboard_files(tmp_path: Path) -> None:
    watchers = follow(tmp_path, TensorBoard(tmp_path))
    record = TrialRecord.begin(trial_folder(tmp_path, "00000"), {"trial_id": "00000"})
    for value in (0.25, 0.5):
        record.add_epoch({"stage": "finetune", "accuracy": value})
    look(watchers)
    record.finish("complete", metrics={"gmacs": 1.5, "latency_dtype": "float32"})
    watchers.ended("00000")
    wanted = {
        ("finetune/accuracy", 1): 0.25,
        ("finetune/accuracy", 2): 0.5,
        ("final/gmacs", 0): 1.5,
    }
    assert scalars(tmp_path / "tensorboard" / "00000") == pytest.approx(wanted)


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
    checked = check_spec(spec_from(raw))
    for terminal in (False, True):
        out = io.StringIO()
        progress = Progress(
            checked,
            Console(file=out, force_terminal=terminal, width=200, color_system=None),
        )
        old = TrialRecord.begin(tmp_path / "a", {"trial_id": "00000"})
        old.finish("failed", error=ValueError("bad <thing>"))
        progress.resume([old])
        with progress.drawn(2):
            for i, accuracy in enumerate((0.5, 0.75)):
                progress.started()
                record = TrialRecord.begin(
                    tmp_path / str(i), {"trial_id": f"0000{i + 1}", "params": {}}
                )
                record.finish(
                    "complete",
                    metrics={"accuracy": accuracy, "gmacs": 1.0 + i},
                    seconds=1.0,
                )
                if i == 0:
                    progress.failed_over("00001")
                    progress.started()
                progress.ended(record)
        assert progress.summary().splitlines() == [
            "2 complete · 1 failed",
            "best accuracy 0.75 · best gmacs 1 · hypervolume 0.0525",
        ]
        text = out.getvalue()
        assert "00001  its process died" in text
        assert "00001  accuracy 0.5  gmacs 1" in text
        assert "00002  accuracy 0.75  gmacs 2" in text
        assert ("2/2" in text) == terminal
