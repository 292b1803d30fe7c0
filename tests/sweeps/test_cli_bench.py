"""`sweeps bench`: a row for each session, and mistakes that end it with a message."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sweeps.cli.main import app
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
