"""Indices into codebooks: from shared values to symbols to words, and back.

A symbol of the only family is a value's place in its codebook. Several families have their
codebooks in numeric
order, and a symbol is a value's rank, shifted so that the values next to zero of all
families are the same symbol: then tensors on different grids (one step size a tensor) share
their statistics.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import constriction  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from compress.codec.models import (
    LARGEST_VALUE,
    Plane,
    decode_with_contexts,
    encode_with_contexts,
)
from compress.codec.values import Bits, Family, Indexed

Coder = Literal["contexts", "order0"]
Words = NDArray[np.uint32]
Shape = tuple[int, ...]

_ORDER0_VALUES = 1 << 16
_STEPS = 10  # an octave
_COUNT_CODES = 256
_SAMPLED = (
    1 << 20
)  # of more weights every 32nd is looked at to estimate what one histogram would give


@dataclass(frozen=True)
class IndexCode:
    """Coded indices.

    Attributes:
        coder: how.
        codebooks: bit patterns of each family's values.
        family_of: the family of each tensor.
        histogram: codes of the counts of all values (order0; else empty).
        words: of the ANS coder.
    """

    coder: Coder
    codebooks: list[Bits]
    family_of: dict[str, int]
    histogram: NDArray[np.uint8]
    words: Words

    @property
    def num_bytes(self) -> int:
        return 4 * len(self.words) + len(self.histogram)


def encode_indices(
    found: Mapping[str, Indexed],
    families: list[Family],
    shapes: Mapping[str, Shape],
    coder: Coder,
) -> IndexCode:
    """Code the tensors of `found`, in its order. Takes order0 instead of contexts where it
    gives less.

    Raises:
        ValueError: order0 with more than 65,536 values.
    """
    if coder == "order0":
        return _encode_order0(found, families)
    code = _encode_contexts(found, families, shapes)
    return (
        _encode_order0(found, families)
        if _order0_bytes(found, families) < code.num_bytes
        else code
    )


def decode_indices(code: IndexCode, shapes: Mapping[str, Shape]) -> dict[str, Bits]:
    """Bit patterns of all tensors, flat.

    Raises:
        ValueError: the words are not those of such tensors.
    """
    if code.coder == "order0":
        return _decode_order0(code, shapes)
    return _decode_contexts(code, shapes)


def _encode_contexts(
    found: Mapping[str, Indexed], families: list[Family], shapes: Mapping[str, Shape]
) -> IndexCode:
    orders = [
        np.arange(len(f.values)) if len(families) == 1 else f.numeric_order()
        for f in families
    ]
    codebooks = [
        family.values[order] for family, order in zip(families, orders, strict=True)
    ]
    alphabets, num_symbols = _alphabets(codebooks)
    dtype = np.uint8 if num_symbols <= 256 else np.uint16
    planes = []
    for name, indexed in found.items():
        order = orders[indexed.family]
        alphabet = alphabets[indexed.family]
        symbols = np.ascontiguousarray(
            indexed.places.reshape(-1, _positions(shapes[name])).T
        ).reshape(-1)
        if len(families) > 1:
            symbol_of_place = np.empty(len(order), dtype)
            symbol_of_place[order] = np.arange(len(order)) + alphabet.offset
            symbols = symbol_of_place.take(symbols)
        planes.append(
            Plane(shapes[name], alphabet.signed, symbols.astype(dtype, copy=False))
        )
    words = (
        encode_with_contexts(planes, num_symbols)
        if num_symbols > 1
        else np.empty(0, np.uint32)
    )
    family_of = {name: indexed.family for name, indexed in found.items()}
    return IndexCode("contexts", codebooks, family_of, np.empty(0, np.uint8), words)


def _decode_contexts(code: IndexCode, shapes: Mapping[str, Shape]) -> dict[str, Bits]:
    alphabets, num_symbols = _alphabets(code.codebooks)
    planes = [
        Plane(shapes[name], alphabets[family].signed)
        for name, family in code.family_of.items()
    ]
    if num_symbols > 1:
        decode_with_contexts(code.words, planes, num_symbols)
    elif len(code.words):
        raise ValueError("one value needs no indices, and the file has some")
    decoded = {}
    for plane, (name, family) in zip(planes, code.family_of.items(), strict=True):
        codebook = code.codebooks[family]
        offset = alphabets[family].offset
        symbols = (
            np.zeros(math.prod(plane.shape), np.uint8)
            if plane.symbols is None
            else plane.symbols
        )
        if len(
            codebook
        ) < num_symbols and not offset <= symbols.min() <= symbols.max() < offset + len(
            codebook
        ):
            raise ValueError(
                f"tensor {name!r} has indices outside its codebook of {len(codebook)}"
                " values"
            )
        values = np.zeros(num_symbols, np.uint32)
        values[offset : offset + len(codebook)] = codebook
        in_order = np.ascontiguousarray(symbols.reshape(_positions(shapes[name]), -1).T)
        decoded[name] = values.take(in_order).reshape(-1)
        plane.symbols = None
    return decoded


def _positions(shape: Shape) -> int:
    return math.prod(shape[2:])


@dataclass(frozen=True)
class _Alphabet:
    """Where a family's values are among the symbols, and V of all symbols.

    V is described in `compress.codec.models`.
    """

    offset: int
    signed: NDArray[np.int16]


def _alphabets(codebooks: list[Bits]) -> tuple[list[_Alphabet], int]:
    """Of each family, and the number of symbols of all."""
    if len(codebooks) == 1:
        return [
            _Alphabet(0, _signed(codebooks[0].view(np.float32), LARGEST_VALUE))
        ], len(codebooks[0])
    numbers = [codebook.view(np.float32) for codebook in codebooks]
    zeros = [int(np.argmin(np.where(np.isnan(n), np.inf, np.abs(n)))) for n in numbers]
    below = max(zeros, default=0)
    above = max((len(n) - z for n, z in zip(numbers, zeros, strict=True)), default=0)
    reach = max(below, above - 1, 1)
    alphabets = []
    for values, zero in zip(numbers, zeros, strict=True):
        signed = np.zeros(below + above, np.int16)
        largest = LARGEST_VALUE * max(zero, len(values) - 1 - zero) // reach
        signed[below - zero : below - zero + len(values)] = _signed(values, largest)
        alphabets.append(_Alphabet(below - zero, signed))
    return alphabets, below + above


def _signed(values: NDArray[np.float32], largest: int) -> NDArray[np.int16]:
    """Integers proportional to the values; ±`largest` for the largest finite ones and beyond."""
    finite = np.where(np.isfinite(values), values, 0).astype(np.float64)
    top = np.abs(finite).max(initial=0.0) or 1.0
    scaled = np.rint(finite / top * largest)
    return np.where(np.isinf(values), np.copysign(largest, values), scaled).astype(
        np.int16
    )


def _merge(families: list[Family]) -> tuple[Bits, list[NDArray[Any]]]:
    """All values once, and where each family's values are among them."""
    values = np.unique(
        np.concatenate(
            [np.empty(0, np.uint32), *(family.values for family in families)]
        )
    )
    return values, [np.searchsorted(values, family.values) for family in families]


def _encode_order0(found: Mapping[str, Indexed], families: list[Family]) -> IndexCode:
    values, merged = _merge(families)
    if len(values) > _ORDER0_VALUES:
        raise ValueError(
            f"one histogram takes at most {_ORDER0_VALUES} values, this model has"
            f" {len(values)}"
        )
    counts = _counts(found, families, merged, len(values), 1)
    codes = _count_codes(counts)
    coder = constriction.stream.stack.AnsCoder()
    if len(values) > 1:
        model = _order0_model(codes)
        for indexed in reversed(list(found.values())):
            coder.encode_reverse(
                merged[indexed.family].astype(np.int32).take(indexed.places), model
            )
    return IndexCode(
        "order0",
        [values] if len(values) else [],
        dict.fromkeys(found, 0),
        codes,
        coder.get_compressed(),
    )


def _decode_order0(code: IndexCode, shapes: Mapping[str, Shape]) -> dict[str, Bits]:
    if len(code.codebooks) > 1 or len(code.histogram) != sum(
        len(codebook) for codebook in code.codebooks
    ):
        raise ValueError("the histogram does not fit the codebook")
    values = code.codebooks[0] if code.codebooks else np.empty(0, np.uint32)
    coder = constriction.stream.stack.AnsCoder(code.words)
    decoded = {}
    model = _order0_model(code.histogram) if len(values) > 1 else None
    for name in code.family_of:
        size = math.prod(shapes[name])
        decoded[name] = (
            values.take(coder.decode(model, size))
            if model
            else np.full(size, values[0])
        )
    if not coder.is_empty():
        raise ValueError("indices are left over after the last tensor")
    return decoded


def _order0_bytes(found: Mapping[str, Indexed], families: list[Family]) -> float:
    """About what order0 would take: n·H/8 and the histogram."""
    values, merged = _merge(families)
    if len(values) > _ORDER0_VALUES:
        return np.inf
    total = sum(len(indexed.places) for indexed in found.values())
    counts = _counts(
        found, families, merged, len(values), 1 if total < _SAMPLED else 32
    )
    share = counts[counts > 0] / max(1, counts.sum())
    return len(values) - total * float((share * np.log2(share)).sum()) / 8


def _counts(
    found: Mapping[str, Indexed],
    families: list[Family],
    merged: list[NDArray[Any]],
    num_values: int,
    stride: int,
) -> NDArray[np.int64]:
    """How often each value occurs, looking at every `stride`-th weight."""
    counts = np.zeros(num_values, np.int64)
    for indexed in found.values():
        of_family = np.bincount(
            indexed.places[::stride], minlength=len(families[indexed.family].values)
        )
        np.add.at(counts, merged[indexed.family], of_family)
    return counts


def _count_codes(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """One byte a count: the nearest of 256 geometric steps below the largest count (3.5 %
    at most beside it).
    """
    grid = _count_grid()
    scaled = counts * (grid[-1] / max(1, counts.max(initial=0)))
    above = np.searchsorted(grid, scaled).clip(1, len(grid) - 1)
    return (above - (scaled * scaled < grid[above - 1] * grid[above])).astype(np.uint8)


def _count_grid() -> NDArray[np.float64]:
    mantissas = np.round(1024 * 2.0 ** (np.arange(_STEPS) / _STEPS))
    codes = np.arange(_COUNT_CODES)
    # whole numbers, at most 2^26, at least 1: the same on every machine, and their sums are
    # exact in float64
    return np.maximum(
        1, np.floor(np.ldexp(mantissas[codes % _STEPS], codes // _STEPS - 10))
    )


def _order0_model(codes: NDArray[np.uint8]) -> Any:
    weight = _count_grid()[codes]
    frequencies = np.floor(weight / weight.sum() * (1 << 22)) + 1
    return constriction.stream.model.Categorical(
        frequencies.astype(np.float32), perfect=False
    )
