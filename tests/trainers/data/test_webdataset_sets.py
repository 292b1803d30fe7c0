"""Tar shards of WebDataset: samples, labels, what is damaged."""

import gzip
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.optional import needs
from tests.trainers.data.pictures import encoded
from trainers.config import DataConfig
from trainers.data.info import DataInfo
from trainers.data.open import open_dataset
from trainers.data.parts import RandomAccess
from trainers.data.splits import data_info, load_data

pytestmark = needs("webdataset")

Members = dict[str, bytes]


def labelled(k: int) -> Members:
    return {"png": encoded(k), "cls": str(k % 3).encode()}


def tar(file: Path, members: list[tuple[str, bytes]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def shards(
    root: Path,
    sample: Callable[[int], Members] = labelled,
    test: Callable[[int], Members] | None = None,
) -> Path:
    """Three training shards of six samples, and a validation shard of six."""
    for number, start in enumerate(range(0, 24, 6)):
        write = (test or sample) if number == 3 else sample
        name = "val-000000.tar" if number == 3 else f"train-{number:06}.tar"
        members = [
            (f"{k:04}.{suffix}", content)
            for k in range(start, start + 6)
            for suffix, content in write(k).items()
        ]
        tar(root / name, members)
    return root


def config_of(root: Path, **options: Any) -> DataConfig:
    given = {"val_fraction": 0.2, "workers": 0, **options}
    return DataConfig(dataset="webdataset", root=root, **given)


def info_of(root: Path, **options: Any) -> DataInfo:
    return data_info(config_of(root, **options))


def test_samples_are_read_in_any_order(tmp_path: Path) -> None:
    root = shards(tmp_path / "set")
    info = info_of(root)
    assert info.class_names == ("0", "1", "2")
    assert (info.num_train, info.num_val, info.num_test) == (14, 4, 6)
    assert info.remarks == (
        "There is no test split; the validation split is the test part.",
    )
    source = open_dataset(config_of(root))
    train = source.train
    assert isinstance(train, RandomAccess)
    assert [train.read(k).getpixel((0, 0))[0] for k in (17, 0, 7)] == [17, 0, 7]  # type: ignore[index]
    assert train.labels.tolist() == [k % 3 for k in range(18)]
    assert train.name(7) == f"{root / 'train-000001.tar'} member 0007.png"
    data = load_data(config_of(root), tmp_path / "cache")
    assert data.test.store.pixels[:, 0, 0, 0].tolist() == list(range(18, 24))  # type: ignore[union-attr]
    moved = root.rename(tmp_path / "moved")
    again = load_data(config_of(moved), tmp_path / "cache")
    assert again.fingerprint == data.fingerprint
    one_by_one = load_data(config_of(moved, in_memory="no"), tmp_path / "cache")
    assert one_by_one.size("train") == data.size("train")
    assert info_of(moved, class_names=("a", "b", "c")).class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("sample", "options", "names"),
    [
        (lambda k: {"cls": b"%d" % (k % 2)}, {}, ("0", "1")),
        (lambda k: {"cls": b" %d\n" % (k % 2 + 1)}, {}, ("1", "2")),
        (lambda k: {"cls": b"cat" if k % 2 else b"dog"}, {}, ("cat", "dog")),
        (lambda k: {"txt": b"cat" if k % 2 else b"dog"}, {}, ("cat", "dog")),
        (
            lambda k: {"json": json.dumps({"label": k % 2, "w": 8}).encode()},
            {},
            ("0", "1"),
        ),
        (
            lambda k: {"json": json.dumps({"kind": "ab"[k % 2], "w": 8}).encode()},
            {"label_column": "kind"},
            ("a", "b"),
        ),
        (
            lambda k: {"cls": b"%d" % k, "breed": b"%d" % (k % 2)},
            {"label_column": "breed"},
            ("0", "1"),
        ),
        (lambda k: {"cls": b"%d" % (k % 2)} if k % 5 else {}, {}, ("0", "1")),
    ],
)
def test_labels(
    sample: Callable[[int], Members],
    options: dict[str, Any],
    names: tuple[str, ...],
    tmp_path: Path,
) -> None:
    root = shards(tmp_path, lambda k: {"png": encoded(k), **sample(k)})
    assert info_of(root, **options).class_names == names


def test_images_by_suffix(tmp_path: Path) -> None:
    def sample(k: int) -> Members:
        kind = {"JPEG": "JPEG"} if k < 18 else {"webp": "WEBP"}
        images = {suffix: encoded(k, form) for suffix, form in kind.items()}
        return {**images, "mask.png": b"none", "cls": b"%d" % (k % 2)}

    assert info_of(shards(tmp_path / "a", sample)).num_test == 6
    root = shards(tmp_path / "b", lambda k: {**labelled(k), "jpg": encoded(k, "JPEG")})
    with pytest.raises(ValueError, match=r"0000 has several images: png, jpg"):
        info_of(root)
    assert info_of(root, image_column=".png").num_classes == 3
    root = shards(tmp_path / "c", lambda k: labelled(k) if k % 6 else {"cls": b"1"})
    assert "3 samples have no image" in info_of(root).remarks[0]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda k: {"png": encoded(k)}, "no sample has a label.*suffixes are png"),
        (lambda k: {"npy": b"1", "cls": b"1"}, "no sample has an image.*cls, npy"),
        (
            lambda k: {"png": b"text", "cls": b"%d" % (k % 2)},
            r"0000.png \(not an image",
        ),
        (lambda k: {"png": encoded(k), "cls": b"\xff\xfe"}, "0000.cls.*UTF-8"),
        (lambda k: {"png": encoded(k), "json": b"{"}, "0000.json: no JSON"),
        (lambda k: {"png": encoded(k), "json": b"[1]"}, "0000.json: a JSON object"),
        (lambda k: {"png": encoded(k), "json": b'{"w": 1}'}, "has the keys w"),
        (
            lambda k: {"png": encoded(k), "txt": b"a photo of %d" % k},
            "each of the 18 training images has a label of its own",
        ),
        (
            lambda k: {
                "png": encoded(k),
                "json": (b'{"label": 1}', b'{"label": "a"}')[k % 2],
            },
            "of several kinds",
        ),
    ],
)
def test_samples_that_are_not_clear_are_refused(
    sample: Callable[[int], Members], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        info_of(shards(tmp_path, sample))
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    file = shards(tmp_path) / "train-000001.tar"
    whole = file.read_bytes()
    header = whole.index(b"0008.png")
    for content, message in (
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (gzip.compress(whole), "compressed"),
        (whole[: header + 700], "cannot be read as a tar"),
        (
            whole[:header] + b"\xff" * 512 + whole[header + 512 :],
            "cannot be read as a tar",
        ),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message) as refused:
            info_of(tmp_path)
        assert str(file) in str(refused.value)
    names = [f"{k}.{suffix}" for suffix in ("png", "cls") for k in range(3)]
    tar(file, [(name, encoded(1)) for name in names])
    with pytest.raises(
        ValueError, match=r"such as 0\.\*, must stand one after the other"
    ):
        info_of(tmp_path)
    tar(file, [("0.png", encoded(1)), ("0.png", encoded(1))])
    with pytest.raises(ValueError, match="duplicate"):
        info_of(tmp_path)


def test_shards_by_pattern_and_number(tmp_path: Path) -> None:
    root = shards(tmp_path)
    (root / "._train-000000.tar").write_bytes(b"left by macOS")
    info = info_of(
        root, train_split="train-{000000..000001}.tar", test_split="train-000002.tar"
    )
    assert (info.num_train + info.num_val, info.num_test) == (12, 6)
    with pytest.raises(ValueError, match=r"no file fits 'train-000003\.tar'"):
        info_of(root, train_split="train-{000000..000003}.tar", test_split="val*.tar")
    (root / "train-000001.tar").unlink()
    assert "missing by their numbers" in info_of(root).remarks[0]


def test_hidden_members_and_folders_in_a_tar(tmp_path: Path) -> None:
    root = shards(tmp_path)
    members = []
    for k in range(6):
        for suffix, content in labelled(k).items():
            members += [
                (f"./n0/x/{k}.{suffix}", content),
                (f"./n0/x/._{k}.{suffix}", b"mac"),
            ]
    tar(root / "train-000000.tar", members)
    train = open_dataset(config_of(root)).train
    assert np.array_equal(train.labels[:6], [0, 1, 2, 0, 1, 2])


def test_the_library_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ValueError, match=r"'compression-sweeps\[webdataset\]'"):
        info_of(tmp_path)
