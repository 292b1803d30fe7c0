"""What the predictions of a split show."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from trainers.config import DataConfig
from trainers.training.epoch_metrics import ece
from trainers.training.predictions import (
    THUMBNAIL_PX,
    WorstImages,
    calibration,
    confusion,
)

CPU = torch.device("cpu")


def drawn(n: int = 200, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, classes, generator=noise)
    return logits, torch.randint(classes, (n,), generator=noise)


def test_confusion_counts_every_image_once() -> None:
    logits = torch.eye(3)[[0, 0, 1, 2, 2]]
    labels = torch.tensor([0, 0, 2, 2, 1])
    assert confusion(logits, labels) == [(0, 0, 2), (1, 2, 1), (2, 1, 1), (2, 2, 1)]


def test_the_bins_give_the_calibration_error() -> None:
    logits, labels = drawn()
    bins = calibration(logits, labels)
    assert sum(b.images for b in bins) == 200
    error = sum(b.images * abs(b.accuracy - b.confidence) for b in bins) / 200
    found = ece(logits, labels)
    assert found is not None
    assert error == pytest.approx(float(found), abs=1e-6)


def test_the_worst_images_of_all_batches_are_kept() -> None:
    logits, labels = drawn()
    images = torch.arange(200.0).view(-1, 1, 1, 1).expand(-1, 3, 64, 64) / 255
    config = DataConfig(dataset="digits", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    worst = WorstImages(5, config, 64, CPU)
    for part in torch.arange(200).split(3):
        worst.add((images[part] - 0.5) / 0.2, logits[part], labels[part])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    found = worst.samples()
    for sample, row in zip(found, losses.topk(5).indices.tolist(), strict=True):
        picture = Image.open(io.BytesIO(sample.thumbnail)).convert("RGB")
        assert picture.size == (THUMBNAIL_PX, THUMBNAIL_PX)
        assert picture.getpixel((20, 20)) == (row, row, row)
        assert sample.label == labels[row]
        assert sample.predicted == logits[row].argmax()
        assert sample.confidence == pytest.approx(
            float(logits[row].softmax(0).max()), abs=1e-5
        )


def test_a_thumbnail_is_small_and_no_larger_than_the_image() -> None:
    noise = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for size in (224, 8):
        worst = WorstImages(12, DataConfig(dataset="digits"), size, CPU)
        worst.add(noise[..., :size, :size], torch.eye(2), torch.tensor([0, 0]))
        [first, second] = worst.samples()
        assert max(len(first.thumbnail), len(second.thumbnail)) < 3_000
        side = min(size, THUMBNAIL_PX)
        assert Image.open(io.BytesIO(first.thumbnail)).size == (side, side)
