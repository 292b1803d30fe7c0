"""`sweeps status --watch` and `--json`, and what a sweep says in a log and to a program."""

import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.contract import Objective
from sweeps.cli import status
from sweeps.cli.main import app
from sweeps.console import PlainConsole
from sweeps.drive.json_lines import JsonLines
from sweeps.drive.progress import Progress
from sweeps.run.record import StageRow
from tests.analysis.conftest import write_run
from tests.sweeps.serving import begun, epoch

GOALS = [Objective("accuracy", "max")]


def ended_stage() -> StageRow:
    values = {"index": 0, "name": "finetune", "stage": "finetune", "phase": "train"}
    more = {"key": "k", "cached": False, "seconds": 1.0, "seconds_full": 1.0}
    return StageRow.model_validate({**values, **more, "metrics": {}})


def told(run: Path, kind: type[Progress]) -> list[str]:
    """Lines of a sweep of one trial of one stage."""
    text = io.StringIO()
    progress = kind(GOALS, {}, PlainConsole(file=text, width=40))
    with progress.drawn(1, run):
        record = begun(run, "00000")
        progress.started("00000")
        epoch(record, 0)
        progress.look()
        record.add_stage(ended_stage())
        assert progress.running is not None
        progress.running._next_look = 0.0
        progress._next_line = 0.0
        progress.look()
        record.finish("complete", metrics={"accuracy": 0.9})
        progress.ended(record)
    return text.getvalue().splitlines()


def test_a_log_has_a_line_for_each_stage_and_for_how_all_stands(tmp_path) -> None:
    lines = told(tmp_path, Progress)
    assert lines[0] == "00000  finetune has ended, then measuring"
    assert lines[1] == "1 running; 00000  measuring"
    assert "accuracy 0.9" in lines[2]
    assert len(lines) == 3


def test_a_program_reads_an_object_a_line(tmp_path) -> None:
    found = [json.loads(line) for line in told(tmp_path, JsonLines)]
    assert [line["event"] for line in found] == ["started", "stage", "running", "ended"]
    assert found[1]["stage"] == "finetune"
    assert found[2]["trials"][0]["stage"] == "measuring"
    last = found[-1]
    assert (last["metrics"], last["on_front"]) == ({"accuracy": 0.9}, True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo", trials=12)


def test_status_as_json(demo: Path) -> None:
    found = json.loads(CliRunner().invoke(app, ["status", str(demo), "--json"]).output)
    assert sum(found["trials"].values()) == 12
    assert found["failed"][0]["error"].startswith("ValueError")
    assert set(found["front"][0]) == {"trial", "accuracy", "gmacs"}
    assert found["driven"] is False


def test_watching_shows_each_change_until_the_driver_ends(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver ends at the fourth look; a trial begins, ends an epoch, and completes."""
    run = write_run(tmp_path / "demo", trials=3)
    steps = iter(["begin", "epoch", "finish", "gone"])
    records = []

    def is_driven(folder: Path) -> bool:
        step = next(steps)
        if step == "begin":
            records.append(begun(run, "00700"))
        elif step == "epoch":
            epoch(records[0], 0)
        elif step == "finish":
            records[0].finish("complete", metrics={"accuracy": 0.9, "gmacs": 0.1})
        return step != "gone"

    monkeypatch.setattr("sweeps.run.driving.is_driven", is_driven)
    monkeypatch.setattr(status, "SECONDS_BETWEEN_LOOKS", 0.0)
    output = CliRunner().invoke(app, ["status", str(run), "--watch"]).output
    assert "00700  finetune, epoch 1 of 4" in output
    assert output.index("epoch 1 of 4") < output.rindex("demo  4 trials: 3 complete")
