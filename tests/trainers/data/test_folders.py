"""Class folders with what people, systems and downloads leave in them."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainers.data.pictures import class_folders, grey
from trainers.config import DataConfig
from trainers.data.folders import read_folders
from trainers.data.open import open_dataset
from trainers.data.parts import Dataset, FilePart
from trainers.data.remarks import duplicate_remarks
from trainers.data.splits import data_info, eval_batches, load_data

LINUX = pytest.mark.skipif(
    sys.platform != "linux",
    reason="elsewhere names are text, without capitals or forms",
)
SYSTEMS = [
    ".ipynb_checkpoints",
    "@eaDir",
    "__MACOSX",
    "$RECYCLE.BIN",
    "lost+found",
    "#recycle",
    ".git",
    "@Recycle",
]


def counts(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Images of each class in (train, test)."""
    classes = len(dataset.class_names)
    train, test = (
        np.bincount(part.labels, minlength=classes).tolist()
        for part in (dataset.train, dataset.test)
    )
    return train, test


def remarks(dataset: Dataset) -> str:
    return "\n".join(dataset.remarks)


def test_what_systems_leave_is_ignored(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    for name in SYSTEMS:
        for place in (root, root / "train", root / "train" / "dark", root / "val"):
            (place / name).mkdir()
            grey(1).save(place / name / "x.png")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png"):
        (root / "train" / "dark" / name).write_bytes(b"\0\5\26\7")
    dataset = read_folders(root)
    assert dataset.class_names == ("dark", "light")
    assert counts(dataset) == ([6, 6], [2, 2])
    assert not dataset.remarks
    assert dataset.place == f"{root}/train and val"


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Validation"),
        ("training", "testing"),
        ("TRAIN", "Valid"),
        ("train", "Test"),
    ],
)
def test_the_names_of_parts(train: str, test: str, tmp_path: Path) -> None:
    root = class_folders(tmp_path, test=test)
    (root / "train").rename(root / train)
    dataset = read_folders(root)
    assert counts(dataset) == ([6, 6], [2, 2])
    assert dataset.place.endswith(f"{train} and {test}")


def test_val_beside_test_is_the_validation_part(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    shutil.copytree(root / "val", root / "test")
    (root / "test" / "dark" / "7.png").unlink()
    (root / "val" / "light" / "7.png").unlink()
    shutil.copy(root / "train" / "dark" / "0.png", root / "val" / "dark" / "again.png")
    dataset = read_folders(root)
    assert dataset.validation is not None
    assert counts(dataset) == ([6, 6], [1, 2])
    assert dataset.validation.labels.tolist() == [0, 0, 0, 1]
    assert f"The validation part is {root / 'val'} " in remarks(dataset)
    assert "Of 4 validation images 1 have the bytes" in "".join(
        duplicate_remarks(dataset)
    )


def test_an_own_validation_part_is_seen_whole_and_never_trained_on(
    tmp_path: Path,
) -> None:
    """With `val_from: train`, and without a validation part, it is as if there were none."""
    root = class_folders(tmp_path / "photos")
    shutil.copytree(root / "val", root / "test")
    config = DataConfig(dataset="folder", root=root, image_size=32, limit=8, workers=0)
    for in_memory in ("yes", "no"):
        given = config.model_copy(update={"in_memory": in_memory})
        data = load_data(given, tmp_path / "cache")
        sizes = [data.size(split) for split in ("train", "val", "test")]
        assert sizes == [8, 4, 4]
        info = data_info(given)
        assert (info.num_train, info.num_val, info.num_test) == (8, 4, 4)
        pixels = next(eval_batches(data, "val", 4, torch.device("cpu")))[0]
        tested = next(eval_batches(data, "test", 4, torch.device("cpu")))[0]
        assert torch.equal(pixels, tested)
        assert data.val.labels.tolist() == [0, 0, 1, 1]
    split_off = config.model_copy(update={"val_from": "train", "val_fraction": 0.25})
    data = load_data(split_off, tmp_path / "cache")
    assert [data.size(split) for split in ("train", "val", "test")] == [6, 2, 4]
    assert "data.val_from is train" in "".join(data_info(split_off).remarks)
    shutil.rmtree(root / "val")
    assert load_data.__wrapped__(split_off, tmp_path / "cache").fingerprint == (
        load_data.__wrapped__(
            split_off.model_copy(update={"val_from": "auto"}), tmp_path / "cache"
        ).fingerprint
    )


def test_an_unlabelled_test_gives_way_to_val(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    (root / "test" / "images").mkdir(parents=True)
    grey(9).save(root / "test" / "1.png")
    grey(9).save(root / "test" / "images" / "2.png")
    dataset = read_folders(root)
    assert counts(dataset)[1] == [2, 2]
    assert re.search("test is not read, .* val is the test part", remarks(dataset))
    shutil.rmtree(root / "val")
    with pytest.raises(ValueError, match=r"test: no image .*\(dark, light\).* val"):
        read_folders(root)


def test_without_a_test_part_a_fifth_is_held_out(tmp_path: Path) -> None:
    root = class_folders(tmp_path, test=None)
    beside, direct = read_folders(root), None
    assert "a fifth of the images of each class" in remarks(beside)
    (root / "train").rename(tmp_path / "photos")
    direct = read_folders(tmp_path / "photos")
    assert "each of its folders is a class" in remarks(direct)
    for dataset in (beside, direct):
        train, test = counts(dataset)
        assert sum(train) == 10
        assert test == [1, 1]
    assert isinstance(beside.train, FilePart)
    assert isinstance(direct.train, FilePart)
    assert beside.train.paths == direct.train.paths


def too_few_for_a_fifth(root: Path) -> None:
    shutil.rmtree(root / "val")
    for file in (root / "train").rglob("*.png"):
        if file.name != "0.png":
            file.unlink()


def one_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "light")


def wrapped(root: Path) -> None:
    (root / "train").rename(root / "inner")
    (root / "train").mkdir()
    (root / "inner").rename(root / "train" / "images")


def images_directly(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    grey(3).save(root / "train" / "0.png")


def empty_class(root: Path) -> None:
    (root / "train" / "zebra").mkdir()


def other_formats(root: Path) -> None:
    (root / "train" / "zebra").mkdir()
    (root / "train" / "zebra" / "0.HEIC").write_bytes(b"x")


def class_of_test_alone(root: Path) -> None:
    (root / "val" / "okapi").mkdir()


def other_capitals(root: Path) -> None:
    (root / "val" / "dark").rename(root / "val" / "Dark")


def empty_test(root: Path) -> None:
    for file in (root / "val").rglob("*.png"):
        file.unlink()


def two_unicode_forms(root: Path) -> None:
    (root / "train" / "dark").rename(root / "train" / "caf\u00e9")
    shutil.copytree(root / "train" / "light", root / "train" / "cafe\u0301")


def twice_by_a_link(root: Path) -> None:
    (root / "train" / "noir").symlink_to("dark")


def not_utf8(root: Path) -> None:
    os.rename(os.fsencode(root / "train" / "dark"), os.fsencode(root) + b"/train/\xff")  # noqa: PTH104


def no_train(root: Path) -> None:
    (root / "train").rename(root.parent / "elsewhere")


def two_trains(root: Path) -> None:
    shutil.copytree(root / "train", root / "Train")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (too_few_for_a_fifth, "a fifth of 2 images gives none; add images"),
        (one_class, "needs two classes.*light|needs two classes.*dark"),
        (wrapped, "one, images; its own folders are dark, light"),
        (images_directly, "one folder per class .* its 1 images lie directly in it"),
        (empty_class, "no image: zebra; add"),
        (other_formats, r"no image: zebra \(Pillow does not read 1 \.heic\)"),
        (class_of_test_alone, r"\(dark, light\); \['okapi'\] are not"),
        (other_capitals, r"\['Dark'\] are not; capitals count"),
        (empty_test, "test part has no images"),
        pytest.param(two_unicode_forms, "one name in two Unicode forms", marks=LINUX),
        (twice_by_a_link, "dark and noir are one folder, by a link"),
        pytest.param(not_utf8, r"class folder \\udcff is not UTF-8", marks=LINUX),
        (no_train, "must be in a folder train; there is only val"),
        pytest.param(
            two_trains, "Train and train differ only in capitals", marks=LINUX
        ),
    ],
)
def test_what_is_refused(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    root = class_folders(tmp_path / "set")
    spoil(root)
    with pytest.raises(ValueError, match=message):
        read_folders(root)


def test_a_root_of_another_level_is_refused(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    with pytest.raises(ValueError, match=rf"one in set; set data\.root to {root}"):
        read_folders(tmp_path)
    with pytest.raises(ValueError, match=rf"not train itself; set it to {root}"):
        read_folders(root / "train")
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"set\.zip: this is a file; give the folder"):
        open_dataset(DataConfig(dataset="folder", root=tmp_path / "set.zip"))


def test_links(tmp_path: Path) -> None:
    """Loops and links to other classes add no image; links that lead out are followed."""
    root = class_folders(tmp_path / "set")
    dark = root / "train" / "dark"
    for name, target in {
        "loop": root / "train",
        "up": "..",
        "here": ".",
        "itself": "itself",
        "light": root / "train" / "light",
    }.items():
        (dark / name).symlink_to(target)
    (root / "train" / "all").symlink_to(root)
    (root / "train" / "gone").symlink_to("nowhere")
    class_folders(tmp_path / "other")
    (dark / "more").symlink_to(tmp_path / "other" / "train" / "dark")
    (root / "train" / "light").rename(tmp_path / "store")
    (root / "train" / "light").symlink_to(tmp_path / "store")
    (dark / "broken.png").symlink_to("nowhere.png")
    dataset = read_folders(root)
    assert dataset.class_names == ("dark", "light")
    assert counts(dataset) == ([6 + 6 + 1, 6], [2, 2])
    told = remarks(dataset)
    assert "all, dark/here, dark/light, dark/loop, dark/up" in told
    assert "lead nowhere were left out: gone" in told
    assert dataset.content_hash(tmp_path / "cache")  # the broken link does not matter


@LINUX
def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    dark = root / "train" / "dark"
    for name in ("a.heic", "b.HEIC", "c.CR2", "notes.txt", "noextension"):
        (dark / name).write_bytes(b"x")
    os.mkfifo(dark / "pipe.png")
    grey(3).save(root / "val" / "loose.png")
    dataset = read_folders(root)
    assert counts(dataset) == ([6, 6], [2, 2])
    left, loose = dataset.remarks
    assert left.startswith(f"{root}/train: left out")
    for each in (
        "2 .heic",
        "1 .cr2",
        "1 .txt",
        "1 without a suffix",
        "1 that is no file",
    ):
        assert each in left
    assert (
        loose == f"{root}/val: left out, since they lie in no class folder: 1 images."
    )


@LINUX
def test_capitals_numbers_and_unicode_of_class_names(tmp_path: Path) -> None:
    letters = read_folders(class_folders(tmp_path / "letters", ["a", "A", "b"]))
    assert "A and a differ only in capitals" in remarks(letters)
    numbers = read_folders(class_folders(tmp_path / "n", [str(k) for k in range(11)]))
    assert numbers.class_names[:4] == ("0", "1", "10", "2")
    assert "output 2 of the model is 10" in remarks(numbers)
    root = class_folders(tmp_path / "u", ["caf\u00e9", "tea"])
    (root / "val" / "caf\u00e9").rename(root / "val" / "cafe\u0301")
    accents = read_folders(root)
    assert counts(accents) == ([6, 6], [2, 2])
    assert not accents.remarks


def test_folders_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = class_folders(tmp_path)

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        read_folders(root)


@LINUX
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    dark = os.fsencode(root / "train" / "dark")
    os.rename(dark + b"/0.png", dark + b"/\xff.png")  # noqa: PTH104
    train = read_folders(root).train
    assert train.name(5).endswith("dark/\\udcff.png")
    assert b"\xff" in b"".join(bytes(piece) for piece in train.content(tmp_path))
