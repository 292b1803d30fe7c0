"""Large images: decoded and augmented one by one in loader processes (torch's DataLoader,
timm's transforms).

Every image is augmented under its own seed, so the result does not depend on the number of loader
processes. Images leave the loader as uint8; normalising, erasing and mixing happen on the
device, by the code that serves images in memory.
"""

import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainers.config import DataConfig
from trainers.data.decoding import UnreadableImageError
from trainers.data.inspection import check_unreadable, none_readable
from trainers.data.parts import RandomAccess

log = logging.getLogger(__name__)


Transform = Callable[[Any], Any]
"""PIL image → uint8 (3, H, W), a NumPy array or a tensor."""
Key = tuple[int, int]
"""(position in the split, seed of the augmentation)."""


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
    """Reads and transforms single images. Training puts the next row in place of an
    unreadable one.
    """

    def __init__(
        self,
        reader: ImageReader,
        rows: Tensor,
        labels: Tensor,
        transform: Transform,
        substitute: bool,
    ) -> None:
        self.part, self.rows, self.labels = reader.part, rows.numpy(), labels.numpy()
        self.transform = transform
        # more failures than that are an error
        self.attempts = reader.max_unreadable + 1 if substitute else 1

    def __getitem__(self, key: Key) -> _Sample:
        position, seed = key
        unreadable: list[str] = []
        for attempt in range(self.attempts):
            at = (position + attempt) % len(self.rows)
            row = int(self.rows[at])
            try:
                image = self.part.read(row)
            except UnreadableImageError as error:
                unreadable.append(f"{self.part.name(row)} ({error})")
                continue
            with _seeded(seed):
                pixels = self.transform(image)
            return _Sample(
                torch.as_tensor(pixels), int(self.labels[at]), tuple(unreadable)
            )
        return _Sample(None, -1, tuple(unreadable))


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
        transform: Transform,
        data: DataConfig,
        device: torch.device,
        *,
        training: bool,
    ) -> None:
        self._reader, self._device, self._keys = reader, device, _Keys()
        self._training = training
        self._loader = DataLoader(
            _Samples(reader, rows, labels, transform, substitute=training),
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
                    batch.images.to(self._device, non_blocking=True),
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
