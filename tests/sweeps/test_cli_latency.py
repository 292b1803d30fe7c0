"""`sweeps latency-table`: a table that reads back, one message a mistake, nothing left
behind by Ctrl-C.
"""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compress.measure import table_measurement as latency_measure
from compress.measure.latency_table import LatencyTable
from sweeps.cli.main import app
from trainers.models.arch import ModelState
from trainers.models.revit import revit_arch

ARGS = '{"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}'
SMALL = [
    "--model",
    "vit_tiny_patch16_224",
    "--image-size",
    "16",
    "--args",
    ARGS,
    "--batch",
    "2",
    "--rounds",
    "1",
    "--points",
    "embed=2,heads=2,qk=2,v=2,mlp=2",
    "--groups",
    "embed=8,heads=1,qk=4,v=4",
]


def sweeps(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["latency-table", *arguments])


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_measure, "_WARM_SECONDS", 0.0)


def test_writes_a_table(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.parquet"
    result = sweeps(*SMALL, "-o", str(path))
    assert result.exit_code == 0, result.output
    table = LatencyTable.read(path)
    assert [axis.tolist() for axis in table.axes] == [
        [8, 24],
        [1, 3],
        [4, 8],
        [4, 8],
        [16, 96],
    ]
    mark = table.fingerprint
    assert (mark.batch_size, mark.image_size, mark.num_tokens, mark.dtype) == (
        2,
        16,
        5,
        "float32",
    )
    assert "32 points" in result.output


def test_takes_a_saved_model(tmp_path: Path) -> None:
    lists = {"heads": [2], "qk": [4], "v": [8], "mlp": [16]}
    ModelState.initialised(
        revit_arch(16, num_classes=3, img_size=8, patch_size=4, **lists), 0
    ).save(tmp_path / "m")  # type: ignore[arg-type]
    result = sweeps(
        "--model",
        str(tmp_path / "m"),
        "--rounds",
        "1",
        "--batch",
        "1",
        "-o",
        str(tmp_path / "t.parquet"),
    )
    assert result.exit_code == 0, result.output
    assert [
        axis.tolist() for axis in LatencyTable.read(tmp_path / "t.parquet").axes
    ] == [[16], [2], [4], [8], [16]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing"], "unknown model 'nothing'"),
        (["--model", "resnet18", "--args", "{}"], "it is a ResNet"),
        (["--device", "cuda:99"], "CUDA devices"),
        (["--device", "toaster"], "is no device"),
        (["--device", "meta"], "only cpu and cuda"),
        (["--dtype", "int4"], "valid: float32"),
        (["--dtype", "int8"], "runtime torch does not execute integers"),
        (["--points", "embed"], "--points is a list like"),
        (["--points", "width=3"], "no dimension 'width'"),
        (["--groups", "mlp=x"], "--groups is a list like"),
        (["--args", "{"], "not JSON"),
        (["--args", "[]"], "JSON object"),
        (["-o", "table.csv"], "written as .parquet"),
        (["-o", "/dev/null/table.parquet"], "cannot be written"),
    ],
)
def test_one_message_a_mistake(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    # the last of an option given twice counts
    result = sweeps(*SMALL, "-o", str(tmp_path / "t.parquet"), *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times_ms(self: Any, job: Any, passes: int) -> list[float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(latency_measure._Probe, "times_ms", times_ms)
    result = sweeps(*SMALL, "-o", str(tmp_path / "t.parquet"))
    assert result.exit_code != 0
    assert not list(tmp_path.iterdir())
