"""What the predictions of a split show beyond their metrics: which classes are taken for which, how
far a probability can be trusted, and the images on which the model is most wrong.
"""

import io
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from trainers.config import DataConfig
from trainers.training import distributed
from trainers.training.epoch_metrics import ECE_BINS

THUMBNAIL_PX = 48
"""Longest side of a thumbnail."""
_COLOURS = 64
"""Colours of a thumbnail: with them it has some 2 kB."""


class Bin(NamedTuple):
    """Images whose predicted class has about the same probability.

    Attributes:
        images: how many; accuracy, confidence: share that is right, and mean probability.
    """

    images: int
    accuracy: float
    confidence: float


class Sample(NamedTuple):
    """One image: numbers of its class and of the predicted one, the probability of that, and the
    image as the model saw it, small, as PNG.
    """

    label: int
    predicted: int
    confidence: float
    thumbnail: bytes


class Predictions(NamedTuple):
    """What a model predicts on a split.

    Attributes:
        confusion: (class, predicted class, images) of all pairs that occur, the most frequent
            first.
        bins: of equal width by the probability of the predicted class, those that have images.
        samples: those with the largest loss first.
    """

    confusion: list[tuple[int, int, int]]
    bins: list[Bin]
    samples: list[Sample]


class WorstImages:
    """The images with the largest loss of those seen so far. Keeps them on the device, and never
    waits for it.

    Args:
        count: how many to keep.
        config: how images were normalised.
        image_size: of the images, px.
    """

    def __init__(
        self, count: int, config: DataConfig, image_size: int, device: torch.device
    ) -> None:
        self._count = count
        self._mean = torch.tensor(config.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(config.std, device=device).view(1, 3, 1, 1)
        self._side = min(image_size, THUMBNAIL_PX)
        self._losses = torch.empty(0, device=device)
        # class, predicted class, probability of that in units of 2^-20
        self._facts = torch.empty(0, 3, dtype=torch.int64, device=device)
        self._pixels = torch.empty(
            0, 3, self._side, self._side, dtype=torch.uint8, device=device
        )

    def add(self, images: Tensor, logits: Tensor, labels: Tensor) -> None:
        """A batch: normalised images (B, 3, S, S), logits float32 (B, C), labels (B,)."""
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        losses = losses.nan_to_num(nan=torch.inf)
        chosen = losses.topk(min(self._count, len(losses))).indices
        confidence, predicted = logits[chosen].softmax(1).nan_to_num().max(1)
        units = (confidence * 2**20).round().long()
        facts = torch.stack([labels[chosen], predicted, units], dim=1)
        self._keep(losses[chosen], facts, self._small(images[chosen]))

    def _keep(self, losses: Tensor, facts: Tensor, pixels: Tensor) -> None:
        losses = torch.cat([self._losses, losses])
        best = losses.topk(min(self._count, len(losses))).indices
        self._losses = losses[best]
        self._facts = torch.cat([self._facts, facts])[best]
        self._pixels = torch.cat([self._pixels, pixels])[best]

    def _small(self, images: Tensor) -> Tensor:
        """uint8 (k, 3, side, side) of normalised images."""
        plain = images.float() * self._std + self._mean
        if plain.shape[-1] != self._side:
            plain = torch.nn.functional.interpolate(
                plain, (self._side, self._side), mode="bilinear", antialias=True
            )
        return (plain * 255).round().clamp(0, 255).to(torch.uint8)

    def samples(self) -> list[Sample]:
        """The worst of all ranks, the same on every rank."""
        parts = (self._losses, self._facts, self._pixels)
        losses, facts, pixels = map(distributed.rows_of_all_ranks, parts)
        order = losses.argsort(descending=True, stable=True)[: self._count]
        return [
            Sample(label, predicted, units / 2**20, _png(image))
            for (label, predicted, units), image in zip(
                facts[order].tolist(), pixels[order].cpu(), strict=True
            )
        ]


def _png(pixels: Tensor) -> bytes:
    """uint8 (3, S, S) as PNG of few colours."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    file = io.BytesIO()
    image.quantize(_COLOURS).save(file, "PNG", optimize=True)
    return file.getvalue()


def confusion(logits: Tensor, labels: Tensor) -> list[tuple[int, int, int]]:
    """See `Predictions.confusion`; from logits (N, C) and labels (N,)."""
    pairs = torch.stack([labels, logits.argmax(1)], dim=1)
    found, counts = pairs.unique(dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    rows = torch.cat([found, counts[:, None]], dim=1)[order].tolist()
    return [(label, predicted, images) for label, predicted, images in rows]


def calibration(logits: Tensor, labels: Tensor) -> list[Bin]:
    """See `Predictions.bins`; those of the metric `ece`, whose value is the mean over images of the
    gap between accuracy and confidence of their bin.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    right = predicted.eq(labels).double()
    index = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    sums = torch.zeros(ECE_BINS, 3, dtype=torch.float64, device=logits.device)
    facts = torch.stack([torch.ones_like(right), right, confidence], dim=1)
    sums.index_add_(0, index, facts)
    return [
        Bin(int(images), hits / images, total / images)
        for images, hits, total in sums.tolist()
        if images
    ]
