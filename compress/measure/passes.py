"""Whether a model takes the images that it will see; one forward pass tells, before any work.

Each check is made once for an architecture.
"""

import json
from functools import lru_cache

from compress.measure.model import PASS_ERRORS, forward_pass
from trainers.models.arch import Arch


def check_forward(arch: Arch, image_size: int, num_classes: int) -> None:
    """Refuse a model that does not give a logit for each class of an image.

    The pass counts the model's operations, as measuring it will.

    Raises:
        ValueError: another image size, another number of channels or of classes.
    """
    _check_forward(_text(arch), image_size, num_classes)


@lru_cache(maxsize=256)
def _check_forward(arch_json: str, image_size: int, num_classes: int) -> None:
    arch = Arch.from_json(json.loads(arch_json))
    channels = arch.args.get("in_chans", 3)
    if channels != 3:
        raise ValueError(
            f"{arch.name} takes images of {channels} channels (in_chans), and data sets give 3;"
            " leave in_chans out"
        )
    try:
        found = forward_pass(arch, image_size, quickly=True)
    except PASS_ERRORS as error:
        raise ValueError(_why_not(arch, image_size, error)) from error
    if found.outputs != (1, num_classes):
        raise ValueError(
            f"{arch.name} gives outputs of shape {found.outputs[1:]} for an image, and the data"
            f" has {num_classes} classes; give a model with a classifier of that size"
        )


def _why_not(arch: Arch, image_size: int, error: Exception) -> str:
    """The message about a model that does not take images of this size."""
    given = arch.args.get("img_size", image_size)
    sides = set(given) if isinstance(given, list | tuple) else {given}
    if sides != {image_size}:
        return (
            f"{arch.name} was made for images of {given} px (img_size), and the data gives"
            f" {image_size} px (data.image_size); leave img_size out, or set"
            f" data.image_size to {given}"
        )
    reason = str(error).partition("\n")[0] or type(error).__name__
    return f"{arch.name} does not take an image of {image_size} x {image_size} px: {reason}"


def check_training_pass(arch: Arch, image_size: int, images: int) -> None:
    """Refuse batches of one image for a model that normalises over the batch.

    Args:
        images: of a forward pass: of the batch on one worker, less where it accumulates.

    Raises:
        ValueError: a layer gets one value of each channel, which has no variance.
    """
    if images == 1:
        _check_one_image(_text(arch), image_size)


@lru_cache(maxsize=64)
def _check_one_image(arch_json: str, image_size: int) -> None:
    arch = Arch.from_json(json.loads(arch_json))
    try:
        forward_pass(arch, image_size, training=True, quickly=True)
    except PASS_ERRORS as error:
        if not _takes_two(arch, image_size):
            raise ValueError(_why_not(arch, image_size, error)) from error
        raise ValueError(
            f"batch_size: it leaves one image a forward pass, and {arch.name} has a layer that"
            " then gets one value of each channel, which cannot be normalised"
            " (BatchNorm); give each worker 2 images or more"
        ) from error


def _takes_two(arch: Arch, image_size: int) -> bool:
    """Whether the model can be trained with two images in a forward pass."""
    try:
        forward_pass(arch, image_size, images=2, training=True, quickly=True)
    except PASS_ERRORS:
        return False
    return True


def _text(arch: Arch) -> str:
    return json.dumps(arch.to_json(), sort_keys=True)
