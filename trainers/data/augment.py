"""Augmentation of whole batches on the device: no Python loop over images.

What happens to a batch is drawn on the host with NumPy (so it is the same on every device
and nothing waits for the device); pixels never leave the device. Order, as in timm: crop
and mirror, then colour (RandAugment, or colour jitter, or three_augment), normalise, erase.
Images are uint8 until normalised.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.config import AugmentConfig, DataConfig
from trainers.data import image_ops as ops
from trainers.data.randaugment import RandAugment, RandAugmentSpec
from trainers.data.transfer import put

# crop auto: padded up to this size, resized above; also: no centre crop at evaluation
PADDED_CROP_PX = 32
LOG_CROP_ASPECT = (math.log(3 / 4), math.log(4 / 3))
ERASE_AREA = (0.02, 1 / 3)
LOG_ERASE_ASPECT = (math.log(0.3), math.log(1 / 0.3))
ATTEMPTS = 10  # to draw a box that fits
SOLARIZE_THRESHOLD = 128
BLUR_SIGMA = (0.1, 2.0)  # px

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class EvalTransform:
    """Images as at evaluation: resize, centre crop above 32 px, normalise."""

    def __init__(self, data: DataConfig, image_size: int, device: torch.device) -> None:
        mean = torch.tensor(data.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(data.std, device=device).view(1, 3, 1, 1)
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._size, self._interpolation = image_size, data.interpolation
        self._resized = resize_before_crop(image_size, data.crop_fraction)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to normalised float32 (B, 3, image_size, image_size)."""
        if self._resized != images.shape[-1]:
            images = ops.resize(images, self._resized, self._interpolation)
        edge = round((self._resized - self._size) / 2)
        return self.normalise(
            images[:, :, edge : edge + self._size, edge : edge + self._size]
        )

    def normalise(self, images: Tensor) -> Tensor:
        """Values of 0..255 to (value / 255 - mean) / std, float32, contiguous."""
        return (
            images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
            .mul_(self._scale)
            .add_(self._shift)
        )


def resize_before_crop(image_size: int, crop_fraction: float) -> int:
    """Side to which evaluation resizes before the centre crop of `image_size`, px."""
    return (
        image_size
        if image_size <= PADDED_CROP_PX
        else math.floor(image_size / crop_fraction)
    )


def crop_kind(config: AugmentConfig, image_size: int) -> str:
    """ "padded", "resized", "random" or "none": how training crops at `image_size` px."""
    if config.preset == "none":
        return "none"
    if config.crop == "auto":
        return "padded" if image_size <= PADDED_CROP_PX else "resized"
    return config.crop


class BatchAugment:
    """Crop, mirror and colour of training images in memory, as `AugmentConfig` says.

    Raises:
        ValueError: `auto_augment` is not RandAugment in timm's notation.
    """

    def __init__(
        self,
        config: AugmentConfig,
        data: DataConfig,
        image_size: int,
        device: torch.device,
    ) -> None:
        self.config, self._size, self._device = config, image_size, device
        self._interpolation = data.interpolation
        self._crop = crop_kind(config, image_size)
        self._resized = image_size
        if self._crop == "random":
            self._resized = resize_before_crop(image_size, data.crop_fraction)
        self._hflip = 0.0 if config.preset == "none" else config.hflip
        self._colour = config.preset == "deit"
        self._rand_augment: RandAugment | None = None
        if (
            self._colour
            and config.auto_augment is not None
            and not config.three_augment
        ):
            fill = torch.tensor(
                [min(255.0, round(255 * m)) for m in data.mean], device=device
            )
            self._rand_augment = RandAugment(
                RandAugmentSpec.parse(config.auto_augment), data.interpolation, fill
            )

    def __call__(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """uint8 (B, 3, S, S) at the native size to uint8 (or float of 0..255) at `image_size`."""
        images = self._crop_and_flip(images, rng)
        if not self._colour:
            return images
        jitter = self.config.color_jitter
        if self.config.three_augment:
            images = color_jitter(three_augment(as_uint8(images), rng), jitter, rng)
        elif self._rand_augment is not None:
            images = self._rand_augment(as_uint8(images), rng)
        elif jitter > 0:
            images = color_jitter(as_uint8(images), jitter, rng)
        return images

    def _crop_and_flip(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        batch, native = images.shape[0], images.shape[-1]
        flipped = rng.random(batch) < self._hflip
        if self._crop == "none" and native == self._resized:
            return _mirrored(images, flipped) if self._hflip else images
        flip = put(flipped, self._device)
        if self._crop == "resized":
            drawn = resized_crop_boxes(batch, native, self.config.crop_scale, rng)
            boxes = put(drawn, self._device)
            return ops.resized_crop(
                images, boxes, flip, self._size, self._interpolation
            )
        if native != self._resized:
            images = ops.to_uint8(
                ops.resize(images, self._resized, self._interpolation)
            )
        if self._crop in ("padded", "random"):
            padding = self.config.crop_padding_px if self._crop == "padded" else 0
            places = self._resized + 2 * padding - self._size + 1
            corner = rng.integers(places, size=(2, batch))
            top, left = put(corner, self._device)
            return ops.padded_crop(images, padding, self._size, top, left, flip)
        return (
            torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)
            if self._hflip
            else images
        )


def _mirrored(images: Tensor, flipped: Mask) -> Tensor:
    """A new batch, of which `flipped` are mirrored left to right."""
    where = put(np.flatnonzero(flipped), images.device)
    return images.index_copy(0, where, images.index_select(0, where).flip(3))


class Finish:
    """Normalise, then erase: the end of augmentation, for images in memory and streamed
    ones alike.
    """

    def __init__(
        self,
        config: AugmentConfig,
        data: DataConfig,
        image_size: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self._normalise = EvalTransform(data, image_size, device).normalise

    def __call__(
        self,
        images: Tensor,
        rng: np.random.Generator,
        noise: torch.Generator,
        keep_clean: Mask | None = None,
    ) -> Tensor:
        """Images of 0..255 to normalised float32 (B, 3, H, W).

        Args:
            noise: on the device; gives the values of erased pixels.
            keep_clean: (B,) images that are not erased.
        """
        images = self._normalise(images)
        if self.config.preset == "deit" and self.config.erase_prob > 0:
            erase(images, self.config, rng, noise, keep_clean)
        return images


def as_uint8(images: Tensor) -> Tensor:
    """Resampled images are float; colour operations work on whole levels."""
    return images if images.dtype == torch.uint8 else ops.to_uint8(images)


def resized_crop_boxes(
    batch: int, side: int, scale: tuple[float, float], rng: np.random.Generator
) -> Ints:
    """(B, 4) top, left, height, width of random resized crops of square images, px.

    Area uniform in `scale` of the image's, aspect ratio log-uniform in [3/4, 4/3]; the
    first of ten draws that fits, else the whole image.
    """
    area = rng.uniform(*scale, (batch, ATTEMPTS)) * side * side
    aspect = np.exp(rng.uniform(*LOG_CROP_ASPECT, (batch, ATTEMPTS)))
    width, height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    first, any_fits = _first_that(
        (width <= side) & (height <= side) & (width > 0) & (height > 0)
    )
    rows = np.arange(batch)
    width = np.where(any_fits, width[rows, first], side)
    height = np.where(any_fits, height[rows, first], side)
    top = np.floor(rng.random(batch) * (side - height + 1))
    left = np.floor(rng.random(batch) * (side - width + 1))
    return np.stack([top, left, height, width], axis=1).astype(np.int64)


def color_jitter(images: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation by factors uniform in 1 ± strength, in an order
    of each image's own.
    """
    if strength <= 0:
        return images
    images = images.clone()
    kinds = (ops.brightness, ops.contrast, ops.color)
    factor = rng.uniform(
        max(0.0, 1 - strength), 1 + strength, (len(kinds), len(images))
    )
    order = rng.random((len(images), len(kinds))).argsort(axis=1)
    # of each turn the images sorted by kind, and the factors beside them
    rows = order.argsort(axis=0, kind="stable")
    kind_of = np.take_along_axis(order, rows, axis=0)
    values = put(factor[kind_of, rows], images.device, torch.float32)
    places = put(rows, images.device)
    for turn in range(len(kinds)):
        bounds = np.searchsorted(kind_of[:, turn], np.arange(len(kinds) + 1)).tolist()
        for kind, (start, stop) in zip(kinds, pairwise(bounds), strict=True):
            if stop > start:
                where, value = places[start:stop, turn], values[start:stop, turn]
                images[where] = kind(images[where], value)
    return images


def three_augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """One of grey, solarise, blur for each image (DeiT III, Touvron et al. 2022,
    arXiv:2204.07118).
    """
    images = images.clone()
    chosen = rng.integers(3, size=len(images))
    sigma = rng.uniform(*BLUR_SIGMA, len(images))
    rows = chosen.argsort(kind="stable")
    places = put(rows, images.device)
    sigmas = put(sigma[rows], images.device, torch.float32)
    bounds = np.searchsorted(chosen[rows], np.arange(4)).tolist()
    for number, (start, stop) in enumerate(pairwise(bounds)):
        if start == stop:
            continue
        where = places[start:stop]
        part = images[where]
        if number == 0:
            images[where] = ops.grey(part).expand(-1, 3, -1, -1)
        elif number == 1:
            images[where] = ops.solarize(
                part, torch.full((len(part),), SOLARIZE_THRESHOLD, device=images.device)
            )
        else:
            images[where] = ops.gaussian_blur(part, sigmas[start:stop])
    return images


def erase(
    images: Tensor,
    config: AugmentConfig,
    rng: np.random.Generator,
    noise: torch.Generator,
    keep_clean: Mask | None = None,
) -> None:
    """Random erasing (Zhong et al. 2020, arXiv:1708.04896) of normalised images, in place.

    An image is erased with `erase_prob`, in 1 to `erase_count` boxes that share 2 % to 33 %
    of its area: const is the mean colour (0), rand one normal colour a box, pixel normal
    noise.
    """
    hit = rng.random(len(images)) < config.erase_prob
    if keep_clean is not None:
        hit &= ~keep_clean
    rows = np.flatnonzero(hit)
    if not len(rows):
        return
    height, width = images.shape[2:]
    boxes = erase_boxes(len(rows), height, width, config.erase_count, rng)
    where = put(rows, images.device)
    part = images[where]
    y = torch.arange(height, device=images.device).view(1, -1, 1)
    x = torch.arange(width, device=images.device).view(1, 1, -1)
    edges = put(boxes, images.device).permute(1, 2, 0).unsqueeze(-1).unsqueeze(-1)
    for top, left, tall, wide in edges:
        inside = (
            (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
        ).unsqueeze(1)
        if config.erase_mode == "const":
            part.masked_fill_(inside, 0)
            continue
        shape = part.shape if config.erase_mode == "pixel" else (*part.shape[:2], 1, 1)
        part = torch.where(
            inside, torch.randn(shape, generator=noise, device=images.device), part
        )
    images[where] = part


def erase_boxes(
    batch: int, height: int, width: int, max_count: int, rng: np.random.Generator
) -> Ints:
    """(B, max_count, 4) top, left, height, width in px; unused boxes have no area."""
    count = rng.integers(1, max_count + 1, size=batch)
    draws = (batch, max_count, ATTEMPTS)
    area = rng.uniform(*ERASE_AREA, draws) * height * width / count[:, None, None]
    aspect = np.exp(rng.uniform(*LOG_ERASE_ASPECT, draws))
    tall, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    first, any_fits = _first_that((tall < height) & (wide < width))
    used = any_fits & (np.arange(max_count) < count[:, None])
    tall = np.where(used, np.take_along_axis(tall, first[..., None], -1)[..., 0], 0)
    wide = np.where(used, np.take_along_axis(wide, first[..., None], -1)[..., 0], 0)
    top = np.floor(rng.random(tall.shape) * (height - tall + 1))
    left = np.floor(rng.random(wide.shape) * (width - wide + 1))
    return np.stack([top, left, tall, wide], axis=-1).astype(np.int64)


def _first_that(holds: Mask) -> tuple[Ints, Mask]:
    """(index of the first True along the last axis, whether there is one)."""
    return np.argmax(holds, axis=-1), np.asarray(holds.any(axis=-1))
