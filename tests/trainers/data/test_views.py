"""What loader processes make of images: crops as timm draws them, pixels as Pillow resizes them."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.config import AugmentConfig, DataConfig
from trainers.data.decoding import PLAIN, Decoding, Size, decode, decode_reduced
from trainers.data.views import Coloured, ResizedCrop, train_view
from trainers.timm_library import timm

CPU = torch.device("cpu")
DATA = DataConfig(dataset="folder")
CROP = ResizedCrop(32, (0.08, 1.0), "bicubic")


def picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    waves = [127 + 60 * np.sin(x / 15 + k) + 60 * np.cos(y / 11 - k) for k in range(3)]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


@pytest.mark.parametrize("size", [(310, 190), (60, 400), (500, 40)])
def test_crops_are_those_of_timm(size: Size) -> None:
    """Also of long images, of which the middle is taken when no draw fits."""
    whole = Image.new("RGB", size)
    timms = timm.data.transforms.RandomResizedCropAndInterpolation
    for seed in range(40):
        random.seed(seed)
        top, left, tall, wide = timms.get_params(whole, (0.08, 1.0), (3 / 4, 4 / 3))
        assert CROP.box(size, seed) == (left, top, wide, tall)


def test_pixels_are_those_of_pillow_up_to_one_level() -> None:
    image = picture(310, 190)
    for seed in range(5):
        left, top, wide, tall = CROP.box(image.size, seed)
        part = image.crop((left, top, left + wide, top + tall))
        expected = np.asarray(part.resize((32, 32), Image.Resampling.BICUBIC))
        got = CROP(image, image.size, seed).permute(1, 2, 0).numpy()
        assert np.abs(got.astype(int) - expected).max() <= 1


def test_large_jpegs_are_reduced_while_they_are_decoded() -> None:
    """Only as far as the smallest crop of the image allows, and never others."""
    image = picture(300, 240).resize((1200, 960))
    encoded = _jpeg(image)
    seed = next(s for s in range(99) if min(CROP.box(image.size, s)[2:]) >= 512)
    reduced, size = _read(encoded, [seed])
    assert (reduced.size, size) == ((150, 120), (1200, 960))
    far = CROP(reduced, size, seed).int() - CROP(image, size, seed).int()
    assert far.abs().float().mean() < 3
    small = next(s for s in range(99) if min(CROP.box(image.size, s)[2:]) < 384)
    assert _read(encoded, [seed, small])[0].width == 300
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert _read(buffer.getvalue(), [seed])[0].size == (1200, 960)


def test_an_image_smaller_than_the_view_is_read_whole() -> None:
    encoded = _jpeg(picture(20, 16))
    reduced, size = _read(encoded, [0])
    assert reduced.size == size == (20, 16)
    assert CROP(reduced, size, 0).shape == (3, 32, 32)


def test_reduction_and_rotation_by_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = _jpeg(picture(400, 200), exif=exif)
    upright, size = decode_reduced(encoded, Decoding(upright=True), lambda _: 4)
    assert (upright.size, size) == ((50, 100), (200, 400))
    assert decode_reduced(encoded, PLAIN, lambda _: 4)[1] == (400, 200)
    assert decode(encoded).size == (400, 200)


def test_who_does_what() -> None:
    """Policies that batches do not have stay in the loader, as all does on the CPU."""
    for in_batches in (True, False):
        for augment in (AugmentConfig(), AugmentConfig(three_augment=True)):
            view, rest = train_view(augment, DATA, 64, CPU, in_batches=in_batches)
            assert isinstance(view, ResizedCrop if in_batches else Coloured)
            assert (rest is not None) == in_batches
        augment = AugmentConfig(auto_augment="original")
        view, rest = train_view(augment, DATA, 64, CPU, in_batches=in_batches)
        assert isinstance(view, Coloured)
        assert rest is None


def test_both_ways_mirror_the_same_crop() -> None:
    image = picture(200, 120)
    augment = AugmentConfig(preset="flip", hflip=1.0)
    alone, _ = train_view(augment, DATA, 64, CPU, in_batches=False)
    view, rest = train_view(augment, DATA, 64, CPU, in_batches=True)
    assert rest is not None
    pixels = view(image, image.size, 5)[None]
    mirrored = rest(pixels, np.random.default_rng(0))
    assert torch.equal(mirrored, pixels.flip(3))
    assert torch.equal(alone(image, image.size, 5), mirrored[0])


def _jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def _read(encoded: bytes, seeds: list[int]) -> tuple[Image.Image, Size]:
    return decode_reduced(encoded, PLAIN, lambda size: CROP.reduction(size, seeds))
