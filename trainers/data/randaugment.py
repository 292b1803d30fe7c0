"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719) on whole batches, in timm's notation
and magnitudes.

Each image draws its own operations and magnitudes; in each layer the images are grouped by
operation, so that the work is a few calls on sub-batches whatever the batch size.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.data import image_ops as ops
from trainers.data.transfer import put
from trainers.words import did_you_mean

Values = NDArray[np.float64]

NEUTRAL_LEVEL = 10.0  # timm's scale: level 10 is an operation's full strength
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
OPERATIONS = (
    *GEOMETRIC,
    "AutoContrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
)

_BY_LEVEL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Posterize": ops.posterize,
    "Solarize": ops.solarize,
    "SolarizeAdd": ops.solarize_add,
    "Color": ops.color,
    "Contrast": ops.contrast,
    "Brightness": ops.brightness,
    "Sharpness": ops.sharpness,
}
_WITHOUT_LEVEL: dict[str, Callable[[Tensor], Tensor]] = {
    "AutoContrast": ops.auto_contrast,
    "Equalize": ops.equalize,
    "Invert": ops.invert,
}


POLICIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")
"""With what a policy in timm's notation begins."""


@dataclass(frozen=True)
class RandAugmentSpec:
    """What timm's notation says, with timm's defaults.

    Attributes:
        magnitude: m, 0..10 (more with mmax).
        layers: n, operations an image.
        prob: p, with which each is applied.
        magnitude_std: mstd; over 100: uniform in 0..m.
        magnitude_max: mmax.
        increasing: inc, whether every operation is stronger at a higher magnitude.
    """

    magnitude: float = 10.0
    layers: int = 2
    prob: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = NEUTRAL_LEVEL
    increasing: bool = False

    @classmethod
    def parse(cls, text: str) -> "RandAugmentSpec":
        """From "rand-m9-mstd0.5-inc1" and the like.

        Raises:
            ValueError: another policy than `rand`, or a key other than m, n, p, mstd, mmax, inc.
        """
        policy, *sections = text.split("-")
        names = {
            "m": "magnitude",
            "n": "layers",
            "p": "prob",
            "mstd": "magnitude_std",
            "mmax": "magnitude_max",
            "inc": "increasing",
        }
        values: dict[str, float] = {}
        for section in sections:
            match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|inf)", section)
            if policy != "rand" or match is None or match[1] not in names:
                break
            values[names[match[1]]] = float(match[2])
        else:
            if policy == "rand":
                whole = {
                    "layers": int(values.pop("layers", 2)),
                    "increasing": bool(values.pop("increasing", 0)),
                }
                return cls(**values, **whole)  # type: ignore[arg-type]
        raise ValueError(
            "auto_augment of images in memory is 'rand' with sections m, n, p, mstd,"
            f" mmax, inc, such as 'rand-m9-mstd0.5-inc1'; got {text!r}."
            f" {did_you_mean(policy, POLICIES)}Other timm policies need data.in_memory no"
        )


def known_to_batches(auto_augment: str | None) -> bool:
    """Whether whole batches can be augmented so: RandAugment, or nothing."""
    try:
        return auto_augment is None or bool(RandAugmentSpec.parse(auto_augment))
    except ValueError:
        return False


def argument(name: str, level: Values, sign: Values, increasing: bool) -> Values:
    """timm's argument of operation `name` at `level` (0..10): degrees, shear, part of the
    width, factor, bits.

    Args:
        sign: -1 or 1, drawn at random: the direction, where the operation has one.
    """
    part = level / NEUTRAL_LEVEL
    if name == "Rotate":
        return sign * part * 30
    if name in ("ShearX", "ShearY"):
        return sign * part * 0.3
    if name in ("TranslateX", "TranslateY"):
        return sign * part * 0.45
    if name == "Posterize":
        bits = np.trunc(part * 4)
        return 4 - bits if increasing else bits
    if name == "Solarize":
        threshold = np.minimum(256, np.trunc(part * 256))
        return 256 - threshold if increasing else threshold
    if name == "SolarizeAdd":
        return np.minimum(128, np.trunc(part * 110))
    assert name in ("Color", "Contrast", "Brightness", "Sharpness"), name
    return np.maximum(0.1, 1 + sign * part * 0.9) if increasing else part * 1.8 + 0.1


def geometric_matrix(name: str, value: Values) -> Values:
    """(B, 2, 3): output to input positions in [-1, 1], of square images; as Image.transform
    and rotate do.
    """
    matrix = np.zeros((len(value), 2, 3))
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1
    if name == "Rotate":  # anticlockwise about the centre
        radians = -np.deg2rad(value)
        matrix[:, 0, 0] = matrix[:, 1, 1] = np.cos(radians)
        matrix[:, 0, 1], matrix[:, 1, 0] = np.sin(radians), -np.sin(radians)
    elif name == "ShearX":  # about the top left corner
        matrix[:, 0, 1] = matrix[:, 0, 2] = value
    elif name == "ShearY":
        matrix[:, 1, 0] = matrix[:, 1, 2] = value
    else:
        matrix[:, 0 if name == "TranslateX" else 1, 2] = 2 * value
    return matrix


class RandAugment:
    """Random operations on uint8 batches of square images.

    Args:
        fill: (3,) colour, 0..255, of what geometric operations uncover.
    """

    def __init__(self, spec: RandAugmentSpec, interpolation: str, fill: Tensor) -> None:
        self.spec, self.interpolation, self.fill = spec, interpolation, fill

    def __call__(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """uint8 (B, 3, S, S), new; draws from `rng` alone."""
        images = images.clone()
        for _ in range(self.spec.layers):
            batch = len(images)
            chosen = rng.integers(len(OPERATIONS), size=batch)
            chosen[rng.random(batch) >= self.spec.prob] = -1
            sign = np.where(rng.random(batch) > 0.5, -1.0, 1.0)
            self._layer(images, chosen, self._levels(batch, rng), sign)
        return images

    def _levels(self, batch: int, rng: np.random.Generator) -> Values:
        spec = self.spec
        if spec.magnitude_std > 100:
            levels = rng.uniform(0, spec.magnitude, batch)
        else:
            levels = rng.normal(spec.magnitude, spec.magnitude_std, batch)
        return levels.clip(0, spec.magnitude_max)

    def _layer(
        self, images: Tensor, chosen: NDArray[np.int64], level: Values, sign: Values
    ) -> None:
        """Change images[i] in place by operation chosen[i] (-1: none)."""
        rows = np.argsort(chosen, kind="stable")  # by operation
        bounds = np.searchsorted(chosen[rows], np.arange(len(OPERATIONS) + 1)).tolist()
        groups = dict(zip(OPERATIONS, pairwise(bounds), strict=True))
        values = np.zeros(len(rows))
        for name, (start, stop) in groups.items():
            if stop > start and name not in _WITHOUT_LEVEL:
                part = rows[start:stop]
                values[start:stop] = argument(
                    name, level[part], sign[part], self.spec.increasing
                )
        places = put(rows, images.device)
        arguments = put(values, images.device, torch.float32)
        for name, (start, stop) in groups.items():
            if start == stop or name in GEOMETRIC:
                continue
            where = places[start:stop]
            if name in _WITHOUT_LEVEL:
                images[where] = _WITHOUT_LEVEL[name](images[where])
                continue
            value = arguments[start:stop]
            if name in ("Posterize", "Solarize", "SolarizeAdd"):
                value = value.long()
            images[where] = _BY_LEVEL[name](images[where], value)
        self._move(images, groups, values, places)

    def _move(
        self,
        images: Tensor,
        groups: dict[str, tuple[int, int]],
        values: Values,
        places: Tensor,
    ) -> None:
        """The geometric operations, all in one sampling; they come first in `OPERATIONS`."""
        first, last = groups[GEOMETRIC[0]][0], groups[GEOMETRIC[-1]][1]
        if first == last:
            return
        matrices = [
            geometric_matrix(name, values[slice(*groups[name])]) for name in GEOMETRIC
        ]
        matrix = put(np.concatenate(matrices), images.device, torch.float32)
        where = places[first:last]
        images[where] = ops.affine(images[where], matrix, self.interpolation, self.fill)
