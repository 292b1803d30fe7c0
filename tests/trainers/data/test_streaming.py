"""Images that do not fit in memory as one array: loader processes, transforms, unreadable files."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from trainers.config import AugmentConfig, DataConfig
from trainers.data import splits
from trainers.data.parts import FilePart
from trainers.data.splits import (
    Data,
    TrainBatches,
    data_info,
    epoch_order,
    eval_batches,
    load_data,
)
from trainers.data.streaming import ImageReader
from trainers.data.views import train_view

CPU = torch.device("cpu")
PLAIN = AugmentConfig(preset="none")
# normalised values are the levels
RAW = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1 / 255, 1 / 255, 1 / 255),
}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    load_data.cache_clear()
    yield
    load_data.cache_clear()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A class folder of 12 + 5 images of unequal, larger sizes; image k of a part has the
    level 5k.
    """
    root = tmp_path / "large"
    for part, count in (("train", 12), ("test", 5)):
        for k in range(count):
            name = root / part / f"class{k % 2}" / f"{k:03d}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (100 + 3 * k, 100), 5 * k).save(name)
    return root


def config_of(root: Path, **options: Any) -> DataConfig:
    return DataConfig(
        **{
            "dataset": "folder",
            "root": root,
            "val_fraction": 0.2,
            "workers": 0,
            **RAW,
            **options,
        }
    )


def batches(
    data: Data, augment: AugmentConfig = PLAIN, batch_size: int = 5
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(
        TrainBatches(data, augment, batch_size=batch_size, seed=0, device=CPU).epoch(0)
    )


def levels(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].round().int().tolist()


def test_large_images_stream(large: Path, tmp_path: Path) -> None:
    data = load_data(config_of(large, image_size=40), tmp_path / "cache")
    assert isinstance(data.train.store, ImageReader)
    assert data_info(config_of(large)).image_size == 224
    [(images, labels), *rest] = batches(data)
    assert images.shape == (5, 3, 40, 40)
    assert [level // 5 % 2 for level in levels(images)] == labels.tolist()
    assert len(rest) == 1
    order, _ = epoch_order(10, 5, seed=0, epoch=0)
    assert levels(images) == [
        5 * (2 * row if row < 6 else 2 * (row - 6) + 1)
        for row in data.train.rows[order[:5]].tolist()
    ]


def test_parquet_streams_from_a_packed_file(tmp_path: Path) -> None:
    for part, count in (("train", 12), ("test", 5)):
        rows = []
        for k in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (100, 110 + k), (5 * k,) * 3).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table(
            {"image": pa.array(rows, kind), "label": [k % 2 for k in range(count)]}
        )
        pq.write_table(table, tmp_path / f"{part}-00000-of-00001.parquet")
    data = load_data(
        config_of(tmp_path, dataset="parquet", image_size=36, workers=1),
        tmp_path / "cache",
    )
    assert isinstance(data.train.store, ImageReader)
    for images, labels in [*batches(data), *eval_batches(data, "test", 2, CPU)]:
        assert [level // 5 % 2 for level in levels(images)] == labels.tolist()


@pytest.mark.parametrize("in_batches", [False, True])
def test_streams_do_not_depend_on_the_number_of_loaders(
    in_batches: bool, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coloured in the loader, as on the CPU, and in batches, as on a GPU."""

    def view(*args: Any, **_: Any) -> Any:
        return train_view(*args, in_batches=in_batches)

    monkeypatch.setattr(splits, "train_view", view)
    runs = []
    for workers in (0, 2):
        data = load_data(
            config_of(large, image_size=40, workers=workers), tmp_path / "cache"
        )
        loader = TrainBatches(
            data, AugmentConfig(repeats=3), batch_size=4, seed=5, device=CPU
        )
        next(loader.epoch(0))  # an epoch that is left early does not disturb the next
        runs.append([batch for epoch in (1, 2) for batch in loader.epoch(epoch)])
    assert len(runs[0]) == len(runs[1]) == 4
    for one, two in zip(*runs, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
    assert not torch.equal(runs[0][0][0], runs[0][2][0])


def test_copies_of_an_image_share_its_decoding(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are different views of it."""
    data = load_data(config_of(large, image_size=36), tmp_path / "cache")
    read: list[int] = []
    encoded = FilePart.encoded
    monkeypatch.setattr(
        FilePart, "encoded", lambda part, row: read.append(row) or encoded(part, row)
    )
    augment = AugmentConfig(preset="deit", repeats=2, auto_augment=None, mixup=0)
    [(images, _), _] = batches(data, augment.model_copy(update={"cutmix": 0}))
    # of ten views two batches have three images each, one of them in common
    assert (len(read), len(set(read))) == (6, 5)
    assert images.shape == (5, 3, 36, 36)


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(three_augment=True),
        AugmentConfig(preset="flip", crop="padded"),
        AugmentConfig(auto_augment="original"),
    ],
)
def test_streaming_presets(augment: AugmentConfig, large: Path, tmp_path: Path) -> None:
    data = load_data(config_of(large, image_size=36), tmp_path / "cache")
    assert batches(data, augment, batch_size=4)[0][0].shape == (4, 3, 36, 36)


def test_posterizing_to_black_streams(large: Path, tmp_path: Path) -> None:
    """At m10 timm asks Pillow for 0 bits, which recent versions refuse."""
    data = load_data(config_of(large, image_size=36), tmp_path / "cache")
    augment = AugmentConfig(auto_augment="original", mixup=0, cutmix=0)
    assert len(batches(data, augment, batch_size=5)) == 2


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_unknown_policies_are_refused(in_memory: str, tmp_path: Path) -> None:
    data = load_data(DataConfig(limit=20, in_memory=in_memory), tmp_path)
    with pytest.raises(ValueError, match="auto_augment"):
        TrainBatches(
            data,
            AugmentConfig(auto_augment="nonsense-m9"),
            batch_size=4,
            seed=0,
            device=CPU,
        )


def test_unreadable_images_while_streaming(
    large: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = large / "train" / "class1" / "005.png"
    broken.write_bytes(b"junk")
    config = config_of(large, image_size=36, val_fraction=0)
    data = load_data(config, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"005\.png.*max_unreadable"):
        batches(data, batch_size=12)
    data = load_data(
        config.model_copy(update={"max_unreadable": 1}), tmp_path / "cache"
    )
    [(images, labels)] = batches(data, batch_size=12)
    assert len(images) == 12  # another takes its place
    assert [level // 5 % 2 for level in levels(images)] == labels.tolist()
    assert sum(len(labels) for _, labels in eval_batches(data, "train", 5, CPU)) == 11
    assert caplog.text.count("image left out") >= 1


def test_in_memory_yes_needs_one_size(large: Path, tmp_path: Path) -> None:
    config = config_of(large, in_memory="yes")
    refused = r"square images of one size.*data\.in_memory to no"
    with pytest.raises(ValueError, match=refused):
        load_data(config, tmp_path / "cache")
    with pytest.raises(ValueError, match=refused):
        data_info(config)


def test_small_images_of_unequal_size_stream(large: Path, tmp_path: Path) -> None:
    for k, file in enumerate(sorted(large.rglob("*.png"))):
        Image.new("L", (9 - k % 2, 8)).save(file)
    with pytest.raises(ValueError, match=r"image_size.*9 x 8 px \(9\), 8 x 8 px \(8\)"):
        load_data(config_of(large), tmp_path / "cache")
    data = load_data(config_of(large, image_size=8), tmp_path / "cache")
    assert isinstance(data.test.store, ImageReader)
