"""Augmentation once on a few images without content, so that what it refuses is known at once."""

import json
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from trainers.config import AugmentConfig, DataConfig
from trainers.data.augment import PADDED_CROP_PX, BatchAugment, Finish
from trainers.data.info import DataInfo
from trainers.data.mixing import mix, one_hot
from trainers.timm_internals import train_transform

_IMAGES = 32
"""So many that every operation of a random policy is drawn."""
_SIDES_PX = (16, PADDED_CROP_PX + 8)
"""Sides of images that stand for small and for large ones, which are cropped differently."""


def rehearse_augmentation(
    augment: AugmentConfig, data: DataConfig, info: DataInfo
) -> None:
    """Augment a few images as training will.

    Raises:
        ValueError: an option, or several together, that cannot work; it names the options.
    """
    side = _SIDES_PX[info.image_size > PADDED_CROP_PX]
    small = data.model_copy(update={"root": None, "image_size": side})
    _rehearse(augment.model_dump_json(), small.model_dump_json(), side, info.in_memory)


@lru_cache(maxsize=64)
def _rehearse(augment_json: str, data_json: str, side: int, in_memory: bool) -> None:
    augment = AugmentConfig.model_validate_json(augment_json)
    data = DataConfig.model_validate_json(data_json)
    device, rng = torch.device("cpu"), np.random.default_rng(0)
    try:
        if in_memory:
            pixels = torch.zeros(_IMAGES, 3, side, side, dtype=torch.uint8)
            augmented = BatchAugment(augment, data, side, device)(pixels, rng)
        else:
            transform = train_transform(augment, data, side)
            image = Image.new("RGB", (side, side))
            drawn = [torch.as_tensor(transform(image)) for _ in range(_IMAGES)]
            augmented = torch.stack(drawn)
        finish = Finish(augment, data, side, device)
        images = finish(augmented, rng, torch.Generator().manual_seed(0))
        if augment.mixes:
            targets = one_hot(torch.arange(_IMAGES) % 2, 2)
            images, targets = mix(images, targets, augment, rng)
            _require_finite(targets)
        _require_finite(images)
    except (ValueError, TypeError, RuntimeError, LookupError, OverflowError) as error:
        changed = augment.model_dump(mode="json", exclude_defaults=True)
        raise ValueError(f"augment: {error} (with {json.dumps(changed)})") from error


def _require_finite(values: torch.Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError("it gives values that are not finite")
