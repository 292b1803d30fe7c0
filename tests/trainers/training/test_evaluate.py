"""How many images are evaluated at a time, and that it changes no metric."""

from pathlib import Path

import pytest
import torch

from compress.testing import tiny_data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.training.evaluate import evaluate, evaluation_batch

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "images"), [(8, 256), (48, 256), (64, 128), (96, 64), (224, 8), (2048, 1)]
)
def test_large_images_are_evaluated_in_smaller_batches(size: int, images: int) -> None:
    assert evaluation_batch(size, CPU) == images
    assert evaluation_batch(size, torch.device("cuda")) == 256


def test_a_batch_changes_no_metric(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    size = data.info.image_size
    arch = make_arch(
        "resnet20_cifar",
        num_classes=data.info.num_classes,
        image_size=size,
        args={"width": 4},
    )
    module = ModelState.initialised(arch, 0).build()
    whole = evaluate(module, data, "val", CPU)
    parts = evaluate(module, data, "val", CPU, batch_size=3)
    assert parts.keys() == whole.keys()
    assert parts == pytest.approx(whole, rel=1e-5)
