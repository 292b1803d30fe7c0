"""One clustering call of Weight Fixing Networks: exact, in O(n log n).

Subia-Waud & Dasmahapatra, "Weight Fixing Networks", ECCV 2022, section 3 and the published
procedure.

Legend
    w, n     weights (float32 values, computed with in float64), how many
    p, a     fraction to fix, allowed distance
    γ0       zero distance: in relative mode a smaller weight is at distance 0 from the centroid 0
    ω, τ     order and tolerance
    c        a candidate centroid, see `compress.wfn.candidates`
    d        distance of a weight to c: |w - c|/|w| (relative; where c = 0: 0 for |w| < γ0,
             else 1), or |w - c|
    y, y_c   a weight's place on the line, and the centroid's

The published code departs from this in two details, which `published` takes over: by
euclidean distances, too, weights below γ0 are at distance 0 from the centroid 0; and where γ0
is no power of two, candidates are other sums (see `compress.wfn.candidates`).

The call. ω = 0, τ = a. Until ⌊p·n⌋ weights are fixed:
    densest  the candidate nearest to most of the weights left (by |w - c|; the lower
             candidate wins a tie, of distances as of counts)
    prefix   the weights left by ascending d: the longest prefix whose running mean of d is
             at most τ, cut to the number still needed. Two or more d of exactly 0 are free:
             the mean divides by the number of the others. Equal d keep the order of the
             input, as in a stable sort
    fix      the prefix to c, and τ = a; if it is empty: ω += 1, and once ω > 20 also τ = 2τ

Why one sort is enough. On the line of `compress.wfn.line` d is a Euclidean distance,
d = scale·|y - y_c|. The weights nearest to a candidate, and a prefix, are intervals of that
line, without the weights that are fixed already, which are a few intervals themselves.
Counts are binary searches, and sums of d are differences of prefix sums of y.

Why it is exact. Prefix sums are not rounded as a running sum is, so they only say how far
the prefix can reach. Within that reach the distances are computed, sorted and summed one by
one, as if all had been sorted. The reach holds few more weights than are then fixed, so that
the total stays at O(n log n), with some 0.3 ms a step for the candidates.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compress.wfn.candidates import Candidates, Float64s
from compress.wfn.line import Float32s, Indices, Line, Mask, Pieces

Distance = Literal["relative", "euclidean"]

_PATIENT_ORDERS = 20  # above this order an empty prefix also doubles the tolerance
# the reach is narrowed 32-fold each time
_GRID = 32
_REFINEMENTS = 5
_CHUNK = 1 << 20
_MIN_DISTANCE = 2.0**-20
_MIN_ZERO_DISTANCE = 2.0**-126
_MAX_WEIGHT = 2.0**127


@dataclass(frozen=True)
class Clustering:
    """What one call fixed. Tensors have the shape and the device of the weights.

    Attributes:
        values: float32; the centroid of a fixed weight, an unfixed weight as it was
            (rounded to float32).
        fixed: bool; ⌊p·n⌋ are true.
        codebook: (K,) float32, ascending: the centroids in use, each by one weight at
            least. Zero is +0.
        assignments: int32; index of the weight's centroid in `codebook`, -1 where unfixed.
        distances: float32; d between the weight and its centroid, in the mode's unit, NaN
            where unfixed.
        orders: order ω → how many weights were fixed while it held.
    """

    values: Tensor
    fixed: Tensor
    codebook: Tensor
    assignments: Tensor
    distances: Tensor
    orders: dict[int, int]


@torch.no_grad()
def cluster(
    weights: Tensor | npt.NDArray[Any],
    fraction: float,
    max_distance: float,
    *,
    zero_distance: float = 2**-7,
    distance: Distance = "relative",
    powers_of_two: bool = True,
    published: bool = False,
) -> Clustering:
    """Fix a fraction of the weights to few shared values, most of them sums of few powers of two.

    The same on every device: computed on the CPU. Peak memory is about 30 bytes a weight
    and 40 more for each weight that the largest single step fixes.

    Args:
        weights: a tensor or a NumPy array of any shape and floating type, on any device;
            what is returned are tensors in either case. Half types are exact, float64 is
            rounded to float32. The order, row by row, decides between weights at one
            distance.
        fraction: p, of all weights.
        max_distance: a, allowed mean distance of a centroid's weights: relative, or in the
            weights' own unit. 1 and more are allowed (the schedule's first iterations may
            ask for it); candidates then lie as for 0.9999.
        zero_distance: γ0, in the weights' unit. Also the least magnitude that candidates
            are laid out for. Where it is no power of two, the least exponent log2 γ0 - ω -
            1 is rounded up.
        distance: `relative` or `euclidean`.
        powers_of_two: False takes the geometric sequence itself for candidates (no part of
            the method: an ablation).

    Raises:
        ValueError: weights that are not floating-point, not finite, or 2^127 and more in
            magnitude; a fraction outside 0 to 1; a maximal distance below 2^-20 or a zero
            distance below 2^-126 (centroids would not be float32 values), or not finite; an
            unknown distance.
    """
    _check_arguments(distance, fraction, max_distance, zero_distance)
    metric = _Metric(distance == "relative", zero_distance, published)
    weights = torch.as_tensor(weights)
    flat = _as_float32(weights)
    steps = _Steps(np.full(len(flat), -1, np.int32))
    needed = math.floor(fraction * len(flat))
    if needed:
        _Greedy(flat, max_distance, metric, steps, powers_of_two).fix(needed)
    codebook, *arrays = (
        torch.from_numpy(array).to(weights.device)
        for array in _assemble(flat, steps, metric)
    )
    values, fixed, assignments, distances = (
        array.reshape(weights.shape) for array in arrays
    )
    return Clustering(
        values, fixed, codebook, assignments, distances, dict(steps.orders)
    )


def _check_arguments(
    distance: str, fraction: float, max_distance: float, zero_distance: float
) -> None:
    if distance not in get_args(Distance):
        raise ValueError(
            f"distance {distance!r} is not one of {', '.join(get_args(Distance))}"
        )
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"fraction is {fraction}; give the share of weights to fix, from 0 to 1"
        )
    if not _MIN_DISTANCE <= max_distance < math.inf:
        raise ValueError(
            f"max_distance is {max_distance}; it must be finite and at least 2^-20 ="
            f" {_MIN_DISTANCE:.3g}"
        )
    if not _MIN_ZERO_DISTANCE <= zero_distance < math.inf:
        raise ValueError(
            f"zero_distance is {zero_distance}; it must be finite and at least 2^-126"
        )


def _as_float32(weights: Tensor) -> Float32s:
    """All weights in order, (n,), checked."""
    if not weights.is_floating_point():
        raise ValueError(
            f"weights are {weights.dtype}; they must be of a floating-point type"
        )
    flat = weights.detach().to("cpu", torch.float32).reshape(-1).numpy()
    if len(flat) >= 2**32:
        raise ValueError(
            f"{len(flat)} weights are too many; cluster fewer than 2^32 at once"
        )
    finite = np.isfinite(flat)
    if not finite.all():
        bad = int(finite.argmin())
        raise ValueError(
            f"weights: {(~finite).sum()} of {len(flat)} are not finite in float32, the"
            f" first at {bad}"
        )
    if len(flat) and max(flat.max(), -flat.min()) >= _MAX_WEIGHT:
        raise ValueError(
            "weights: a magnitude is 2^127 or more, where centroids overflow float32;"
            " scale them down"
        )
    return flat


@dataclass(frozen=True)
class _Metric:
    """The distance d, as the description computes it."""

    relative: bool
    zero_distance: float
    published: bool = False

    def __call__(self, w: Float64s, c: Float64s | float) -> Float64s:
        """d of weights to centroids, elementwise."""
        size = np.abs(w)
        if not self.relative:
            free = self.published & np.equal(c, 0) & (size < self.zero_distance)
            return np.where(free, 0.0, np.abs(w - c))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(
                np.equal(c, 0),
                np.where(size < self.zero_distance, 0.0, 1.0),
                np.abs(w - c) / size,
            )


@dataclass
class _Steps:
    """What has been fixed: for each weight the step that took it or -1, for each step its
    centroid.
    """

    codes: npt.NDArray[np.int32]
    centroids: list[float] = field(default_factory=list)
    orders: Counter[int] = field(default_factory=Counter)


class _Greedy:
    """One clustering call under way."""

    def __init__(
        self,
        weights: Float32s,
        max_distance: float,
        metric: _Metric,
        steps: _Steps,
        powers_of_two: bool,
    ) -> None:
        self.weights = weights
        self.max_distance = max_distance
        self.metric = metric
        self.steps = steps
        self.line = Line(weights, metric.relative)
        bound = self.line.largest()
        self.candidates = Candidates(
            max_distance,
            metric.zero_distance,
            bound,
            powers_of_two=powers_of_two,
            published=metric.published,
        )
        self._set = (-1, -1)

    def fix(self, needed: int) -> None:
        """Fix `needed` weights, at most all."""
        order = 0
        tolerance = self.max_distance
        while needed:
            c = self._densest(order)
            if self.metric.relative and c == 0:
                pieces, index, chosen = self._prefix_of_zero(tolerance, needed)
            else:
                pieces, index, chosen = self._prefix(c, tolerance, needed)
            count = int(np.count_nonzero(chosen))
            if not count:
                order += 1
                tolerance *= 2 if order > _PATIENT_ORDERS else 1
                continue
            self.line.take(pieces, chosen)
            self.steps.codes[index[chosen]] = len(self.steps.centroids)
            self.steps.centroids.append(c)
            self.steps.orders[order] += count
            needed -= count
            tolerance = self.max_distance

    def _densest(self, order: int) -> float:
        line = self.line
        length = self.candidates.length(line.largest())
        if self._set != (order, length):
            self._set = (order, length)
            self._values = self.candidates.at(order, length)
            self._between = (self._values[1:] + self._values[:-1]) / 2
            self._positions = np.searchsorted(
                line.y, line.place(self._between), "right"
            )
        up_to = line.count_up_to(self._between, self._positions)
        counts = np.diff(up_to, prepend=0, append=line.left)
        return float(self._values[counts.argmax()])

    def _gather(self, pieces: Pieces) -> Indices:
        parts = [self.line.index[start:stop] for start, stop in pieces]
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)

    def _prefix_of_zero(
        self, tolerance: float, needed: int
    ) -> tuple[Pieces, Indices, Mask]:
        """The prefix where c = 0 and distances are 0 below γ0 and 1 above, no place on the line."""
        line = self.line
        gamma = self.metric.zero_distance
        # |w| < γ0 and |w| < the least float32 that is not below γ0 say the same, and
        # reciprocals keep the latter
        bound = np.float32(gamma)
        bound = (
            bound if float(bound) >= gamma else np.nextafter(bound, np.float32(np.inf))
        )
        place = 1.0 / float(bound)
        low = np.searchsorted(line.y, -place)
        high = np.searchsorted(line.y, place, "right")
        pieces = line.pieces(0, int(low)) + line.pieces(int(high), len(line.y))
        small = sum(stop - start for start, stop in pieces)
        if tolerance < 0.5 or (tolerance < 1 and small != 1):
            index = self._gather(pieces)
            chosen = np.ones(small, np.bool_)
            if needed < small:
                chosen[np.argsort(index)[needed:]] = False
            return pieces, index, chosen
        # A single 0 counts in the mean, so that it carries some 1s; tolerances of 1 and
        # more end the call here.
        pieces = line.pieces(0, len(line.y))
        index = self._gather(pieces)
        d = self.metric(self.weights[index].astype(np.float64), 0.0)
        ordered = np.sort(d)
        take = min(_longest(_running_means(ordered), tolerance), needed)
        return pieces, index, _nearest(d, index, ordered, take)

    def _prefix(
        self, c: float, tolerance: float, needed: int
    ) -> tuple[Pieces, Indices, Mask]:
        """The weights left around c: where they lie, their indices, and which of them are
        the prefix.
        """
        line = self.line
        centre = float(line.place(np.array(c)))
        scale = abs(c) if self.metric.relative else 1.0
        reach = self._reach(centre, scale, tolerance, needed)
        if (
            self.metric.published and c == 0
        ):  # whose distances may be less than on the line
            reach = max(reach, self.metric.zero_distance)
        rest = int(line.before(np.array([line.finite]))[0][0])
        while True:
            # wider than `reach` by more than rounding in y: every weight at a distance up
            # to it is in
            radius = reach / scale * (1 + 1e-9) + 1e-14 * abs(centre)
            low = np.searchsorted(line.y[: line.finite], centre - radius)
            high = np.searchsorted(line.y[: line.finite], centre + radius, "right")
            pieces = line.pieces(int(low), int(high))
            index = self._gather(pieces)
            d = self.metric(self.weights[index].astype(np.float64), c)
            ordered = np.sort(d[d <= reach])
            means = _running_means(ordered)
            take = _longest(means, tolerance)
            if (
                take >= needed
                or len(ordered) == rest
                or self._ended(ordered, means, reach, tolerance)
            ):
                return pieces, index, _nearest(d, index, ordered, min(take, needed))
            reach *= 2

    def _ended(
        self, ordered: Float64s, means: Float64s, reach: float, tolerance: float
    ) -> bool:
        """Whether the mean of one more distance, beyond `reach`, must exceed the tolerance
        however it is rounded.
        """
        nonzero = len(ordered) - _free(ordered)
        total = means[-1] * nonzero if len(ordered) else 0.0
        rounding = (2 * len(self.weights) + 8) * np.finfo(np.float64).eps
        return bool((total + reach) / (nonzero + 1) * (1 - rounding) > tolerance)

    def _reach(
        self, centre: float, scale: float, tolerance: float, needed: int
    ) -> float:
        """A distance within which the prefix ends, by prefix sums; the weights in it are
        few more than the prefix.
        """
        line = self.line
        furthest = scale * max(centre - line.y[0], line.y[line.finite - 1] - centre)
        doublings = max(1, math.ceil(math.log2(max(furthest / tolerance, 1.0))) + 1)
        reaches: Float64s = tolerance * np.exp2(np.arange(doublings + 1))
        zeros = int(line.within(centre, np.zeros(1))[0][0])
        free = zeros if zeros > 1 else 0
        for _ in range(_REFINEMENTS):
            counts, sums = line.within(centre, reaches / scale)
            means = (scale * np.maximum(sums, 0) + reaches) / (counts - free + 1)
            enough = (means > tolerance * (1 + 1e-6)) | (counts >= needed)
            i = int(enough.argmax()) if enough.any() else len(reaches) - 1
            if i == 0 or counts[i] <= 1.05 * counts[i - 1] + 64:
                break
            reaches = np.linspace(reaches[i - 1], reaches[i], _GRID + 1)
        return float(reaches[i])


def _free(ordered: Float64s) -> int:
    """How many of the sorted distances the running mean does not count: the zeros, where
    there are two or more.
    """
    zeros = int(np.searchsorted(ordered, 0.0, "right"))
    return zeros if zeros > 1 else 0


def _running_means(ordered: Float64s) -> Float64s:
    means = np.cumsum(ordered)
    means /= np.maximum(np.arange(1, len(ordered) + 1) - _free(ordered), 1)
    return means


def _longest(means: Float64s, tolerance: float) -> int:
    """Length of the longest prefix whose mean is at most the tolerance."""
    good = np.flatnonzero(means <= tolerance)
    return int(good[-1]) + 1 if len(good) else 0


def _nearest(d: Float64s, index: Indices, ordered: Float64s, count: int) -> Mask:
    """The `count` first ones by distance, then by index; `ordered` starts with the sorted
    distances.
    """
    if not count:
        return np.zeros(len(d), np.bool_)
    chosen = d < ordered[count - 1]
    last = np.flatnonzero(d == ordered[count - 1])
    spare = count - int(np.count_nonzero(chosen))
    if spare < len(last):
        last = last[np.argsort(index[last])[:spare]]
    chosen[last] = True
    return chosen


def _assemble(
    weights: Float32s, steps: _Steps, metric: _Metric
) -> tuple[npt.NDArray[np.generic], ...]:
    """Codebook, values, fixed, assignments, distances, in the order of the input."""
    codebook, places = np.unique(
        np.array(steps.centroids, np.float32), return_inverse=True
    )
    assignments = np.append(places, -1).astype(np.int32)[steps.codes]
    values = weights.copy()
    fixed = assignments >= 0
    distances = np.full(len(values), np.nan, np.float32)
    for low in range(0, len(values), _CHUNK):
        part = slice(low, low + _CHUNK)
        held = fixed[part]
        c = codebook[assignments[part][held]]
        distances[part][held] = metric(
            weights[part][held].astype(np.float64), c.astype(np.float64)
        )
        values[part][held] = c
    return codebook, values, fixed, assignments, distances
