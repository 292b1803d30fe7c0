"""The weights on a line where the distance to a centroid is Euclidean, and which of them are left.

For the clustering of Weight Fixing Networks (Subia-Waud & Dasmahapatra, ECCV 2022) in
`compress.wfn.clustering`.

Legend
    w, c     a weight, a centroid
    y        a weight's place on the line: -1/w for relative distances, w for Euclidean ones
    y_c      the centroid's place

|w - c|/|w| = |c|·|1/c - 1/w| = |c|·|y - y_c|. With y = -1/w positive weights come first,
then negative ones, both ascending, and y = 0 stands between the largest and the most
negative; zeros are last, at y = ∞.
"""

import numpy as np
import numpy.typing as npt

from compress.wfn.candidates import Float64s

Float32s = npt.NDArray[np.float32]
Indices = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]
Pieces = list[tuple[int, int]]
"""Intervals of positions, (start, stop)."""
Positions = npt.NDArray[np.int64]


class Line:
    """The weights as points of the line on which distance is Euclidean, and which of them are left.

    A position is a weight's rank among all n weights on the line. Fixed weights are kept as
    disjoint intervals of positions that do not touch, behind an empty one at 0 that spares
    special cases.
    """

    def __init__(self, weights: Float32s, relative: bool) -> None:
        n = len(weights)
        self.weights = weights
        self.relative = relative
        # one sort of (weight, index) pairs packed into 64 bits: stable, and several times
        # as fast as an argsort
        pairs = np.empty((n, 2), "<u4")
        pairs[:, 0] = np.arange(n)
        pairs[:, 1] = np.where(weights == 0, np.float32(-0.0), weights).view(np.uint32)
        _fold(pairs[:, 1], relative)
        pairs.view("<u8")[:, 0].sort()
        self.index: Indices = pairs[:, 0].copy()
        _fold(pairs[:, 1], relative, back=True)
        self.y: Float64s = pairs[:, 1].copy().view(np.float32).astype(np.float64)
        del pairs
        if relative:
            with np.errstate(divide="ignore"):
                np.divide(
                    -1.0, self.y, out=self.y
                )  # -0.0, as which all zeros are stored, gives +inf
        self.origin = int(np.searchsorted(self.y, 0.0))
        self.finite = int(np.searchsorted(self.y, np.inf))
        # summed outwards from y = 0: a tiny weight's huge y must not drown those nearer to
        # the origin
        self.sums = np.zeros(n + 1)
        np.cumsum(self.y[: self.origin][::-1], out=self.sums[: self.origin][::-1])
        np.negative(self.sums[: self.origin], out=self.sums[: self.origin])
        np.cumsum(
            self.y[self.origin : self.finite],
            out=self.sums[self.origin + 1 : self.finite + 1],
        )
        self.sums[self.finite + 1 :] = self.sums[self.finite]
        self._set_gone(np.zeros(1, np.int64), np.zeros(1, np.int64))

    def _set_gone(self, starts: Positions, stops: Positions) -> None:
        self._starts = starts
        self._stops = stops
        gone = stops - starts
        gone_sum = self.sums[stops] - self.sums[starts]
        self._gone = np.cumsum(gone) - gone
        self._gone_sum = np.cumsum(gone_sum) - gone_sum
        self.left = len(self.y) - int(gone.sum())

    def place(self, w: Float64s) -> Float64s:
        """y of values other than 0."""
        return -1.0 / w if self.relative else w

    def before(self, positions: Positions) -> tuple[Positions, Float64s]:
        """How many weights are left before each position, and Σ y over them up to a constant."""
        i = np.searchsorted(self._starts, positions, "right") - 1
        start = self._starts[i]
        stop = np.minimum(positions, self._stops[i])
        gone = self._gone[i] + stop - start
        gone_sum = self._gone_sum[i] + self.sums[stop] - self.sums[start]
        return positions - gone, self.sums[positions] - gone_sum

    def count_up_to(self, bounds: Float64s, positions: Positions) -> Positions:
        """How many of the weights left are at most `bounds`, none of them 0, whose
        `positions` on the line these are.

        A position is that of the first larger weight of the bound's sign.
        """
        rank, _ = self.before(np.append(positions, self.origin))
        if not self.relative:
            return rank[:-1]
        return rank[:-1] - rank[-1] + np.where(bounds > 0, self.left, 0)

    def largest(self) -> float:
        """max |w| of the weights left: the two nearest to w = ±∞."""
        up, down = (self.origin, self.origin) if self.relative else (0, len(self.y))
        i = np.searchsorted(self._starts, up, "right") - 1
        up = max(up, int(self._stops[i]))
        i = np.searchsorted(self._starts, down, "left") - 1
        if i >= 0 and self._stops[i] >= down:
            down = int(self._starts[i])
        ends = [position for position in (up, down - 1) if 0 <= position < len(self.y)]
        return float(np.abs(self.weights[self.index[ends]]).max())

    def within(self, centre: float, radius: Float64s) -> tuple[Positions, Float64s]:
        """How many weights left have |y - centre| <= radius, (R,), and the sums of |y -
        centre| over them, rounded.
        """
        edges = np.concatenate([[centre], centre - radius, centre + radius])
        r = len(radius)
        positions = np.searchsorted(self.y[: self.finite], edges)
        positions[r + 1 :] = np.searchsorted(
            self.y[: self.finite], edges[r + 1 :], "right"
        )
        rank, total = self.before(positions)
        (mid, low, high) = np.split(rank, [1, r + 1])
        (mid_sum, low_sum, high_sum) = np.split(total, [1, r + 1])
        return high - low, (high_sum - mid_sum) - (mid_sum - low_sum) - centre * (
            (high - mid) - (mid - low)
        )

    def pieces(self, low: int, high: int) -> Pieces:
        """The intervals of weights left between two positions."""
        i = np.searchsorted(self._stops, low, "right")
        j = np.searchsorted(self._starts, high, "left")
        starts = [low, *self._stops[i:j].tolist()]
        stops = [
            *self._starts[i:j].tolist(),
            high,
        ]
        return [
            (start, stop)
            for start, stop in zip(starts, stops, strict=True)
            if start < stop
        ]

    def take(self, pieces: Pieces, chosen: Mask) -> None:
        """Take away the chosen ones of the weights in `pieces`."""
        edges: list[Positions] = []
        offset = 0
        for start, stop in pieces:
            mask = chosen[offset : offset + stop - start]
            edges.append(
                start + np.flatnonzero(np.diff(mask, prepend=False, append=False))
            )
            offset += stop - start
        new = np.concatenate(edges)
        starts = np.append(self._starts, new[::2])
        stops = np.append(self._stops, new[1::2])
        order = np.argsort(starts, kind="stable")
        starts = starts[order]
        stops = stops[order]
        apart = starts[1:] != stops[:-1]
        self._set_gone(starts[np.append(True, apart)], stops[np.append(apart, True)])


def _fold(bits: npt.NDArray[np.uint32], relative: bool, back: bool = False) -> None:
    """float32 bits to integers that ascend along the line, in place, or back. -0.0 becomes
    the last below +0.
    """
    if back and not relative:
        bits ^= np.uint32(0x80000000)
    bits ^= (bits >> np.uint32(31)) * np.uint32(0x7FFFFFFF)
    if not back and not relative:
        bits ^= np.uint32(0x80000000)
