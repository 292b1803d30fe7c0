"""WFN's pull of unfixed weights towards the centroids, without the weights × centroids matrix.

Legend
    w_i      an unfixed weight, i = 1 … n
    c_k      a centroid of the last clustering, k = 1 … K
    D_k(w)   |w − c_k|; in relative mode divided by |w| where |w| > gamma_0, and below it 0
             for the centroid 0
    T        temperature, 0.05
    s_k(w)   softmin: exp(−D_k/T) / Σ_j exp(−D_j/T)
    f(w)     Σ_k s_k(w) D_k(w);   R = mean_i f(w_i)   (Subia-Waud & Dasmahapatra, ECCV 2022,
             section 3)
    f'(w)    m + (m f − Σ_k s_k D_k D_k') / T,   m = Σ_k s_k D_k'

For given centroids f is a function of one number, smooth between neighbouring breaks
(centroids and ±gamma_0). It is tabulated there, values and slopes, and read by cubic
interpolation: O(n) a step whatever K is. The table is refined until it agrees with the
dense formula to `TOLERANCE` at points between its knots.

Weights of any size are read without asking how many lie where, so that no step waits for
an accelerator:
    B        reach of the table, at least every |c_k| and gamma_0
    x(w)     place of a weight in the table: w itself up to ±B. Beyond, in relative mode,
             ±(2B − B²/|w|), which brings infinity to ±2B: D_k = 1 − c_k/w is smooth there.
             In euclidean mode ±B, and |w| − B is added to f: all D_k grow alike
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

TEMPERATURE = 0.05
TOLERANCE = 2e-6
CHUNK = 1 << 20
"""Weights read from the table at once: bounds the working memory to about 64 MB, whatever n
and K are.
"""
ACCELERATOR_CHUNK = 1 << 24
"""The same on an accelerator (1 GB), where many small kernels would leave it idle."""
_DENSE_CELLS = 1 << 22
_TAIL_SEGMENTS = 8
_TAIL_END = 2.0**-20
"""B/|w| of the last knot; weights beyond are read there, where f has reached its limit."""

Distance = Literal["relative", "euclidean"]


def dense(
    weights: Tensor,
    centroids: Tensor,
    distance: Distance,
    zero_distance: float,
    side: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """f and f' of weights (n,) by the formula itself, in the weights' precision; n × K memory.

    `side` (n,) decides on which side of each break a weight lies (default: the weights
    themselves): at a break the slope is one-sided.
    """
    side = weights if side is None else side
    gap = weights[:, None] - centroids
    sign = torch.sign(side[:, None] - centroids)
    distances = gap * sign
    slopes = sign
    if distance == "relative":
        far = (side.abs() > zero_distance)[:, None]
        scale = torch.where(far, weights.abs()[:, None], 1.0)
        # d/dw |1 − c/w| = sign(1 − c/w) · c/w²
        slopes = torch.where(
            far, sign * torch.sign(side)[:, None] * centroids / scale**2, slopes
        )
        distances = distances / scale
        free = ~far & (centroids == 0)
        distances = torch.where(free, 0.0, distances)
        slopes = torch.where(free, 0.0, slopes)
    soft = torch.softmax(-distances / TEMPERATURE, dim=1)
    value = (soft * distances).sum(1)
    mean_slope = (soft * slopes).sum(1)
    return (
        value,
        mean_slope
        + (mean_slope * value - (soft * distances * slopes).sum(1)) / TEMPERATURE,
    )


def _dense_in_chunks(
    weights: Tensor,
    side: Tensor,
    centroids: Tensor,
    distance: Distance,
    zero_distance: float,
) -> tuple[Tensor, Tensor]:
    rows = max(1, _DENSE_CELLS // max(1, len(centroids)))
    pairs = zip(weights.split(rows), side.split(rows), strict=True)
    parts = [dense(w, centroids, distance, zero_distance, s) for w, s in pairs]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


@dataclass(frozen=True)
class PullTable:
    """f and its slope between breaks.

    Attributes:
        reach: B, in the weights' unit.
        breaks: ends of the segments (S + 1,), ascending, as places x.
        values, slopes: f and df/dx at the knots, (S · (cells + 1),), float32.
        cells: equal cells of each segment.
    """

    distance: Distance
    zero_distance: float
    reach: float
    breaks: Tensor
    values: Tensor
    slopes: Tensor
    cells: int

    @classmethod
    def build(
        cls, centroids: Tensor, largest: float, distance: Distance, zero_distance: float
    ) -> "PullTable":
        """Tabulate f, with the weights' own values as places up to `largest` at least.

        Raises:
            ValueError: no centroid.
        """
        if centroids.numel() == 0:
            raise ValueError("the regulariser needs at least one centroid")
        exact = centroids.double()
        reach = max(largest, float(centroids.abs().max()))
        if distance == "relative":
            reach = max(reach, zero_distance)
        marks = [-reach, reach]
        if distance == "relative":
            marks += [-zero_distance, zero_distance]
            steps = [1 - i / _TAIL_SEGMENTS for i in range(1, _TAIL_SEGMENTS)]
            tail = [reach * (2 - u) for u in (*steps, _TAIL_END)]
            marks += [sign * x for x in tail for sign in (-1, 1)]
        breaks = torch.cat([exact, exact.new_tensor(marks)]).unique()
        cells = 8
        while True:
            table = cls._tabulated(exact, breaks, distance, zero_distance, reach, cells)
            if cells >= 1024 or table._error(exact, breaks) <= TOLERANCE:
                return table
            cells *= 2

    @classmethod
    def _tabulated(
        cls,
        centroids: Tensor,
        breaks: Tensor,
        distance: Distance,
        zero_distance: float,
        reach: float,
        cells: int,
    ) -> "PullTable":
        low = breaks[:-1, None]
        width = breaks.diff()[:, None]
        steps = torch.linspace(
            0, 1, cells + 1, dtype=torch.float64, device=breaks.device
        )
        knots = (low + width * steps).reshape(-1)
        middle = (low + width / 2).expand(-1, cells + 1).reshape(-1)
        values, slopes = _dense_in_chunks(
            _weight_at(knots, reach),
            _weight_at(middle, reach),
            centroids,
            distance,
            zero_distance,
        )
        return cls(
            distance,
            zero_distance,
            reach,
            breaks.float(),
            values.float(),
            (slopes * _rate_at(knots, reach)).float(),
            cells,
        )

    def _error(self, centroids: Tensor, breaks: Tensor) -> float:
        """Largest difference to the dense formula off the knots, relative to the size of f
        and of f'.
        """
        low = breaks[:-1, None]
        width = breaks.diff()[:, None]
        at = (
            torch.arange(self.cells, dtype=torch.float64, device=breaks.device) + 0.37
        ) / self.cells
        points = (low + width * at).reshape(-1)
        weights = _weight_at(points, self.reach)
        value, slope = _dense_in_chunks(
            weights, weights, centroids, self.distance, self.zero_distance
        )
        slope = slope * _rate_at(points, self.reach)
        segment = torch.arange(len(width), device=breaks.device).repeat_interleave(
            self.cells
        )
        cell = torch.arange(self.cells, device=breaks.device).repeat(len(width))
        t = torch.full_like(points, 0.37)
        value_here = self._value(segment, cell, t, width[segment, 0] / self.cells)
        slope_here = self._slope(segment, cell, t)
        errors = [
            (value_here - value).abs() / (value.abs() + 1e-2),
            (slope_here - slope).abs() / (slope.abs() + 0.05),
        ]
        return max(float(e.max()) for e in errors)

    def _value(self, segment: Tensor, cell: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Cubic Hermite of f in a cell of width h, at t in [0, 1]."""
        i = segment * (self.cells + 1) + cell
        v0 = self.values[i]
        v1 = self.values[i + 1]
        rise = v1 - v0
        u = 1 - t
        return (
            v0 * u
            + v1 * t
            + t
            * u
            * ((self.slopes[i] * h - rise) * u + (rise - self.slopes[i + 1] * h) * t)
        )

    def _slope(self, segment: Tensor, cell: Tensor, t: Tensor) -> Tensor:
        """Cubic through the four knots around the cell: a derivative of `_value` would lose
        digits.
        """
        first = (cell - 1).clamp(0, self.cells - 3)
        i = segment * (self.cells + 1) + first
        x = t + (cell - first)
        x1 = x - 1
        x2 = x - 2
        x3 = x - 3
        outer = self.slopes[i + 3] * (x * x1 * x2) - self.slopes[i] * (x1 * x2 * x3)
        inner = self.slopes[i + 1] * (x * x2 * x3) - self.slopes[i + 2] * (x * x1 * x3)
        return outer / 6 + inner / 2

    def read(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """f and f' of weights (n,), float32."""
        # on the CPU asking is cheaper than computing, on an accelerator it is not
        on_cpu = weights.device.type == "cpu"
        if on_cpu and not bool((weights.abs() > self.reach).any()):
            return self._at(weights)
        x = weights.clamp(-self.reach, self.reach)
        beyond = weights.abs() - x.abs()  # 0 up to the reach
        if self.distance == "euclidean":
            value, slope = self._at(x)
            return value + beyond, slope
        inverse = self.reach / weights.abs().clamp_min(self.reach)  # 1 up to the reach
        tail = torch.sign(weights) * (self.reach * (2 - inverse.clamp_min(_TAIL_END)))
        value, slope = self._at(torch.where(beyond > 0, tail, x))
        return value, slope * inverse.square()

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f and df/dx at places x (n,)."""
        segment = (torch.bucketize(x, self.breaks, right=True) - 1).clamp_(
            0, len(self.breaks) - 2
        )
        low = self.breaks[segment]
        h = (self.breaks.diff() / self.cells)[segment]
        position = (x - low) / h.clamp_min(1e-30)
        cell = position.floor().clamp_(0, self.cells - 1)
        t = (position - cell).clamp_(0, 1)
        cell = cell.long()
        return self._value(segment, cell, t, h), self._slope(segment, cell, t)


def _weight_at(x: Tensor, reach: float) -> Tensor:
    """The weight whose place is x, |x| < 2B."""
    tail = torch.sign(x) * (
        reach**2 / (2 * reach - x.abs()).clamp_min(reach * _TAIL_END / 2)
    )
    return torch.where(x.abs() > reach, tail, x)


def _rate_at(x: Tensor, reach: float) -> Tensor:
    """dw/dx at place x."""
    return torch.where(x.abs() > reach, (_weight_at(x, reach) / reach).square(), 1.0)


class _Pull(torch.autograd.Function):
    """Sums of f over each of several tensors, with f' kept for the backward pass: n floats,
    nothing recomputed.
    """

    @staticmethod
    def forward(ctx: Any, table: PullTable, *parts: Tensor) -> Tensor:
        limit = CHUNK if parts[0].device.type == "cpu" else ACCELERATOR_CHUNK
        sums = [part.new_zeros((), dtype=torch.float64) for part in parts]
        ctx.sizes = [len(part) for part in parts]
        slopes = parts[0].new_empty(sum(ctx.sizes))
        done = 0
        for batch in _batches(ctx.sizes, limit):
            pieces = [parts[i][start:stop] for i, start, stop in batch]
            value, slope = table.read(torch.cat(pieces))
            slopes[done : done + len(slope)] = slope
            done += len(slope)
            values = value.split([len(piece) for piece in pieces])
            for (i, _, _), piece in zip(batch, values, strict=True):
                sums[i] = sums[i] + piece.double().sum()
        ctx.save_for_backward(slopes)
        return torch.stack(sums).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        each = zip(slopes.split(ctx.sizes), gradients[0].unbind(), strict=True)
        return None, *(slope * gradient for slope, gradient in each)


def _batches(sizes: list[int], limit: int) -> Iterator[list[tuple[int, int, int]]]:
    """Cut tensors of these sizes into pieces (number, start, stop) of at most `CHUNK`
    weights, and put pieces of at most `limit` weights together.
    """
    batch: list[tuple[int, int, int]] = []
    free = limit
    for number, size in enumerate(sizes):
        for start in range(0, size, CHUNK):
            stop = min(start + CHUNK, size)
            if stop - start > free:
                yield batch
                batch = []
                free = limit
            batch.append((number, start, stop))
            free -= stop - start
    if batch:
        yield batch


def pull_each(parts: Sequence[Tensor], table: PullTable) -> Tensor:
    """Σ f over each of `parts`, (k,) float32, differentiable in them; nothing waits for an
    accelerator.

    Args:
        parts: at least one tensor, (n_i,) float32 with n_i > 0 each.
    """
    result: Tensor = _Pull.apply(table, *parts)
    return result


def pull(weights: Tensor, table: PullTable) -> Tensor:
    """Σ f over weights of any shape (float32), differentiable in them."""
    if weights.numel() == 0:
        return weights.sum()
    return pull_each([weights.reshape(-1)], table)[0]
