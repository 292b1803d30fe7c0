"""Coded model files: exact to the bit, near or below the entropy of the shared values.

Parameters of linear and convolutional layers whose values lie on few shared ones are
written as indices into one codebook of the whole network, entropy-coded; so are other
float32 tensors that lie on values of the codebook (norm parameters that were fixed too).
Everything else is stored as it is, or zstd-compressed where that is smaller.

    contexts    the default: adaptive histograms in contexts of size and sign, see
                `compress.codec.models`
    order0      one histogram of the whole network, stored beside the codebook
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from compress.codec.arch import ArchTensors, arch_tensors
from compress.codec.format import (
    FRAME_BYTES,
    MAX_HEADER_BYTES,
    MAX_MODEL_BYTES,
    Header,
    Packed,
    TensorEntry,
    pack,
    read_container,
    unpack,
    write_container,
)
from compress.codec.indices import (
    Coder,
    IndexCode,
    Shape,
    decode_indices,
    encode_indices,
)
from compress.codec.tensors import (
    DTYPES,
    dtype_name,
    group_sizes,
    pack_tensors,
    unpack_tensors,
)
from compress.codec.values import Bits, Indexed, group_by_values
from trainers.files import write_atomic
from trainers.models.arch import Arch, ModelState
from trainers.models.parameters import linear_and_conv_parameters

_MAX_CODEBOOK_VALUES = 1 << 22


@dataclass(frozen=True)
class CodedSize:
    """Bytes of a coded model.

    Attributes:
        total_bytes: the file.
        header_bytes: description, notes, shapes, lengths and the checksum.
        codebook_bytes: the shared values (and their histogram in mode order0).
        index_bytes: the entropy-coded indices.
        tensor_bytes: tensors that are not indices.
        coded_weights: how many weights are indices.
        codebook_values: how many values the codebook has.
    """

    total_bytes: int
    header_bytes: int
    codebook_bytes: int
    index_bytes: int
    tensor_bytes: int
    coded_weights: int
    codebook_values: int


@dataclass(frozen=True)
class Coded:
    """A coded model: the bytes of its file, and what they are spent on."""

    content: bytes
    size: CodedSize


def coded_bytes(state: ModelState) -> int:
    """Bytes of the file that `encode` writes."""
    return encode(state).size.total_bytes


def encode(
    model: ModelState | nn.Module | Mapping[str, Tensor],
    path: Path | None = None,
    *,
    mode: Coder = "contexts",
) -> Coded:
    """Code a model, and write it to `path` (whole or not at all) where one is given.

    Args:
        model: a state, whose file rebuilds the model anywhere (`decode`); or any module or
            state dict, whose file holds the tensors alone (`decode_weights`).
        path: of the file.
        mode: contexts falls back on order0 where that is smaller.

    Raises:
        ValueError: the weights are not those of the architecture, a tensor's type cannot be
            stored, or the notes are not JSON-able.
    """
    if mode not in get_args(Coder):
        raise ValueError(f"unknown mode {mode!r}; valid: {', '.join(get_args(Coder))}")
    given = _content_of(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in given.weights.items()}
    indexed, code = _index(given.weights, shapes, given.founders, mode)
    plain = {n: tensor for n, tensor in given.weights.items() if n not in indexed}
    coded = _pack_code(code)
    groups = pack_tensors(plain)
    sections = {**coded, **groups}
    header = _header_of(given, code, sections)
    content, header_bytes = write_container(header, list(sections.values()))
    books = (coded["codebook"], coded["histogram"])
    size = CodedSize(
        total_bytes=len(content),
        header_bytes=header_bytes + FRAME_BYTES,
        codebook_bytes=sum(len(packed.content) for packed in books),
        index_bytes=len(coded["indices"].content),
        tensor_bytes=sum(len(packed.content) for packed in groups.values()),
        coded_weights=sum(len(i.places) for i in indexed.values()),
        codebook_values=sum(header.families),
    )
    if path is not None:
        write_atomic(path, content)
    return Coded(content, size)


def _pack_code(code: IndexCode) -> dict[str, Packed]:
    """The sections of what is coded as indices."""
    books = b"".join(book.astype("<u4").tobytes() for book in code.codebooks)
    words = code.words.astype("<u4", copy=False).tobytes()
    return {
        "codebook": pack(books, 4),
        "histogram": pack(code.histogram.tobytes()),
        "indices": pack(words, dense=True),
    }


def _header_of(
    given: "_Content", code: IndexCode, sections: Mapping[str, Packed]
) -> Header:
    return Header(
        arch=given.arch,
        meta=given.meta,
        coder=code.coder,
        families=[len(book) for book in code.codebooks],
        tensors=[
            TensorEntry(
                name,
                dtype_name(name, tensor),
                tuple(tensor.shape),
                code.family_of.get(name, -1),
            )
            for name, tensor in given.weights.items()
        ],
        sections=[packed.section(name) for name, packed in sections.items()],
    )


@dataclass(frozen=True)
class _Content:
    """What is to be coded.

    Attributes:
        weights: contiguous CPU tensors, in the order of the file.
        founders: names of the tensors whose values may make a codebook.
        arch, meta: of a state; else empty.
    """

    weights: dict[str, Tensor]
    founders: frozenset[str]
    arch: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


def _content_of(model: ModelState | nn.Module | Mapping[str, Tensor]) -> _Content:
    if isinstance(model, ModelState):
        tensors = arch_tensors(model.arch, len(model.weights))
        weights = _in_order(model, tensors)
        return _Content(weights, tensors.indexable, model.arch.to_json(), model.meta)
    if isinstance(model, nn.Module):
        founders = frozenset(linear_and_conv_parameters(model))
        return _Content(_on_cpu(model.state_dict()), founders)
    return _Content(_on_cpu(model), frozenset(model))


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def decode(path: Path, *, max_bytes: int = MAX_MODEL_BYTES) -> ModelState:
    """Read a coded model. Nothing in it is executed or unpickled.

    Args:
        path: of a file that `encode` wrote of a state.
        max_bytes: refuse models whose tensors take more than this.

    Raises:
        ValueError: not a coded model, damaged, cut off, too large, of an architecture that
            this installation builds otherwise, or without one; names the file.
    """
    return decode_bytes(_read(path, max_bytes), str(path), max_bytes=max_bytes)


def decode_weights(
    path: Path, *, max_bytes: int = MAX_MODEL_BYTES
) -> dict[str, Tensor]:
    """The tensors of a coded model by name, for `module.load_state_dict`.

    Args:
        path: of any file that `encode` wrote.
        max_bytes: refuse files whose tensors take more than this.

    Raises:
        ValueError: as `decode`, except that no architecture is needed.
    """
    content = _read(path, max_bytes)
    with _named(str(path)):
        header, sections = read_container(content)
        arch = _arch_of(header) if header.arch else None
        return _decode_tensors(header, sections, arch, max_bytes)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        if path.stat().st_size > max_bytes + MAX_HEADER_BYTES:
            raise ValueError(
                f"{path.stat().st_size} bytes are more than max_bytes {max_bytes}"
                " allows"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a coded model: {error}") from error


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors inside the block start with the file's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: cannot be read as a coded model: {error}") from error


def decode_bytes(
    content: bytes, name: str = "coded model", *, max_bytes: int = MAX_MODEL_BYTES
) -> ModelState:
    """`decode` of a file's content; `name` is what errors call it."""
    with _named(name):
        header, sections = read_container(content)
        if not header.arch:
            raise ValueError(
                "the header describes no architecture; compress.codec.decode_weights"
                " reads the tensors"
            )
        arch = _arch_of(header)
        weights = _decode_tensors(header, sections, arch, max_bytes)
        return ModelState(arch, weights, header.meta)


def _decode_tensors(
    header: Header,
    sections: Mapping[str, memoryview],
    arch: Arch | None,
    max_bytes: int,
) -> dict[str, Tensor]:
    """All tensors in the order of the header, which is checked against `arch` first."""
    shapes = _checked_shapes(header, max_bytes)
    if arch is not None:
        _check_against(arch, header, shapes)
    plain = [entry for entry in header.tensors if entry.family < 0]
    unpacked = _unpack_sections(header, sections, group_sizes(plain))
    ends = np.cumsum([0, *header.families])
    values = np.frombuffer(unpacked["codebook"], "<u4").astype(np.uint32)
    code = IndexCode(
        coder=header.coder,
        codebooks=[values[start:end] for start, end in pairwise(ends)],
        family_of={
            entry.name: entry.family for entry in header.tensors if entry.family >= 0
        },
        histogram=np.frombuffer(unpacked["histogram"], np.uint8),
        words=np.frombuffer(unpacked["indices"], "<u4").astype(np.uint32),
    )
    bits = decode_indices(code, shapes)
    weights = {
        name: torch.from_numpy(b.view(np.float32)).reshape(shapes[name])
        for name, b in bits.items()
    }
    weights |= unpack_tensors(plain, unpacked)
    return {name: weights[name] for name in shapes}


def _index(
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    founders: frozenset[str],
    mode: Coder,
) -> tuple[dict[str, Indexed], IndexCode]:
    bits: dict[str, Bits] = {
        name: tensor.reshape(-1).numpy().view(np.uint32)
        for name, tensor in weights.items()
        if tensor.dtype == torch.float32
    }
    found, families = group_by_values(bits, founders)
    indexed = {name: found[name] for name in weights if name in found}
    return indexed, encode_indices(indexed, families, shapes, mode)


def _in_order(state: ModelState, tensors: ArchTensors) -> dict[str, Tensor]:
    """The weights in the order of the architecture.

    Raises:
        ValueError: they are not its.
    """
    if state.weights.keys() != tensors.shapes.keys():
        wrong = sorted(state.weights.keys() ^ tensors.shapes.keys())
        raise ValueError(
            f"weights and architecture {state.arch.name!r} differ in tensors:"
            f" {', '.join(wrong[:3])}"
        )
    for name, shape in tensors.shapes.items():
        if tuple(state.weights[name].shape) != shape:
            given = tuple(state.weights[name].shape)
            raise ValueError(
                f"tensor {name!r} has shape {given}, in architecture"
                f" {state.arch.name!r} {shape}"
            )
    return {name: state.weights[name].detach().contiguous() for name in tensors.shapes}


def _arch_of(header: Header) -> Arch:
    try:
        return Arch.from_json(header.arch)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the header describes no architecture ({error})") from error


def _checked_shapes(header: Header, max_bytes: int) -> dict[str, Shape]:
    """Shapes of all tensors: small enough, of known types and families, each named once."""
    total = 0
    for entry in header.tensors:
        _check_entry(entry, header.families)
        total += math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
    if total > max_bytes:
        raise ValueError(
            f"its tensors take {total} bytes, more than max_bytes {max_bytes} allows"
        )
    shapes = {entry.name: entry.shape for entry in header.tensors}
    if len(shapes) < len(header.tensors):
        raise ValueError("its tensors are not each named once")
    return shapes


def _check_entry(entry: TensorEntry, families: Sequence[int]) -> None:
    if entry.dtype not in DTYPES:
        raise ValueError(f"tensor {entry.name!r} has the unknown type {entry.dtype!r}")
    if not -1 <= entry.family < len(families):
        raise ValueError(
            f"tensor {entry.name!r} names family {entry.family} of {len(families)}"
        )
    is_index = entry.family >= 0
    fits = entry.dtype == "float32" and 0 not in entry.shape
    if is_index and not (fits and families[entry.family]):
        raise ValueError(
            f"tensor {entry.name!r} cannot be indices: type {entry.dtype}, shape"
            f" {entry.shape}"
        )


def _check_against(arch: Arch, header: Header, shapes: Mapping[str, Shape]) -> None:
    """Refuse tensors that are not those of the architecture, in its order."""
    expected = arch_tensors(arch, len(header.tensors)).shapes
    if list(shapes.items()) == list(expected.items()):
        return
    wrong = [
        name
        for name in {**shapes, **expected}
        if shapes.get(name) != expected.get(name)
    ]
    raise ValueError(
        f"its tensors are not those that this installation builds for {arch.name!r}"
        f" (first: {', '.join(wrong[:3]) or 'their order'}); use the library versions"
        " that packed it"
    )


def _unpack_sections(
    header: Header,
    stored: Mapping[str, memoryview],
    of_tensors: Mapping[str, tuple[int, int]],
) -> dict[str, bytes]:
    """All sections unpacked, once their sizes are known to be right.

    Args:
        of_tensors: bytes and item size of the sections of tensors.
    """
    num_values = sum(header.families)
    if num_values > _MAX_CODEBOOK_VALUES:
        raise ValueError(
            f"a codebook of {num_values} values; at most {_MAX_CODEBOOK_VALUES}"
        )
    expected = {
        "codebook": (4 * num_values, 4),
        "histogram": (num_values if header.coder == "order0" else 0, 1),
        "indices": (len(stored.get("indices", b"")) // 4 * 4, 4),
        **of_tensors,
    }
    if expected.keys() != stored.keys():
        raise ValueError(
            f"it has sections {sorted(stored)}, expected {sorted(expected)}"
        )
    unpacked = {}
    for section in header.sections:
        size, item_bytes = expected[section.name]
        if section.unpacked_bytes != size:
            raise ValueError(
                f"section {section.name!r} claims {section.unpacked_bytes} bytes,"
                f" expected {size}"
            )
        unpacked[section.name] = unpack(
            stored[section.name], section.packing, size, item_bytes
        )
    return unpacked
