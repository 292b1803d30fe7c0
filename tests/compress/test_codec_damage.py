"""Files that are damaged, foreign or made to deceive: a ValueError that names the file,
never a large allocation.
"""

import hashlib
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from compress.codec import format as codec_format
from compress.codec.file import decode, decode_bytes, encode
from trainers.models.arch import Arch, ModelState
from trainers.models.make import make_arch

Edit = Callable[[dict[str, Any], dict[str, bytes]], None]
PREFIX = struct.Struct("<8sHHII")


def tiny(name: str = "resnet20_cifar", **meta: Any) -> ModelState:
    """A narrow network whose convolutions share 9 values."""
    arch = Arch("resnet_cifar", name, {"num_classes": 3, "width": 2})
    state = ModelState.initialised(arch, 0)
    weights = {
        k: (v * 4).round().clip(-4, 4) / 4 if v.ndim == 4 else v
        for k, v in state.weights.items()
    }
    return ModelState(arch, weights, meta)


@pytest.fixture(scope="module")
def content() -> bytes:
    return encode(tiny()).content


def forge(content: bytes, edit: Edit) -> bytes:
    """The file with another header or other sections, and a checksum that fits."""
    _, _, packing, stored, _ = PREFIX.unpack_from(content)
    text = content[PREFIX.size : PREFIX.size + stored]
    header = json.loads(
        zstandard.ZstdDecompressor().decompress(text) if packing else text
    )
    place, sections = PREFIX.size + stored, {}
    for name, _, size, _ in header["sections"]:
        sections[name] = content[place : place + size]
        place += size
    before = dict(sections)
    edit(header, sections)
    for entry in header["sections"]:
        if entry[0] in sections and sections[entry[0]] != before.get(entry[0]):
            entry[2] = len(sections[entry[0]])
    text = json.dumps(header).encode()
    return sealed(
        PREFIX.pack(codec_format.MAGIC, 1, 0, len(text), len(text))
        + text
        + b"".join(sections.values())
    )


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def refused(content: bytes, match: str = "") -> None:
    """It is a ValueError that names the file, and took no memory to speak of."""
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=f"(?s)file 7: cannot be read as a coded model: .*{match}"
        ):
            decode_bytes(content, "file 7")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_the_tools_of_this_test(content: bytes) -> None:
    assert (
        decode_bytes(forge(content, lambda header, sections: None)).hash()
        == tiny().hash()
    )


def test_every_flipped_byte_and_every_length(content: bytes) -> None:
    for place in range(len(content)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= change
            with pytest.raises(ValueError, match="file 7"):
                decode_bytes(bytes(damaged), "file 7")
        with pytest.raises(ValueError, match="file 7"):
            decode_bytes(content[:place], "file 7")
    refused(content + b"\0", "checksum")
    refused(b"", "not a coded model")
    refused(b"PK\3\4" + content, "not a coded model")


def test_flipped_bytes_under_a_new_checksum(content: bytes) -> None:
    """Damage that the checksum does not see: an error, or a model of the right shapes,
    nothing else.
    """
    rng = np.random.default_rng(0)
    expected = {name: (t.shape, t.dtype) for name, t in tiny().weights.items()}
    for place in rng.choice(len(content) - 32, 400, replace=False):
        damaged = bytearray(content[:-32])
        damaged[place] ^= int(rng.integers(1, 256))
        try:
            state = decode_bytes(sealed(bytes(damaged)), "file 7")
        except ValueError as error:
            assert "file 7" in str(error)  # noqa: PT017
        else:
            assert {
                name: (t.shape, t.dtype) for name, t in state.weights.items()
            } == expected


def test_lengths_of_the_header(content: bytes) -> None:
    def with_prefix(version: int, packing: int, stored: int, unpacked: int) -> bytes:
        return sealed(
            PREFIX.pack(codec_format.MAGIC, version, packing, stored, unpacked)
            + content[PREFIX.size : -32]
        )

    _, _, _, stored, unpacked = PREFIX.unpack_from(content)
    refused(with_prefix(2, 1, stored, unpacked), "version 2")
    refused(with_prefix(1, 9, stored, unpacked), "impossible header")
    refused(with_prefix(1, 1, 2**32 - 1, unpacked), "impossible header")
    refused(with_prefix(1, 1, stored, 2**32 - 1), "impossible header")
    refused(with_prefix(1, 1, stored, 1 << 26), "unpacks to")
    refused(with_prefix(1, 1, stored + 1, unpacked))
    refused(with_prefix(1, 0, stored, stored), "header is not one")


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"{}",
        b"[]",
        b"7",
        b"\xff\xfe",
        b'{"arch": 1' + b"0" * 9000 + b"}",
        b"nul",
    ],
    ids=[
        "deep list",
        "deep dict",
        "empty",
        "list",
        "number",
        "no text",
        "long number",
        "no JSON",
    ],
)
def test_headers_that_are_none(text: bytes) -> None:
    refused(
        sealed(PREFIX.pack(codec_format.MAGIC, 1, 0, len(text), len(text)) + text),
        "header is not one",
    )


def test_bombs(content: bytes) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    head = PREFIX.pack(codec_format.MAGIC, 1, 1, len(bomb), 1 << 26)
    refused(sealed(head + bomb), "unpacks to")
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(
        bytes(1 << 26)
    )
    refused(
        sealed(PREFIX.pack(codec_format.MAGIC, 1, 1, len(unsized), 1 << 20) + unsized),
        "unpacks to",
    )
    for section in ("codebook", "tensors float32"):

        def plant(
            header: dict[str, Any], sections: dict[str, bytes], section: str = section
        ) -> None:
            sections[section] = bomb
            for entry in header["sections"]:
                if entry[0] == section:
                    entry[1] = "zstd"

        refused(forge(content, plant), "unpacks to")


def set_(path: str, value: Any) -> Edit:
    """Replace one place of the header: keys and list indices joined by dots."""

    def edit(header: dict[str, Any], sections: dict[str, bytes]) -> None:
        *parents, last = [
            int(p) if p.lstrip("-").isdigit() else p for p in path.split(".")
        ]
        at: Any = header
        for parent in parents:
            at = at[parent]
        at[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (set_("tensors.0.2", [10**6, 10**6]), "max_bytes"),
        (set_("tensors.0.2", [2**62, 2**62]), "max_bytes"),
        (set_("tensors.0.2", [2**80]), "header is not one"),
        (set_("tensors.0.2", [-1, 3, 3, 3]), "header is not one"),
        (set_("tensors.0.2", [2, 3, 3, 4]), "not those that this installation builds"),
        (
            set_("tensors.0.0", "other.weight"),
            "not those that this installation builds",
        ),
        (set_("tensors.0.1", "object"), "unknown type"),
        (set_("tensors.0.1", "int64"), "cannot be indices"),
        (set_("tensors.0.3", 1), "family 1 of 1"),
        (set_("tensors.0.3", -2), "family -2"),
        (set_("tensors.0.3", -1), "claims"),
        (set_("families", [10**12]), "codebook of"),
        (set_("families", [8]), "claims"),
        (set_("families", []), "family 0 of 0"),
        (set_("families", [0]), "cannot be indices"),
        (set_("coder", "contexts"), "claims"),
        (set_("coder", "pickle"), "header is not one"),
        (set_("sections.0.0", "codebok"), "sections"),
        (set_("sections.0.2", 10**15), "longer than the file"),
        (set_("sections.0.3", 10**15), "claims"),
        (set_("sections.0.1", "lzma"), "header is not one"),
        (set_("more", 1), "header is not one"),
        (set_("arch", {}), "no architecture"),
        (set_("arch.builder", "eval"), "unknown model builder"),
        (set_("arch.builder", ["timm"]), "no architecture|cannot be built"),
        (set_("arch.name", "resnet32_cifar"), "not those that|more than"),
        (set_("arch.name", 7), "cannot be built"),
        (set_("arch.args.width", 10**5), "not those that"),
        (set_("arch.args.width", 10**9), "too large"),
        (set_("arch.args.width", -1), "cannot be built"),
        (set_("arch.args.checkpoint_path", "/etc/passwd"), "names a file"),
    ],
)
def test_headers_that_deceive(content: bytes, edit: Edit, match: str) -> None:
    refused(forge(content, edit), match)


@pytest.mark.parametrize(
    ("name", "args", "match"),
    [
        ("vit_tiny_patch16_224", {"depth": 100_000}, "more than the"),
        ("resnet18", {"layers": [1_000_000, 1, 1, 1]}, "more than the"),
        ("hf-hub:someone/model", {}, "only letters"),
        ("local-dir:/etc", {}, "only letters"),
        ("resnet18", {"pretrained": True}, "names a file"),
        ("resnet18", {"act_layer": "nothing"}, "cannot be built"),
    ],
)
def test_architectures_that_deceive(
    content: bytes, name: str, args: dict[str, Any], match: str
) -> None:
    arch = {"builder": "timm", "name": name, "args": args, "dims": {}}
    with pytest.raises(ValueError, match=f"file 7.*{match}"):
        decode_bytes(forge(content, set_("arch", arch)), "file 7")


def test_indices_that_do_not_fit(content: bytes) -> None:
    def words(change: Callable[[bytes], bytes]) -> bytes:
        def edit(header: dict[str, Any], sections: dict[str, bytes]) -> None:
            sections["indices"] = change(sections["indices"])
            header["sections"][2][3] = len(sections["indices"])

        return forge(content, edit)

    refused(words(lambda w: w[:-4]))
    refused(words(lambda w: w + bytes([1, 0, 0, 0])), "left over")
    refused(words(lambda w: w + bytes(4)))
    refused(words(lambda w: w + b"\1"), "claims")


def test_indices_outside_their_codebook() -> None:
    """Two families: one tensor's symbols are not in the other's codebook."""
    base = tiny()
    weights = dict(base.weights)
    weights["layer3.0.conv2.weight"] = (
        weights["layer3.0.conv2.weight"] > 0
    ).float() * 0.3 + 7
    content = encode(ModelState(base.arch, weights)).content

    def swap(header: dict[str, Any], sections: dict[str, bytes]) -> None:
        assert len(header["families"]) == 2
        for entry in header["tensors"]:
            entry[3] = 1 - entry[3] if entry[3] >= 0 else -1

    refused(forge(content, swap))


def test_truth_values() -> None:
    arch = Arch("resnet_cifar", "resnet20_cifar", {"num_classes": 3, "width": 2})
    weights = {
        k: v.bool() if k.endswith("tracked") else v for k, v in tiny().weights.items()
    }
    content = encode(ModelState(arch, weights)).content

    def edit(header: dict[str, Any], sections: dict[str, bytes]) -> None:
        entry = next(e for e in header["sections"] if e[0] == "tensors bool")
        entry[1], sections["tensors bool"] = "raw", bytes([2] * entry[3])

    refused(forge(content, edit), "neither 0 nor 1")


def test_limits(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.wfn"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.wfn.*max_bytes 1000 allows"):
        decode(path, max_bytes=1000)
    with pytest.raises(ValueError, match=r"absent\.wfn"):
        decode(tmp_path / "absent.wfn")
    with pytest.raises(ValueError, match=tmp_path.name):
        decode(tmp_path)


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    path = tmp_path / "model.wfn"
    path.write_bytes(b"old")
    state = tiny()
    less = {k: v for k, v in state.weights.items() if k != "linear.bias"}
    with pytest.raises(ValueError, match=r"linear\.bias"):
        encode(ModelState(state.arch, less), path)
    with pytest.raises(ValueError, match=r"linear\.bias.*shape \(4,\)"):
        encode(
            ModelState(state.arch, {**state.weights, "linear.bias": torch.zeros(4)}),
            path,
        )
    with pytest.raises(ValueError, match="float8"):
        encode(
            ModelState(
                state.arch,
                {**state.weights, "linear.bias": torch.zeros(3).to(torch.float8_e5m2)},
            ),
            path,
        )
    with pytest.raises(ValueError, match="JSON"):
        encode(ModelState(state.arch, state.weights, {"a": object()}), path)
    with pytest.raises(ValueError, match="unknown mode 'best'"):
        encode(state, path, mode="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names a file"):
        encode(ModelState(Arch("timm", "resnet18", {"checkpoint_path": "x"}), {}), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert (
        make_arch("resnet20_cifar", num_classes=3, image_size=32, args={"width": 2})
        == state.arch
    )
