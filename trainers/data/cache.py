"""Decoded (or re-packed) images on disk, shared by all trials of a node through the page cache.

A cache is an immutable folder: built beside, flushed, renamed into place. One process builds, the
others wait; a cache that fails its check is rebuilt.
"""

import contextlib
import json
import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from trainers.data.parts import (
    UNREADABLE,
    ArrayPart,
    FilePart,
    Labels,
    ParquetPart,
    Part,
    Pixels,
    Source,
    decode,
)
from trainers.machine import usable_cores

log = logging.getLogger(__name__)

PARTS = ("train", "test")
CHUNK = 512  # images decoded between two writes


class UnequalImages(Exception):
    """Images of a set differ in size or are not square: they cannot be one array."""


@dataclass(frozen=True, eq=False)
class PackedPart:
    """Encoded images one after the other in `file`; image i lies at offsets[i]:offsets[i +
    1] (int64, in bytes).
    """

    source: ParquetPart
    file: Path
    offsets: Labels

    @property
    def labels(self) -> Labels:
        """int64 (N,)."""
        return self.source.labels

    def name(self, row: int) -> str:
        """What messages call image `row`."""
        return self.source.name(row)

    def read(self, row: int) -> Image.Image:
        """Image `row` as RGB. Raises one of `UNREADABLE` when damaged."""
        start, end = self.offsets[row : row + 2].tolist()
        with open(self.file, "rb") as file:
            file.seek(start)
            return decode(file.read(end - start))


def open_pixels(
    source: Source, folder: Path, max_unreadable: int
) -> dict[str, ArrayPart]:
    """All images decoded: uint8 (N, 3, S, S) memory-mapped, by part.

    Unreadable images are left out and named in a warning.

    Raises:
        UnequalImages: the images are not squares of one size.
        ValueError: more than `max_unreadable` images cannot be read; names them.
    """
    meta = _published(
        folder, lambda beside: _decode_all(source, beside, max_unreadable)
    )
    if meta["unequal"]:
        raise UnequalImages(meta["unequal"])
    check_unreadable(meta["skipped"], max_unreadable)
    for name in meta["skipped"]:
        log.warning("unreadable image left out: %s", name)
    return {
        part: ArrayPart(
            np.load(folder / f"{part}.npy", mmap_mode="c"),
            np.load(folder / f"{part}_labels.npy"),
        )
        for part in PARTS
    }


def open_images(
    source: Source, folder: Path
) -> dict[str, ArrayPart | FilePart | PackedPart]:
    """Parts whose images can be read one by one; Parquet is first re-packed into one flat
    file a part.
    """
    return {
        name: (
            _open_packed(part, folder / name) if isinstance(part, ParquetPart) else part
        )
        for name, part in (("train", source.train), ("test", source.test))
    }


def check_unreadable(names: Sequence[str], limit: int) -> None:
    """Raises ValueError naming the unreadable images when there are more than `limit`."""
    if len(names) > limit:
        shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        raise ValueError(
            f"{len(names)} images cannot be read, data.max_unreadable allows {limit}:"
            f" {shown}. Repair or remove them, or raise data.max_unreadable"
        )


def _decode_all(source: Source, folder: Path, max_unreadable: int) -> dict[str, Any]:
    skipped: list[str] = []
    try:
        side = None
        for name, part in (("train", source.train), ("test", source.test)):
            side = _decode_part(part, folder, name, side, skipped, max_unreadable)
    except UnequalImages as reason:
        for file in folder.iterdir():
            file.unlink()
        return {"unequal": str(reason), "skipped": []}
    return {"unequal": None, "skipped": skipped}


def _decode_part(
    part: Part,
    folder: Path,
    name: str,
    side: int | None,
    skipped: list[str],
    max_unreadable: int,
) -> int | None:
    """Write NAME.npy and NAME_labels.npy; returns the images' side in px."""
    if isinstance(part, ArrayPart):
        np.save(folder / f"{name}.npy", part.pixels)
        np.save(folder / f"{name}_labels.npy", part.labels)
        return part.pixels.shape[-1]
    kept: list[int] = []
    pixels: Pixels | None = None
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start, chunk in _chunks(part.encoded()):
            for row, image in enumerate(pool.map(_decode_or_none, chunk), start):
                if image is None:
                    skipped.append(part.name(row))
                    check_unreadable(skipped, max_unreadable)
                    continue
                side = side or image.shape[-1]
                if image.shape != (3, side, side):
                    raise UnequalImages(
                        f"{part.name(row)} is {image.shape[2]} x {image.shape[1]} px,"
                        f" others {side} x {side}"
                    )
                if pixels is None:
                    shape = (len(part.labels), 3, side, side)
                    pixels = np.lib.format.open_memmap(
                        folder / f"{name}.npy", "w+", np.uint8, shape
                    )
                pixels[len(kept)] = image
                kept.append(row)
    if pixels is None:
        raise ValueError(
            f"none of the {len(part.labels)} images of the {name} part can be read"
        )
    pixels.flush()  # type: ignore[attr-defined]
    if len(kept) < len(
        pixels
    ):  # the header names a shape: write again without the rows left out
        np.save(folder / "short.npy", pixels[: len(kept)])
        os.replace(folder / "short.npy", folder / f"{name}.npy")
    np.save(folder / f"{name}_labels.npy", part.labels[kept])
    return side


def _decode_or_none(encoded: bytes | Path) -> Pixels | None:
    try:
        return np.asarray(decode(encoded)).transpose(2, 0, 1)
    except UNREADABLE:
        return None


def _chunks(items: Iterator[Any]) -> Iterator[tuple[int, list[Any]]]:
    start = 0
    while chunk := list(islice(items, CHUNK)):
        yield start, chunk
        start += len(chunk)


def _open_packed(part: ParquetPart, folder: Path) -> PackedPart:
    def build(beside: Path) -> dict[str, Any]:
        sizes = []
        with open(beside / "images.bin", "wb") as file:
            for blob in part.encoded():
                sizes.append(file.write(blob))
        np.save(
            beside / "offsets.npy",
            np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        )
        return {}

    _published(folder, build)
    return PackedPart(part, folder / "images.bin", np.load(folder / "offsets.npy"))


def _published(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The notes of a whole cache at `folder`, built first if it is missing or damaged."""
    notes = _whole(folder)
    if notes is not None:
        return notes
    folder.parent.mkdir(parents=True, exist_ok=True)
    # saves doing the same work twice; the lock ends with its process, and correctness never
    # depends on it
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        notes = _whole(
            folder
        )  # another process may have built it while this one waited
        if notes is not None:
            return notes
        if folder.exists():
            log.warning("image cache %s is damaged; building it again", folder)
        else:
            log.info("building the image cache %s", folder)
        beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
        beside.mkdir()
        try:
            notes = build(beside)
            notes["files"] = {
                file.name: [file.stat().st_size, _checksum(file)]
                for file in sorted(beside.iterdir())
            }
            (beside / "notes.json").write_text(json.dumps(notes))
            for file in beside.iterdir():
                _sync(file)
            _replace_folder(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return notes


def _replace_folder(beside: Path, folder: Path) -> None:
    """Rename `beside` to `folder`; what is damaged there goes, what another process made
    meanwhile stays.
    """
    aside = beside.with_suffix(".old")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside)  # those who have its files open keep them
    try:
        beside.rename(folder)
    except OSError:  # where locks do nothing, another process may have come first
        if _whole(folder) is None:
            raise
    shutil.rmtree(aside, ignore_errors=True)


def _whole(folder: Path) -> dict[str, Any] | None:
    """The notes of the cache if every file is as it was published, else None."""
    try:
        notes = json.loads((folder / "notes.json").read_bytes())
        for name, (size, checksum) in notes["files"].items():
            if (folder / name).stat().st_size != size or _checksum(
                folder / name
            ) != checksum:
                return None
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None
    return notes


def _checksum(file: Path) -> int | None:
    """CRC-32; None for packed images, each of which has its own way to be found damaged."""
    if file.suffix == ".bin":
        return None
    checksum = 0
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _sync(file: Path) -> None:
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
