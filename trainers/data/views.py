"""What a loader process makes of an image before it joins a batch: cropped, resized, uint8.

For a GPU that is all, and the rest (mirror, colour, normalising, erasing, mixing) happens there to
whole batches, so that a processor core feeds as many images as it can decode and resize. Where the
model runs on the processor too, mirror and colour stay in the loader.
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trainers.config import AugmentConfig, DataConfig
from trainers.data.augment import (
    ATTEMPTS,
    LOG_CROP_ASPECT,
    BatchAugment,
    crop_kind,
)
from trainers.data.decoding import REDUCTIONS, Size
from trainers.data.randaugment import known_to_batches
from trainers.timm_internals import train_transform

Box = tuple[int, int, int, int]
"""Left, top, width, height in px."""


class View(Protocol):
    """One view of an image, drawn from a seed."""

    def reduction(self, size: Size, seeds: Sequence[int]) -> int:
        """By how much an image of `size` px may be reduced while it is decoded, one of
        `REDUCTIONS`, so that the views of `seeds` lose next to nothing.
        """

    def __call__(self, image: Image.Image, size: Size, seed: int) -> Tensor:
        """uint8 (3, H, W).

        Args:
            image: RGB, perhaps reduced.
            size: that it has in full.
        """


@dataclass(frozen=True)
class ResizedCrop:
    """Random resized crop: boxes as timm draws them from the same random numbers, pixels as
    Pillow resizes them up to one level.

    Attributes:
        size: of the view, px.
        scale: smallest and largest share of the image's area.
        interpolation: with antialiasing.
    """

    size: int
    scale: tuple[float, float]
    interpolation: str

    def box(self, size: Size, seed: int) -> Box:
        """The part of an image that is seen: the first of ten draws that fits, else the middle."""
        width, height = size
        draw = random.Random(seed)
        for _ in range(ATTEMPTS):
            area = draw.uniform(*self.scale) * width * height
            aspect = math.exp(draw.uniform(*LOG_CROP_ASPECT))
            wide, tall = (
                round(math.sqrt(area * aspect)),
                round(math.sqrt(area / aspect)),
            )
            if 0 < wide <= width and 0 < tall <= height:
                top = draw.randint(0, height - tall)
                return draw.randint(0, width - wide), top, wide, tall
        narrowest, widest = (math.exp(bound) for bound in LOG_CROP_ASPECT)
        wide = min(width, max(1, round(height * widest)))
        tall = min(height, max(1, round(width / narrowest)))
        return (width - wide) // 2, (height - tall) // 2, wide, tall

    def reduction(self, size: Size, seeds: Sequence[int]) -> int:
        boxes = [self.box(size, seed) for seed in seeds]
        smallest = min(min(wide, tall) for _, _, wide, tall in boxes)
        # twice the view is left, as of Pillow's thumbnails: rounding moves it by a quarter pixel
        enough = (f for f in REDUCTIONS if smallest >= 2 * f * self.size)
        return next(enough, 1)

    def __call__(self, image: Image.Image, size: Size, seed: int) -> Tensor:
        left, top, wide, tall = self.box(size, seed)
        across, down = image.width / size[0], image.height / size[1]
        x, y = round(left * across), round(top * down)
        right, bottom = round((left + wide) * across), round((top + tall) * down)
        # Pillow keeps four bytes a pixel: only the box is packed into three
        pixels = np.array(image.crop((x, y, right, bottom)))
        planes = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
        # on uint8 torch resizes as Pillow does, several times as fast
        resized = F.interpolate(
            planes, (self.size, self.size), mode=self.interpolation, antialias=True
        )
        return resized[0]


@dataclass(frozen=True)
class Transformed:
    """Transforms that draw from the global generators, timm's and torchvision's.

    Attributes:
        transform: PIL image → uint8 (3, H, W), a NumPy array or a tensor.
    """

    transform: Callable[[Any], Any]

    def reduction(self, size: Size, seeds: Sequence[int]) -> int:
        return 1

    def __call__(self, image: Image.Image, size: Size, seed: int) -> Tensor:
        with _seeded(seed):
            return torch.as_tensor(self.transform(image))


@dataclass(frozen=True)
class Coloured:
    """A resized crop, and then transforms of its pixels."""

    crop: ResizedCrop
    rest: Transformed

    def reduction(self, size: Size, seeds: Sequence[int]) -> int:
        return self.crop.reduction(size, seeds)

    def __call__(self, image: Image.Image, size: Size, seed: int) -> Tensor:
        pixels = self.crop(image, size, seed).permute(1, 2, 0).contiguous()
        return self.rest(Image.fromarray(pixels.numpy()), size, seed)


def train_view(
    config: AugmentConfig,
    data: DataConfig,
    image_size: int,
    device: torch.device,
    *,
    in_batches: bool,
) -> tuple[View, BatchAugment | None]:
    """What loader processes do to training images, and what follows on the device; None where
    the loader does all of it.

    Args:
        in_batches: mirror and colour whole batches on the device, which frees the loader of most
            of its work. On a processor Pillow does that faster, and several loaders share it.
            Policies of timm that batches do not have stay in the loader in any case.

    Raises:
        ValueError: `auto_augment` is not in timm's notation.
    """
    coloured = config.preset == "deit" and not config.three_augment
    if coloured and not known_to_batches(config.auto_augment):
        in_batches = False
    uncropped = config.model_copy(update={"crop": "none"})
    crop = ResizedCrop(image_size, config.crop_scale, data.interpolation)
    resized = crop_kind(config, image_size) == "resized"
    if not in_batches:
        rest = Transformed(
            train_transform(uncropped if resized else config, data, image_size)
        )
        return Coloured(crop, rest) if resized else rest, None
    augment = BatchAugment(uncropped, data, image_size, device)
    if resized:
        return crop, augment
    plain = config
    if config.preset != "none":
        plain = config.model_copy(update={"preset": "flip", "hflip": 0.0})
    return Transformed(train_transform(plain, data, image_size)), augment


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that timm's transforms draw from, and put them back
    (loaders may run in-process).
    """
    python = random.getstate()
    numpy = np.random.get_state()
    torch_state = torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would seed the accelerators too
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
