"""What a user should know of a labelled data set as a whole: unequal classes, repeated images."""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from trainers.data.info import ALL_NAMES
from trainers.data.parts import Dataset, FilePart, LeftOut, kept_rows
from trainers.files import sha256_file
from trainers.words import listed, printable

UNBALANCED = 2.0
"""Images of the largest class for one of the smallest from which classes count as unbalanced."""
MOST_FILES = 20_000
MOST_BYTES = 64 << 20
"""Limits of the search for repeated images: beyond them it is no longer quick."""
NOTHING: LeftOut = MappingProxyType({})


def balance_remarks(dataset: Dataset, left_out: LeftOut = NOTHING) -> list[str]:
    """A sentence with the counts, and the weights that would balance them, where the training
    classes are unbalanced; one where the test part lacks classes.

    Args:
        left_out: images that do not count.
    """
    remarks = []
    names = [printable(name) for name in dataset.class_names]
    trained, tested = (
        part.labels[kept_rows(part.labels, left_out.get(name, ()))]
        for name, part in (("train", dataset.train), ("test", dataset.test))
    )
    counts = np.bincount(trained, minlength=len(names))
    held = np.flatnonzero(counts)
    most, least = held[counts[held].argmax()], held[counts[held].argmin()]
    if counts[most] >= UNBALANCED * counts[least]:
        remark = (
            f"The training classes are unbalanced: {counts[most]:,} images of"
            f" {names[most]} for {counts[least]:,} of {names[least]}"
        )
        if len(names) <= ALL_NAMES:
            weights = counts.sum() / (len(held) * np.maximum(counts, 1))
            each = (f"{names[k]} {weights[k]:.3g}" for k in held)
            remark += f" (weights that balance them: {', '.join(each)})"
        remarks.append(
            f"{remark}; training weighs every image alike, and the metrics"
            " balanced_accuracy and f1_macro weigh every class alike."
        )
    untested = set(held.tolist()) - set(tested.tolist())
    if untested:
        remarks.append(
            f"The test part has no image of {listed(names[k] for k in sorted(untested))}."
        )
    return remarks


def duplicate_remarks(dataset: Dataset, left_out: LeftOut = NOTHING) -> list[str]:
    """Sentences about files with the same bytes in training and another part, or in two training
    classes.

    Nothing is looked for in large sets, and in those that are not files.

    Args:
        left_out: images that are not spoken of.
    """
    parts = dataset.parts()
    files = {name: part for name, part in parts.items() if isinstance(part, FilePart)}
    if len(files) < len(parts):
        return []
    by_size: dict[int, list[_Row]] = defaultdict(list)
    if sum(len(part.paths) for part in files.values()) > MOST_FILES:
        return []
    used: dict[str, int] = {}
    for name, part in files.items():
        kept = np.flatnonzero(kept_rows(part.labels, left_out.get(name, ()))).tolist()
        used[name] = len(kept)
        for row in kept:
            size = _size(part.root / part.paths[row])
            if size > 0:
                by_size[size].append(_Row(name, row))
    candidates = {size: rows for size, rows in by_size.items() if len(rows) > 1}
    if sum(size * len(rows) for size, rows in candidates.items()) > MOST_BYTES:
        return []
    by_content: dict[str, list[_Row]] = defaultdict(list)
    for rows in candidates.values():
        for name, row in rows:
            file = files[name].root / files[name].paths[row]
            if os.access(file, os.R_OK):
                by_content[sha256_file(file)].append(_Row(name, row))
    groups = [*by_content.values()]
    held = [name for name in files if name != "train"]
    shared = [_shared(files, name, used[name], groups) for name in held]
    return [*(each for each in shared if each), *_torn(files["train"], groups)]


class _Row(NamedTuple):
    """An image of a part."""

    part: str
    row: int


def _shared(
    files: Mapping[str, FilePart],
    held: str,
    count: int,
    groups: Sequence[list[_Row]],
) -> str | None:
    """A sentence about those of the `count` images of a part that training has, too."""
    shared, first = 0, ""
    train, part = files["train"], files[held]
    for group in groups:
        trained = [row for name, row in group if name == "train"]
        again = [row for name, row in group if name == held]
        if trained and again:
            shared += len(again)
            first = first or f"{part.name(again[0])} and {train.name(trained[0])}"
    if not shared:
        return None
    word = "validation" if held == "val" else held
    return (
        f"Of {count:,} {word} images {shared:,} have the bytes of a training image"
        f" ({first}): on those the {word} metrics say nothing about new images."
    )


def _torn(train: FilePart, groups: Sequence[list[_Row]]) -> list[str]:
    """A sentence about images that are in two training classes."""
    torn: list[int] = []
    for group in groups:
        trained = [row for name, row in group if name == "train"]
        if len({int(train.labels[row]) for row in trained}) > 1:
            torn += trained
    if not torn:
        return []
    names = Counter(train.name(row) for row in torn[:2])
    return [
        f"The same image is in two training classes ({' and '.join(names)}; files of this"
        f" kind: {len(torn):,}): one of the labels is wrong."
    ]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # an unreadable image, named elsewhere
        return 0
