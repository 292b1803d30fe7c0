"""Data sets by name. No image is decoded when one is opened.

A reader is a function of the data configuration that returns a `Dataset`. A new one touches this
file alone, or comes from a plugin that offers it under `DATASETS` (see docs/extending.md).
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainers import plugins
from trainers.config import DataConfig
from trainers.data.parts import ArrayPart, Dataset, FilePart, Labels, ParquetPart
from trainers.data.sklearn_internals import load_digits
from trainers.data.stratify import stratified_test
from trainers.data.torchvision_sets import TORCHVISION_SETS, open_torchvision
from trainers.words import did_you_mean

log = logging.getLogger(__name__)

Opener = Callable[[DataConfig], Dataset]

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)
DIGITS_PX = 32


def open_dataset(config: DataConfig) -> Dataset:
    """Find the data set that `config` names.

    Raises:
        ValueError: no such data set; a folder, file, column or class is missing; says which, and
            what to do.
    """
    known = openers()
    if config.dataset not in known:
        raise ValueError(
            f"data.dataset {config.dataset!r} is unknown;"
            f" {did_you_mean(config.dataset, known)}valid: {', '.join(known)}"
        )
    dataset = known[config.dataset](config)
    for name, part in (("training", dataset.train), ("test", dataset.test)):
        if not len(part.labels):
            raise ValueError(
                f"{_where(config)}: the {name} part has no images; add some or change"
                " data.root"
            )
        low, high = int(part.labels.min()), int(part.labels.max())
        classes = len(dataset.class_names)
        if low < 0 or high >= classes:
            raise ValueError(
                f"{_where(config)}: labels of the {name} part lie in 0..{classes - 1}"
                f" (there are {classes} classes); got {low}..{high}. Is that part"
                " unlabelled?"
            )
    return dataset


def openers() -> dict[str, Opener]:
    """Name → reader: ours and those of plugins.

    Raises:
        ValueError: a plugin takes a name that a built-in has, or offers something else.
    """
    rule = "a function from trainers.config.DataConfig to trainers.data.parts.Dataset"
    return plugins.merged(plugins.DATASETS, OPENERS, callable, rule)


# ------------------------------------------------------------------ digits


def open_digits(config: DataConfig) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, enlarged to 32 px; a fifth of each class is the test
    part.
    """
    from PIL import Image

    images, labels = load_digits()
    grey = np.rint(images * (255 / 16)).astype(np.uint8)
    size = (DIGITS_PX, DIGITS_PX)
    large = np.stack(
        [
            np.asarray(Image.fromarray(g).resize(size, Image.Resampling.BILINEAR))
            for g in grey
        ]
    )
    pixels = np.repeat(large[:, None], 3, axis=1)
    train, test = stratified_test(labels)
    return Dataset(
        tuple(str(d) for d in range(10)),
        ArrayPart(pixels[train], labels[train]),
        ArrayPart(pixels[test], labels[test]),
    )


# ------------------------------------------------------------------ class folders


def open_folder(config: DataConfig) -> Dataset:
    """`root/train/CLASS/*` and `root/test|val/CLASS/*`; the classes are the sorted folder
    names of train.
    """
    root = _root(config)
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
    return Dataset(
        classes, _class_files(train_dir, classes), _class_files(test_dir, classes)
    )


def _class_files(folder: Path, classes: tuple[str, ...]) -> FilePart:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            Path(parent, file).relative_to(folder).as_posix()
            for parent, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if Path(file).suffix.lower() in EXTENSIONS
        )
        paths += found
        labels += [label] * len(found)
    return FilePart(folder, tuple(paths), np.asarray(labels, np.int64))


def _first_existing(root: Path, names: tuple[str, ...], what: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ValueError(
        f"{root}: {what} must be in a folder {' or '.join(names)}; there is none"
    )


# ------------------------------------------------------------------ Parquet


def open_parquet(config: DataConfig) -> Dataset:
    """Shards as Hugging Face `datasets` writes them, in `root` or `root/data`."""
    root = _root(config)
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
    return Dataset(names, train_part, test_part)


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


# ------------------------------------------------------------------ all


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


OPENERS: dict[str, Opener] = {
    "digits": open_digits,
    "folder": open_folder,
    "parquet": open_parquet,
    **dict.fromkeys(TORCHVISION_SETS, open_torchvision),
}
"""Name → reader, those of this package."""
