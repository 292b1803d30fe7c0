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
"""

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
_DENSE_CELLS = 1 << 22

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
    distances, slopes = gap * sign, sign
    if distance == "relative":
        far = (side.abs() > zero_distance)[:, None]
        scale = torch.where(far, weights.abs()[:, None], 1.0)
        # d/dw |1 − c/w| = sign(1 − c/w) · c/w²
        slopes = torch.where(
            far, sign * torch.sign(side)[:, None] * centroids / scale**2, slopes
        )
        distances = distances / scale
        free = ~far & (centroids == 0)
        distances, slopes = (
            torch.where(free, 0.0, distances),
            torch.where(free, 0.0, slopes),
        )
    soft = torch.softmax(-distances / TEMPERATURE, dim=1)
    value, mean_slope = (soft * distances).sum(1), (soft * slopes).sum(1)
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
    """f and f' between breaks.

    Attributes:
        breaks: ends of the segments (S + 1,), ascending.
        values, slopes: f and f' at the knots, (S · (cells + 1),), float32; slopes per unit of w.
        cells: equal cells of each segment.
    """

    centroids: Tensor
    distance: Distance
    zero_distance: float
    breaks: Tensor
    values: Tensor
    slopes: Tensor
    cells: int

    @classmethod
    def build(
        cls, centroids: Tensor, largest: float, distance: Distance, zero_distance: float
    ) -> "PullTable":
        """Tabulate for weights of magnitude up to `largest`; those beyond are computed
        densely when asked for.

        Raises:
            ValueError: no centroid.
        """
        if centroids.numel() == 0:
            raise ValueError("the regulariser needs at least one centroid")
        exact = centroids.double()
        marks = [
            exact,
            torch.tensor([-largest, largest], dtype=torch.float64, device=exact.device),
        ]
        if distance == "relative":
            marks.append(
                torch.tensor(
                    [-zero_distance, zero_distance],
                    dtype=torch.float64,
                    device=exact.device,
                )
            )
        breaks = torch.cat(marks).unique()
        cells = 8
        while True:
            table = cls._tabulated(exact, breaks, distance, zero_distance, cells)
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
        cells: int,
    ) -> "PullTable":
        low, width = breaks[:-1, None], breaks.diff()[:, None]
        steps = torch.linspace(
            0, 1, cells + 1, dtype=torch.float64, device=breaks.device
        )
        knots = (low + width * steps).reshape(-1)
        middle = (low + width / 2).expand(-1, cells + 1).reshape(-1)
        values, slopes = _dense_in_chunks(
            knots, middle, centroids, distance, zero_distance
        )
        return cls(
            centroids.float(),
            distance,
            zero_distance,
            breaks.float(),
            values.float(),
            slopes.float(),
            cells,
        )

    def _error(self, centroids: Tensor, breaks: Tensor) -> float:
        """Largest difference to the dense formula off the knots, relative to the size of f
        and of f'.
        """
        low, width = breaks[:-1, None], breaks.diff()[:, None]
        at = (
            torch.arange(self.cells, dtype=torch.float64, device=breaks.device) + 0.37
        ) / self.cells
        points = (low + width * at).reshape(-1)
        value, slope = _dense_in_chunks(
            points, points, centroids, self.distance, self.zero_distance
        )
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
        v0, v1 = self.values[i], self.values[i + 1]
        rise, u = v1 - v0, 1 - t
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
        i, x = segment * (self.cells + 1) + first, t + (cell - first)
        x1, x2, x3 = x - 1, x - 2, x - 3
        outer = self.slopes[i + 3] * (x * x1 * x2) - self.slopes[i] * (x1 * x2 * x3)
        inner = self.slopes[i + 1] * (x * x2 * x3) - self.slopes[i + 2] * (x * x1 * x3)
        return outer / 6 + inner / 2

    def read(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """f and f' of weights (n,), float32."""
        segment = (torch.bucketize(weights, self.breaks, right=True) - 1).clamp_(
            0, len(self.breaks) - 2
        )
        low, h = self.breaks[segment], (self.breaks.diff() / self.cells)[segment]
        position = (weights - low) / h.clamp_min(1e-30)
        cell = position.floor().clamp_(0, self.cells - 1)
        t, cell = (position - cell).clamp_(0, 1), cell.long()
        value, slope = self._value(segment, cell, t, h), self._slope(segment, cell, t)
        beyond = (weights < self.breaks[0]) | (weights > self.breaks[-1])
        if bool(beyond.any()):
            far = weights[beyond].double()
            exact = _dense_in_chunks(
                far, far, self.centroids.double(), self.distance, self.zero_distance
            )
            value[beyond], slope[beyond] = exact[0].float(), exact[1].float()
        return value, slope


class _Pull(torch.autograd.Function):
    """Sum of f, with f' kept for the backward pass: n floats, nothing recomputed."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, table: PullTable) -> Tensor:
        slopes = torch.empty_like(weights)
        total = torch.zeros((), dtype=torch.float64, device=weights.device)
        for part, slope in zip(weights.split(CHUNK), slopes.split(CHUNK), strict=True):
            value, slope[:] = table.read(part)
            total += value.double().sum()
        ctx.save_for_backward(slopes)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0], None


def pull(weights: Tensor, table: PullTable) -> Tensor:
    """Σ f over weights of any shape (float32), differentiable in them."""
    if weights.numel() == 0:
        return weights.sum()
    result: Tensor = _Pull.apply(weights.reshape(-1), table)
    return result
