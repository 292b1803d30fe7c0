"""Sets through the library `datasets`: the Hub's formats in local folders, saved sets, streams."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.optional import needs
from tests.trainers.data.pictures import class_folders, encoded
from trainers.config import DataConfig
from trainers.data.hf_sets import _remembered, _Source
from trainers.data.open import open_dataset
from trainers.data.splits import Data, data_info, load_data

pytestmark = needs("datasets")

NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No test reads or fills the user's cache."""
    import datasets

    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    load_data.cache_clear()
    yield
    load_data.cache_clear()


def made(count: int, labels: list[int] | None = None, column: str = "image") -> Any:
    import datasets

    features = datasets.Features(
        {column: datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    rows = {
        column: [{"bytes": encoded(k), "path": None} for k in range(count)],
        "label": labels or [k % 2 for k in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """As `DatasetDict.save_to_disk` writes it: 12 training and 4 test images."""
    import datasets

    root = tmp_path / "saved"
    datasets.DatasetDict(train=made(12), test=made(4)).save_to_disk(root)
    return root


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The same images as a repository of Parquet shards."""
    root = tmp_path / "shards"
    for split, count in (("train", 12), ("test", 4)):
        (root / "data").mkdir(parents=True, exist_ok=True)
        made(count).to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def config_of(root: Path | None, **options: Any) -> DataConfig:
    given = {"val_fraction": 0.25, "workers": 0, **options}
    return DataConfig(dataset="hf", root=root, **given)


def reds(data: Data) -> list[int]:
    """The red of the test images, in order."""
    return [data.test.store.pixels[row, 0, 0, 0].item() for row in data.test.rows]  # type: ignore[union-attr]


def test_a_set_is_the_same_however_it_is_kept(
    saved: Path, shards: Path, tmp_path: Path
) -> None:
    prints = []
    for config in (
        config_of(saved),
        config_of(shards),
        config_of(None, name=str(shards)),
        config_of(shards, streaming=True),
    ):
        info = data_info(config)
        assert info.class_names == ("cat", "dog")
        assert (info.num_train, info.num_val, info.num_test) == (9, 3, 4)
        assert (info.image_size, info.remarks) == (8, ())
        data = load_data(config, tmp_path / "cache")
        assert reds(data) == [0, 1, 2, 3]
        prints.append(data.fingerprint)
    assert len(set(prints[:3])) == 1
    shards.rename(tmp_path / "moved")
    moved = config_of(tmp_path / "moved", streaming=True)
    assert load_data(moved, tmp_path / "cache").fingerprint == prints[3]


@pytest.mark.parametrize("streaming", [False, True])
def test_class_folders(streaming: bool, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "photos")
    config = config_of(root, streaming=streaming)
    info = data_info(config)
    assert info.class_names == ("dark", "light")
    assert (info.num_train + info.num_val, info.num_test) == (12, 4)
    assert "no test split" in info.remarks[0]
    one_by_one = config.model_copy(update={"in_memory": "no"})
    data = load_data(one_by_one, tmp_path / "cache")
    image = data.test.store.part.read(3)  # type: ignore[union-attr]
    assert np.asarray(image).mean() > 200
    first = data.fingerprint
    (root / "val" / "light" / "6.png").write_bytes(encoded(3) + b"of another size")
    load_data.cache_clear()
    assert load_data(one_by_one, tmp_path / "cache").fingerprint != first


def test_which_splits(shards: Path) -> None:
    info = data_info(
        config_of(shards, train_split="train[:75%]", test_split="train[75%:]")
    )
    assert (info.num_train + info.num_val, info.num_test) == (9, 3)
    for options, message in (
        (
            {"train_split": "train[:80%]", "test_split": "train[70%:]"},
            "share 2 images",
        ),
        ({"test_split": "train"}, "is data.train_split, too"),
        ({"test_split": "dev"}, "no split 'dev'; splits are train, test"),
        ({"subset": "large"}, "large"),
        ({"image_column": "img"}, "columns are image, label"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            data_info(config_of(shards, **options))
        assert "\n" not in str(refused.value)


def test_a_saved_set_without_splits(tmp_path: Path) -> None:
    made(10).save_to_disk(tmp_path / "one")
    info = data_info(config_of(tmp_path / "one"))
    assert (info.num_train + info.num_val, info.num_test) == (8, 2)
    assert "fifth" in info.remarks[0]
    with pytest.raises(ValueError, match="streaming does not apply"):
        data_info(config_of(tmp_path / "one", streaming=True))


def test_a_test_split_without_labels(tmp_path: Path) -> None:
    import datasets

    parts = {"train": made(12), "test": made(4, [-1] * 4), "validation": made(6)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    info = data_info(config_of(tmp_path / "set"))
    assert info.num_test == 6
    assert "test split has no labels" in info.remarks[0]


def test_images_in_files_of_their_own(tmp_path: Path) -> None:
    import datasets

    root = class_folders(tmp_path / "photos")
    files = sorted(str(file) for file in (root / "train").rglob("*.png"))
    rows = {"path": files, "label": [k % 2 for k in range(12)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "links")
    found = open_dataset(config_of(tmp_path / "links"))
    assert (len(found.train.labels), len(found.test.labels)) == (10, 2)
    Path(files[3]).unlink()
    with pytest.raises(ValueError, match="1 of 12 rows hold no bytes"):
        open_dataset(config_of(tmp_path / "links"))


def test_labels_of_a_commit_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPS_DATA_CACHE", str(tmp_path))
    stream = made(6).to_iterable_dataset()
    files = ("hf://datasets/a/b@0a1b2c/data/train-0.parquet",)
    first = _remembered("label", _Source(stream, files))
    assert first.to_pylist() == [0, 1, 0, 1, 0, 1]
    assert _remembered("label", _Source(None, files)).equals(first)
    other = made(2).to_iterable_dataset()
    local = _Source(other, (str(tmp_path / "a@b.parquet"),))
    assert len(_remembered("label", local)) == 2
    assert len(list(tmp_path.rglob("*.parquet"))) == 1


def test_what_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    for options, message in (
        ({}, "either data.name"),
        ({"name": "a/b", "root": tmp_path}, "either data.name"),
        ({"name": "./nowhere"}, "no such folder"),
        ({"root": tmp_path / "nowhere"}, "no such folder"),
        ({"root": tmp_path}, "cannot be read"),
    ):
        config = DataConfig(dataset="hf", **options)
        with pytest.raises(ValueError, match=message):
            open_dataset(config)

    def unreachable(*args: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(
        ValueError, match="'a/b': the Hugging Face Hub cannot be reached"
    ):
        open_dataset(config_of(None, name="a/b"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'compression-sweeps\[hf\]'"):
        open_dataset(config_of(None, name="a/b"))
