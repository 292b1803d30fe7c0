"""Data sets through torchvision.datasets: their published training and test parts.

Where torchvision has a separate val part (flowers102, dtd), it joins the training part: the
validation split is ours to draw. EuroSAT has no parts: a fifth of each class, always the
same, is the test part.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainers.config import DataConfig
from trainers.data.parts import ArrayPart, Dataset, FilePart, Part
from trainers.data.stratify import stratified_test
from trainers.torchvision_internals import (
    declare_missing_operators,
    files_of,
    labels_of,
)

TORCHVISION_SETS: dict[
    str, tuple[str, tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]
] = {
    "cifar10": ("CIFAR10", ({"train": True},), ({"train": False},)),
    "cifar100": ("CIFAR100", ({"train": True},), ({"train": False},)),
    "flowers102": (
        "Flowers102",
        ({"split": "train"}, {"split": "val"}),
        ({"split": "test"},),
    ),
    "pets": ("OxfordIIITPet", ({"split": "trainval"},), ({"split": "test"},)),
    "stl10": ("STL10", ({"split": "train"},), ({"split": "test"},)),
    "food101": ("Food101", ({"split": "train"},), ({"split": "test"},)),
    "dtd": ("DTD", ({"split": "train"}, {"split": "val"}), ({"split": "test"},)),
    "svhn": ("SVHN", ({"split": "train"},), ({"split": "test"},)),
    "eurosat": ("EuroSAT", ({},), ()),
}
"""Our name → (class in torchvision.datasets, arguments of the training parts, of the test
parts).
"""


def open_torchvision(config: DataConfig) -> Dataset:
    """The data set that `config.dataset` names, from `config.root`; downloaded where
    `config.download` says so.

    Raises:
        ValueError: the set is not in `root`, or cannot be downloaded.
    """
    declare_missing_operators()
    import torchvision

    if config.root is None:
        raise ValueError(
            f"data.dataset {config.dataset!r} needs data.root: the folder that holds"
            " it, or, with data.download true, where to put it"
        )
    class_name, train_args, test_args = TORCHVISION_SETS[config.dataset]
    builder = getattr(torchvision.datasets, class_name)
    train = [_build(builder, config, args) for args in train_args]
    test = [_build(builder, config, args) for args in test_args]
    train_part = _join([_part(dataset, config.root) for dataset in train])
    if test:
        test_part = _join([_part(dataset, config.root) for dataset in test])
    else:
        train_part, test_part = _hold_out(train_part)
    names = getattr(train[0], "classes", None) or [
        str(k) for k in range(int(train_part.labels.max()) + 1)
    ]
    return Dataset(tuple(names), train_part, test_part)


def _build(
    builder: Callable[..., Any], config: DataConfig, args: dict[str, Any]
) -> Any:
    try:
        return builder(root=str(config.root), download=config.download, **args)
    except (RuntimeError, OSError) as error:
        remedy = (
            "check the connection"
            if config.download
            else "give the right data.root, or set data.download to true"
        )
        raise ValueError(
            f"data set {config.dataset} is not in data.root {config.root}: {error};"
            f" {remedy}"
        ) from error


def _part(dataset: Any, root: Path) -> ArrayPart | FilePart:
    """The labels and images of a torchvision data set, whichever way that set keeps them."""
    labels = np.asarray(labels_of(dataset), np.int64)
    if hasattr(dataset, "data"):
        pixels = dataset.data
        return ArrayPart(
            pixels if pixels.shape[1] == 3 else pixels.transpose(0, 3, 1, 2), labels
        )
    files = (Path(file).relative_to(root).as_posix() for file in files_of(dataset))
    return FilePart(root, tuple(files), labels)


def _join(parts: list[ArrayPart | FilePart]) -> Part:
    if len(parts) == 1:
        return parts[0]
    files = [part for part in parts if isinstance(part, FilePart)]
    assert len(files) == len(parts), "only sets of files come in several parts"
    paths = tuple(path for part in files for path in part.paths)
    return FilePart(
        files[0].root, paths, np.concatenate([part.labels for part in files])
    )


def _hold_out(part: Part) -> tuple[Part, Part]:
    assert isinstance(part, FilePart), part
    train, test = (
        FilePart(part.root, tuple(part.paths[row] for row in rows), part.labels[rows])
        for rows in stratified_test(part.labels)
    )
    return train, test
