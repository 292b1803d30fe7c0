"""What follows from the headers: the image size, the value of white, what is unreadable."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainers.data.pictures import class_folders, grey, written
from trainers.config import AugmentConfig, DataConfig
from trainers.data import inspection
from trainers.data.info import DataInfo
from trainers.data.splits import TrainBatches, data_info, eval_batches, load_data
from trainers.training.evaluate import evaluate

CPU = torch.device("cpu")


def config_of(root: Path, **options: Any) -> DataConfig:
    given = {"dataset": "folder", "root": root, "val_fraction": 0.25, "workers": 0}
    return DataConfig(**(given | {"mean": (0, 0, 0), "std": (1 / 255,) * 3} | options))


def info_of(root: Path, **options: Any) -> DataInfo:
    return data_info(config_of(root, **options))


def mean_levels(config: DataConfig, cache: Path) -> list[list[int]]:
    """Mean level of each class of the test part, read into memory and streamed."""
    found = []
    for in_memory in ("auto", "no"):
        data = load_data(config.model_copy(update={"in_memory": in_memory}), cache)
        [(images, labels)] = eval_batches(data, "test", 64, torch.device("cpu"))
        means = [images[labels == label].mean() for label in (0, 1)]
        found.append([round(float(mean)) for mean in means])
    load_data.cache_clear()
    return found


def sized(root: Path, *sizes: tuple[int, int]) -> Path:
    """Class folders whose files have these sizes in turn."""
    class_folders(root)
    for k, file in enumerate(sorted(root.rglob("*.png"))):
        grey(25, k, sizes[k % len(sizes)]).save(file)
    return root


def test_facts_of_a_folder(tmp_path: Path) -> None:
    info = info_of(class_folders(tmp_path))
    assert info.describe() == (
        "2 classes (dark, light), 9 train, 3 val, 4 test, 8 px, from"
        f" {tmp_path}/train and val"
    )
    assert not info.remarks


@pytest.mark.parametrize(
    ("sizes", "side", "remark"),
    [
        ([(300, 300)] * 9 + [(64, 64)], 224, "300 x 300 px (15), 64 x 64 px (1)"),
        ([(300, 200)], 224, "300 x 200 px; the model sees 224 px"),
        ([(97, 97)], 224, "97 x 97 px"),
        ([(96, 96)], 96, ""),
        (
            [(100 + k, 99) for k in range(5)],
            224,
            "100 to 104 px wide, 99 to 99 px high",
        ),
    ],
)
def test_the_size_follows_from_all_images(
    sizes: list[tuple[int, int]], side: int, remark: str, tmp_path: Path
) -> None:
    info = info_of(sized(tmp_path, *sizes))
    assert info.image_size == side
    told = "\n".join(info.remarks)
    assert remark in told
    assert ("data.image_size" in told) == bool(remark)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(8, 8), (9, 9)], r"8 x 8 px \(8\), 9 x 9 px \(8\).*data\.image_size=9"),
        ([(28, 20)], r"28 x 20 px, .*data\.image_size=20"),
        ([(1, 1)], r"1 x 1 px, .*data\.image_size=4"),
    ],
)
def test_small_unequal_images_need_a_size(
    sizes: list[tuple[int, int]], message: str, tmp_path: Path
) -> None:
    root = sized(tmp_path / "set", *sizes)
    with pytest.raises(ValueError, match=rf"data\.image_size is needed: .*{message}"):
        info_of(root)
    info = info_of(root, image_size=12)
    assert (info.image_size, info.size_from) == (12, "data.image_size")
    assert "the model sees 12 px, from data.image_size" in info.remarks[0]
    mean_levels(config_of(root, image_size=12), tmp_path / "cache")


def test_test_images_of_another_size(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    for file in (root / "val").rglob("*.png"):
        grey(9, size=(12, 12)).save(file)
    with pytest.raises(ValueError, match=r"8 x 8 px \(12\), 12 x 12 px \(4\)"):
        info_of(root)


def sixteen(level: int, file: Path) -> None:
    value = 200 if level < 100 else 40_000
    Image.fromarray(np.full((8, 8), value, np.uint16)).save(file)


def twelve(level: int, file: Path) -> None:
    Image.fromarray(np.full((8, 8), level * 16, np.uint16)).save(file)


def whole(level: int, file: Path) -> None:
    Image.fromarray(np.full((8, 8), level, np.int32)).save(file)


def real(level: int, file: Path) -> None:
    Image.fromarray(np.full((8, 8), level / 255, np.float32)).save(file)


@pytest.mark.parametrize(
    ("write", "suffix", "white", "levels"),
    [
        (sixteen, ".png", "65,535 as white (as they reach 40,000", [1, 156]),
        (sixteen, ".TIFF", "65,535 as white", [1, 156]),
        (twelve, ".png", "4,095 as white (as they reach 3,600", [25, 224]),
        (whole, ".tif", "255 as white (as they reach 225", [25, 225]),
        (real, ".tif", "1 as white (as they reach 0.8824", [25, 225]),
    ],
)
def test_images_of_more_than_8_bits_keep_their_brightness(
    write: Callable[[int, Path], None],
    suffix: str,
    white: str,
    levels: list[int],
    tmp_path: Path,
) -> None:
    root = written(class_folders(tmp_path / "set"), write, suffix)
    assert any(white in remark for remark in info_of(root).remarks)
    assert mean_levels(config_of(root), tmp_path / "cache") == [levels, levels]


def test_white_can_be_given(tmp_path: Path) -> None:
    root = written(class_folders(tmp_path / "set"), twelve)
    given = config_of(root, white_level=65_535)
    assert "65,535 as white (from data.white_level)" in data_info(given).remarks[0]
    assert mean_levels(given, tmp_path / "cache") == [[2, 14]] * 2
    # the cache of another white is another
    assert mean_levels(config_of(root), tmp_path / "cache") == [[25, 224]] * 2
    keys = {
        load_data(config, tmp_path / "cache").fingerprint
        for config in (given, config_of(root))
    }
    assert len(keys) == 2


def test_a_rotation_by_exif_is_told(tmp_path: Path) -> None:
    def turned(level: int, file: Path) -> None:
        image = Image.new("RGB", (8, 8), (level,) * 3)
        exif = image.getexif()
        exif[0x0112] = 3
        image.save(file, exif=exif)

    root = written(class_folders(tmp_path), turned, ".JPG")
    assert "16 of 16 images ask by EXIF to be turned" in info_of(root).remarks[0]
    assert not any("EXIF" in r for r in info_of(root, exif_rotation=True).remarks)


def test_unreadable_images_are_found_before_anything_starts(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    pointer = root / "train" / "dark" / "0.png"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    damaged = root / "val" / "light" / "6.png"
    damaged.write_bytes(damaged.read_bytes()[:-40])  # its header is whole
    (root / "train" / "dark" / "9.png").symlink_to("nowhere.png")
    for allowed in (0, 2):
        with pytest.raises(
            ValueError, match=r"allows \d: .*dark/0\.png \(a Git LFS pointer"
        ):
            info_of(root, max_unreadable=allowed)
    told = info_of(root, max_unreadable=3).remarks[0]
    assert "dark/9.png (a link that leads nowhere)" in told
    assert "light/6.png (damaged" in told


@pytest.mark.parametrize("in_memory", ["auto", "no"])
def test_what_is_left_out_is_not_counted(in_memory: str, tmp_path: Path) -> None:
    """By its header, or only when it is decoded; nor do two empty files count as one image."""
    root = class_folders(tmp_path / "set")
    for part, name in (("train", "dark"), ("val", "dark")):
        for seed in (20, 21):
            (root / part / name / f"{seed}.png").write_bytes(b"no image")
    for seed in (0, 1, 2):
        damaged = root / "train" / "light" / f"{seed}.png"
        damaged.write_bytes(damaged.read_bytes()[:-40])
    options: dict[str, Any] = {"max_unreadable": 7, "in_memory": in_memory}
    info = info_of(root, **options)
    kept = {"train": 9, "val": 4}
    assert info.num_train + info.num_val == kept["train"]
    assert info.num_test == kept["val"]
    assert "4 test" in info.describe()
    assert [r for r in info.remarks if "left out as data.max_unreadable" in r]
    assert not [r for r in info.remarks if "bytes of a training image" in r]
    [unbalanced] = [r for r in info.remarks if "unbalanced" in r]
    assert "6 images of dark for 3 of light" in unbalanced
    data = load_data(config_of(root, **options), tmp_path / "cache")
    counted = (data.info.num_train, data.info.num_val, data.info.num_test)
    assert counted == (data.size("train"), data.size("val"), data.size("test"))
    if in_memory == "auto":
        assert counted == (info.num_train, info.num_val, info.num_test)
    seen = sum(len(labels) for _, labels in eval_batches(data, "test", 64, CPU))
    assert seen == info.num_test
    load_data.cache_clear()


@pytest.mark.parametrize("keep", [0, 40])
def test_a_part_without_a_readable_image(keep: int, tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    for file in (root / "val").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="test part has no readable image among its 4"):
        info_of(root, max_unreadable=100)


def test_a_class_without_a_readable_image(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    for number, file in enumerate((root / "train" / "dark").iterdir()):
        file.write_bytes(file.read_bytes()[: 40 * (number % 2)])
    with pytest.raises(ValueError, match="no training image of dark can be read"):
        info_of(root, max_unreadable=100)


def test_images_that_become_unreadable_later(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    config = config_of(root, max_unreadable=100, in_memory="no")
    data = load_data(config, tmp_path / "cache")
    for file in (root / "val").rglob("*.png"):
        file.unlink()
    augment = AugmentConfig(preset="none")
    cpu = torch.device("cpu")
    batches = TrainBatches(data, augment, batch_size=4, seed=0, device=cpu)
    assert len(list(batches.epoch(0))) == 2
    for file in (root / "train").rglob("*.png"):
        file.unlink()
    with pytest.raises(ValueError, match="training part has no readable image"):
        list(batches.epoch(1))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2))
    with pytest.raises(ValueError, match="none of the 4 images of the test part"):
        evaluate(model, data, "test", cpu)
    load_data.cache_clear()


def test_of_a_large_part_some_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "MOST_HEADERS", 3)
    root = class_folders(tmp_path)
    for seed in (1, 2):  # neither the first, nor the middle one, nor the last
        (root / "train" / "dark" / f"{seed}.png").write_bytes(b"")
    assert info_of(root).num_train == 9
    (root / "train" / "light" / "5.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"light/5\.png \(empty: 0 bytes\)"):
        info_of(root)


def test_extreme_shapes_are_not_blown_up(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    Image.new("RGB", (1, 60_000)).save(root / "val" / "dark" / "6.png")
    Image.new("RGB", (60_000, 1)).save(root / "val" / "light" / "6.png")
    data = load_data(config_of(root, image_size=224), tmp_path / "cache")
    [(images, _)] = eval_batches(data, "test", 4, torch.device("cpu"))
    assert images.shape == (4, 3, 224, 224)
    load_data.cache_clear()
