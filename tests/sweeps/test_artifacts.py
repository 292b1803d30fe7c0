"""A trial's model, packed and unpacked through the command line."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from sweeps.check import check_spec
from sweeps.cli.main import app
from sweeps.export.models import trial_model
from sweeps.run.folder import trial_folder
from sweeps.run.record import TrialRecord
from sweeps.run.storage import RunStorage
from sweeps.search.searcher import StudySearch
from sweeps.spec.load import spec_from
from sweeps.trial.attempt import run_trial
from tests.sweeps.helpers import site


@pytest.fixture
def quantised_run(raw: dict[str, Any], tmp_path: Path, data_cache: Path) -> Path:
    """A run with one trial that ends in k-means quantisation."""
    raw["stages"] = {"kmeans_quant": {"clusters": 8, "scope": "network"}}
    raw["search"] = {"trials": 1}
    raw["objectives"] = [
        {"metric": "accuracy", "mode": "max"},
        {"metric": "coded_bytes", "mode": "min"},
    ]
    raw["measure"]["latency"] = False
    run = tmp_path / "runs" / "small"
    run.mkdir(parents=True)
    plan = StudySearch(check_spec(spec_from(raw)), RunStorage(run)).ask()
    assert plan is not None
    run_trial(plan, site(run, data_cache=data_cache))
    return run


def test_pack_and_unpack_keep_every_bit(quantised_run: Path, tmp_path: Path) -> None:
    model = trial_model(quantised_run, "00000")
    packed, out = tmp_path / "model.wfn", tmp_path / "model.safetensors"
    result = CliRunner().invoke(app, ["pack", str(quantised_run), "00000", str(packed)])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["unpack", str(packed), str(out)])
    assert result.exit_code == 0, result.output
    loaded = safetensors.torch.load_file(out)
    assert set(loaded) == set(model.weights)
    for name, value in model.weights.items():
        assert torch.equal(
            loaded[name].reshape(-1).view(torch.uint8),
            value.reshape(-1).view(torch.uint8),
        ), name
    record = TrialRecord.read(trial_folder(quantised_run, "00000"))
    assert record is not None
    metrics = record.outcome.metrics
    assert metrics["coded_bytes"] == packed.stat().st_size
    assert metrics["coded_ratio"] == pytest.approx(
        metrics["model_bytes"] / packed.stat().st_size
    )
    assert metrics["coded_bits_per_weight"] < 4
    assert metrics["unique_values"] == 8


def test_mistakes(quantised_run: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for arguments, message in [
        (
            ["pack", str(quantised_run), "00009", out],
            "no trial '00009'; its trials: 00000",
        ),
        (
            ["pack", str(tmp_path / "none"), "00000", out],
            "not a run folder: no run.json in",
        ),
        (
            ["unpack", str(quantised_run / "trials/00000/record.json"), out],
            "cannot be read as a coded model",
        ),
    ]:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert message in result.output
        assert not Path(out).exists()
