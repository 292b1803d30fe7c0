"""Where labelled images come from: bundled digits, Parquet, class folders, torchvision's sets.

A source is opened without decoding an image. Its two parts (train, test) know their labels; their
images are read later, into a cache of decoded pixels or one by one.
"""

import hashlib
import io
import json
import logging
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.config import DataConfig
from trainers.files import sha256_file, write_atomic

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for a file that is damaged or is no image."""

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)
DIGITS_PX = 32
TEST_FRACTION = 0.2  # of the sets that come without a test part (digits, eurosat)
TEST_SEED = 0


@dataclass(frozen=True, eq=False)
class ArrayPart:
    """Decoded images: `pixels` uint8 (N, 3, H, W), `labels` int64 (N,)."""

    pixels: Pixels
    labels: Labels

    def name(self, row: int) -> str:
        """What messages call image `row`."""
        return f"image {row}"

    def read(self, row: int) -> Image.Image:
        """Image `row` as RGB."""
        return Image.fromarray(
            np.ascontiguousarray(self.pixels[row].transpose(1, 2, 0))
        )

    def first_size(self) -> tuple[int, int] | None:
        """(width, height) of the first image."""
        return self.pixels.shape[3], self.pixels.shape[2]


@dataclass(frozen=True, eq=False)
class FilePart:
    """Image files `root / paths[i]` with `labels` int64 (N,)."""

    root: Path
    paths: tuple[str, ...]
    labels: Labels

    def name(self, row: int) -> str:
        """What messages call image `row`: its path."""
        return str(self.root / self.paths[row])

    def read(self, row: int) -> Image.Image:
        """Image `row` as RGB. Raises one of `UNREADABLE` when damaged."""
        return decode(self.root / self.paths[row])

    def encoded(self) -> Iterator[Path]:
        """Every image in order, not decoded."""
        return (self.root / path for path in self.paths)

    def first_size(self) -> tuple[int, int] | None:
        """(width, height) of the first readable image, from its header; None if none is
        readable.
        """
        return _first_size(self.encoded())


@dataclass(frozen=True, eq=False)
class ParquetPart:
    """Images in a struct column {bytes, ...} of Parquet `files`, with `labels` int64 (N,)."""

    files: tuple[Path, ...]
    column: str
    labels: Labels

    def name(self, row: int) -> str:
        """What messages call image `row`: its file and row."""
        import pyarrow.parquet as pq

        for file in self.files:
            rows = pq.read_metadata(file).num_rows
            if row < rows:
                break
            row -= rows
        return f"{file} row {row}"

    def encoded(self) -> Iterator[bytes]:
        """Every image in order as encoded bytes, some rows in memory at a time; b"" where
        absent.
        """
        import pyarrow.parquet as pq

        for file in self.files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(
                    batch_size=256, columns=[f"{self.column}.bytes"]
                ):
                    yield from (
                        blob or b""
                        for blob in batch.column(0).field("bytes").to_pylist()
                    )

    def first_size(self) -> tuple[int, int] | None:
        """(width, height) of the first readable image, from its header; None if none is
        readable.
        """
        return _first_size(self.encoded())


Part = ArrayPart | FilePart | ParquetPart


@dataclass(frozen=True, eq=False)
class Source:
    """Class names and the two parts of a data set."""

    class_names: tuple[str, ...]
    train: Part
    test: Part

    def identity(self, cache_dir: Path) -> str:
        """Hex SHA-256 of the contents, whatever the paths.

        Arrays and Parquet files are hashed byte for byte (a file's hash is remembered in
        `cache_dir` while its size and time stay). Image files are told by (relative path,
        size, label): to read all of ImageNet for a hash would take longer than an epoch.
        """
        digest = hashlib.sha256(json.dumps(["v1", self.class_names]).encode())
        for part in (self.train, self.test):
            digest.update(np.ascontiguousarray(part.labels).tobytes())
            if isinstance(part, ArrayPart):
                digest.update(repr(part.pixels.shape).encode())
                digest.update(np.ascontiguousarray(part.pixels).data)
            elif isinstance(part, FilePart):
                for path in part.paths:
                    digest.update(
                        f"{path}\0{(part.root / path).stat().st_size}\n".encode()
                    )
            else:
                for file in part.files:
                    digest.update(_file_hash(file, cache_dir).encode())
        return digest.hexdigest()


def open_source(config: DataConfig) -> Source:
    """Find the data set that `config` names. No image is decoded.

    Raises:
        ValueError: a folder, file, column or class is missing; says which, and what to do.
    """
    if config.dataset == "digits":
        source = _digits()
    elif config.dataset == "parquet":
        source = _parquet(_root(config))
    elif config.dataset == "folder":
        source = _folder(_root(config))
    else:
        from trainers.data.torchvision_sets import open_torchvision

        source = open_torchvision(config)
    for name, part in (("training", source.train), ("test", source.test)):
        if not len(part.labels):
            raise ValueError(
                f"{_where(config)}: the {name} part has no images; add some or change"
                " data.root"
            )
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= len(source.class_names):
            raise ValueError(
                f"{_where(config)}: labels of the {name} part lie in"
                f" 0..{len(source.class_names) - 1} (there are"
                f" {len(source.class_names)} classes); got {low}..{high}. Is that part"
                " unlabelled?"
            )
    return source


def decode(encoded: bytes | Path) -> Image.Image:
    """An image file, or its bytes, as RGB. Raises one of `UNREADABLE` when damaged."""
    with Image.open(
        io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    ) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, CMYK, palette, transparent and 16-bit images as 8-bit RGB (transparency is dropped)."""
    if image.mode.startswith(
        "I"
    ):  # convert("RGB") would clip 16 bits to white instead of scaling them
        wide = np.asarray(image)
        return Image.fromarray(
            (wide >> 8 if wide.max() > 255 else wide).astype(np.uint8)
        ).convert("RGB")
    if image.mode in ("P", "PA", "LA"):
        image = image.convert("RGBA")
    return image.convert("RGB")


def stratified_order(labels: Labels, seed: int) -> NDArray[np.int64]:
    """A seeded order of 0..N-1 whose every prefix holds the classes in about their proportions.

    The k-th image of a shuffled class of c images has the key (k + u) / c, u uniform: sorting by it
    spreads each class evenly.
    """
    rng = np.random.default_rng([seed, len(labels)])
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, counts = np.unique(
        labels[by_class], return_index=True, return_counts=True
    )
    position = np.arange(len(labels)) - np.repeat(starts, counts)
    keys = (position + rng.random(len(labels))) / np.repeat(counts, counts)
    return by_class[np.argsort(keys, kind="stable")]


def stratified_test(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(train rows, test rows), ascending, for a set without a test part: fixed, 20 % of
    each class.
    """
    order = stratified_order(labels, TEST_SEED)
    cut = round(len(labels) * TEST_FRACTION)
    return np.sort(order[cut:]), np.sort(order[:cut])


def _digits() -> Source:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    size = (DIGITS_PX, DIGITS_PX)
    large = np.stack(
        [
            np.asarray(Image.fromarray(g).resize(size, Image.Resampling.BILINEAR))
            for g in grey
        ]
    )
    pixels = np.repeat(large[:, None], 3, axis=1)
    labels = bunch.target.astype(np.int64)
    train, test = stratified_test(labels)
    return Source(
        tuple(str(d) for d in range(10)),
        ArrayPart(pixels[train], labels[train]),
        ArrayPart(pixels[test], labels[test]),
    )


def _folder(root: Path) -> Source:
    """`root/train/CLASS/*` and `root/test|val/CLASS/*`; the classes are the sorted folder
    names of train.
    """
    test_dir = _first_existing(root, ("test", "val", "validation"), "the test split")
    train_dir = _first_existing(root, ("train",), "the training images")
    classes = tuple(
        sorted(entry.name for entry in train_dir.iterdir() if entry.is_dir())
    )
    if not classes:
        raise ValueError(f"{train_dir}: one folder per class is needed; there is none")
    extra = sorted(
        {entry.name for entry in test_dir.iterdir() if entry.is_dir()} - set(classes)
    )
    if extra:
        raise ValueError(
            f"{test_dir}: its classes must be among those of {train_dir}; {extra[:5]}"
            " are not"
        )
    return Source(
        classes, _class_files(train_dir, classes), _class_files(test_dir, classes)
    )


def _class_files(folder: Path, classes: tuple[str, ...]) -> FilePart:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            os.path.relpath(Path(parent) / file, folder)
            for parent, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if Path(file).suffix.lower() in EXTENSIONS
        )
        paths += found
        labels += [label] * len(found)
    return FilePart(folder, tuple(paths), np.asarray(labels, np.int64))


def _parquet(root: Path) -> Source:
    """Shards as Hugging Face `datasets` writes them, in `root` or `root/data`."""
    folder = (
        root / "data"
        if not list(root.glob("train-*.parquet")) and (root / "data").is_dir()
        else root
    )
    train = _shards(folder, ("train",))
    test = _shards(folder, ("test", "validation", "valid", "val"))
    image, label, names = _columns(train[0])
    train_part = ParquetPart(train, image, _label_column(train, label))
    test_part = ParquetPart(test, image, _label_column(test, label))
    if names is None:
        names = tuple(str(k) for k in range(int(train_part.labels.max(initial=-1)) + 1))
    return Source(names, train_part, test_part)


def _shards(folder: Path, prefixes: tuple[str, ...]) -> tuple[Path, ...]:
    for prefix in prefixes:
        files = sorted(folder.glob(f"{prefix}-*.parquet"))
        if files:
            expected = files[0].stem.rsplit("-of-", 1)[-1]
            if expected.isdigit() and int(expected) != len(files):
                log.warning(
                    "%s: %d of %s shards of %r are here; going on with those",
                    folder,
                    len(files),
                    expected,
                    prefix,
                )
            return tuple(files)
    wanted = " or ".join(f"{p}-*.parquet" for p in prefixes)
    raise ValueError(
        f"{folder}: no {wanted}; set data.root to a folder of Parquet files as Hugging"
        " Face datasets writes"
    )


def _columns(file: Path) -> tuple[str, str, tuple[str, ...] | None]:
    """(image column, label column, class names if the schema has them)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    images = [
        f.name
        for f in schema
        if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0
    ]
    if not images:
        raise ValueError(
            f"{file}: a struct column with a field 'bytes' is needed for images;"
            f" columns are {schema.names}"
        )
    labels = [
        name for name in ("label", "fine_label", "labels") if name in schema.names
    ]
    if not labels:
        raise ValueError(
            f"{file}: an integer column label, fine_label or labels is needed; columns"
            f" are {schema.names}"
        )
    meta = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = meta.get("info", {}).get("features", {}).get(labels[0], {}).get("names")
    image = next((name for name in ("image", "img") if name in images), images[0])
    return image, labels[0], None if names is None else tuple(names)


def _label_column(files: tuple[Path, ...], column: str) -> Labels:
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for file in files:
        if column not in pq.read_schema(file).names:
            raise ValueError(
                f"{file}: the column {column!r} of the training shards is missing;"
                " write all shards alike"
            )
        values = pq.read_table(file, columns=[column]).column(0)
        if not pa.types.is_integer(values.type) or values.null_count:
            raise ValueError(
                f"{file}: column {column!r} must be integers without gaps; it is"
                f" {values.type}"
            )
        parts.append(values.to_numpy().astype(np.int64))
    return np.concatenate(parts)


def _first_size(encoded: Iterator[bytes] | Iterator[Path]) -> tuple[int, int] | None:
    for item in encoded:
        try:
            with Image.open(
                io.BytesIO(item) if isinstance(item, bytes) else item
            ) as image:
                return image.size
        except UNREADABLE:
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


def _root(config: DataConfig) -> Path:
    if config.root is None:
        raise ValueError(
            f"data.dataset {config.dataset!r} needs data.root, the folder of the"
            " data set"
        )
    if not config.root.is_dir():
        raise ValueError(
            f"data.root {config.root}: no such folder; give the folder of the"
            f" {config.dataset} data set"
        )
    return config.root


def _where(config: DataConfig) -> str:
    return f"data set {config.dataset}" + (f" in {config.root}" if config.root else "")


def _first_existing(root: Path, names: tuple[str, ...], what: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ValueError(
        f"{root}: {what} must be in a folder {' or '.join(names)}; there is none"
    )
