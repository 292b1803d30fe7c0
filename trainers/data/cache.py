"""Decoded (or re-packed) images on disk, shared by all trials of a node through the page cache.

A cache is an immutable folder: built beside, flushed, renamed into place. One process builds, the
others wait; a cache that fails its check is rebuilt.
"""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from trainers.data.decoding import PLAIN, Decoding, UnreadableImageError, decode
from trainers.data.inspection import check_unreadable, none_readable
from trainers.data.parts import (
    ArrayPart,
    Dataset,
    Labels,
    Part,
    Pixels,
    RandomAccess,
)
from trainers.files import flush_to_disk, parse_json
from trainers.lease import one_at_a_time
from trainers.leftovers import remove_leftovers, tag
from trainers.machine import usable_cores

log = logging.getLogger(__name__)

CHUNK = 512  # images decoded between two writes


class UnequalImagesError(Exception):
    """Images of a set differ in size or are not square: they cannot be one array."""


@dataclass(frozen=True, eq=False)
class PackedPart:
    """Encoded images one after the other in `file`; image i lies at offsets[i]:offsets[i +
    1] (int64, in bytes).
    """

    packed: Part
    file: Path
    offsets: Labels
    decoding: Decoding = PLAIN

    @property
    def labels(self) -> Labels:
        """int64 (N,)."""
        return self.packed.labels

    def name(self, row: int) -> str:
        """What messages call image `row`."""
        return self.packed.name(row)

    def images(self) -> Iterator[bytes | Path | Pixels]:
        """Every image in order."""
        return self.packed.images()

    def content(self, cache_dir: Path) -> Iterator[bytes | memoryview]:
        """As of the part that was packed."""
        return self.packed.content(cache_dir)

    def read(self, row: int) -> Image.Image:
        """Image `row` as RGB.

        Raises:
            UnreadableImageError: it is damaged.
        """
        return decode(self.encoded(row), self.decoding)

    def encoded(self, row: int) -> bytes:
        """The bytes of image `row`."""
        start, end = self.offsets[row : row + 2].tolist()
        with open(self.file, "rb") as file:
            file.seek(start)
            return file.read(end - start)


def open_pixels(
    dataset: Dataset, folder: Path, max_unreadable: int, decoding: Decoding = PLAIN
) -> dict[str, ArrayPart]:
    """All images decoded: uint8 (N, 3, S, S) memory-mapped, by part.

    Unreadable images are left out and named in a warning.

    Raises:
        UnequalImagesError: the images are not squares of one size.
        ValueError: more than `max_unreadable` images cannot be read; names them.
    """
    meta = _published(
        folder, lambda beside: _decode_all(dataset, beside, max_unreadable, decoding)
    )
    if meta["unequal"]:
        raise UnequalImagesError(meta["unequal"])
    check_unreadable(meta["skipped"], max_unreadable)
    for name in meta["skipped"]:
        log.warning("unreadable image left out: %s", name)
    return {
        part: ArrayPart(
            np.load(folder / f"{part}.npy", mmap_mode="c"),
            np.load(folder / f"{part}_labels.npy"),
        )
        for part in dataset.parts()
    }


def open_images(
    dataset: Dataset, folder: Path, decoding: Decoding = PLAIN
) -> dict[str, RandomAccess]:
    """Parts whose images can be read one by one; one whose images come only in order, as those of
    Parquet, is first packed into one flat file.
    """
    opened: dict[str, RandomAccess] = {}
    for name, part in dataset.parts().items():
        if isinstance(part, RandomAccess) and hasattr(part, "decoding"):
            opened[name] = dataclasses.replace(cast(Any, part), decoding=decoding)
        elif isinstance(part, RandomAccess):
            opened[name] = part
        else:
            opened[name] = _open_packed(part, folder / name, decoding)
    return opened


def _decode_all(
    dataset: Dataset, folder: Path, max_unreadable: int, decoding: Decoding
) -> dict[str, Any]:
    skipped: list[str] = []
    try:
        side = None
        for name, part in dataset.parts().items():
            decoded = _decoded(part, skipped, max_unreadable, decoding)
            side = _write_part(part, decoded, folder, name, side)
    except UnequalImagesError as reason:
        for file in folder.iterdir():
            file.unlink()
        return {"unequal": str(reason), "skipped": []}
    return {"unequal": None, "skipped": skipped}


def _write_part(
    part: Part,
    decoded: Iterator[tuple[int, Pixels]],
    folder: Path,
    name: str,
    side: int | None,
) -> int:
    """Write NAME.npy and NAME_labels.npy.

    Args:
        decoded: rows and pixels of the readable images of `part`, in order.
        side: of the images of another part, px; None if this is the first part.

    Returns:
        The images' side, px.
    """
    file = folder / f"{name}.npy"
    if isinstance(part, ArrayPart):
        _check_shape(part, 0, part.pixels[0], side)
        np.save(file, part.pixels)
        np.save(folder / f"{name}_labels.npy", part.labels)
        return part.pixels.shape[-1]
    kept: list[int] = []
    pixels: Pixels | None = None
    for row, image in decoded:
        side = side or image.shape[-1]
        _check_shape(part, row, image, side)
        if pixels is None:
            shape = (len(part.labels), *image.shape)
            pixels = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
        pixels[len(kept)] = image
        kept.append(row)
    if pixels is None or side is None:
        raise none_readable(name, len(part.labels), [])
    pixels.flush()  # type: ignore[attr-defined]
    if len(kept) < len(pixels):
        # the header names a shape: write again without the rows left out
        np.save(folder / "short.npy", pixels[: len(kept)])
        del pixels  # Windows replaces no file that is mapped
        os.replace(folder / "short.npy", file)
    np.save(folder / f"{name}_labels.npy", part.labels[kept])
    return side


def _decoded(
    part: Part, skipped: list[str], max_unreadable: int, decoding: Decoding
) -> Iterator[tuple[int, Pixels]]:
    """(row, pixels) of every readable image in order; names of others go into `skipped`."""
    decode_one = functools.partial(_pixels_or_reason, decoding=decoding)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start, chunk in _chunks(part.images()):
            for row, image in enumerate(pool.map(decode_one, chunk), start):
                if not isinstance(image, str):
                    yield row, image
                    continue
                skipped.append(f"{part.name(row)} ({image})")
                check_unreadable(skipped, max_unreadable)


def _check_shape(part: Part, row: int, image: Pixels, side: int | None) -> None:
    height, width = image.shape[1:]
    side = side or width
    if (height, width) != (side, side):
        raise UnequalImagesError(
            f"{part.name(row)} is {width} x {height} px, others {side} x {side}"
        )


def _pixels_or_reason(image: bytes | Path | Pixels, decoding: Decoding) -> Pixels | str:
    """The pixels, or why there are none."""
    if isinstance(image, np.ndarray):
        return image
    try:
        return np.asarray(decode(image, decoding)).transpose(2, 0, 1)
    except UnreadableImageError as error:
        return str(error)


def _chunks(items: Iterator[Any]) -> Iterator[tuple[int, list[Any]]]:
    start = 0
    while chunk := list(islice(items, CHUNK)):
        yield start, chunk
        start += len(chunk)


def _open_packed(part: Part, folder: Path, decoding: Decoding) -> PackedPart:
    def build(beside: Path) -> dict[str, Any]:
        sizes = []
        with open(beside / "images.bin", "wb") as file:
            for image in part.images():
                sizes.append(file.write(_encoded(image)))
        np.save(
            beside / "offsets.npy",
            np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        )
        return {}

    _published(folder, build)
    offsets = np.load(folder / "offsets.npy")
    return PackedPart(part, folder / "images.bin", offsets, decoding)


def _encoded(image: bytes | Path | Pixels) -> bytes:
    """An image as the bytes of a file."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return image.read_bytes()
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _published(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The notes of a whole cache at `folder`, built first if it is missing or damaged."""
    notes = _whole(folder)
    if notes is not None:
        return notes
    folder.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder.with_name(f".{folder.name}.lock")):
        # another process may have built it while this one waited
        notes = _whole(folder)
        if notes is not None:
            return notes
        if folder.exists():
            log.warning("image cache %s is damaged; building it again", folder)
        else:
            log.info("building the image cache %s", folder)
        remove_leftovers(folder.parent)
        beside = folder.with_name(f".{folder.name}.{tag()}.tmp")
        beside.mkdir()
        try:
            notes = build(beside)
            notes["files"] = {
                file.name: [file.stat().st_size, _checksum(file)]
                for file in sorted(beside.iterdir())
            }
            (beside / "notes.json").write_text(json.dumps(notes))
            for file in beside.iterdir():
                flush_to_disk(file)
            _replace_folder(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return notes


def _replace_folder(beside: Path, folder: Path) -> None:
    """Rename `beside` to `folder`. A damaged cache there is removed; one that another process made
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
        notes = parse_json((folder / "notes.json").read_bytes())
        for name, (size, checksum) in notes["files"].items():
            if (folder / name).stat().st_size != size or _checksum(
                folder / name
            ) != checksum:
                return None
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return notes


def _checksum(file: Path) -> int | None:
    """CRC-32; None for packed images: each of them shows damage when it is decoded."""
    if file.suffix == ".bin":
        return None
    checksum = 0
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
