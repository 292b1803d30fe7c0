"""Splits, order, batches and the cache of decoded images."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.config import AugmentConfig, DataConfig
from trainers.data.splits import (
    Data,
    PixelStore,
    TrainBatches,
    data_info,
    epoch_order,
    eval_batches,
    load_data,
)

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


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return load_data(DataConfig(limit=400), tmp_path_factory.mktemp("digits"))


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A class folder of 40 + 6 images of 8 px; image k of train has the level k throughout."""
    write_folder(tmp_path / "numbered", train=40, test=6, size=8)
    return tmp_path / "numbered"


def write_folder(root: Path, *, train: int, test: int, size: int) -> None:
    for part, count in (("train", train), ("test", test)):
        for k in range(count):
            name = root / part / f"class{k % 2}" / f"{k:03d}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (size, size), k).save(name)


def batches(
    data: Data, augment: AugmentConfig = PLAIN, epoch: int = 0, **options: Any
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    settings: dict[str, Any] = {"batch_size": 8, "seed": 0, "device": CPU, **options}
    return list(TrainBatches(data, augment, **settings).epoch(epoch))


def levels(images: torch.Tensor) -> list[int]:
    """The number of each image of the `numbered` folder."""
    return images[:, 0, 0, 0].round().int().tolist()


def config_of(root: Path, **options: Any) -> DataConfig:
    return DataConfig(
        **{"dataset": "folder", "root": root, "val_fraction": 0.2, **RAW, **options}
    )


# --- splits and facts


def test_info_and_sizes(digits: Data) -> None:
    assert digits.info == data_info(digits.config)
    assert (digits.info.num_classes, digits.info.image_size, digits.info.num_train) == (
        10,
        32,
        360,
    )
    assert (digits.size("train"), digits.size("val"), digits.size("test")) == (
        360,
        40,
        359,
    )
    assert len(digits.class_names) == 10


def test_validation_split_is_disjoint_stratified_and_seeded(
    digits: Data, tmp_path: Path
) -> None:
    train, val = set(digits.train.rows.tolist()), set(digits.val.rows.tolist())
    assert not train & val
    assert len(train | val) == 400
    assert np.bincount(digits.val.labels).min() >= 3
    again = load_data(DataConfig(limit=400), tmp_path / "elsewhere")
    assert torch.equal(again.val.rows, digits.val.rows)
    other = load_data(DataConfig(limit=400, split_seed=1), tmp_path / "elsewhere")
    assert not torch.equal(other.val.rows, digits.val.rows)
    none = load_data(
        DataConfig(limit=400, val_fraction=0, limit_test=10), tmp_path / "elsewhere"
    )
    assert (none.size("train"), none.size("val"), none.size("test")) == (400, 0, 10)
    assert list(eval_batches(none, "val", 4, CPU)) == []


def test_the_first_training_batches_show_every_class(
    numbered: Path, tmp_path: Path
) -> None:
    data = load_data(config_of(numbered), tmp_path / "cache")
    _, labels = next(eval_batches(data, "train", 8, CPU))
    assert 3 <= labels.sum() <= 5


def test_labels_follow_their_images(numbered: Path, tmp_path: Path) -> None:
    data = load_data(config_of(numbered), tmp_path / "cache")
    for split in ("train", "val", "test"):
        for images, labels in eval_batches(data, split, 7, CPU):  # type: ignore[arg-type]
            assert labels.tolist() == [level % 2 for level in levels(images)]


def test_too_little_to_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.limit"):
        load_data(DataConfig(limit=1), tmp_path)


def test_fingerprint_follows_contents_and_options(
    numbered: Path, tmp_path: Path
) -> None:
    base = config_of(numbered)

    def fingerprint(**options: Any) -> str:
        return load_data(
            base.model_copy(update=options), tmp_path / "cache"
        ).fingerprint

    first = fingerprint()
    for same in (
        {"workers": 0},
        {"pin_memory": False},
        {"max_unreadable": 3},
        {"in_memory": "yes"},
        {"image_size": 8},
    ):
        assert fingerprint(**same) == first, same
    options: list[dict[str, Any]] = [
        {"image_size": 16},
        {"split_seed": 1},
        {"val_fraction": 0.3},
        {"limit": 30},
        {"limit_test": 2},
        {"in_memory": "no"},
        {"crop_fraction": 0.9},
        {"interpolation": "bilinear"},
        {"std": (1, 1, 1)},
    ]
    assert (
        len({first, *(fingerprint(**option) for option in options)}) == len(options) + 1
    )
    moved = numbered.rename(tmp_path / "moved")
    assert fingerprint(root=moved) == first
    (moved / "train" / "class0" / "000.png").unlink()
    load_data.cache_clear()
    assert fingerprint(root=moved) != first


def test_data_are_remembered_in_the_process(tmp_path: Path) -> None:
    assert load_data(DataConfig(), tmp_path) is load_data(DataConfig(), tmp_path)


# --- the cache


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "notes"])
def test_a_damaged_cache_is_built_again(
    damage: str, numbered: Path, tmp_path: Path
) -> None:
    def pixels() -> torch.Tensor:
        load_data.cache_clear()
        store = load_data(config_of(numbered), tmp_path / "cache").train.store
        assert isinstance(store, PixelStore)
        return store.pixels.clone()

    first = pixels()
    [file] = (tmp_path / "cache").glob("*/pixels/train.npy")
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-100])
    elif damage == "flipped":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        file.with_name("notes.json").write_text("{")
    assert torch.equal(pixels(), first)
    assert sorted(f.name for f in file.parent.iterdir()) == [
        "notes.json",
        "test.npy",
        "test_labels.npy",
        "train.npy",
        "train_labels.npy",
    ]
    assert [
        f.name for f in file.parent.parent.iterdir() if f.name != ".pixels.lock"
    ] == ["pixels"]


def test_a_whole_cache_is_not_built_again(numbered: Path, tmp_path: Path) -> None:
    load_data(config_of(numbered), tmp_path / "cache")
    [file] = (tmp_path / "cache").glob("*/pixels/train.npy")
    inode = file.stat().st_ino
    load_data.cache_clear()
    load_data(config_of(numbered), tmp_path / "cache")
    assert file.stat().st_ino == inode


# --- the order


def test_order_is_one_permutation() -> None:
    order, copies = epoch_order(100, 10, seed=3, epoch=1)
    assert sorted(order.tolist()) == list(range(100))
    assert copies.eq(0).all()
    assert torch.equal(order, epoch_order(100, 10, seed=3, epoch=1)[0])
    assert not torch.equal(order, epoch_order(100, 10, seed=3, epoch=2)[0])
    assert not torch.equal(order, epoch_order(100, 10, seed=4, epoch=1)[0])
    assert len(epoch_order(105, 10, seed=3, epoch=1)[0]) == 100


def test_a_shorter_epoch_takes_other_images_each_time(digits: Data) -> None:
    first, _ = epoch_order(100, 10, seed=3, epoch=0, length=37)
    assert len(set(first.tolist())) == len(first) == 30
    assert torch.equal(first, epoch_order(100, 10, seed=3, epoch=0)[0][:30])
    seen = {
        i
        for epoch in range(20)
        for i in epoch_order(100, 10, seed=3, epoch=epoch, length=37)[0].tolist()
    }
    assert seen == set(range(100))
    batches = TrainBatches(
        digits, PLAIN, batch_size=10, images_per_epoch=37, seed=0, device=CPU
    )
    assert batches.steps_per_epoch == 3 == len(list(batches.epoch(0)))


@pytest.mark.parametrize("batch_size", [12, 10])
def test_repeated_augmentation_keeps_copies_in_one_step(batch_size: int) -> None:
    """As DeiT's sampler: the permutation with each image three times in a row, cut to n, B
    at a time.
    """
    n, repeats = 60, 3
    order, copies = epoch_order(n, batch_size, seed=0, epoch=0, repeats=repeats)
    permutation = epoch_order(n, batch_size, seed=0, epoch=0)[0]
    plain = permutation.repeat_interleave(repeats)[:n]
    for step in range(n // batch_size):
        mine = slice(step * batch_size, (step + 1) * batch_size)
        assert sorted(order[mine].tolist()) == sorted(plain[mine].tolist())
        assert copies[mine].tolist() == sorted(copies[mine].tolist())
    if batch_size == 12:  # three workers see three different copies of the same images
        workers = order[:12].view(3, 4)
        assert torch.equal(workers[0], workers[1])
        assert torch.equal(workers[0], workers[2])
        assert copies[:12].view(3, 4).unique(dim=1).flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("world_size", "accumulation"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)]
)
def test_workers_and_accumulation_share_each_global_batch(
    numbered: Path, tmp_path: Path, world_size: int, accumulation: int
) -> None:
    data = load_data(config_of(numbered), tmp_path / "cache")
    order, _ = epoch_order(32, 8, seed=0, epoch=2)
    expected = data.train.rows[order].view(4, 8)
    micro = 8 // (world_size * accumulation)
    seen: list[list[int]] = [[] for _ in range(4)]
    for rank in range(world_size):
        got = batches(
            data, epoch=2, rank=rank, world_size=world_size, accumulation=accumulation
        )
        assert len(got) == 4 * accumulation
        for number, (images, labels) in enumerate(got):
            assert len(images) == micro
            assert labels.tolist() == [level % 2 for level in levels(images)]
            seen[number // accumulation] += levels(images)
    # files are sorted by class
    paths = {row: 2 * row if row < 20 else 2 * (row - 20) + 1 for row in range(40)}
    assert seen == [[paths[row] for row in step] for step in expected.tolist()]


def test_batches_that_do_not_fit_are_refused(digits: Data) -> None:
    with pytest.raises(ValueError, match=r"batch_size 361 is larger than the 360"):
        TrainBatches(digits, PLAIN, batch_size=361, seed=0, device=CPU)
    with pytest.raises(ValueError, match=r"10 must divide by 2 workers x 2"):
        TrainBatches(
            digits,
            PLAIN,
            batch_size=10,
            accumulation=2,
            world_size=2,
            seed=0,
            device=CPU,
        )
    assert (
        TrainBatches(digits, PLAIN, batch_size=100, seed=0, device=CPU).steps_per_epoch
        == 3
    )


# --- training batches


def test_targets_are_soft_where_images_are_mixed(digits: Data) -> None:
    images, targets = batches(digits, AugmentConfig(), batch_size=180)[0]
    assert targets.shape == (180, 10)
    assert targets.dtype == torch.float32
    assert torch.allclose(targets.sum(1), torch.ones(180))
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    _, unmixed = batches(digits, AugmentConfig(mixup=0, cutmix=0), batch_size=180)[0]
    assert unmixed.dtype == torch.int64


def test_an_epoch_depends_on_seed_epoch_and_rank_only(digits: Data) -> None:
    def first(**options: Any) -> torch.Tensor:
        return batches(digits, AugmentConfig(), batch_size=180, **options)[0][0]

    torch.manual_seed(1)
    one = first()
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)
    assert torch.equal(first(), one)
    for other in ({"epoch": 1}, {"seed": 1}, {"rank": 1, "world_size": 2}):
        assert first(**other).shape != one.shape or not torch.equal(first(**other), one)


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_global_generators_stay_untouched(
    in_memory: str, numbered: Path, tmp_path: Path
) -> None:
    data = load_data(
        config_of(numbered, in_memory=in_memory, workers=0), tmp_path / "cache"
    )
    states = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    batches(data, AugmentConfig())
    list(eval_batches(data, "test", 4, CPU))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert str(np.random.get_state()) == states[2]


def test_resplit_leaves_first_copies_clean(numbered: Path, tmp_path: Path) -> None:
    data = load_data(config_of(numbered), tmp_path / "cache")
    augment = AugmentConfig(
        auto_augment=None,
        color_jitter=0,
        crop="none",
        hflip=0,
        mixup=0,
        cutmix=0,
        erase_prob=1.0,
        erase_resplit=True,
        erase_mode="pixel",
        repeats=2,
    )
    for images, _ in batches(data, augment):
        erased = images.flatten(1).std(dim=1) > 0
        assert erased.tolist() == [False] * 4 + [True] * 4


def test_flip_preset_is_a_padded_crop(digits: Data) -> None:
    augment = AugmentConfig(preset="flip", hflip=0.0)
    order, _ = epoch_order(360, 8, seed=0, epoch=0)
    assert isinstance(digits.train.store, PixelStore)
    originals = digits.train.store.pixels[digits.train.rows[order[:8]]].float()
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (digits.config.mean, digits.config.std)
    )
    for image, original in zip(batches(digits, augment)[0][0], originals, strict=True):
        padded = torch.nn.functional.pad(original, (4,) * 4)
        windows = (
            padded.unfold(1, 32, 1)
            .unfold(2, 32, 1)
            .permute(1, 2, 0, 3, 4)
            .flatten(0, 1)
        )
        gaps = (windows - (image * std + mean) * 255).abs().amax(dim=(1, 2, 3))
        assert gaps.min() < 0.01


# --- evaluation


@pytest.mark.parametrize("in_memory", ["yes", "no"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_sees_every_image_once(
    in_memory: str, world_size: int, numbered: Path, tmp_path: Path
) -> None:
    data = load_data(
        config_of(numbered, in_memory=in_memory, workers=0), tmp_path / "cache"
    )
    for split, expected in (("test", list(range(6))), ("train", None)):
        seen = []
        for rank in range(world_size):
            got = list(eval_batches(data, split, 4, CPU, rank, world_size))  # type: ignore[arg-type]
            assert all(len(images) == 4 for images, _ in got[:-1])
            seen += [level for images, _ in got for level in levels(images)]
        assert len(seen) == len(set(seen)) == data.size(split)  # type: ignore[arg-type]
        assert expected is None or sorted(seen) == expected


def test_more_workers_than_images(numbered: Path, tmp_path: Path) -> None:
    data = load_data(config_of(numbered, limit_test=2), tmp_path / "cache")
    assert [
        len(list(eval_batches(data, "test", 4, CPU, rank, 4))) for rank in range(4)
    ] == [1, 1, 0, 0]


def test_yes_and_no_are_those_of_yaml() -> None:
    assert DataConfig.model_validate({"in_memory": False}).in_memory == "no"
    assert DataConfig.model_validate({"in_memory": True}).in_memory == "yes"
