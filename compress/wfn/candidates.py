"""Candidate centroids of Weight Fixing Networks: a geometric sequence, each value as a sum
of few powers of two.

Subia-Waud & Dasmahapatra, "Weight Fixing Networks", ECCV 2022, section 3.

Legend
    a        allowed distance, capped at 0.9999 here
    γ0       zero distance, the least magnitude of the sequence
    r        (1 + a)/(1 - a): two neighbours v, rv of the sequence cover what lies between
             them within a
    v        a value of the sequence γ0, γ0·r, γ0·r², …, below B, the largest magnitude that
             is to be covered
    ω        order: how many powers of two may be added to the first one
    q_ω(v)   2^round(log2 v), then ω times: ±2^round(log2 |v - q|) is added where |v - q| >= a·v;
             exponents of the added powers are at least log2 γ0 - ω - 1; rounding is half to
             even. Where γ0 is no power of two, this least exponent is rounded up, so that
             all that is added are powers of two; the published code adds γ0 / 2^(ω + 1)
"""

import math

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]

_LARGEST_DISTANCE = 0.9999


def geometric_sequence(start: float, max_distance: float, bound: float) -> Float64s:
    """(K,) float64: start·r^k for k = 0, 1, … as long as it is below `bound`, each from the
    one before.
    """
    a = min(max_distance, _LARGEST_DISTANCE)
    ratio = (1 + a) / (1 - a)
    if start >= bound:
        return np.empty(0)
    count = math.ceil(math.log(bound / start) / math.log(ratio)) + 2
    values = np.cumprod(np.concatenate([[start], np.full(count, ratio)]))
    return values[: np.searchsorted(values, bound)]


def powers_of_two_sums(
    values: Float64s,
    order: int,
    max_distance: float,
    zero_distance: float,
    *,
    published: bool = False,
) -> Float64s:
    """q_ω of positive values, (K,) → (K,) float64.

    Args:
        published: do not round the least exponent.
    """
    a = min(max_distance, _LARGEST_DISTANCE)
    lowest = math.log2(zero_distance) - order - 1
    lowest = lowest if published else math.ceil(lowest)
    sums = np.ldexp(1.0, np.rint(np.log2(values)).astype(np.int64))
    for _ in range(order):
        rest = values - sums
        coarse = np.flatnonzero(np.abs(rest) >= a * values)
        if not len(coarse):
            break
        rest = rest[coarse]
        exponents = np.maximum(np.rint(np.log2(np.abs(rest))), lowest)
        sums[coarse] += np.copysign(np.exp2(exponents), rest)
    return sums


class Candidates:
    """The candidate sets of one clustering call: they grow with the order and shrink with
    the largest weight left.

    Args:
        max_distance: a.
        zero_distance: γ0.
        bound: B at the start; later ones may not be larger.
        powers_of_two: False keeps the sequence's own values, in float32, at every order: an
            ablation.
        published: see `powers_of_two_sums`.
    """

    def __init__(
        self,
        max_distance: float,
        zero_distance: float,
        bound: float,
        *,
        powers_of_two: bool = True,
        published: bool = False,
    ) -> None:
        self._published = published
        self._powers_of_two = powers_of_two
        self._max_distance = max_distance
        self._zero_distance = zero_distance
        self._sequence = geometric_sequence(zero_distance, max_distance, bound)
        self._order = -1
        self._sums: Float64s = np.empty(0)
        self._first: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def length(self, bound: float) -> int:
        """How many values of the sequence are below `bound`; the set depends on this and on
        the order alone.
        """
        return int(np.searchsorted(self._sequence, bound))

    def at(self, order: int, length: int) -> Float64s:
        """(K,) float64, ascending and different: 0, and ±q_ω of the first `length` values
        of the sequence.
        """
        if order != self._order:
            if self._powers_of_two:
                sums = powers_of_two_sums(
                    self._sequence,
                    order,
                    self._max_distance,
                    self._zero_distance,
                    published=self._published,
                )
                if self._published:  # which is computed in float32
                    sums = sums.astype(np.float32).astype(np.float64)
            else:
                sums = self._sequence.astype(np.float32).astype(np.float64)
            self._sums, self._first = np.unique(sums, return_index=True)
            self._order = order
        used = self._sums[self._first < length]
        return np.concatenate([-used[::-1], [0.0], used])
