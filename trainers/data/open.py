"""Data sets by name. No image is decoded when one is opened.

A reader is a function of the data configuration that returns a `Dataset`. A new one touches this
file alone, or comes from a plugin that offers it under `DATASETS` (see docs/extending.md).
"""

import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np

from trainers import plugins
from trainers.config import DataConfig
from trainers.data.parts import ArrayPart, Dataset, FilePart
from trainers.data.shards import root_folder
from trainers.data.sklearn_internals import load_digits
from trainers.data.stratify import stratified_test
from trainers.data.torchvision_sets import TORCHVISION_SETS, open_torchvision

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
            f"data.dataset {config.dataset!r} is unknown; valid: {', '.join(known)}"
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
    root = root_folder(config)
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


# ------------------------------------------------------------------ all


def _when_used(module: str, reader: str) -> Opener:
    """A reader whose module, and the libraries that it imports, wait until it is called."""

    def opener(config: DataConfig) -> Dataset:
        return getattr(import_module(module), reader)(config)

    return opener


def _where(config: DataConfig) -> str:
    return f"data set {config.dataset}" + (f" in {config.root}" if config.root else "")


OPENERS: dict[str, Opener] = {
    "digits": open_digits,
    "folder": open_folder,
    "parquet": _when_used("trainers.data.parquet", "open_parquet"),
    **dict.fromkeys(TORCHVISION_SETS, open_torchvision),
}
"""Name → reader, those of this package."""
