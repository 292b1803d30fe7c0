"""Sources: what is found where, what is refused, and what a damaged image does."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainers import plugins
from trainers.config import DataConfig
from trainers.data.cache import UnequalImagesError, open_images, open_pixels
from trainers.data.open import OPENERS, open_dataset, openers
from trainers.data.parquet import ParquetPart
from trainers.data.parts import ArrayPart, FilePart, RandomAccess
from trainers.data.stratify import stratified_order, stratified_test


def picture(value: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (value, 255 - value, 7))


def encoded(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    picture(value, size).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    file: Path,
    blobs: list[bytes],
    labels: list[int],
    names: list[str] | None = None,
    columns: str = "image label",
) -> None:
    image, label = columns.split()
    structs = [{"bytes": blob, "path": f"{i}.png"} for i, blob in enumerate(blobs)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {image: pa.array(structs, kind), label: pa.array(labels, pa.int64())}
    )
    if names is not None:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, file, row_group_size=3)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    root = tmp_path / "parquet"
    root.mkdir()
    names = ["ant", "bee"]
    write_parquet(
        root / "train-00000-of-00002.parquet",
        [encoded(v) for v in range(7)],
        [0, 1, 0, 1, 0, 1, 0],
        names,
    )
    write_parquet(
        root / "train-00001-of-00002.parquet",
        [encoded(v) for v in range(7, 10)],
        [1, 0, 1],
        names,
    )
    write_parquet(
        root / "test-00000-of-00001.parquet",
        [encoded(v) for v in range(10, 14)],
        [0, 1, 0, 1],
        names,
    )
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    for part, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture(20 * label + i).save(
                    root / part / name / f"{i}.{'png' if i % 2 else 'bmp'}"
                )
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    return root


def config_of(dataset: Any, root: Path | None, **options: Any) -> DataConfig:
    return DataConfig(dataset=dataset, root=root, **options)


def test_digits_are_fixed_and_stratified() -> None:
    first, again = open_dataset(DataConfig()), open_dataset(DataConfig())
    assert np.array_equal(first.train.labels, again.train.labels)
    assert isinstance(first.train, ArrayPart)
    assert first.train.pixels.shape == (1438, 3, 32, 32)
    assert len(first.test.labels) == 359
    assert np.bincount(first.test.labels).min() > 30
    assert first.class_names[3] == "3"


def test_parquet_reads_shards_in_order(parquet: Path, tmp_path: Path) -> None:
    source = open_dataset(config_of("parquet", parquet))
    assert source.class_names == ("ant", "bee")
    assert source.train.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    parts = open_pixels(source, tmp_path / "cache", 0)
    assert parts["train"].pixels[:, 0, 0, 0].tolist() == list(range(10))
    assert parts["test"].pixels[:, 1, 2, 3].tolist() == [255 - v for v in range(10, 14)]
    packed = open_images(source, tmp_path / "packed")["train"]
    assert [packed.read(i).getpixel((0, 0))[0] for i in (9, 0, 4)] == [9, 0, 4]  # type: ignore[index]
    assert packed.name(8).endswith("train-00001-of-00002.parquet row 1")


def test_parquet_of_other_column_names(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        write_parquet(
            tmp_path / f"{part}-00000-of-00001.parquet",
            [encoded(1), encoded(2)],
            [2, 0],
            None,
            "img fine_label",
        )
    source = open_dataset(config_of("parquet", tmp_path))
    assert source.class_names == ("0", "2")
    assert isinstance(source.train, ParquetPart)
    assert source.train.columns == ("img",)


def test_parquet_says_what_is_missing(parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root"):
        open_dataset(config_of("parquet", None))
    with pytest.raises(ValueError, match="no such folder"):
        open_dataset(config_of("parquet", tmp_path / "nowhere"))
    (parquet / "train-00001-of-00002.parquet").unlink()
    remarks = open_dataset(config_of("parquet", parquet)).remarks
    assert any("1 of 2 shards are missing" in remark for remark in remarks)
    (parquet / "test-00000-of-00001.parquet").unlink()
    remarks = open_dataset(config_of("parquet", parquet)).remarks
    assert any("no test split" in remark for remark in remarks)
    pq.write_table(
        pa.table({"x": [1], "label": [0]}), parquet / "train-00000-of-00002.parquet"
    )
    write_parquet(parquet / "test-0.parquet", [encoded(0)], [0])
    with pytest.raises(ValueError, match=r"'bytes'.*x \(int64\), label"):
        open_dataset(config_of("parquet", parquet))


def test_unlabelled_parts_are_refused(parquet: Path) -> None:
    write_parquet(parquet / "test-00000-of-00001.parquet", [encoded(0)], [-1])
    with pytest.raises(ValueError, match=r"unlabelled"):
        open_dataset(config_of("parquet", parquet))


def test_folder_takes_classes_from_train(folder: Path, tmp_path: Path) -> None:
    source = open_dataset(config_of("folder", folder))
    assert source.class_names == ("cat", "dog")
    assert isinstance(source.train, FilePart)
    assert source.train.paths[:2] == ("cat/0.bmp", "cat/1.png")
    assert source.train.labels.tolist() == [0] * 4 + [1] * 4
    assert len(source.test.labels) == 4
    assert open_pixels(source, tmp_path / "cache", 0)["train"].pixels[
        :, 0, 0, 0
    ].tolist() == [
        0,
        1,
        2,
        3,
        20,
        21,
        22,
        23,
    ]


def test_folder_says_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    (folder / "val" / "eel").mkdir()
    with pytest.raises(ValueError, match=r"\['eel'\]"):
        open_dataset(config_of("folder", folder))
    (tmp_path / "empty" / "val").mkdir(parents=True)
    with pytest.raises(ValueError, match="must be in a folder train"):
        open_dataset(config_of("folder", tmp_path / "empty"))
    (tmp_path / "empty" / "train").mkdir()
    with pytest.raises(ValueError, match="one folder per class"):
        open_dataset(config_of("folder", tmp_path / "empty"))
    (tmp_path / "empty" / "train" / "cat").mkdir()
    with pytest.raises(ValueError, match="training part has no images"):
        open_dataset(config_of("folder", tmp_path / "empty"))


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_unreadable_images_are_named(
    kind: str,
    folder: Path,
    parquet: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if kind == "folder":
        broken = folder / "train" / "dog" / "1.png"
        broken.write_bytes(broken.read_bytes()[:45])
        config, name, rest = (
            config_of("folder", folder),
            "dog/1.png",
            [0, 1, 2, 3, 20, 22, 23],
        )
    else:
        blobs = [encoded(v) for v in range(7)]
        blobs[5] = b"junk"
        write_parquet(
            parquet / "train-00000-of-00002.parquet",
            blobs,
            [0, 1, 0, 1, 0, 1, 0],
            ["ant", "bee"],
        )
        config, name = (
            config_of("parquet", parquet),
            "train-00000-of-00002.parquet row 5",
        )
        rest = [0, 1, 2, 3, 4, 6, 7, 8, 9]
    source = open_dataset(config)
    with pytest.raises(ValueError, match=rf"{name}.*max_unreadable"):
        open_pixels(source, tmp_path / "cache", 0)
    parts = open_pixels(source, tmp_path / "cache", 1)
    assert name in caplog.text
    assert parts["train"].pixels[:, 0, 0, 0].tolist() == rest
    assert len(parts["train"].labels) == len(rest)
    # a cache made under a larger limit does not hide it
    with pytest.raises(ValueError, match=name):
        open_pixels(source, tmp_path / "cache", 0)


def test_unequal_images_are_no_array(folder: Path, tmp_path: Path) -> None:
    picture(1, (8, 9)).save(folder / "train" / "dog" / "3.png")
    source = open_dataset(config_of("folder", folder))
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UnequalImagesError, match=r"3\.png is 8 x 9"):
            open_pixels(source, tmp_path / "cache", 0)


def test_identity_is_of_contents(parquet: Path, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def identity(dataset: str, root: Path) -> str:
        return open_dataset(config_of(dataset, root)).content_hash(cache)

    first = identity("parquet", parquet)
    notes = {file: file.stat().st_mtime_ns for file in (cache / "hashes").iterdir()}
    assert len(notes) == 3
    assert identity("parquet", parquet) == first
    assert {
        file: file.stat().st_mtime_ns for file in (cache / "hashes").iterdir()
    } == notes  # hashed once
    moved = parquet.rename(tmp_path / "moved")
    assert identity("parquet", moved) == first
    write_parquet(
        moved / "test-00000-of-00001.parquet",
        [encoded(v) for v in range(11, 15)],
        [0, 1, 0, 1],
        ["ant", "bee"],
    )
    assert identity("parquet", moved) != first

    first = identity("folder", folder)
    assert identity("folder", folder.rename(tmp_path / "elsewhere")) == first
    picture(3, (16, 16)).save(tmp_path / "elsewhere" / "val" / "cat" / "0.bmp")
    assert identity("folder", tmp_path / "elsewhere") != first


def test_every_prefix_of_the_order_is_stratified() -> None:
    labels = np.repeat(np.arange(4), [10, 40, 100, 250])
    order = stratified_order(labels, 3)
    assert sorted(order) == list(range(400))
    assert np.array_equal(order, stratified_order(labels, 3))
    assert not np.array_equal(order, stratified_order(labels, 4))
    for size in (40, 100, 200):
        counts = np.bincount(labels[order[:size]], minlength=4)
        assert np.abs(counts - np.array([10, 40, 100, 250]) * size / 400).max() <= 2
    train, test = stratified_test(labels)
    assert np.bincount(labels[test]).tolist() == pytest.approx([2, 8, 20, 50], abs=1)
    assert sorted([*train, *test]) == list(range(400))


def write_cifar10(root: Path) -> None:
    """CIFAR-10's layout with two images a batch."""
    base = root / "cifar-10-batches-py"
    base.mkdir(parents=True)
    for number, name in enumerate(
        [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    ):
        pixels = np.full((2, 3072), 10 * number, np.uint8)
        pixels[1, :1024] = 99
        base.joinpath(name).write_bytes(
            pickle.dumps({"data": pixels, "labels": [number, 9]})
        )
    base.joinpath("batches.meta").write_bytes(
        pickle.dumps({"label_names": [f"class{i}" for i in range(10)]})
    )


def test_cifar10_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    with pytest.raises(ValueError, match=r"data\.download"):
        open_dataset(config_of("cifar10", None))
    with pytest.raises(
        ValueError, match=r"cifar10 is not in data\.root.*data\.download"
    ):
        open_dataset(config_of("cifar10", tmp_path))
    write_cifar10(tmp_path)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    source = open_dataset(config_of("cifar10", tmp_path))
    assert source.class_names == tuple(f"class{i}" for i in range(10))
    assert source.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    parts = open_pixels(source, tmp_path / "cache", 0)
    assert parts["train"].pixels.shape == (10, 3, 32, 32)
    assert parts["test"].pixels[1, :, 0, 0].tolist() == [99, 50, 50]


def test_eurosat_gets_a_fixed_test_part(tmp_path: Path) -> None:
    for name in ("Forest", "River"):
        (tmp_path / "eurosat" / "2750" / name).mkdir(parents=True)
        for i in range(10):
            picture(i).save(tmp_path / "eurosat" / "2750" / name / f"{name}_{i}.jpg")
    source, again = (open_dataset(config_of("eurosat", tmp_path)) for _ in range(2))
    assert source.class_names == ("Forest", "River")
    assert np.bincount(source.test.labels).tolist() == [2, 2]
    assert isinstance(source.train, FilePart)
    assert isinstance(source.test, FilePart)
    assert not set(source.train.paths) & set(source.test.paths)
    assert isinstance(again.test, FilePart)
    assert source.test.paths == again.test.paths
    assert source.test.read(0).size == (8, 8)


def test_dtd_joins_train_and_val(tmp_path: Path) -> None:
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for number, part in enumerate(("train", "val", "test")):
        lines = []
        for name in ("dotted", "woven"):
            (base / "images" / name).mkdir(parents=True, exist_ok=True)
            picture(number).save(base / "images" / name / f"{part}.jpg")
            lines.append(f"{name}/{part}.jpg\n")
        (base / "labels" / f"{part}1.txt").write_text("".join(lines))
    source = open_dataset(config_of("dtd", tmp_path))
    assert source.train.labels.tolist() == [0, 1, 0, 1]
    assert isinstance(source.train, FilePart)
    assert source.train.paths[2] == "dtd/dtd/images/dotted/val.jpg"
    assert len(source.test.labels) == 2


def test_every_data_set_has_a_reader() -> None:
    assert openers() == OPENERS
    assert set(OPENERS) >= {"digits", "folder", "parquet", "cifar10", "eurosat"}
    with pytest.raises(
        ValueError,
        match=r"data\.dataset 'cifar' is unknown; did you mean 'cifar10'\? valid: digits",
    ):
        open_dataset(config_of("cifar", None))


PLUGIN = """
import numpy as np
from trainers.data.parts import Dataset

class Grey:
    labels = np.arange(12) % 3
    def name(self, row): return f"grey {row}"
    def images(self): return (np.full((3, 8, 8), row, np.uint8) for row in range(12))
    def content(self, cache_dir): return [b"grey"]

DATASETS = {"grey": lambda config: Dataset(("a", "b", "c"), Grey(), Grey())}
"""


def test_a_plugins_data_set_with_a_part_of_its_own(tmp_path: Path) -> None:
    file = plugins.PluginFile(name="g.py", sha256=plugins.digest(PLUGIN), text=PLUGIN)
    plugins.load([file])
    try:
        dataset = open_dataset(config_of("grey", None))
    finally:
        plugins.forget()
    assert not isinstance(dataset.train, RandomAccess)
    pixels = open_pixels(dataset, tmp_path / "cache", 0)["train"].pixels
    assert pixels[:, 0, 0, 0].tolist() == list(range(12))
    packed = open_images(dataset, tmp_path / "packed")["test"]
    assert packed.read(7).getpixel((3, 3)) == (7, 7, 7)
    assert packed.name(7) == "grey 7"
