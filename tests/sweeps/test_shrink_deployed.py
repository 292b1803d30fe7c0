"""The delivered file where there is nothing but its runtime, NumPy and Pillow: it predicts what the
run has recorded.
"""

import json
import subprocess
import sys
from collections import Counter
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from analysis.contract import PREDICTIONS_FILE
from sweeps.drive.driver import run_header, site_of
from sweeps.export.formats import export
from sweeps.run.folder import trial_folder
from sweeps.run.record import to_json
from sweeps.trial.attempt import run_trial
from tests.optional import needs
from tests.sweeps.helpers import searcher
from trainers.config import DataConfig
from trainers.data.open import open_dataset
from trainers.data.splits import load_data
from trainers.files import default_data_cache, write_atomic

NAMES = ("circle", "line", "swan")
TRAIN: dict[str, Any] = {
    "epochs": 8,
    "batch_size": 30,
    "lr": 3e-3,
    "lr_scaling": "unscaled",
    "warmup": 0,
}

ALONE = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
for name in ("torch", "timm", "ray", "pandas", "onnx", "sweeps", "trainers"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} is here")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script with a folder of packages beside Python's own, and no other."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of digits, as pictures of unequal sizes."""
    folder = tmp_path_factory.mktemp("photos")
    digits = load_digits()
    generator = np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        rows = np.flatnonzero(digits.target == label)[:60]
        for index, row in enumerate(rows):
            pixels = (digits.images[row] * 15).astype(np.uint8)
            size = tuple(int(n) for n in generator.integers(32, 60, 2))
            path = folder / ("test" if index < 20 else "train") / name / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).convert("RGB").resize(size).save(path)
    return folder


def packages(folder: Path, *names: str) -> Path:
    """A folder with these distributions' packages, and no others."""
    folder.mkdir()
    for name in names:
        found = distribution(name)
        tops = {path.parts[0] for path in found.files or () if path.parts[0] != ".."}
        for top in tops:
            (folder / top).symlink_to(Path(str(found.locate_file(top))).resolve())
    return folder


def predicted(script: Path, site: Path, images: list[Path]) -> list[str]:
    """Class names, by the script that is delivered."""
    words = [sys.executable, "-I", "-S", "-c", ALONE, str(site), str(script)]
    done = subprocess.run([*words, *images], capture_output=True, text=True, cwd=site)
    assert done.returncode == 0, done.stderr + done.stdout
    return [line.rsplit(" ", 1)[1] for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form", "store"),
    [
        pytest.param("onnxruntime", "onnx", None, marks=needs("onnxruntime", "onnx")),
        pytest.param("openvino", "openvino", "int8", marks=needs("openvino", "nncf")),
    ],
)
def test_the_file_alone_predicts_what_was_recorded(
    name: str,
    form: str,
    store: str | None,
    raw: dict[str, Any],
    photos: Path,
    tmp_path: Path,
) -> None:
    data = {"dataset": "folder", "root": str(photos), "image_size": 32}
    raw["source"] = {"model": "resnet20_cifar", "args": {"width": 4}}
    raw["data"] = data | {"val_fraction": 0.3}
    raw["stages"] = {"tune": {"stage": "finetune", "augment": "none"} | TRAIN}
    if store is not None:
        raw["stages"]["store"] = {"stage": store, "images": 16}
    raw["objectives"] = [{"metric": "runtime_accuracy", "mode": "max"}]
    raw["measure"] = {"runtime": name, "batch_size": 1, "repeats": 3}
    run = tmp_path / "runs" / "small"
    search = searcher(raw, run, trials=1, space={}, sampler="random")
    write_atomic(run / "run.json", to_json(run_header(search.sweep, [])))
    plan = search.ask()
    assert plan is not None
    outcome = run_trial(plan, site_of(search.sweep, run))
    assert outcome.status == "complete", outcome.error
    target = tmp_path / "model"
    export(run, plan.trial_id, form, target)
    site = packages(tmp_path / "site", name, "numpy", "pillow")
    config = DataConfig.model_validate(raw["data"])
    split = load_data(config, default_data_cache()).val
    part: Any = open_dataset(config).train
    images = [part.encoded(row) for row in split.rows.tolist()]
    found = predicted(tmp_path / "model" / "predict.py", site, images)
    labels = [path.parent.name for path in images]
    right = [a == b for a, b in zip(found, labels, strict=True)]
    assert len(set(found)) > 1  # a model that knows one class alone would show little
    assert outcome.metrics["runtime_accuracy"] == pytest.approx(np.mean(right))
    if store is None:  # what is recorded of integers is of the module in torch
        shown = json.loads(
            (trial_folder(run, plan.trial_id) / PREDICTIONS_FILE).read_text()
        )
        pairs = {(NAMES[a], NAMES[b]): n for a, b, n in shown["confusion"]}
        assert Counter(zip(labels, found, strict=True)) == pairs
