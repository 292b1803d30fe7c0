"""A data set out of splits that were read: which split is the test part, what the classes are.

Shared by the readers of Parquet, of Hugging Face `datasets` and of WebDataset.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from trainers.config import DataConfig
from trainers.data.classes import (
    Labelled,
    class_names_of,
    classes_of,
    is_unlabelled,
    joined,
)
from trainers.data.info import named
from trainers.data.parts import OWN_VALIDATION, Dataset, Labels, Part
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

    Without `test`, or where it has no labels, `validation` is the test part, and else the
    validation part; where there is neither, a fifth of each class of `train` is the test part.

    Args:
        place: what messages call it.

    Raises:
        ValueError: labels that cannot be read in one way only; class names that differ.
    """
    second, third, remarks = _held_out(test, validation)
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
    held = second.labels
    if third is not None:
        held = joined([(place, second.labels), (place, third.labels)])
    classes = classes_of(train.labels, held, names, place)
    first, other = classes.train, classes.test
    source, own = second, None
    if third is not None:
        is_of_test = other.rows < len(second.labels)
        of_third = Labelled(other.rows[~is_of_test], other.labels[~is_of_test])
        own = third.part(of_third.rows - len(second.labels), of_third.labels)
        other = Labelled(other.rows[is_of_test], other.labels[is_of_test])
    if test is None and validation is None:
        source = train
        first, other = (
            Labelled(first.rows[rows], first.labels[rows])
            for rows in stratified_test(first.labels)
        )
    of_third_said = () if third is None else third.remarks
    said = (
        *train.remarks,
        *second.remarks,
        *of_third_said,
        *remarks,
        *classes.remarks,
    )
    return Dataset(
        classes.names,
        train.part(first.rows, first.labels),
        source.part(other.rows, other.labels),
        place,
        tuple(dict.fromkeys(said)),
        own,
    )


def _held_out(
    test: ReadSplit | None, validation: ReadSplit | None
) -> tuple[Split | None, Split | None, list[str]]:
    """The splits that are the test part (None: held out of training) and the validation part (None:
    split off training), and remarks on the choice.
    """
    if test is None and validation is None:
        return (
            None,
            None,
            [
                "There is no test split; a fifth of the images of each class, always the"
                " same, is the test part."
            ],
        )
    if test is None:
        assert validation is not None
        return (
            validation(),
            None,
            ["There is no test split; the validation split is the test part."],
        )
    found = test()
    if validation is None:
        return found, None, []
    if len(found.labels) and is_unlabelled(found.labels):
        return (
            validation(),
            None,
            ["The test split has no labels; the validation split is the test part."],
        )
    own = validation()
    if is_unlabelled(own.labels):
        return found, None, ["The validation split has no labels and is not read."]
    return (
        found,
        own,
        [f"The validation part is the validation split ({OWN_VALIDATION})."],
    )
