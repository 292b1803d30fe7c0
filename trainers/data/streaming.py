"""Large images: decoded and cropped one by one in loader processes (torch's DataLoader).

Every view of an image has its own seed, so the result does not depend on the number of loader
processes. Images leave the loader as uint8; what else happens to them, the device does to whole
batches, by the code that serves images in memory.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainers.config import DataConfig
from trainers.data.decoding import Size, UnreadableImageError, decode_reduced
from trainers.data.inspection import check_unreadable, none_readable
from trainers.data.parts import Encoded, RandomAccess
from trainers.data.views import View

log = logging.getLogger(__name__)


Key = tuple[int, int]
"""(position in the split, seed of the view)."""


@dataclass(frozen=True, eq=False)
class ImageReader:
    """Images of a part read one by one; `unreadable` collects names over both parts in this
    process.
    """

    part: RandomAccess
    max_unreadable: int
    unreadable: set[str] = field(default_factory=set)

    def note(self, names: Iterable[str]) -> None:
        """Log unreadable images once each. Raises ValueError when there are too many."""
        for name in names:
            if name not in self.unreadable:
                self.unreadable.add(name)
                log.warning("unreadable image left out: %s", name)
        check_unreadable(sorted(self.unreadable), self.max_unreadable)


@dataclass(frozen=True)
class _Sample:
    image: Tensor | None  # None: unreadable, and nothing put in its place
    label: int
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class _Batch:
    images: Tensor  # uint8 (B, 3, H, W)
    labels: Tensor
    unreadable: tuple[str, ...]

    def pin_memory(
        self,
    ) -> "_Batch":  # the DataLoader's protocol for types of one's own
        return _Batch(
            self.images.pin_memory(), self.labels.pin_memory(), self.unreadable
        )


class _Samples(Dataset[_Sample]):
    """Reads images and makes views of them. Training puts the next row in place of an unreadable
    one.
    """

    def __init__(
        self,
        reader: ImageReader,
        rows: Tensor,
        labels: Tensor,
        view: View,
        substitute: bool,
    ) -> None:
        self.part, self.rows, self.labels = reader.part, rows.numpy(), labels.numpy()
        self.view = view
        self.encoded = reader.part if isinstance(reader.part, Encoded) else None
        # more failures than that are an error
        self.attempts = reader.max_unreadable + 1 if substitute else 1

    def __getitems__(self, keys: list[Key]) -> list[_Sample]:
        """The views of a batch. Copies of an image (repeated augmentation) share its decoding."""
        seeds: dict[int, list[int]] = {}
        for position, seed in keys:
            seeds.setdefault(position, []).append(seed)
        views = {
            position: iter(self._views(position, drawn))
            for position, drawn in seeds.items()
        }
        return [next(views[position]) for position, _ in keys]

    def _views(self, position: int, seeds: list[int]) -> list[_Sample]:
        """A view of the image at `position` for each seed."""
        unreadable: list[str] = []
        for attempt in range(self.attempts):
            at = (position + attempt) % len(self.rows)
            row = int(self.rows[at])
            try:
                image, size = self._read(row, seeds)
            except UnreadableImageError as error:
                unreadable.append(f"{self.part.name(row)} ({error})")
                continue
            label, names = int(self.labels[at]), tuple(unreadable)
            return [
                _Sample(self.view(image, size, seed), label, names) for seed in seeds
            ]
        return [_Sample(None, -1, tuple(unreadable))] * len(seeds)

    def _read(self, row: int, seeds: list[int]) -> tuple[Image.Image, Size]:
        """An image, perhaps reduced, and the size that it has in full."""
        if self.encoded is not None:
            encoded = self.encoded.encoded(row)
            if not isinstance(encoded, np.ndarray):
                return decode_reduced(
                    encoded,
                    self.encoded.decoding,
                    lambda size: self.view.reduction(size, seeds),
                )
        image = self.part.read(row)
        return image, image.size


class _Keys(Sampler[list[Key]]):
    """The batches of the next pass. They are set before each pass, so that loader processes live
    on from epoch to epoch.
    """

    def __init__(self) -> None:
        self.positions: Sequence[Tensor] = ()
        self.seeds: Sequence[NDArray[np.int64]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        for positions, seeds in zip(self.positions, self.seeds, strict=True):
            yield list(zip(positions.tolist(), seeds.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.positions)


class Streams:
    """Batches of one split through loader processes."""

    def __init__(
        self,
        reader: ImageReader,
        rows: Tensor,
        labels: Tensor,
        view: View,
        data: DataConfig,
        device: torch.device,
        *,
        training: bool,
    ) -> None:
        self._reader, self._device, self._keys = reader, device, _Keys()
        self._training = training
        self._loader = DataLoader(
            _Samples(reader, rows, labels, view, substitute=training),
            batch_sampler=self._keys,
            num_workers=data.workers,
            collate_fn=_collate,
            pin_memory=data.pin_memory and device.type == "cuda",
            persistent_workers=training and data.workers > 0,
            # else the loader draws from torch's global one
            generator=torch.Generator().manual_seed(0),
        )

    def train(
        self, order: Tensor, seeds: NDArray[np.int64]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 (B, 3, H, W) and labels on the device for each row of `order`,
        (micro-batches, B) positions.
        """
        return self._run(list(order), list(seeds))

    def evaluate(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 (B, 3, H, W) and labels on the device for each tensor of positions;
        unreadable images missing.
        """
        return self._run(batches, [np.zeros(len(batch), np.int64) for batch in batches])

    def _run(
        self, positions: Sequence[Tensor], seeds: Sequence[NDArray[np.int64]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        self._keys.positions, self._keys.seeds = positions, seeds
        for wanted, batch in zip(positions, self._loader, strict=True):
            self._reader.note(batch.unreadable)
            # another image stands for an unreadable one, unless all are unreadable
            if self._training and len(batch.labels) < len(wanted):
                raise none_readable("training", len(batch.unreadable), batch.unreadable)
            if len(batch.labels):
                yield (
                    batch.images.to(self._device, non_blocking=True).contiguous(),
                    batch.labels.to(self._device, non_blocking=True),
                )


def _collate(samples: list[_Sample]) -> _Batch:
    kept = [sample for sample in samples if sample.image is not None]
    images = (
        torch.stack([s.image for s in kept if s.image is not None])
        if kept
        else torch.empty(0, dtype=torch.uint8)
    )
    names = tuple(name for sample in samples for name in sample.unreadable)
    return _Batch(
        images, torch.tensor([s.label for s in kept], dtype=torch.int64), names
    )
