"""Which images of a part a model recognises, so that two models can be compared image by image."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np


class Recognised(NamedTuple):
    """What a model recognises, in the order of the part.

    Attributes:
        images: how many there are.
        labels: a hash of their labels in this order. Models whose hashes differ were evaluated on
            other images, or on the same in another order.
        bits: one for each image, 1 where it is recognised, packed, hexadecimal.
    """

    images: int
    labels: str
    bits: str

    @property
    def share(self) -> float:
        """Of the images, those that are recognised."""
        return int(self.bits, 16).bit_count() / self.images


def recognised(predicted: Any, labels: Any) -> Recognised:
    """Pack predictions.

    Args:
        predicted: (N,) predicted classes, an array of integers.
        labels: (N,) true ones.
    """
    true = np.ascontiguousarray(labels, np.int64)
    right = np.packbits(np.asarray(predicted) == true)
    digest = hashlib.sha256(true.tobytes()).hexdigest()[:16]
    return Recognised(len(true), digest, right.tobytes().hex())
