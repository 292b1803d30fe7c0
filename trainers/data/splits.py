"""Data sets, splits and batches.

Small images are decoded once, kept as uint8 and augmented as whole batches on the device;
large ones stream through loader processes. Both paths see the same images in the same
order.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainers.config import AugmentConfig, DataConfig
from trainers.data.augment import BatchAugment, EvalTransform, Finish
from trainers.data.cache import UnequalImagesError, open_images, open_pixels
from trainers.data.decoding import Decoding
from trainers.data.fingerprint import fingerprint
from trainers.data.info import DataInfo
from trainers.data.inspection import (
    Inspected,
    check_decodes,
    decoded_bytes,
    image_size,
    inspect,
)
from trainers.data.mixing import mix, one_hot
from trainers.data.open import open_dataset
from trainers.data.parts import Dataset, Labels, LeftOut, kept_rows
from trainers.data.remarks import balance_remarks, duplicate_remarks
from trainers.data.stratify import rows_of_parts, stratified_order, validation_size
from trainers.data.streaming import ImageReader, Streams
from trainers.data.transfer import put
from trainers.data.views import Transformed, train_view
from trainers.timm_internals import eval_transform
from trainers.words import listed

Split = Literal["train", "val", "test"]

# larger pixel arrays stay in host memory and are copied batch by batch
ON_DEVICE_BYTES = 4 << 30


@dataclass(eq=False)
class PixelStore:
    """Decoded images uint8 (N, 3, S, S) in (memory-mapped) host memory, copied to a device
    at most once.
    """

    pixels: Tensor
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def gather(self, rows: Tensor, device: torch.device) -> Tensor:
        """Images `rows` (int64, (B,), on the host) on `device`: uint8 (B, 3, S, S)."""
        if device.type == "cpu":
            return self.pixels.index_select(0, rows)
        if self.pixels.numel() > ON_DEVICE_BYTES:
            return put(self.pixels.index_select(0, rows), device)
        if device not in self._on_device:
            self._on_device[device] = self.pixels.to(device)
        return self._on_device[device].index_select(0, put(rows, device))


@dataclass(frozen=True, eq=False)
class Images:
    """One split: `rows` int64 (n,) of a store with their `labels` int64 (n,)."""

    store: PixelStore | ImageReader
    rows: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, split.

    Attributes:
        fingerprint: hex SHA-256 over the data set's contents and every option that changes
            the splits or what a model sees; where the files lie and how they are loaded
            does not enter.
        train, val, test: the splits; `val` is a part of the training images, disjoint from
            `train`, or the data set's own validation part.
    """

    config: DataConfig
    info: DataInfo
    class_names: tuple[str, ...]
    fingerprint: str
    train: Images
    val: Images
    test: Images

    def split(self, name: Split) -> Images:
        """The split called `name`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def size(self, split: Split) -> int:
        """Number of images of a split."""
        return len(self.split(split).rows)


def data_info(config: DataConfig) -> DataInfo:
    """Facts about a data set. The headers of its images are read, and some are decoded.

    Raises:
        ValueError: a folder, file, column or class is missing; more than `max_unreadable`
            images cannot be read, as far as that is seen; no image size follows; images of
            several sizes are to be in memory. Says which, and what to do.
    """
    dataset = open_dataset(config)
    found = inspect(dataset, config)
    info = _info(config, dataset, found)
    unreadable = check_decodes(dataset, found, config.max_unreadable)
    left_out = unreadable.rows
    used = _used_labels(config, dataset, found, left_out)
    remarks = [
        *info.remarks,
        *unreadable.remarks,
        *balance_remarks(dataset, left_out),
        *_unlearnt(dataset, left_out["train"], used["train"]),
        *duplicate_remarks(dataset, left_out),
    ]
    return dataclasses.replace(
        info,
        num_train=len(used["train"]),
        num_val=len(used["val"]),
        num_test=len(used["test"]),
        remarks=tuple(remarks),
        unvalidated=_unvalidated(dataset, used["val"]),
    )


@functools.lru_cache(maxsize=4)
def load_data(config: DataConfig, cache_dir: Path) -> Data:
    """Open a data set and split it. The last few stay in memory.

    Small images are decoded into `cache_dir/<hash of its content>/`, once per node;
    every process maps the same files. A damaged cache is noticed and built again.

    Raises:
        ValueError: as `data_info`; more than `max_unreadable` images cannot be read; `limit` leaves
            nothing to train on; `in_memory: yes` for images that are not squares of one size.
    """
    dataset = open_dataset(config)
    found = inspect(dataset, config)
    info = _info(config, dataset, found)
    content = dataset.content_hash(cache_dir)
    stores, labels = _stores(config, dataset, found, cache_dir / content)
    rows = rows_of_parts(labels, config)
    test_rows = stratified_order(labels["test"], config.split_seed)[: config.limit_test]

    def images(part: str, rows: Labels) -> Images:
        return Images(
            stores[part], torch.from_numpy(rows), torch.from_numpy(labels[part][rows])
        )

    in_memory = isinstance(stores["train"], PixelStore)
    return Data(
        config=config,
        # of images in memory those that cannot be read are gone
        info=dataclasses.replace(
            info,
            num_train=len(rows.train),
            num_val=len(rows.val),
            num_test=len(test_rows),
        ),
        class_names=dataset.class_names,
        fingerprint=fingerprint(
            config, info.image_size, content, in_memory, found.decoding
        ),
        # in stratified order: the first batches show every class
        train=images("train", rows.train),
        val=images(rows.val_is_of, np.sort(rows.val)),
        test=images("test", np.sort(test_rows)),
    )


def epoch_order(
    n: int,
    batch_size: int,
    seed: int,
    epoch: int,
    repeats: int = 1,
    length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Which image comes when in an epoch: the same on all workers. `length` (default n)
    images make an epoch.

    Repeated augmentation as in DeiT's RASampler: a permutation with every image `repeats`
    times in a row, cut to `length`. So a global batch holds the copies of batch_size /
    repeats images; within it the first copies come first, so that the copies of one image
    go to different workers and micro-batches.

    Returns:
        (positions in the split, number of the copy from 0), int64 (length // batch_size *
        batch_size,) each.
    """
    used = min(length or n, n) // batch_size * batch_size
    permutation = np.random.default_rng([seed, epoch]).permutation(n)
    ticket = np.arange(used)
    copy = ticket % repeats
    within = np.argsort(copy.reshape(-1, batch_size), axis=1, kind="stable")
    ticket = np.take_along_axis(ticket.reshape(-1, batch_size), within, axis=1).ravel()
    return torch.from_numpy(permutation[ticket // repeats]), torch.from_numpy(
        copy[ticket]
    )


class TrainBatches:
    """One worker's view of the training part.

    Args:
        batch_size: global: over all workers and accumulation steps.
        images_per_epoch: length of an epoch where it is shorter than the training part.
        accumulation: micro-batches of one optimiser step on one worker.
        seed: of order and augmentation; torch's, NumPy's and Python's global generators are neither
            read nor moved.

    Raises:
        ValueError: the global batch is larger than the training part, or does not divide by workers
            and accumulation steps.
    """

    def __init__(
        self,
        data: Data,
        augment: AugmentConfig,
        *,
        batch_size: int,
        images_per_epoch: int | None = None,
        accumulation: int = 1,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size > data.size("train"):
            raise ValueError(
                f"batch_size {batch_size} is larger than the {data.size('train')}"
                " training images; lower train.batch_size or raise data.limit"
            )
        if batch_size % (world_size * accumulation):
            raise ValueError(
                f"batch_size {batch_size} must divide by {world_size} workers x"
                f" {accumulation} accumulation steps"
            )
        self._length = min(images_per_epoch or data.size("train"), data.size("train"))
        self.steps_per_epoch = self._length // batch_size
        self._data, self._config, self._device = data, augment, device
        self._batch_size, self._accumulation = batch_size, accumulation
        self._seed, self._rank, self._world_size = seed, rank, world_size
        size, store = data.info.image_size, data.train.store
        self._finish = Finish(augment, data.config, size, device)
        self._augment: BatchAugment | None = None
        self._streams: Streams | None = None
        if isinstance(store, PixelStore):
            self._augment = BatchAugment(augment, data.config, size, device)
        else:
            view, self._augment = train_view(
                augment, data.config, size, device, in_batches=device.type != "cpu"
            )
            self._streams = Streams(
                store,
                data.train.rows,
                data.train.labels,
                view,
                data.config,
                device,
                training=True,
            )

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """steps_per_epoch x accumulation micro-batches, a function of (seed, epoch, rank) alone.

        Yields:
            images float32 (B, 3, H, W), normalised, contiguous, on the device; targets
            int64 (B,), or float32 (B, num_classes) where mixup or cutmix is on (without
            label smoothing).
        """
        config, images = self._config, self._data.train
        repeats = config.repeats if config.preset == "deit" else 1
        order, copies = epoch_order(
            len(images.rows), self._batch_size, self._seed, epoch, repeats, self._length
        )
        rng = np.random.default_rng([self._seed, epoch, self._rank, 1])
        noise = torch.Generator(self._device).manual_seed(int(rng.integers(2**62)))
        resplit = config.erase_resplit and repeats > 1
        for pixels, labels, copy in self._batches(
            self._mine(order), self._mine(copies), epoch
        ):
            keep_clean = (copy == 0).numpy() if resplit else None
            x = self._finish(pixels, rng, noise, keep_clean)
            if config.mixes:
                yield mix(x, one_hot(labels, self._data.info.num_classes), config, rng)
            else:
                yield x, labels

    def _mine(self, order: Tensor) -> Tensor:
        """(micro-batches, B): this worker's contiguous slice of every global batch, cut for
        accumulation.
        """
        micro = self._batch_size // (self._world_size * self._accumulation)
        return order.view(-1, self._world_size, self._accumulation, micro)[
            :, self._rank
        ].reshape(-1, micro)

    def _batches(
        self, order: Tensor, copies: Tensor, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(augmented but not yet normalised images, labels, copies) on the device, host for
        copies.
        """
        images = self._data.train
        rng = np.random.default_rng([self._seed, epoch, self._rank, 2])
        if self._streams is not None:
            seeds = rng.integers(2**63, size=tuple(order.shape))
            for copy, (pixels, labels) in zip(
                copies, self._streams.train(order, seeds), strict=True
            ):
                if self._augment is not None:
                    pixels = self._augment(pixels, rng)
                yield pixels, labels, copy
            return
        assert isinstance(images.store, PixelStore)
        assert self._augment is not None
        labels = images.labels.to(self._device)
        for positions, copy in zip(order, copies, strict=True):
            pixels = images.store.gather(images.rows[positions], self._device)
            yield self._augment(pixels, rng), labels[put(positions, self._device)], copy


def eval_batches(
    data: Data,
    split: Split,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image of a split exactly once over all workers, in order, without augmentation.

    Args:
        batch_size: of this worker; its last batch may be smaller (no image is repeated to fill it).

    Yields:
        images float32 (B, 3, H, W), normalised, on `device`; labels int64 (B,).
    """
    images = data.split(split)
    positions = torch.arange(len(images.rows))[rank::world_size]
    batches = positions.split(batch_size) if len(positions) else ()
    transform = EvalTransform(data.config, data.info.image_size, device)
    if isinstance(images.store, ImageReader):
        streams = Streams(
            images.store,
            images.rows,
            images.labels,
            Transformed(eval_transform(data.config, data.info.image_size)),
            data.config,
            device,
            training=False,
        )
        for pixels, labels in streams.evaluate(batches):
            yield transform.normalise(pixels), labels
        return
    for chosen in batches:
        pixels = images.store.gather(images.rows[chosen], device)
        yield transform(pixels), put(images.labels[chosen], device)


def _info(config: DataConfig, dataset: Dataset, found: Inspected) -> DataInfo:
    side, size_from, remarks = image_size(config, found)
    total = len(dataset.train.labels)
    total = min(total, config.limit or total)
    own = dataset.validation
    split_off = validation_size(total, config) if own is None else 0
    num_test = len(dataset.test.labels)
    return DataInfo(
        num_classes=len(dataset.class_names),
        image_size=side,
        num_train=total - split_off,
        class_names=dataset.class_names,
        num_val=split_off if own is None else len(own.labels),
        num_test=min(num_test, config.limit_test or num_test),
        size_from=size_from,
        place=dataset.place or str(config.root or config.dataset),
        remarks=(*dataset.remarks, *found.remarks, *remarks),
        in_memory=_in_memory(config, found),
        decoded_bytes=decoded_bytes(dataset, found),
        decoding=found.decoding,
    )


def _in_memory(config: DataConfig, found: Inspected) -> bool:
    """Whether images are to be decoded once; training finds out if they are not all alike."""
    small = found.small_side is not None
    return config.in_memory == "yes" or (config.in_memory == "auto" and small)


def _used_labels(
    config: DataConfig, dataset: Dataset, found: Inspected, left_out: LeftOut
) -> dict[Split, Labels]:
    """Labels of the images that are used, by split: after the limits, without what is left out.

    Args:
        left_out: rows of each part that are unreadable. Images in memory are split without them,
            images that stream with them.
    """
    labels = {name: part.labels for name, part in dataset.parts().items()}
    are_used = {name: kept_rows(each, left_out[name]) for name, each in labels.items()}
    if _in_memory(config, found):
        labels = {name: each[are_used[name]] for name, each in labels.items()}
        are_used = {name: kept_rows(each, ()) for name, each in labels.items()}
    rows = rows_of_parts(labels, config)
    test_rows = stratified_order(labels["test"], config.split_seed)[: config.limit_test]
    chosen: dict[Split, tuple[str, Labels]] = {
        "train": ("train", rows.train),
        "val": (rows.val_is_of, rows.val),
        "test": ("test", test_rows),
    }
    return {
        split: labels[part][of_split[are_used[part][of_split]]]
        for split, (part, of_split) in chosen.items()
    }


def _unvalidated(dataset: Dataset, validation: Labels) -> tuple[str, ...]:
    held = set(validation.tolist())
    return tuple(n for k, n in enumerate(dataset.class_names) if held and k not in held)


def _unlearnt(
    dataset: Dataset, left_out: Collection[int], used: Labels
) -> Iterator[str]:
    """A remark about classes of which the split leaves nothing to train on."""
    labels = dataset.train.labels
    every = labels[kept_rows(labels, left_out)]
    lost = sorted(set(every.tolist()) - set(used.tolist()))
    if lost:
        names = listed(dataset.class_names[label] for label in lost)
        yield (
            f"No image to train on is left of {names}, after data.limit and the validation"
            " part are taken."
        )


def _stores(
    config: DataConfig, dataset: Dataset, found: Inspected, folder: Path
) -> tuple[dict[str, PixelStore] | dict[str, ImageReader], dict[str, Labels]]:
    """The store and labels of each part: in memory where the config and the images allow it."""
    decoding = found.decoding
    if _in_memory(config, found):
        pixels = folder / f"pixels{_tag(decoding)}"
        try:
            parts = open_pixels(dataset, pixels, config.max_unreadable, decoding)
            return (
                {
                    name: PixelStore(torch.from_numpy(part.pixels))
                    for name, part in parts.items()
                },
                {name: part.labels for name, part in parts.items()},
            )
        except UnequalImagesError as reason:
            if config.in_memory == "yes":
                raise ValueError(
                    f"data.in_memory yes needs square images of one size: {reason}; set"
                    " data.in_memory to no"
                ) from None
    readers = open_images(dataset, folder, decoding)
    unreadable: set[str] = set()  # one count for both parts
    return (
        {
            name: ImageReader(part, config.max_unreadable, unreadable)
            for name, part in readers.items()
        },
        {name: part.labels for name, part in readers.items()},
    )


def _tag(decoding: Decoding) -> str:
    """What tells pixels of another decoding than the default from those of the default."""
    key = json.dumps(decoding.key(), sort_keys=True)
    return f"-{hashlib.sha256(key.encode()).hexdigest()[:8]}" if decoding.key() else ""
