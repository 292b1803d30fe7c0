"""What a model's images tell is found once for all cuts of it in a process."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.channels import looking
from compress.channels.stage import PruneChannels
from compress.low_rank import stage as low_rank
from compress.low_rank.stage import LowRank
from compress.stage import Context
from trainers.data.splits import Data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch

IMAGES = 120
"""All of the training part, so that no batch is cut."""


class Counting(Context):
    """Counts the images that a stage passes."""

    passed = 0

    def batches(self, n: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in super().batches(n, batch_size):
            self.passed += len(images)
            yield images, labels


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    looking.LATEST.forget()


def cut(
    state: ModelState, data: Data, folder: Path, share: float, **options: Any
) -> tuple[ModelState, int]:
    """The model of a cut, and how many images were passed."""
    ctx = Counting(data, torch.device("cpu"), 0, folder, lambda name, file: state)
    stage = PruneChannels(
        target={"macs": share},  # type: ignore[arg-type]
        epochs=0,
        batch_size=40,
        importance_images=IMAGES,
        compensate_images=IMAGES,
        **options,
    )
    return stage.run(state, ctx), ctx.passed


def model(seed: int) -> ModelState:
    arch = make_arch("resnet20_cifar", num_classes=10, image_size=32, args={"width": 4})
    return ModelState.initialised(arch, seed)


def test_the_next_cut_passes_images_for_its_norms_alone(
    digits: Data, tmp_path: Path
) -> None:
    state = model(0)
    _, first = cut(state, digits, tmp_path, 0.7)
    found, second = cut(state, digits, tmp_path, 0.5)
    # importance, what layers get, means and variances of norms
    assert (first, second) == (3 * IMAGES, IMAGES)
    looking.LATEST.forget()
    alone, passed = cut(state, digits, tmp_path, 0.5)
    assert passed == 3 * IMAGES
    assert found.hash() == alone.hash()


@pytest.mark.parametrize("other", ["model", "data", "options"])
def test_another_cut_looks_for_itself(other: str, digits: Data, tmp_path: Path) -> None:
    state, data, options = model(0), digits, {}
    cut(state, data, tmp_path, 0.5)
    match other:
        case "model":
            state = model(1)
        case "data":
            data = replace(digits)
        case "options":
            options = {"importance": "activation"}
    found, passed = cut(state, data, tmp_path, 0.5, **options)
    assert passed == 3 * IMAGES
    looking.LATEST.forget()
    assert found.hash() == cut(state, data, tmp_path, 0.5, **options)[0].hash()


def test_what_takes_much_memory_is_not_kept(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = cut(model(0), digits, tmp_path, 0.5)
    looking.LATEST.forget()
    monkeypatch.setattr(looking, "MOST_BYTES", 1000)
    first, passed = cut(model(0), digits, tmp_path, 0.5)
    again, later = cut(model(0), digits, tmp_path, 0.5)
    assert (passed, later) == (3 * IMAGES, 2 * IMAGES)  # what units are worth is small
    assert kept.hash() == first.hash() == again.hash()


def test_the_next_low_rank_cut_passes_no_images(digits: Data, tmp_path: Path) -> None:
    def factored(share: float) -> tuple[ModelState, int]:
        ctx = Counting(digits, torch.device("cpu"), 0, tmp_path, lambda name, file: vit)
        stage = LowRank(target={"macs": share}, images=IMAGES)  # type: ignore[arg-type]
        return stage.run(vit, ctx), ctx.passed

    args = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    arch = make_arch("vit_tiny_patch16_224", num_classes=10, image_size=32, args=args)
    vit = ModelState.initialised(arch, 0)
    low_rank.LATEST.forget()
    assert factored(0.8)[1] == IMAGES
    found, passed = factored(0.6)
    assert passed == 0
    low_rank.LATEST.forget()
    assert found.hash() == factored(0.6)[0].hash()
