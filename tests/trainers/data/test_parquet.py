"""Parquet as people have it: layouts, columns, labels, images.

Each kind is read rightly, or refused with the file's name.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainers.data.pictures import encoded
from trainers.config import DataConfig
from trainers.data.cache import open_images, open_pixels
from trainers.data.info import DataInfo
from trainers.data.open import open_dataset
from trainers.data.splits import data_info, load_data

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TRAIN = "train-00000-of-00001.parquet"
TEST = "test-00000-of-00001.parquet"
LABELS = [0, 1] * 6


def structs(count: int) -> pa.Array:
    return pa.array(
        [{"bytes": encoded(k), "path": f"{k}.png"} for k in range(count)], STRUCT
    )


def shard(
    file: Path,
    labels: Any = LABELS,
    *,
    images: pa.Array | None = None,
    columns: str = "image label",
    names: Sequence[str] | None = None,
    more: dict[str, pa.Array] | None = None,
    **options: Any,
) -> Path:
    """A shard; with `names` as `datasets` writes ClassLabel and Image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image_column, label_column = columns.split()
    values = labels if isinstance(labels, pa.Array) else pa.array(labels)
    images = structs(len(values)) if images is None else images
    table = pa.table({image_column: images, label_column: values, **(more or {})})
    if names is not None:
        label = {"_type": "ClassLabel", "names": list(names)}
        features = {image_column: {"_type": "Image"}, label_column: label}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, file, **options)
    return file


def both(root: Path, labels: Any = LABELS, **options: Any) -> Path:
    shard(root / TRAIN, labels, **options)
    shard(root / TEST, labels, **options)
    return root


def config_of(root: Path, **options: Any) -> DataConfig:
    given = {"val_fraction": 0.25, "workers": 0, **options}
    return DataConfig(dataset="parquet", root=root, **given)


def info_of(root: Path, **options: Any) -> DataInfo:
    return data_info(config_of(root, **options))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (
            "data/train-00000-of-00001-0a1b.parquet",
            "data/test-00000-of-00001-2c.parquet",
        ),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("default/partial-train/0000.parquet", "default/partial-test/0000.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/validation-0.parquet"),
        ("train.parquet", "valid.parquet"),
        ("Training.PARQUET", "evaluation.parquet"),
        ("my_train_set.parquet", "my-test-set.parquet"),
        ("train/a.parquet", "dev/b.parquet"),
        ("train.parquet/part-00000.snappy.parquet", "test.parquet/part-00000.parquet"),
    ],
)
def test_layouts(train: str, test: str, tmp_path: Path) -> None:
    shard(tmp_path / train)
    shard(tmp_path / test, [0, 1])
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "train-0.parquet").write_bytes(b"left by a download")
    info = info_of(tmp_path)
    assert (info.num_train + info.num_val, info.num_test) == (12, 2)
    assert info.class_names == ("0", "1")


def test_the_split_that_is_the_test_part(tmp_path: Path) -> None:
    shard(tmp_path / TRAIN)
    info = info_of(tmp_path)
    assert (info.num_train + info.num_val, info.num_test) == (10, 2)
    assert "fifth" in info.remarks[0]
    shard(tmp_path / "validation-00000-of-00001.parquet", [0, 1, 1])
    assert "no test split" in info_of(tmp_path).remarks[0]
    shard(tmp_path / TEST, [0, 1])
    info = info_of(tmp_path)
    assert (info.num_train, info.num_val, info.num_test) == (12, 3, 2)
    assert "The validation part is the validation split" in info.remarks[0]
    split_off = info_of(tmp_path, val_from="train")
    assert (split_off.num_train + split_off.num_val, split_off.num_test) == (12, 2)
    for unlabelled in ([-1, -1], pa.nulls(2, pa.int64())):
        shard(tmp_path / TEST, unlabelled)
        info = info_of(tmp_path)
        assert info.num_test == 3
        assert "test split has no labels" in info.remarks[0]
    assert info_of(tmp_path, test_split="validation").num_test == 3
    with pytest.raises(ValueError, match="no image of the test part has a label"):
        info_of(tmp_path, test_split="test")


def test_subsets_and_splits_by_name(tmp_path: Path) -> None:
    for subset, labels in (("cats", [0, 1] * 4), ("dogs", [0, 1, 2] * 4)):
        shard(tmp_path / subset / TRAIN, labels)
        shard(tmp_path / subset / TEST, [0, 1])
        shard(tmp_path / subset / "extra-00000-of-00001.parquet", [0, 1, 1])
    with pytest.raises(ValueError, match=r"cats, dogs; data\.subset picks one"):
        info_of(tmp_path)
    with pytest.raises(ValueError, match="has the subsets cats, dogs"):
        info_of(tmp_path, subset="birds")
    info = info_of(tmp_path, subset="dogs", test_split="extra")
    assert (info.num_classes, info.num_test) == (3, 3)
    assert "extra-00000" in " ".join(info_of(tmp_path, subset="cats").remarks)
    dogs = tmp_path / "dogs"
    info = info_of(
        dogs, train_split="train-*.parquet", test_split="{test,extra}*.parquet"
    )
    assert info.num_test == 5
    for train, test, message in (
        ("train-*.parquet", None, "give both"),
        ("t*.parquet", "test-*.parquet", "both take"),
        (
            "train-{00000..00002}-of-00001.parquet",
            "test-*.parquet",
            "train-00001-of-00001",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            info_of(dogs, train_split=train, test_split=test)
    shard(tmp_path / TRAIN)
    shard(tmp_path / TEST, [0, 1])
    assert "cats, dogs are not" in info_of(tmp_path).remarks[0]


@pytest.mark.parametrize(
    ("labels", "names", "counts", "remark"),
    [
        ([1, 2, 3] * 4, ("1", "2", "3"), [4, 4, 4], "1, 2, 3 are renumbered"),
        ([10, 20, 10**6] * 4, ("10", "20", "1000000"), [4, 4, 4], "are renumbered"),
        ([-1, 1] * 6, ("-1", "1"), [6, 6], "-1, 1 are renumbered"),
        ([0, 1, -1] * 4, ("0", "1"), [4, 4], "4 of the 12 images of the training part"),
        ([0, 1, None] * 4, ("0", "1"), [4, 4], "have no label"),
        ([0.0, 1.0, float("nan")] * 4, ("0", "1"), [4, 4], "have no label"),
        (["cat", "dog", ""] * 4, ("cat", "dog"), [4, 4], "have no label"),
        (["b", "a", "a"] * 4, ("a", "b"), [8, 4], "in sorted order: a, b"),
        (["1", "10", "2"] * 4, ("1", "2", "10"), [4, 4, 4], "sorted order: 1, 2, 10"),
        (["cat", "Cat", "dog"] * 4, ("Cat", "cat", "dog"), [4, 4, 4], "only in case"),
        ([True, False, True] * 4, ("false", "true"), [4, 8], "false, true"),
        (pa.array(["x", "y"] * 6).dictionary_encode(), ("x", "y"), [6, 6], "x, y"),
        (pa.array(LABELS, pa.int8()), ("0", "1"), [6, 6], None),
        (pa.array(LABELS, pa.uint64()), ("0", "1"), [6, 6], None),
        (pa.array(["a", "b"] * 6, pa.large_string()), ("a", "b"), [6, 6], "a, b"),
    ],
)
def test_labels_are_read_or_renumbered(
    labels: Any,
    names: tuple[str, ...],
    counts: list[int],
    remark: str | None,
    tmp_path: Path,
) -> None:
    dataset = open_dataset(config_of(both(tmp_path, labels)))
    assert dataset.class_names == names
    assert np.bincount(dataset.train.labels).tolist() == counts
    said = " ".join(dataset.remarks)
    assert remark in said if remark else said == ""


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.0] * 6, "holds 0.5"),
        ([[0], [1]] * 6, "several labels an image"),
        (pa.array([1, 2] * 6, pa.date32()), "date32"),
        (list(range(12)), "each of the 12 training images has a label of its own"),
        (pa.array([2**64 - 1, 1] * 6, pa.uint64()), "above 2"),
        (pa.nulls(12, pa.int64()), "no image of the training part has a label"),
    ],
)
def test_labels_that_are_none_are_refused(
    labels: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        open_dataset(config_of(both(tmp_path, labels)))
    assert str(tmp_path) in str(refused.value)


def test_labels_that_differ_between_files_are_refused(tmp_path: Path) -> None:
    root = both(tmp_path, names=["cat", "dog"])
    assert info_of(root).class_names == ("cat", "dog")
    for labels, names, message in (
        ([0, 1], ["dog", "cat"], "class names of the test part, dog, cat, are not"),
        ([0, 2], ["cat", "dog"], r"labels lie in 0\.\.1 .* got 2"),
        (["cat", "eel"], None, "not among the 2 class names: eel|numbers as labels"),
    ):
        shard(root / TEST, labels, names=names)
        with pytest.raises(ValueError, match=message):
            info_of(root)
    (root / TRAIN).unlink()
    shard(root / "train-00000-of-00002.parquet", names=["cat", "dog"])
    second = root / "train-00001-of-00002.parquet"
    for labels, names, message in (
        ([0, 1], ["dog", "cat"], "name the classes differently"),
        (["a", "b"], None, "holds text, and .*train-00000-of-00002.parquet.*numbers"),
    ):
        shard(second, labels, names=names)
        with pytest.raises(ValueError, match=message) as refused:
            info_of(root)
        assert second.name in str(refused.value)
    shard(second, [0, 1])
    shard(root / TEST, [0, 1])
    info = info_of(root, class_names=("kitten", "puppy"))
    assert info.class_names == ("kitten", "puppy")
    both(tmp_path / "more", [0, 1])
    shard(tmp_path / "more" / TEST, [0, 1, 7])
    with pytest.raises(ValueError, match="labels that no training image has: 7"):
        info_of(tmp_path / "more")


def test_class_names_from_a_file(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    root = both(tmp_path / "set", [0, 1, 2] * 4)
    names.write_text("ant\nbee\n\ncrab\ndove\n")
    info = info_of(root, class_names=names)
    assert info.class_names == ("ant", "bee", "crab", "dove")
    assert "No training image has the label dove." in info.remarks
    for text, message in (("a\nb\na", "a stand there twice"), ("", "names no class")):
        names.write_text(text)
        with pytest.raises(ValueError, match=message):
            info_of(root, class_names=names)
    with pytest.raises(ValueError, match=r"got 2; correct them.*data\.class_names"):
        info_of(root, class_names=("a", "b"))
    shard(root / TRAIN, ["cat", "dog"] * 3)
    shard(root / TEST, ["dog"])
    assert info_of(root, class_names=("dog", "cat")).class_names == ("dog", "cat")
    with pytest.raises(ValueError, match="not among the 2 class names: dog"):
        info_of(root, class_names=("hound", "cat"))


def test_which_column_is_meant(tmp_path: Path) -> None:
    pictures, other = structs(12), pa.array([0, 1, 2] * 4)
    root = both(tmp_path / "a", columns="img fine_label", more={"coarse_label": other})
    info = info_of(root)
    assert info.num_classes == 2
    assert "'coarse_label' not" in info.remarks[0]
    assert info_of(root, label_column="coarse_label").num_classes == 3
    with pytest.raises(
        ValueError, match=r"label_column 'coarse'.*img, fine_label, coarse"
    ):
        info_of(root, label_column="coarse")
    root = both(tmp_path / "b", more={"target": other})
    with pytest.raises(ValueError, match="can be the label: label, target"):
        info_of(root)
    root = both(tmp_path / "c", more={"mask": pictures})
    assert "'mask' not" in info_of(root).remarks[0]
    root = both(tmp_path / "d", columns="photo label", more={"scan": pictures})
    with pytest.raises(ValueError, match="can be the image: photo, scan"):
        info_of(root)
    keys = {
        column: load_data(config_of(root, image_column=column), tmp_path).fingerprint
        for column in ("photo", "scan")
    }
    assert keys["photo"] != keys["scan"]
    root = both(tmp_path / "e", columns="image species")
    with pytest.raises(ValueError, match=r"columns are image, species.*label_column"):
        info_of(root)
    assert info_of(root, label_column="species").num_classes == 2
    with pytest.raises(ValueError, match="'species' holds int64, and no images"):
        info_of(root, image_column="species", label_column="species")
    shard(root / TEST, columns="img species")
    info = info_of(root, label_column="species")
    assert info.num_test == 12


@pytest.mark.parametrize(
    ("images", "red"),
    [
        (pa.array([encoded(k) for k in range(12)]), 3),
        (pa.array([encoded(k) for k in range(12)], pa.large_binary()), 3),
        (pa.array([encoded(7)] * 12, pa.binary(len(encoded(7)))), 7),
        (pa.array([list(encoded(k)) for k in range(12)], pa.list_(pa.uint8())), 3),
        (pa.array([np.full((8, 8), k).tolist() for k in range(12)]), 3),
        (pa.array([np.full((8, 8, 1), k).tolist() for k in range(12)]), 3),
        (pa.array([np.full((8, 8, 4), k).tolist() for k in range(12)]), 3),
        (pa.array([np.full((3, 8, 8), k).tolist() for k in range(12)]), 3),
        (pa.array([encoded(k) for k in range(12)]).dictionary_encode(), 3),
    ],
)
def test_images_of_every_kind(images: pa.Array, red: int, tmp_path: Path) -> None:
    root = both(tmp_path / "set", images=images)
    assert info_of(root).image_size == 8
    source = open_dataset(config_of(root))
    pixels = open_pixels(source, tmp_path / "pixels", 0)["test"]
    assert pixels.pixels[3, 0, 2, 2] == red
    packed = open_images(source, tmp_path / "packed")["test"]
    assert packed.read(3).getpixel((2, 2))[0] == red  # type: ignore[index]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pa.array([None] * 12, STRUCT), "12 of 12 rows hold no bytes"),
        (pa.array(["https://there/a.png"] * 12), "12 of 12 rows hold no bytes"),
        (pa.array([b"text"] * 12), r"row 0 \(not an image"),
        (pa.array([[[0.5]]] * 12), "no column holds images"),
        (pa.array([[[1, 2], [300, 4]]] * 12), "row 0"),
        (pa.array([[[1, 2], [3]]] * 12), "row 0"),
        (pa.array([[{"bytes": b"a"}]] * 12), "no column holds images"),
        (pa.array(range(12)), "no column holds images"),
    ],
)
def test_images_that_are_none_are_refused(
    images: pa.Array, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        info_of(both(tmp_path, images=images))
    assert TRAIN in str(refused.value)


def test_images_in_files_of_their_own(tmp_path: Path) -> None:
    paths = [f"pictures/{k}.png" for k in range(12)]
    rows = [
        {"bytes": None if k % 2 else encoded(k), "path": path}
        for k, path in enumerate(paths)
    ]
    for name, images in (("text", pa.array(paths)), ("both", pa.array(rows, STRUCT))):
        root = both(tmp_path / name / "data", images=images).parent
        with pytest.raises(ValueError, match=r"(6|12) of 12 rows hold no bytes"):
            info_of(root)
        (root / "pictures").mkdir()
        for k, path in enumerate(paths):
            (root / path).write_bytes(encoded(k))
        first = load_data(config_of(root), tmp_path)
        assert (first.size("test"), first.info.image_size) == (12, 8)
        moved = root.rename(tmp_path / f"{name} moved")
        load_data.cache_clear()
        assert load_data(config_of(moved), tmp_path).fingerprint == first.fingerprint
        (moved / "pictures" / "3.png").write_bytes(encoded(3) + b"more")
        load_data.cache_clear()
        assert load_data(config_of(moved), tmp_path).fingerprint != first.fingerprint
        (moved / "pictures" / "3.png").unlink()
        with pytest.raises(ValueError, match="1 of 12 rows hold no bytes"):
            info_of(moved)
        info_of(moved, max_unreadable=2)


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    file = both(tmp_path) / TRAIN
    whole = file.read_bytes()
    for content, message in (
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (whole[: len(whole) // 2], "cannot be read as Parquet"),
        (whole[:50] + bytes(200) + whole[250:], "cannot be read|damaged|not an image"),
        (whole[:-100] + bytes(92) + whole[-8:], "cannot be read as Parquet"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message) as refused:
            info_of(tmp_path)
        assert str(file) in str(refused.value)
        assert "\n" not in str(refused.value)
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=TRAIN):
        info_of(tmp_path)


def test_shards_that_are_missing_or_too_many(tmp_path: Path) -> None:
    root = both(tmp_path)
    (root / TRAIN).rename(root / "train-00002-of-00005.parquet")
    remarks = " ".join(info_of(root).remarks)
    assert "4 of 5 shards are missing" in remarks
    assert "train-00004-of-00005.parquet" in remarks
    shard(root / "train-00000-of-00002.parquet")
    with pytest.raises(ValueError, match="not shards of one set"):
        info_of(root)
    (root / "train-00000-of-00002.parquet").unlink()
    shard(root / "train-00002-of-00005-again.parquet")
    with pytest.raises(ValueError, match="not shards of one set"):
        info_of(root)
    other = tmp_path / "numbered"
    for number in (0, 1, 4):
        shard(other / "train" / f"{number:04}.parquet")
    shard(other / "test" / "0000.parquet")
    assert "numbers in" in info_of(other).remarks[0]
    assert "0002, 0003" in info_of(other).remarks[0]


@pytest.mark.parametrize("codec", ["zstd", "lz4", "brotli", "gzip", "none"])
def test_compression_and_row_groups(codec: str, tmp_path: Path) -> None:
    root = both(tmp_path / "set", compression=codec, row_group_size=5)
    pq.write_table(pq.read_table(root / TRAIN)[:0], root / "train-9.parquet")
    source = open_dataset(config_of(root))
    pixels = open_pixels(source, tmp_path / "pixels", 0)["train"].pixels
    assert pixels[:, 0, 0, 0].tolist() == list(range(12))


def test_options_of_another_reader_are_refused(tmp_path: Path) -> None:
    for option, value in (("revision", "main"), ("streaming", True), ("name", "a/b")):
        with pytest.raises(ValueError, match=rf"data\.{option} .* leave it out"):
            info_of(tmp_path, **{option: value})
    with pytest.raises(ValueError, match=r"data\.subset .* not of 'folder'"):
        data_info(DataConfig(dataset="folder", root=tmp_path, subset="a"))
