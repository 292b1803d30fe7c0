"""`sweeps bench`: a row for each session, and mistakes that end it with a message."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sweeps.cli.main import app
from sweeps.run.folder import trial_folder
from sweeps.run.record import TrialRecord
from tests.sweeps.helpers import plan
from trainers.models.arch import Arch, ModelState

SMALL = Arch("resnet_cifar", "resnet20_cifar", {"num_classes": 3, "width": 4})


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_prints_a_row_for_each_session(tmp_path: Path) -> None:
    ModelState.initialised(SMALL, 0).save(tmp_path)
    chosen = ("--runtime", "torch", "--batch", "1,2", "--threads", "1,2")
    done = bench(str(tmp_path), *chosen, "--image-size", "16", "--rounds", "3")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines()]
    assert [row[1:4] for row in rows[1:]] == [
        ["float32", batch, threads] for batch in "12" for threads in "12"
    ]
    assert max(map(len, done.output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runtime", "tflite", "--image-size", "16"), "--runtime: Input should be"),
        (("--batch", "0", "--image-size", "16"), "--batch is a list of numbers"),
        ((), "give --image-size"),
    ],
)
def test_mistakes_end_with_a_message(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    ModelState.initialised(SMALL, 0).save(tmp_path)
    done = bench(str(tmp_path), *arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_a_run_needs_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names one that has a model, by the name under runs/, too."""
    run = tmp_path / "runs" / "mine"
    monkeypatch.chdir(tmp_path)
    for trial_id, status in (("00000", "failed"), ("00001", "complete")):
        given = plan(trial_id)
        TrialRecord.begin(trial_folder(run, trial_id), given).finish(status)
        remedy = f"sweeps bench mine {trial_id}" if trial_id == "00001" else "none of"
        for named in (str(run), "mine"):
            done = bench(named)
            assert done.exit_code == 2
            assert f"error {named}: a run, and a model is timed; " in done.output
            assert remedy.replace("mine", named) in done.output.replace("\n", " ")
