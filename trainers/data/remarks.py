"""What a user should know of a labelled data set as a whole: unequal classes, repeated images."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from trainers.data.info import ALL_NAMES
from trainers.data.parts import Dataset, FilePart
from trainers.files import sha256_file
from trainers.words import listed, printable

UNBALANCED = 2.0
"""Images of the largest class for one of the smallest from which classes count as unbalanced."""
MOST_FILES = 20_000
MOST_BYTES = 64 << 20
"""Limits of the search for repeated images: beyond them it is no longer quick."""


def balance_remarks(dataset: Dataset) -> list[str]:
    """A sentence with the counts, and the weights that would balance them, where the training
    classes are unbalanced; one where the test part lacks classes.
    """
    remarks = []
    names = [printable(name) for name in dataset.class_names]
    counts = np.bincount(dataset.train.labels, minlength=len(names))
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
    untested = set(held.tolist()) - set(dataset.test.labels.tolist())
    if untested:
        remarks.append(
            f"The test part has no image of {listed(names[k] for k in sorted(untested))}."
        )
    return remarks


def duplicate_remarks(dataset: Dataset) -> list[str]:
    """Sentences about files with the same bytes in both parts, or in two training classes.

    Nothing is looked for in large sets, and in those that are not files.
    """
    train, test = dataset.train, dataset.test
    if not isinstance(train, FilePart) or not isinstance(test, FilePart):
        return []
    by_size: dict[int, list[tuple[FilePart, int]]] = defaultdict(list)
    if len(train.paths) + len(test.paths) > MOST_FILES:
        return []
    for part in (train, test):
        for row, path in enumerate(part.paths):
            size = _size(part.root / path)
            if size > 0:
                by_size[size].append((part, row))
    candidates = {size: rows for size, rows in by_size.items() if len(rows) > 1}
    if sum(size * len(rows) for size, rows in candidates.items()) > MOST_BYTES:
        return []
    by_content: dict[str, list[tuple[FilePart, int]]] = defaultdict(list)
    for rows in candidates.values():
        for part, row in rows:
            file = part.root / part.paths[row]
            if os.access(file, os.R_OK):
                by_content[sha256_file(file)].append((part, row))
    return _repeated(train, test, by_content.values())


def _repeated(
    train: FilePart, test: FilePart, groups: Iterable[list[tuple[FilePart, int]]]
) -> list[str]:
    shared = 0
    torn: list[int] = []
    first = ""
    for group in groups:
        trained = [row for part, row in group if part is train]
        tested = [row for part, row in group if part is test]
        if trained and tested:
            shared += len(tested)
            first = first or f"{test.name(tested[0])} and {train.name(trained[0])}"
        if len({int(train.labels[row]) for row in trained}) > 1:
            torn += trained
    remarks = []
    if shared:
        remarks.append(
            f"Of {len(test.paths):,} test images {shared:,} have the bytes of a training image"
            f" ({first}): on those the test metrics say nothing about new images."
        )
    if torn:
        names = Counter(train.name(row) for row in torn[:2])
        remarks.append(
            f"The same image is in two training classes ({' and '.join(names)}; files of this"
            f" kind: {len(torn):,}): one of the labels is wrong."
        )
    return remarks


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # an unreadable image, named elsewhere
        return 0
