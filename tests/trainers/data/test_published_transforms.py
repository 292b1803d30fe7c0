"""Transforms of the published code on a fixed image, pixel by pixel."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.config import AugmentConfig, DataConfig
from trainers.data.augment import BatchAugment, EvalTransform
from trainers.timm_internals import eval_transform, train_transform
from trainers.timm_library import timm

CPU = torch.device("cpu")
FLIP = AugmentConfig(preset="flip", crop="random")
WARPED = DataConfig(dataset="folder", resize="warp", interpolation="bilinear")


def picture(width: int, height: int) -> Image.Image:
    """Smooth and coarse structure, no symmetry."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3))
    waves = [60 + 50 * np.sin(x / 9 + k) + 40 * np.cos(y / 7 - k) for k in range(3)]
    pixels = np.stack(waves, axis=2) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def test_evaluation_of_wfn_warps_to_256_and_cuts_the_centre() -> None:
    image = picture(310, 190)
    got = eval_transform(WARPED, 224)(image)
    warped = image.resize((256, 256), Image.Resampling.BILINEAR)
    assert np.array_equal(got, levels(warped.crop((16, 16, 240, 240))))


def test_training_of_wfn_warps_to_256_and_crops_at_random() -> None:
    """Every drawn image is a window of the warped one, mirrored or not; all places come up."""
    image = picture(310, 190)
    warped = levels(image.resize((256, 256), Image.Resampling.BILINEAR))
    transform = train_transform(FLIP, WARPED, 224)
    found = set()
    for seed in range(60):
        torch.manual_seed(seed)
        random.seed(seed)
        found.add(place_of(np.asarray(transform(image)), warped))
    tops, lefts, mirrored = (set(part) for part in zip(*found, strict=True))
    assert mirrored == {False, True}
    for places in (tops, lefts):
        assert min(places) <= 4
        assert max(places) >= 28


def place_of(part: np.ndarray, whole: np.ndarray) -> tuple[int, int, bool]:
    """(top, left, mirrored) of a window; refuses what is none."""
    side = part.shape[-1]
    for mirrored in (False, True):
        window = part[:, :, ::-1] if mirrored else part
        for top in range(whole.shape[1] - side + 1):
            for left in range(whole.shape[2] - side + 1):
                if np.array_equal(window[0, 0], whole[0, top, left : left + side]):
                    cut = whole[:, top : top + side, left : left + side]
                    if np.array_equal(window, cut):
                        return top, left, mirrored
    raise AssertionError("not a window of the resized image")


def test_images_in_memory_are_cropped_alike() -> None:
    """The same windows on the device, from Pillow's resized image up to one level."""
    image = picture(48, 48)
    data = DataConfig(interpolation="bilinear", crop_fraction=0.875)
    augment = BatchAugment(FLIP, data, 56, CPU)
    batch = torch.from_numpy(levels(image).copy()).expand(40, -1, -1, -1)
    got = augment(batch, np.random.default_rng(0))
    assert got.shape == (40, 3, 56, 56)
    resized = levels(image.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(resized, (56, 56), axis=(1, 2))
    both = np.stack([windows, windows[..., ::-1]])
    places = set()
    for each in got.numpy().astype(int):
        far = np.abs(both - each[None, :, None, None]).max(axis=(1, 4, 5))
        assert far.min() <= 1
        places.add(np.unravel_index(far.argmin(), far.shape))
    assert len(places) > 20


@pytest.mark.parametrize("size", [(310, 190), (224, 300)])
def test_evaluation_of_deit_and_convnext(size: tuple[int, int]) -> None:
    """Shorter side to 256, bicubic, the centre of 224 px, mean and deviation of ImageNet."""
    image = picture(*size)
    data = DataConfig(dataset="folder")
    pixels = torch.as_tensor(eval_transform(data, 224)(image))
    got = EvalTransform(data, 224, CPU).normalise(pixels[None])[0]

    scale = 256 / min(size)
    wide, tall = (256 if side == min(size) else int(side * scale) for side in size)
    resized = image.resize((wide, tall), Image.Resampling.BICUBIC)
    left, top = round((wide - 224) / 2), round((tall - 224) / 2)
    cut = levels(resized.crop((left, top, left + 224, top + 224))) / 255
    mean = np.array([0.485, 0.456, 0.406])[:, None, None]
    std = np.array([0.229, 0.224, 0.225])[:, None, None]
    np.testing.assert_allclose(got.numpy(), (cut - mean) / std, atol=1e-5)


def test_training_of_deit_and_convnext() -> None:
    """timm's transform as the published loops call it, random numbers alike, up to normalising
    and erasing, which follow on the device.
    """
    image = picture(310, 190)
    published = timm.data.create_transform(
        input_size=224,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    # the colour that fills what leaves the image is the mean's
    _set_fill(published, (124, 116, 104))
    ours = train_transform(AugmentConfig(), DataConfig(dataset="folder"), 224)
    for seed in range(12):
        seed_all(seed)
        expected = (published(image) * 255).round().to(torch.uint8)
        seed_all(seed)
        assert torch.equal(torch.as_tensor(ours(image)), expected)


def _set_fill(transform: Any, colour: tuple[int, int, int]) -> None:
    for step in transform.transforms:
        for operation in getattr(step, "ops", ()):
            operation.kwargs["fillcolor"] = colour


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
