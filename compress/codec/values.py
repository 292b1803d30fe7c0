"""Shared values: which tensors lie on few of them, and the codebooks that index them.

Values are bit patterns of float32, so -0.0, infinities and every NaN payload are values of
their own. A *family* is a set of values that several tensors share: a weight-fixing network
has one for all its layers, per-tensor quantisation one a tensor. The codebook of the
network is all families, one after the other.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint32]

MAX_FAMILY_VALUES = 4096
"""Tensors with more values than this in their family are stored as they are."""
_CHUNK = (
    1 << 18
)  # elements of one pass: they and the tables stay in a core's second-level cache
_SAMPLE = 2048  # weights at least that tell whether a tensor's values are few
_TABLE_BITS = (12, 14, 16, 18)
_TRIES = 48


@dataclass
class Family:
    """Values in order of discovery, and a table that finds them."""

    values: Bits = field(default_factory=lambda: np.empty(0, np.uint32))
    _multiplier: np.uint32 | None = None
    _shift: np.uint32 = field(default_factory=lambda: np.uint32(0))
    _place: NDArray[Any] = field(default_factory=lambda: np.empty(0, np.uint16))

    def extend(self, values: Bits) -> None:
        """Add values (distinct, none of them known)."""
        self.truncate(len(self.values), values)

    def truncate(self, count: int, added: Bits | None = None) -> None:
        """Keep the first `count` values, then add others."""
        kept = self.values[:count]
        self.values = kept.copy() if added is None else np.concatenate([kept, added])
        self._build_table()

    def _build_table(self) -> None:
        """A perfect hash (multiply, shift, look up) where one is found; otherwise a sorted
        list serves.
        """
        self._multiplier = None
        rng = np.random.default_rng(0)
        for bits in _TABLE_BITS:
            if len(self.values) ** 2 > 8 << bits:  # over four expected collisions
                continue
            shift = np.uint32(32 - bits)
            for multiplier in rng.integers(
                1, 1 << 32, _TRIES, dtype=np.uint32
            ) | np.uint32(1):
                slots = (self.values * multiplier) >> shift
                if len(np.unique(slots)) == len(slots):
                    self._place = np.zeros(
                        1 << bits, np.uint8 if len(self.values) <= 256 else np.uint16
                    )
                    self._place[slots] = np.arange(len(slots))
                    self._multiplier = multiplier
                    self._shift = shift
                    return
        self._place = np.argsort(self.values).astype(np.uint16)

    def find(self, bits: Bits) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Place of each element among `values`, and whether it is there at all (else the
        place says nothing).
        """
        if self._multiplier is not None:
            slots = bits * self._multiplier
            slots >>= self._shift
            places = self._place.take(slots)
        else:
            in_order = self.values[self._place]
            places = self._place.take(
                np.searchsorted(in_order, bits).clip(max=len(in_order) - 1)
            )
        return places, self.values.take(places) == bits

    def index(self, bits: Bits) -> NDArray[Any] | None:
        """Places of all elements; new values join. None if that makes more than
        `MAX_FAMILY_VALUES`.
        """
        out: NDArray[Any] = np.empty(
            len(bits), np.uint8 if len(self.values) <= 256 else np.uint16
        )
        for low in range(0, len(bits), _CHUNK):
            chunk = bits[low : low + _CHUNK]
            places, known = self.find(chunk)
            if not known.all():
                new = np.unique(chunk[~known])
                if len(self.values) + len(new) > MAX_FAMILY_VALUES:
                    return None
                self.extend(new)
                places, _ = self.find(chunk)
                if len(self.values) > 256:
                    out = out.astype(np.uint16)
            out[low : low + _CHUNK] = places
        return out

    def numeric_order(self) -> NDArray[np.intp]:
        """Places of the values in numeric order (NaNs at the ends, -0.0 before 0.0)."""
        magnitude = (self.values & np.uint32(0x7FFFFFFF)).astype(np.int64)
        return np.argsort(
            np.where(self.values >> np.uint32(31), -magnitude - 1, magnitude)
        )


@dataclass(frozen=True)
class Indexed:
    """A tensor as places in a family's values."""

    family: int
    places: NDArray[Any]


def group_by_values(
    tensors: dict[str, Bits], founders: Collection[str]
) -> tuple[dict[str, Indexed], list[Family]]:
    """The tensors that are cheaper as indices than as numbers, and their families.

    The largest tensors found families; smaller ones join the family that has most of their values.

    Args:
        tensors: bit patterns, flat, by name.
        founders: names of those that may bring values; the others only join where they bring none.
    """
    families: list[Family] = []
    found: dict[str, Indexed] = {}
    for name in sorted(tensors, key=lambda n: (n not in founders, -len(tensors[n]))):
        bits = tensors[name]
        if not len(bits):
            continue
        sampled = bits[:: max(1, len(bits) // _SAMPLE)]
        sample = np.unique(sampled)
        home, shared = _home(sample, families)
        all_known = shared == len(sample)
        if not all_known and (
            name not in founders or 4 * len(sample) > 3 * len(sampled)
        ):
            continue
        family = families[home] if home is not None else Family()
        before = len(family.values)
        if not all_known:
            family.extend(np.setdiff1d(sample, family.values))
        places = family.index(bits) if len(family.values) <= MAX_FAMILY_VALUES else None
        brought = len(family.values) - before
        if places is None or (
            brought
            and (
                name not in founders
                or not _pays(len(bits), brought, len(family.values))
            )
        ):
            family.truncate(before)
            continue
        if home is None:
            home = len(families)
            families.append(family)
        found[name] = Indexed(home, places)
    return found, families


def _home(sample: Bits, families: list[Family]) -> tuple[int | None, int]:
    """The family with most of these values, if it has at least half, and how many of them
    it has.
    """
    shared = [int(family.find(sample)[1].sum()) for family in families]
    best = int(np.argmax(shared)) if shared else None
    return (
        (best, shared[best])
        if best is not None and 2 * shared[best] >= len(sample)
        else (None, 0)
    )


def _pays(count: int, brought: int, family_size: int) -> bool:
    return bool(4 * brought + count * np.log2(max(2, family_size)) / 8 < 4 * count)
