"""Data sets by name. No image is decoded when one is opened.

A reader is a function of the data configuration that returns a `Dataset`. A new one touches this
file alone, or comes from a plugin that offers it under `DATASETS` (see docs/extending.md).
"""

import dataclasses
import logging
from collections.abc import Callable
from importlib import import_module

import numpy as np

from trainers import plugins
from trainers.config import DataConfig
from trainers.data.folders import read_folders
from trainers.data.parts import ArrayPart, Dataset
from trainers.data.shards import root_folder
from trainers.data.sklearn_internals import load_digits
from trainers.data.stratify import stratified_test
from trainers.data.torchvision_sets import TORCHVISION_SETS, open_torchvision
from trainers.words import did_you_mean

log = logging.getLogger(__name__)

Opener = Callable[[DataConfig], Dataset]

DIGITS_PX = 32
_CALLED = {"train": "training", "test": "test", "val": "validation"}


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
    _check_options(config)
    dataset = known[config.dataset](config)
    if len(dataset.class_names) < 2:
        raise ValueError(
            f"{_where(config)}: a classifier needs two classes; got"
            f" {', '.join(dataset.class_names) or 'none'}"
        )
    dataset = _with_validation_as_wanted(dataset, config)
    for name, part in dataset.parts().items():
        name = _CALLED[name]
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


def _with_validation_as_wanted(dataset: Dataset, config: DataConfig) -> Dataset:
    """The data set without a validation part of its own where none is to be used."""
    if dataset.validation is None or (
        config.val_from == "auto" and config.val_fraction > 0
    ):
        return dataset
    why = (
        "data.val_from is train"
        if config.val_from == "train"
        else "data.val_fraction is 0"
    )
    remark = f"{why}: the validation part that the data set has is not read."
    return dataclasses.replace(
        dataset, validation=None, remarks=(*dataset.remarks, remark)
    )


def _check_options(config: DataConfig) -> None:
    """Refuse options that a reader of ours does not know; a plugin may read any."""
    if config.dataset not in OPENERS:
        return
    for option, readers in READ_BY.items():
        default = type(config).model_fields[option].default
        if getattr(config, option) != default and config.dataset not in readers:
            raise ValueError(
                f"data.{option} is an option of data.dataset {' and '.join(readers)}, not of"
                f" {config.dataset!r}; leave it out"
            )


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
    """`root/train/CLASS/*` and `root/test|val/CLASS/*`, or `root/CLASS/*`."""
    return read_folders(root_folder(config))


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
    "hf": _when_used("trainers.data.hf_sets", "open_hf"),
    "webdataset": _when_used("trainers.data.webdataset_sets", "open_webdataset"),
    **dict.fromkeys(TORCHVISION_SETS, open_torchvision),
}
"""Name → reader, those of this package."""

_TABLES = ("parquet", "webdataset", "hf")
READ_BY: dict[str, tuple[str, ...]] = {
    "name": ("hf",),
    "revision": ("hf",),
    "streaming": ("hf",),
    "subset": _TABLES,
    "train_split": _TABLES,
    "test_split": _TABLES,
    "image_column": _TABLES,
    "label_column": _TABLES,
    "class_names": _TABLES,
}
"""Option of `DataConfig` → the data sets that read it, where not all do."""
