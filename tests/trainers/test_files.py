"""Files that others wrote are read with care, and ours are whole or absent."""

from pathlib import Path

import pytest

from trainers.files import (
    DEEPEST_JSON,
    copy_atomic,
    parse_json,
    read_json,
    write_atomic,
)
from trainers.models.arch import Arch, ModelState, read_arch


def nested(levels: int, inside: str = "1") -> str:
    return '{"a":[' * (levels // 2) + inside + "]}" * (levels // 2)


def test_deep_json_is_refused_and_other_json_read() -> None:
    assert parse_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert parse_json("1") == 1
    parse_json(nested(DEEPEST_JSON))
    for text in (nested(DEEPEST_JSON + 2), nested(1_000_000), "[" * 1_000_000):
        with pytest.raises(ValueError, match="nested more than 100 levels deep"):
            parse_json(text)


def test_a_model_of_a_stranger_may_not_be_deep(tmp_path: Path) -> None:
    arch = Arch("resnet_cifar", "resnet20_cifar", {"num_classes": 2, "width": 2})
    ModelState.initialised(arch, 0).save(tmp_path)
    path = tmp_path / "model.json"
    whole = path.read_text()
    for levels in (400, 1_000_000):
        path.write_text(whole.replace('"width": 2', f'"width": {nested(levels)}'))
        assert path.read_text() != whole
        assert read_json(path) is None
        for read in (read_arch, ModelState.load):
            with pytest.raises(ValueError, match="not a saved model"):
                read(tmp_path)


def test_a_file_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new" / "target"
    write_atomic(target, b"first")
    source = tmp_path / "source"
    source.write_bytes(bytes(3 * 2**20))
    copy_atomic(source, target)
    assert target.read_bytes() == source.read_bytes()

    def cut(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", cut)
    for change in (
        lambda: write_atomic(target, b"x"),
        lambda: copy_atomic(target, source),
    ):
        with pytest.raises(OSError, match="no space left"):
            change()
    assert target.stat().st_size == source.stat().st_size == 3 * 2**20
    assert sorted(tmp_path.rglob("*")) == [target.parent, target, source]
