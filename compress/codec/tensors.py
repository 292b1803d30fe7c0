"""Tensors that a coded model stores as they are: all of one type together, packed as one
section.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compress.codec.format import Packed, TensorEntry, pack

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
        torch.complex128,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
"""Types that can be stored, by name."""


def dtype_name(name: str, tensor: Tensor) -> str:
    """The type's name.

    Raises:
        ValueError: it cannot be stored; calls the tensor `name`.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(
            f"tensor {name!r}: type {dtype} cannot be stored; valid:"
            f" {', '.join(DTYPES)}"
        )
    return dtype


def _section_of(dtype: str) -> str:
    return f"tensors {dtype}"


def pack_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Packed]:
    """One section for each type, its tensors' bytes in the order given."""
    groups: dict[str, list[bytes]] = {}
    for name, tensor in tensors.items():
        content = (
            tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            if tensor.numel()
            else b""
        )
        groups.setdefault(dtype_name(name, tensor), []).append(content)
    return {
        _section_of(dtype): pack(b"".join(group), DTYPES[dtype].itemsize)
        for dtype, group in groups.items()
    }


def group_sizes(entries: Sequence[TensorEntry]) -> dict[str, tuple[int, int]]:
    """Bytes of each section unpacked, and of one element in it."""
    sizes: dict[str, tuple[int, int]] = {}
    for entry in entries:
        section = _section_of(entry.dtype)
        item_bytes = DTYPES[entry.dtype].itemsize
        before, _ = sizes.get(section, (0, 0))
        sizes[section] = (before + math.prod(entry.shape) * item_bytes, item_bytes)
    return sizes


def unpack_tensors(
    entries: Sequence[TensorEntry], sections: Mapping[str, bytes]
) -> dict[str, Tensor]:
    """The tensors of sections whose sizes are those of `group_sizes`.

    Raises:
        ValueError: a truth value is neither 0 nor 1.
    """
    places = dict.fromkeys(sections, 0)
    tensors = {}
    for entry in entries:
        dtype = DTYPES[entry.dtype]
        section = _section_of(entry.dtype)
        start = places[section]
        places[section] += math.prod(entry.shape) * dtype.itemsize
        content = bytearray(sections[section][start : places[section]])
        if dtype == torch.bool and max(content, default=0) > 1:
            raise ValueError(
                f"tensor {entry.name!r} has truth values that are neither 0 nor 1"
            )
        flat = (
            torch.frombuffer(content, dtype=dtype)
            if content
            else torch.empty(0, dtype=dtype)
        )
        tensors[entry.name] = flat.reshape(entry.shape)
    return tensors
