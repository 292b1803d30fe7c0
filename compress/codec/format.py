"""The container of a coded model: layout, limits and checks. What is inside the sections is
`codec`'s business.

Layout (little endian)
    8 bytes     magic
    uint16      format version
    uint16      how the header is packed (an index of `PACKINGS`)
    uint32 ×2   bytes of the header as stored, and unpacked
    header      JSON, see `Header`
    sections    one after the other, as the header lists them; they fill the file
    32 bytes    SHA-256 of everything before

Nothing is believed before the checksum fits, and nothing is allocated before its size was
compared with the sizes that the header's architecture has on the meta device. A checksum is
no signature: a file made to deceive passes it, so every number is checked as well.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
import zstandard
from pydantic import Field

from trainers.config import Config

MAGIC = b"\x89CODEDM\n"
VERSION = 1
MAX_HEADER_BYTES = 1 << 26
MAX_MODEL_BYTES = 1 << 34
"""Bytes of a model's tensors that `decode` allocates unless told otherwise."""
_PREFIX = struct.Struct("<8sHHII")
_DIGEST_BYTES = 32
FRAME_BYTES = _PREFIX.size + _DIGEST_BYTES
_SMALL = 1 << 20  # bytes that are worth zstd's slowest level
_WINDOW = 1 << 27

Packing = Literal["raw", "zstd", "shuffle"]
PACKINGS: tuple[Packing, ...] = get_args(Packing)
"""As it is; zstd; zstd of all first bytes of the elements, then all second ones, and so on."""
Size = Annotated[int, Field(ge=0, le=1 << 62)]


class Section(NamedTuple):
    """One section: what it holds, how it is packed, bytes in the file and unpacked."""

    name: str
    packing: Packing
    stored_bytes: Size
    unpacked_bytes: Size


class TensorEntry(NamedTuple):
    """One tensor: `family` is the family of its values, -1 where it is stored as it is."""

    name: str
    dtype: str
    shape: tuple[Size, ...]
    family: int


class Header(Config):
    """Everything but the numbers.

    Attributes:
        arch: as `Arch.to_json` gives it.
        meta: the state's notes.
        coder: how indices are coded.
        families: number of values of each family; the codebook holds them one after the other.
        tensors: in the order of the architecture's state dict.
        sections: in the order of the file.
    """

    arch: dict[str, Any]
    meta: dict[str, Any]
    coder: Literal["contexts", "order0"]
    families: list[Size]
    tensors: list[TensorEntry]
    sections: list[Section]


@dataclass(frozen=True)
class Packed:
    """Bytes as they are stored, and what they were."""

    packing: Packing
    content: bytes
    unpacked_bytes: int

    def section(self, name: str) -> Section:
        return Section(name, self.packing, len(self.content), self.unpacked_bytes)


def pack(content: bytes, item_bytes: int = 1, *, dense: bool = False) -> Packed:
    """The smallest of the packings.

    Args:
        item_bytes: of one element; 1 leaves shuffling out.
        dense: known not to compress.
    """
    best = Packed("raw", content, len(content))
    if dense:
        return best
    compressor = zstandard.ZstdCompressor(
        level=19 if len(content) <= _SMALL else 3, write_checksum=False
    )
    candidates: list[tuple[Packing, bytes]] = [("zstd", content)]
    if item_bytes > 1:
        candidates.append(
            (
                "shuffle",
                np.frombuffer(content, np.uint8).reshape(-1, item_bytes).T.tobytes(),
            )
        )
    for packing, plain in candidates:
        stored = compressor.compress(plain)
        if len(stored) < len(best.content):
            best = Packed(packing, stored, len(content))
    return best


def unpack(
    content: bytes | memoryview,
    packing: Packing,
    unpacked_bytes: int,
    item_bytes: int = 1,
) -> bytes:
    """Undo `pack`. Allocates no more than `unpacked_bytes`, which the caller has checked.

    Raises:
        ValueError: the content is not that many bytes packed in this way.
    """
    if packing == "raw":
        if len(content) != unpacked_bytes:
            raise ValueError(
                f"a section holds {len(content)} bytes instead of {unpacked_bytes}"
            )
        return bytes(content)
    try:
        frame = zstandard.get_frame_parameters(content)
        if frame.content_size != unpacked_bytes:
            raise ValueError(
                f"a section unpacks to {frame.content_size} bytes instead of"
                f" {unpacked_bytes}"
            )
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        plain = unpacker.decompress(
            content, max_output_size=unpacked_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ValueError(f"a section does not unpack ({error})") from error
    if len(plain) != unpacked_bytes:
        raise ValueError(
            f"a section unpacks to {len(plain)} bytes instead of {unpacked_bytes}"
        )
    if packing == "zstd":
        return plain
    if unpacked_bytes % item_bytes:
        raise ValueError(
            f"{unpacked_bytes} bytes are no whole number of elements of {item_bytes}"
            " bytes"
        )
    return np.frombuffer(plain, np.uint8).reshape(item_bytes, -1).T.tobytes()


def write_container(header: Header, sections: Sequence[Packed]) -> tuple[bytes, int]:
    """The whole file, and how many bytes of it are the header.

    Raises:
        ValueError: the header is not JSON-able or too large.
    """
    try:
        text = json.dumps(header.model_dump(), separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the model's description and notes cannot be written as JSON ({error})"
        ) from error
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(
            f"the header has {len(text)} bytes, at most {MAX_HEADER_BYTES} are allowed;"
            " shorten meta"
        )
    packed = pack(text)
    prefix = _PREFIX.pack(
        MAGIC, VERSION, PACKINGS.index(packed.packing), len(packed.content), len(text)
    )
    parts = [prefix, packed.content, *(section.content for section in sections)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return b"".join([*parts, digest.digest()]), len(packed.content)


def read_container(content: bytes) -> tuple[Header, dict[str, memoryview]]:
    """The header and the sections of a whole file.

    Raises:
        ValueError: what is wrong with it.
    """
    if content[: len(MAGIC)] != MAGIC:
        raise ValueError("not a coded model (other first bytes)")
    if len(content) < FRAME_BYTES:
        raise ValueError(f"cut off: {len(content)} bytes are too few")
    _, version, packing, stored, unpacked = _PREFIX.unpack_from(content)
    body = memoryview(content)[:-_DIGEST_BYTES]
    if hashlib.sha256(body).digest() != content[-_DIGEST_BYTES:]:
        raise ValueError(
            "damaged or cut off (the checksum differs); fetch or pack it again"
        )
    if version != VERSION:
        raise ValueError(
            f"format version {version}; this program reads version {VERSION}"
        )
    if (
        packing >= len(PACKINGS)
        or unpacked > MAX_HEADER_BYTES
        or stored > len(body) - _PREFIX.size
    ):
        raise ValueError(
            f"impossible header: {stored} bytes, {unpacked} unpacked, of {len(content)}"
        )
    header = _parse(
        unpack(body[_PREFIX.size : _PREFIX.size + stored], PACKINGS[packing], unpacked)
    )
    sections = {}
    place = _PREFIX.size + stored
    for section in header.sections:
        if section.name in sections or section.stored_bytes > len(body) - place:
            raise ValueError(
                f"section {section.name!r} is listed twice or longer than the file"
            )
        sections[section.name] = body[place : place + section.stored_bytes]
        place += section.stored_bytes
    if place != len(body):
        raise ValueError(f"{len(body) - place} bytes belong to no section")
    return header, sections


def _parse(text: bytes) -> Header:
    try:
        return Header.model_validate(json.loads(text))
    except (ValueError, RecursionError) as error:
        lines = str(error).splitlines()
        raise ValueError(
            f"the header is not one ({'; '.join(lines[:3])[:300]})"
        ) from error
