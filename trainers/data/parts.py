"""The parts of a data set (training images, test images): what is known before one is decoded.

A part knows its labels, and gives its images in order; they are read later, into a cache of
decoded pixels or one by one. A data set of one's own format may bring a part of its own: any
class with what `Part` says.
"""

import hashlib
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.files import sha256_file, write_atomic

Pixels = NDArray[np.uint8]
"""uint8 (3, H, W), or (N, 3, H, W) of several images."""
Labels = NDArray[np.int64]
"""int64 (N,)."""


class UnreadableImageError(Exception):
    """A file that is damaged or holds no image."""


class Part(Protocol):
    """N labelled images in a fixed order."""

    @property
    def labels(self) -> Labels:
        """int64 (N,)."""

    def name(self, row: int) -> str:
        """What messages call image `row`."""

    def images(self) -> Iterator[bytes | Path | Pixels]:
        """Every image in order: encoded bytes, an image file, or decoded pixels (3, H, W)."""

    def first_size(self) -> tuple[int, int] | None:
        """(width, height) in pixels of the first readable image; None if none is readable."""

    def content(self, cache_dir: Path) -> Iterator[bytes | memoryview]:
        """What tells these images from others, for a hash; not the labels, and no absolute path.

        Args:
            cache_dir: a folder in which the hash of a large file may be remembered.
        """


@runtime_checkable
class RandomAccess(Part, Protocol):
    """A part whose images can be read in any order."""

    def read(self, row: int) -> Image.Image:
        """Image `row` as RGB.

        Raises:
            UnreadableImageError: it is damaged.
        """


@dataclass(frozen=True, eq=False)
class ArrayPart:
    """Decoded images: `pixels` uint8 (N, 3, H, W), `labels` int64 (N,)."""

    pixels: Pixels
    labels: Labels

    def name(self, row: int) -> str:
        return f"image {row}"

    def images(self) -> Iterator[Pixels]:
        return iter(self.pixels)

    def read(self, row: int) -> Image.Image:
        return Image.fromarray(
            np.ascontiguousarray(self.pixels[row].transpose(1, 2, 0))
        )

    def first_size(self) -> tuple[int, int] | None:
        return self.pixels.shape[3], self.pixels.shape[2]

    def content(self, cache_dir: Path) -> Iterator[bytes | memoryview]:
        """Shape and values."""
        yield repr(self.pixels.shape).encode()
        yield np.ascontiguousarray(self.pixels).data


@dataclass(frozen=True, eq=False)
class FilePart:
    """Image files `root / paths[i]` with `labels` int64 (N,); `paths` have forward slashes."""

    root: Path
    paths: tuple[str, ...]
    labels: Labels

    def name(self, row: int) -> str:
        return str(self.root / self.paths[row])

    def images(self) -> Iterator[Path]:
        return (self.root / path for path in self.paths)

    def read(self, row: int) -> Image.Image:
        return decode(self.root / self.paths[row])

    def first_size(self) -> tuple[int, int] | None:
        return _first_size(self.images())

    def content(self, cache_dir: Path) -> Iterator[bytes | memoryview]:
        """Relative paths and sizes: to read all of ImageNet for a hash would take longer than an
        epoch.
        """
        for path in self.paths:
            yield f"{path}\0{(self.root / path).stat().st_size}\n".encode()


@dataclass(frozen=True, eq=False)
class ParquetPart:
    """Images in a struct column {bytes, ...} of Parquet `files`, with `labels` int64 (N,)."""

    files: tuple[Path, ...]
    column: str
    labels: Labels

    def name(self, row: int) -> str:
        """The image's file and its row there."""
        import pyarrow.parquet as pq

        for file in self.files:
            rows = pq.read_metadata(file).num_rows
            if row < rows:
                break
            row -= rows
        return f"{file} row {row}"

    def images(self) -> Iterator[bytes]:
        """Some rows are in memory at a time; an absent image is b""."""
        import pyarrow.parquet as pq

        for file in self.files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(
                    batch_size=256, columns=[f"{self.column}.bytes"]
                ):
                    blobs = batch.column(0).field("bytes").to_pylist()
                    yield from (blob or b"" for blob in blobs)

    def first_size(self) -> tuple[int, int] | None:
        return _first_size(self.images())

    def content(self, cache_dir: Path) -> Iterator[bytes | memoryview]:
        """The files' hashes; each is remembered in `cache_dir` while size and time stay."""
        for file in self.files:
            yield _file_hash(file, cache_dir).encode()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Class names and the two parts of a data set.

    Attributes:
        place: where the images lie, for messages; empty: `data.root`, or the set's name.
        remarks: what a reader left out, remapped or assumed: whole sentences.
    """

    class_names: tuple[str, ...]
    train: Part
    test: Part
    place: str = ""
    remarks: tuple[str, ...] = ()

    def parts(self) -> dict[str, Part]:
        """The parts by name."""
        return {"train": self.train, "test": self.test}

    def content_hash(self, cache_dir: Path) -> str:
        """Hex SHA-256 of class names, labels and each part's `content`, whatever the paths."""
        digest = hashlib.sha256(json.dumps(["v1", self.class_names]).encode())
        for part in (self.train, self.test):
            digest.update(np.ascontiguousarray(part.labels).tobytes())
            for piece in part.content(cache_dir):
                digest.update(piece)
        return digest.hexdigest()


# what Pillow raises for a file that is damaged or is no image
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def decode(encoded: bytes | Path) -> Image.Image:
    """An image file, or its bytes, as RGB.

    Raises:
        UnreadableImageError: it is damaged or no image.
    """
    try:
        with Image.open(
            io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        ) as image:
            return to_rgb(image)
    except _DAMAGED as error:
        raise UnreadableImageError(str(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, CMYK, palette, transparent and 16-bit images as 8-bit RGB (transparency is dropped)."""
    # convert("RGB") would clip 16 bits to white instead of scaling them
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        return Image.fromarray(
            (wide >> 8 if wide.max() > 255 else wide).astype(np.uint8)
        ).convert("RGB")
    if image.mode in ("P", "PA", "LA"):
        image = image.convert("RGBA")
    return image.convert("RGB")


def _first_size(encoded: Iterator[bytes] | Iterator[Path]) -> tuple[int, int] | None:
    """From the header of the first image that has one."""
    for item in encoded:
        try:
            with Image.open(
                io.BytesIO(item) if isinstance(item, bytes) else item
            ) as image:
                return image.size
        except _DAMAGED:
            continue
    return None


def _file_hash(file: Path, cache_dir: Path) -> str:
    """Content hash of `file`, computed once while (path, size, mtime) stay."""
    stat = file.stat()
    path = str(file.resolve())
    now = {"path": path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    note = (
        cache_dir / "hashes" / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.json"
    )
    if note.exists():
        known = json.loads(note.read_bytes())
        if {key: known.get(key) for key in now} == now:
            return known["sha256"]
    digest = sha256_file(file)
    write_atomic(note, json.dumps({**now, "sha256": digest}).encode())
    return digest
