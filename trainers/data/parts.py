"""The parts of a data set (training, test, perhaps validation images): what is known before one is
decoded.

A part knows its labels, and gives its images in order; they are read later, into a cache of
decoded pixels or one by one. A data set of one's own format may bring a part of its own: any
class with what `Part` says.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.data.decoding import PLAIN, Decoding, decode
from trainers.data.decoding import UnreadableImageError as UnreadableImageError
from trainers.files import read_json, sha256_file, write_atomic
from trainers.words import printable

Pixels = NDArray[np.uint8]
"""uint8 (3, H, W), or (N, 3, H, W) of several images."""
Labels = NDArray[np.int64]
"""int64 (N,)."""
LeftOut = Mapping[str, Collection[int]]
"""Name of each part → its rows that are left out, since they cannot be read."""
OWN_VALIDATION = "with data.val_from: train it would be split off the training part"
"""What a remark says of a validation part that a data set has itself."""


class Part(Protocol):
    """N labelled images in a fixed order."""

    @property
    def labels(self) -> Labels:
        """int64 (N,)."""

    def name(self, row: int) -> str:
        """What messages call image `row`."""

    def images(self) -> Iterator[bytes | Path | Pixels]:
        """Every image in order: encoded bytes, an image file, or decoded pixels (3, H, W)."""

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


@runtime_checkable
class Encoded(RandomAccess, Protocol):
    """A part that gives its images also before they are decoded."""

    @property
    def decoding(self) -> Decoding:
        """How they become pixels."""

    def encoded(self, row: int) -> bytes | Path | Pixels:
        """Image `row`: encoded bytes, an image file, or decoded pixels (3, H, W)."""


@runtime_checkable
class Sampled(Part, Protocol):
    """A part of which some images can be had without the others."""

    def sample(self, most: int) -> Iterator[tuple[int, bytes | Path]]:
        """(row, encoded image) of all images, or of about `most` spread over the part; the same
        on every call.
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
    decoding: Decoding = PLAIN

    def name(self, row: int) -> str:
        return printable(str(self.root / self.paths[row]))

    def images(self) -> Iterator[Path]:
        return (self.root / path for path in self.paths)

    def encoded(self, row: int) -> Path:
        return self.root / self.paths[row]

    def read(self, row: int) -> Image.Image:
        return decode(self.encoded(row), self.decoding)

    def sample(self, most: int) -> Iterator[tuple[int, Path]]:
        for row in spread(len(self.paths), most):
            yield row, self.root / self.paths[row]

    def content(self, cache_dir: Path) -> Iterator[bytes | memoryview]:
        """Relative paths and sizes: to read all of ImageNet for a hash would take longer than an
        epoch.
        """
        for path in self.paths:
            try:
                size = (self.root / path).stat().st_size
            except (
                OSError
            ):  # a link to nowhere: an unreadable image, which may be allowed
                size = -1
            yield os.fsencode(f"{path}\0{size}\n")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Class names and the parts of a data set.

    Attributes:
        place: where the images lie, for messages; empty: `data.root`, or the set's name.
        remarks: what a reader left out, remapped or assumed: whole sentences.
        validation: a part of its own for the search to see, beside the test part; None: it is split
            off the training part.
    """

    class_names: tuple[str, ...]
    train: Part
    test: Part
    place: str = ""
    remarks: tuple[str, ...] = ()
    validation: Part | None = None

    def parts(self) -> dict[str, Part]:
        """The parts by name."""
        found = {"train": self.train, "test": self.test}
        return found if self.validation is None else found | {"val": self.validation}

    def content_hash(self, cache_dir: Path) -> str:
        """Hex SHA-256 of class names, labels and each part's `content`, whatever the paths."""
        digest = hashlib.sha256(json.dumps(["v1", self.class_names]).encode())
        for part in self.parts().values():
            digest.update(np.ascontiguousarray(part.labels).tobytes())
            for piece in part.content(cache_dir):
                digest.update(piece)
        return digest.hexdigest()


def kept_rows(labels: Labels, left_out: Collection[int]) -> NDArray[np.bool_]:
    """Bool (N,): whether each image of a part with these labels is used."""
    kept = np.ones(len(labels), np.bool_)
    kept[list(left_out)] = False
    return kept


def spread(count: int, most: int) -> Sequence[int]:
    """`range(count)`, or `most` of it at even distances."""
    if count <= most:
        return range(count)
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def file_hash(file: Path, cache_dir: Path) -> str:
    """Content hash of `file`, computed once while (path, size, mtime) stay."""
    return files_hash([file], "", lambda: sha256_file(file), cache_dir)


def files_hash(
    files: Sequence[Path], kind: str, compute: Callable[[], str], cache_dir: Path
) -> str:
    """A hash that follows from `files`, computed once while their paths, sizes and times stay.

    Args:
        kind: tells hashes of the same files from each other.
        cache_dir: where it is remembered.
    """
    paths = [str(file.resolve()) for file in files]
    stats = [file.stat() for file in files]
    now = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
    key = hashlib.sha256("\0".join([*paths, kind]).encode()).hexdigest()[:32]
    note = cache_dir / "hashes" / f"{key}.json"
    known = read_json(note) or {}
    if known.get("files") == now:
        return known["sha256"]
    digest = compute()
    write_atomic(note, json.dumps({"files": now, "sha256": digest}).encode())
    return digest
