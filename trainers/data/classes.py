"""From labels as files hold them (numbers, text, true and false, gaps, nulls) to classes 0..K-1.

What cannot be read in one way only is refused; what is renumbered or left out is said in a remark.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainers.data.info import named
from trainers.data.parts import Labels

NO_LABEL = -1
"""What Hugging Face `datasets` writes where a label is not known."""

MOST_ALONE = 10
"""Classes that may have one training image each before the label is taken for something else."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """The rows of a part that have a label, and their labels: int64 (N,) each."""

    rows: Labels
    labels: Labels


@dataclass(frozen=True, eq=False)
class Classes:
    """Class names, the labelled rows of both parts, and what a user must know of them."""

    names: tuple[str, ...]
    train: Labelled
    test: Labelled
    remarks: tuple[str, ...]


def plain_labels(values: pa.Array | pa.ChunkedArray, place: str) -> pa.Array:
    """Labels as int64 or text, null where there is none; NaN and "" are none.

    Args:
        place: file and column, for messages.

    Raises:
        ValueError: lists, fractions, dates and other values that are no label.
    """
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(
            [_undictionaried(chunk) for chunk in values.chunks]
            or [pa.array([], values.type)]
        )
    values = _undictionaried(values)
    kind = values.type
    if pa.types.is_null(kind):
        return values.cast(pa.int64())
    if pa.types.is_boolean(kind):
        return values.cast(pa.string())
    if pa.types.is_integer(kind):
        if kind == pa.uint64() and (pc.max(values).as_py() or 0) >= 2**63:
            raise ValueError(f"{place} holds numbers above 2^63, which are no labels")
        return values.cast(pa.int64())
    if pa.types.is_floating(kind):
        return _whole_numbers(values, place)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = values.cast(pa.string())
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    remedy = "one whole number or one text an image is needed"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        remedy = f"several labels an image are not supported; {remedy}"
    raise ValueError(f"{place} holds values of type {kind}: {remedy}")


def _undictionaried(values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        return values.dictionary_decode()
    return values


def _whole_numbers(values: pa.Array, place: str) -> pa.Array:
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    known = ~np.isnan(numbers)
    wrong = known & ~(np.floor(numbers) == numbers) | np.isinf(numbers)
    if wrong.any():
        raise ValueError(
            f"{place} holds {numbers[wrong][0]:g}: a label is a whole number or a text,"
            " not a measured value; data.label_column names another column"
        )
    return pa.array(np.where(known, numbers, 0).astype(np.int64), mask=~known)


def joined(shards: Sequence[tuple[str, pa.Array]]) -> pa.Array:
    """The labels of all shards, each given as (place, `plain_labels`).

    Raises:
        ValueError: numbers in one shard and text in another.
    """
    known = [item for item in shards if item[1].null_count < len(item[1])]
    kind = known[0][1].type if known else pa.int64()
    for place, values in known:
        if values.type != kind:
            raise ValueError(
                f"{place} holds {_kind(values.type)}, and {known[0][0]} holds"
                f" {_kind(kind)}; write all shards alike"
            )
    return pa.concat_arrays(
        [
            values if values.type == kind else pa.nulls(len(values), kind)
            for _, values in shards
        ]
        or [pa.array([], kind)]
    )


def _kind(kind: pa.DataType) -> str:
    return "text" if kind == pa.string() else "whole numbers"


def is_unlabelled(labels: pa.Array) -> bool:
    """Whether no row has a label: all are null, or -1."""
    if labels.null_count == len(labels):
        return True
    if labels.type != pa.int64():
        return False
    low, high = pc.min_max(labels).values()
    return low.as_py() == high.as_py() == NO_LABEL


def class_names_of(option: tuple[str, ...] | Path | None) -> tuple[str, ...] | None:
    """The names that `data.class_names` gives: a list, or a text file of a name a line.

    Raises:
        ValueError: the file cannot be read, or a name stands there twice.
    """
    if option is None:
        return None
    names = option
    if isinstance(names, Path):
        try:
            text = names.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"data.class_names {names}: {error}") from error
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ValueError(
            "data.class_names needs each class once, in the order of the labels;"
            f" {_shown(twice)} stand there twice"
            if twice
            else "data.class_names names no class"
        )
    return names


def classes_of(
    train: pa.Array, test: pa.Array, names: tuple[str, ...] | None, place: str
) -> Classes:
    """Classes and labels of two parts.

    With `names` (of ClassLabel, or of `data.class_names`) label k is the k-th name. Else whole
    numbers are classes as they are where they are 0..K-1, and renumbered in their order, which
    a remark says, where they are not; text is sorted (as numbers, where all of it is).

    Args:
        train: `joined` labels of the training part.
        test: those of the test part.
        place: the data set, for messages.

    Raises:
        ValueError: a label that has no name; a class that only the test part has; no labels.
    """
    remarks: list[str] = []
    for part, labels in (("training", train), ("test", test)):
        if len(labels) and is_unlabelled(labels):
            raise ValueError(
                f"{place}: no image of the {part} part has a label (all are null or"
                " -1). Is that part unlabelled? data.label_column names another"
                " column, data.test_split another part"
            )
    if names is None:
        names, train, test, found = _named_by_values(train, test, place)
        remarks += found
    elif pa.string() in (train.type, test.type):
        train = _by_name(train, names, f"{place}: the training part")
        test = _by_name(test, names, f"{place}: the test part")
    parts = []
    for part, labels in (("training", train), ("test", test)):
        labelled = _labelled(labels)
        _check_range(labelled.labels, names, f"{place}: the {part} part")
        left_out = len(labels) - len(labelled.rows)
        if left_out:
            remarks.append(
                f"{left_out} of the {len(labels)} images of the {part} part have no"
                " label (null or -1) and are left out."
            )
        present = np.bincount(labelled.labels, minlength=len(names))
        empty = [name for name, count in zip(names, present, strict=True) if not count]
        if empty and part == "training":
            remarks.append(f"No training image has the label {_shown(empty)}.")
        parts.append(labelled)
    return Classes(names, parts[0], parts[1], (*remarks, *_nearly_equal(names)))


def _named_by_values(
    train: pa.Array, test: pa.Array, place: str
) -> tuple[tuple[str, ...], pa.Array, pa.Array, list[str]]:
    """(names, numbered train, numbered test, remarks) where nothing names the classes."""
    if train.type != test.type and len(test):
        raise ValueError(
            f"{place}: labels are {_kind(train.type)} in the training part and"
            f" {_kind(test.type)} in the test part; write both alike"
        )
    values = pc.unique(train.drop_null()).to_pylist()
    is_text = train.type == pa.string()
    if is_text:
        numeric = all(
            value.isdecimal() and str(int(value)) == value for value in values
        )
        values.sort(key=int if numeric else None)
    else:
        values.sort()
        if values[:2] == [NO_LABEL, 0]:
            values = values[1:]  # as `datasets` marks what has no label
            train = _without(train, NO_LABEL)
        if NO_LABEL not in values:
            test = _without(test, NO_LABEL)
    if len(values) == len(train) > MOST_ALONE:
        raise ValueError(
            f"{place}: each of the {len(train)} training images has a label of its own"
            f" ({_shown(values)}), as if it were a caption or a number of the image;"
            " data.label_column names another column"
        )
    strange = sorted(set(pc.unique(test.drop_null()).to_pylist()) - set(values))
    if strange:
        raise ValueError(
            f"{place}: the test part has labels that no training image has:"
            f" {_shown(strange)}. Are the files of one data set?"
        )
    lookup = pa.array(values, train.type)
    train, test = pc.index_in(train, lookup), pc.index_in(test, lookup)
    names = tuple(str(value) for value in values)
    remarks = []
    if is_text:
        remarks.append(f"The classes are the labels in sorted order: {_shown(names)}.")
    elif values != list(range(len(values))):
        remarks.append(
            f"Labels are not 0..{len(values) - 1}; {_shown(names)} are renumbered as"
            f" classes 0..{len(values) - 1}, in this order."
        )
    return names, train.cast(pa.int64()), test.cast(pa.int64()), remarks


def _without(labels: pa.Array, value: int) -> pa.Array:
    return pc.if_else(pc.equal(labels, value), pa.scalar(None, pa.int64()), labels)


def _by_name(labels: pa.Array, names: tuple[str, ...], place: str) -> pa.Array:
    if labels.type != pa.string():
        if labels.null_count == len(labels):
            return labels.cast(pa.int64())
        raise ValueError(f"{place} has numbers as labels, the other part has text")
    numbers = pc.index_in(labels, pa.array(names)).cast(pa.int64())
    unknown = pc.unique(labels.filter(pc.is_null(numbers)).drop_null()).to_pylist()
    if unknown:
        raise ValueError(
            f"{place} has labels that are not among the {len(names)} class names:"
            f" {_shown(sorted(unknown))}"
        )
    return numbers


def _labelled(labels: pa.Array) -> Labelled:
    numbers = pc.fill_null(labels, NO_LABEL).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(numbers != NO_LABEL)
    return Labelled(rows, numbers[rows].astype(np.int64))


def _check_range(labels: Labels, names: tuple[str, ...], place: str) -> None:
    wrong = (labels < 0) | (labels >= len(names))
    if wrong.any():
        raise ValueError(
            f"{place}: labels lie in 0..{len(names) - 1} (there are"
            f" {len(names)} class names); got {_shown(np.unique(labels[wrong]).tolist())};"
            " correct them, or name all classes with data.class_names"
        )


def _nearly_equal(names: tuple[str, ...]) -> list[str]:
    """A remark where class names differ in spaces or case only."""
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(" ".join(name.split()).casefold(), []).append(name)
    twins = [
        repr(name) for group in folded.values() if len(group) > 1 for name in group
    ]
    if not twins:
        return []
    return [
        f"Class names that differ only in case or spaces are classes of their own:"
        f" {_shown(twins)}."
    ]


def _shown(values: Iterable[object]) -> str:
    return named(tuple(str(value) for value in values))
