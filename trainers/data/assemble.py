"""A data set out of splits that were read: which split is the test part, what the classes are.

Shared by the readers of Parquet, of Hugging Face `datasets` and of WebDataset.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from trainers.config import DataConfig
from trainers.data.classes import Labelled, class_names_of, classes_of, is_unlabelled
from trainers.data.info import named
from trainers.data.parts import Dataset, Labels, Part
from trainers.data.stratify import stratified_test


@dataclass(frozen=True, eq=False)
class Split:
    """What was read of a split before its labels are numbered.

    Attributes:
        labels: whole numbers or text, null where there is none (`plain_labels`).
        names: class names where the files give them.
        part: makes the part of given rows (int64 (N,)) with given labels (int64 (N,)).
    """

    labels: pa.Array
    names: tuple[str, ...] | None
    remarks: tuple[str, ...]
    part: Callable[[Labels, Labels], Part]


ReadSplit = Callable[[], Split]


def assemble(
    config: DataConfig,
    place: str,
    train: Split,
    test: ReadSplit | None,
    validation: ReadSplit | None,
) -> Dataset:
    """The data set.

    Without `test`, or where it has no labels, `validation` is the test part; where there is
    neither, a fifth of each class of `train` is.

    Args:
        place: what messages call it.

    Raises:
        ValueError: labels that cannot be read in one way only; class names that differ.
    """
    second, remarks = _test_part(test, validation)
    if second is None:
        second = Split(pa.array([], train.labels.type), None, (), train.part)
    names = class_names_of(config.class_names)
    if names is None:
        names = train.names or second.names
        if train.names and second.names and train.names != second.names:
            raise ValueError(
                f"{place}: class names of the test part, {named(second.names)}, are not"
                f" those of the training part, {named(train.names)}; data.class_names"
                " gives them for both"
            )
    classes = classes_of(train.labels, second.labels, names, place)
    first, other = classes.train, classes.test
    source = second
    if test is None and validation is None:
        source = train
        first, other = (
            Labelled(first.rows[rows], first.labels[rows])
            for rows in stratified_test(first.labels)
        )
    said = (*train.remarks, *second.remarks, *remarks, *classes.remarks)
    return Dataset(
        classes.names,
        train.part(first.rows, first.labels),
        source.part(other.rows, other.labels),
        place,
        tuple(dict.fromkeys(said)),
    )


def _test_part(
    test: ReadSplit | None, validation: ReadSplit | None
) -> tuple[Split | None, list[str]]:
    """The split that is the test part (None: held out of training), and remarks on the choice."""
    if test is None and validation is None:
        return None, [
            "There is no test split; a fifth of the images of each class, always the"
            " same, is the test part."
        ]
    if test is None:
        assert validation is not None
        return validation(), [
            "There is no test split; the validation split is the test part."
        ]
    found = test()
    if validation is None:
        return found, []
    if len(found.labels) and is_unlabelled(found.labels):
        return validation(), [
            "The test split has no labels; the validation split is the test part."
        ]
    return found, [
        "The validation split is not used; the part that the search sees is drawn from"
        " the training images (data.val_fraction)."
    ]
