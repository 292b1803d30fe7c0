"""What is said of a labelled data set as a whole."""

import shutil
from pathlib import Path

import numpy as np

from tests.trainers.data.pictures import class_folders, grey
from trainers.data.folders import read_folders
from trainers.data.parts import ArrayPart, Dataset
from trainers.data.remarks import balance_remarks, duplicate_remarks


def dataset_of(train: list[int], test: list[int], names: tuple[str, ...]) -> Dataset:
    parts = (
        ArrayPart(np.zeros((len(labels), 3, 4, 4), np.uint8), np.asarray(labels))
        for labels in (train, test)
    )
    return Dataset(names, *parts)


def test_unbalanced_classes_are_told_with_weights() -> None:
    names = ("ant", "bee")
    assert not balance_remarks(dataset_of([0, 0, 0, 1, 1], [0, 1], names))
    [told] = balance_remarks(dataset_of([0] * 6 + [1] * 2, [0, 1], names))
    assert "6 images of ant for 2 of bee" in told
    assert "ant 0.667, bee 2" in told
    many = tuple(f"c{k}" for k in range(12))
    [told] = balance_remarks(dataset_of([*range(12), 0], [*range(12)], many))
    assert "2 images of c0 for 1 of c1;" in told


def test_classes_without_a_test_image_are_told() -> None:
    [told] = balance_remarks(dataset_of([0, 1, 2], [1], ("ant", "bee", "cow")))
    assert told == "The test part has no image of ant, cow."


def test_repeated_files_are_told(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    assert not duplicate_remarks(read_folders(root))
    dark = root / "train" / "dark"
    shutil.copy(dark / "0.png", root / "val" / "dark" / "copy.png")
    shutil.copy(dark / "1.png", root / "train" / "light" / "copy.png")
    (dark / "broken.png").symlink_to("nowhere")
    shared, torn = duplicate_remarks(read_folders(root))
    assert shared.startswith("Of 5 test images 1 have the bytes of a training image")
    assert "val/dark/copy.png and" in shared
    assert "dark/1.png and" in torn
    assert "light/copy.png" in torn
    grey(3).save(root / "train" / "light" / "copy.png")
    assert len(duplicate_remarks(read_folders(root))) == 1
