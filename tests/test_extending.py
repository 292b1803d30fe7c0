"""The worked examples of docs/extending.md work as they are shown."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from compress.metrics import FinalModel, measurements
from compress.pipeline import stages
from compress.testing import check_stage, tiny_models
from sweeps.check import check_spec
from sweeps.drive.trackers import trackers
from sweeps.run.record import TrialRecord
from sweeps.spec.load import spec_from
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import parse_yaml
from trainers import plugins
from trainers.config import DataConfig
from trainers.data.splits import Data, load_data
from trainers.training.epoch_metrics import epoch_metrics
from trainers.training.evaluate import evaluate

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def shown_files(folder: Path) -> dict[str, str]:
    """The page's plugin files, written to a folder: name without ".py" → text."""
    found = {}
    for text in blocks("python"):
        name = re.match(r'"""(\w+)\.py: ', text)
        if name is not None:
            found[name[1]] = text
            (folder / f"{name[1]}.py").write_text(text)
    return found


@pytest.fixture(autouse=True)
def loaded(tmp_path: Path) -> Iterator[None]:
    """All plugins of the page, loaded as a spec's are."""
    names = shown_files(tmp_path)
    plugins.load([plugins.read(f"./{name}.py", tmp_path) for name in names])
    yield
    plugins.forget()


def test_the_page_shows_one_of_each() -> None:
    offered = {group: list(plugins.offered(group)) for group in plugins.GROUPS}
    assert offered == {
        "stages": ["ternary"],
        "metrics": ["noise"],
        "epoch_metrics": ["worst_class"],
        "datasets": ["npz"],
        "exporters": ["zipped"],
        "trackers": ["csv_log"],
    }


def test_the_stage(digits: Data) -> None:
    stage = stages()["ternary"](threshold=0.5)
    for model in check_stage(stage, tiny_models(digits), digits):
        matrices = [value for value in model.weights.values() if value.ndim > 1]
        assert all(len(value.unique()) == 3 for value in matrices)


def test_the_metrics(digits: Data) -> None:
    final = FinalModel(tiny_models(digits)[0], digits, torch.device("cpu"))
    values = measurements()["noise"].measure(final)
    assert 0 <= float(values["noisy_accuracy"]) <= 1
    assert epoch_metrics()["worst_class"].unit == "fraction"
    scores = evaluate(final.module, digits, "val", final.device)
    assert scores["worst_class"] <= scores["balanced_accuracy"]


def test_the_data_set(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), np.uint8)
    for name in ("train", "test"):
        np.savez(tmp_path / name, images=images, labels=np.arange(40) % 4)
    config = DataConfig(dataset="npz", root=tmp_path, val_fraction=0.25)
    data = load_data(config, tmp_path / "cache")
    assert (data.size("train"), data.size("val"), data.size("test")) == (30, 10, 40)
    assert data.info.num_classes == 4


def test_the_export_format(tmp_path: Path, digits: Data) -> None:
    form = plugins.offered(plugins.EXPORTERS)["zipped"]
    model, images = tiny_models(digits)[0], torch.randn(2, 3, 32, 32)
    form.write(model, model.build(), images, tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(
            form.run(tmp_path, images), model.build()(images), rtol=0, atol=0
        )


def test_the_tracker(tmp_path: Path) -> None:
    record = cast(TrialRecord, SimpleNamespace(trial_id="00000", status="complete"))
    tracker = trackers()["csv_log"](cast(Spec, None), tmp_path)
    tracker.begin(record)
    tracker.epoch("00000", {"finetune/loss": 2.5}, 1)
    tracker.end(record)
    assert (tmp_path / "epochs.csv").read_text().splitlines() == [
        "00000,begins,",
        "00000,1,finetune/loss,2.5",
        "00000,complete,",
    ]


def small_spec(folder: Path) -> dict[str, Any]:
    """A sweep of two trials that uses every plugin of the page that a spec can name."""
    return {
        "name": "extended",
        "storage": str(folder / "runs"),
        "plugins": [f"{folder}/{name}.py" for name in shown_files(folder)],
        "source": {"model": "resnet20_cifar", "args": {"width": 4}},
        "data": {
            "dataset": "digits",
            "limit": 160,
            "limit_test": 60,
            "val_fraction": 0.25,
        },
        "stages": {
            "train": {
                "stage": "finetune",
                "epochs": 2,
                "batch_size": 40,
                "warmup": 0,
                "augment": "none",
            },
            "quant": {"stage": "ternary"},
        },
        "objectives": [
            {"metric": "noisy_accuracy", "mode": "max"},
            {"metric": "ternary_zeros", "mode": "max"},
        ],
        "trackers": {"csv_log": {}},
        "search": {
            "trials": 2,
            "space": {"stages.quant.threshold": {"low": 0.2, "high": 1.0}},
        },
    }


def test_the_samplers(tmp_path: Path) -> None:
    first = parse_yaml(blocks("yaml")[1], "docs")[0]
    raw = small_spec(tmp_path)
    raw["search"] = first["search"] | {"space": raw["search"]["space"]}
    assert raw["search"]["sampler"]["optuna"] == "QMCSampler"
    check_spec(spec_from(raw))


@pytest.mark.slow
def test_all_in_one_sweep(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from sweeps.cli.main import app

    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps(small_spec(tmp_path)))
    run = tmp_path / "runs" / "extended"

    def call(*arguments: str, exit_code: int = 0) -> str:
        plugins.forget()  # as in a process of its own
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == exit_code, done.output
        return " ".join(done.output.split())

    call("run", str(spec))
    assert "noisy_accuracy" in call("front", str(run))
    assert "finetune" not in (run / "epochs.csv").read_text().splitlines()[0]
    described = json.loads((run / "run.json").read_text())["metrics"]
    assert described["noisy_accuracy"]["unit"] == "fraction"
    plan = json.loads((run / "trials" / "00000" / "plan.json").read_text())
    assert "ternary.py" in plan["plugins"]

    trial = (str(run), "00000")
    said = call("reproduce", *trial, exit_code=2)
    assert "which is not here; give it as --plugin" in said
    given = [f"--plugin={tmp_path}/{name}.py" for name in shown_files(tmp_path)]
    call("reproduce", *trial, *given)
    out = tmp_path / "out"
    call("export", *trial, "--format", "zipped", "-o", str(out), *given)
    assert (out / "model.zip").stat().st_size > 0
