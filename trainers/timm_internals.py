"""What is taken from timm beyond its documented interface; a test for each fails when it moves.

- `create_transform(separate=True)` gives three lists; the first begins with the random crop.
- Policies of its automatic augmentation keep their operations in `policy` or `ops`, and each
  operation calls its `aug_fn`.
- The file of a model may have `checkpoint_filter_fn`, which converts published checkpoints.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor, nn

from trainers.config import AugmentConfig, DataConfig
from trainers.data.augment import (
    PADDED_CROP_PX,
    crop_kind,
    resize_before_crop,
)
from trainers.data.randaugment import POLICIES
from trainers.timm_library import timm
from trainers.torchvision_internals import declare_missing_operators
from trainers.words import did_you_mean


class Chain:
    """Transforms one after the other: PIL image → uint8 (3, H, W).

    Loader processes that are not forked get it pickled. It names this file first, so that the
    operators that torchvision asks for are declared before its classes are imported.
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Image.Image) -> Any:
        result: Any = image
        for transform in self.transforms:
            result = transform(result)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return _chain, (), {"transforms": self.transforms}


LONGEST_RATIO = 16
"""Of an image whose long side is longer than that many short ones, the middle is resized."""


def middle_of_long(image: Image.Image) -> Image.Image:
    """The part of an image from which a centre crop can come: an image of 1 x 20,000 px would be
    resized to billions of pixels before it is cropped.
    """
    width, height = image.size
    most = LONGEST_RATIO * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


def _chain() -> Chain:
    """An empty chain, in a process where torchvision can be imported."""
    declare_missing_operators()
    return Chain([])


def train_transform(config: AugmentConfig, data: DataConfig, image_size: int) -> Chain:
    """Crop, mirror and colour as timm's `create_transform`, up to the uint8 tensor.

    Raises:
        ValueError: `auto_augment` is not in timm's notation.
    """
    if config.preset == "none":
        plain = timm.data.create_transform(
            image_size,
            is_training=True,
            no_aug=True,
            interpolation=data.interpolation,
            use_prefetcher=True,
        )
        return Chain([middle_of_long, *plain.transforms])
    colour = config.preset == "deit"
    policy = ("3a" if config.three_augment else config.auto_augment) if colour else None
    try:
        crop_and_flip, colours, to_tensor = timm.data.create_transform(
            image_size,
            is_training=True,
            scale=config.crop_scale,
            hflip=config.hflip,
            color_jitter=config.color_jitter if colour else None,
            auto_augment=policy,
            interpolation=data.interpolation,
            mean=data.mean,
            std=data.std,
            use_prefetcher=True,
            separate=True,
        )
    except AssertionError as error:  # timm's way to say so
        raise ValueError(
            f"auto_augment {policy!r} is not in timm's notation, such as"
            f" 'rand-m9-mstd0.5-inc1': {error};"
            f" {did_you_mean(str(policy).partition('-')[0], POLICIES)}policies:"
            f" {', '.join(POLICIES)}"
        ) from None
    first = _crop(config, data, image_size)
    if first:
        crop_and_flip.transforms[:1] = first
    _allow_black_posterize(colours)
    return Chain(
        [*crop_and_flip.transforms, *colours.transforms, *to_tensor.transforms]
    )


def _crop(config: AugmentConfig, data: DataConfig, image_size: int) -> list[Any]:
    """What takes the place of timm's random resized crop; empty where that is wanted."""
    from torchvision import transforms

    crop = crop_kind(config, image_size)
    if crop == "resized":
        return []
    before = image_size
    if crop == "random":
        before = resize_before_crop(image_size, data.crop_fraction)
    mode = transforms.InterpolationMode(data.interpolation)
    if data.resize == "warp":
        resize = [transforms.Resize((before, before), interpolation=mode)]
    else:
        resize = [middle_of_long, transforms.Resize(before, interpolation=mode)]
    if crop == "random":
        return [*resize, transforms.RandomCrop(image_size)]
    if crop == "padded":
        padding = config.crop_padding_px
        return [
            *resize,
            transforms.RandomCrop(image_size, padding=padding, pad_if_needed=True),
        ]
    return [*resize, transforms.CenterCrop(image_size)]


def eval_transform(data: DataConfig, image_size: int) -> Chain:
    """Resize and centre crop as timm's `create_transform`, up to the uint8 tensor."""
    warped = data.resize == "warp"
    evaluation = timm.data.create_transform(
        image_size,
        interpolation=data.interpolation,
        crop_pct=data.crop_fraction if image_size > PADDED_CROP_PX else 1.0,
        crop_mode="squash" if warped else "center",
        use_prefetcher=True,
    )
    return Chain([*([] if warped else [middle_of_long]), *evaluation.transforms])


def _allow_black_posterize(colours: Any) -> None:
    """Let timm posterise to 0 bits, which is black, as it does at full strength: recent Pillow
    refuses that with a ValueError.
    """
    for policy in colours.transforms:
        sub_policies = getattr(policy, "policy", [getattr(policy, "ops", ())])
        for operation in (op for sub_policy in sub_policies for op in sub_policy):
            if operation.aug_fn is timm.data.auto_augment.posterize:
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    if bits_to_keep >= 8:
        return image
    if bits_to_keep > 0:
        return ImageOps.posterize(image, bits_to_keep)
    return Image.new(image.mode, image.size)


def converted_checkpoint(
    weights: dict[str, Tensor], module: nn.Module
) -> dict[str, Tensor]:
    """A published checkpoint in the names and shapes of timm's `module`, where the model's file
    knows how.
    """
    file = sys.modules[type(module).__module__]
    convert = getattr(file, "checkpoint_filter_fn", None)
    return weights if convert is None else convert(weights, module)
