"""A small Gaussian process over configurations: what a stage will take, what a trial may gain.

Legend
    k_j    similarity of two configurations in parameter j: exp(-(x - x')^2 / 2 l^2) of numbers on
           their own (logarithmic) scale from 0 to 1; 1 or 0 of equal or different labels, and of a
           parameter that both lack or one
    K      half the mean of all k_j, half their product: main effects and all interactions
    λ      noise beside K's diagonal of 1: of a few, the one with the least leave-one-out error
    mean, variance   of the posterior, of observations that were standardised
    EI     expected improvement below the best, E[max(0, best - y)]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Floats = NDArray[np.float64]

_LENGTH = 0.3
_NOISES = (1e-3, 1e-2, 1e-1, 1.0)


class Encoder:
    """Draws as numbers: (n, d), one column for each of Optuna's parameters; NaN where a draw
    lacks it.

    Attributes:
        distributions: of the parameters, in the order of the columns.
        is_label: (d,) whether a parameter has labels and no numbers.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self.distributions = dict(sorted(distributions.items()))
        self._scales = {n: _scale_of(d) for n, d in self.distributions.items()}
        self.is_label = np.array(
            [isinstance(scale, dict) for scale in self._scales.values()], dtype=bool
        )

    def encoded(self, draws: Sequence[Mapping[str, Any]]) -> Floats:
        rows = [
            [
                _position(scale, draw[name]) if name in draw else math.nan
                for name, scale in self._scales.items()
            ]
            for draw in draws
        ]
        return np.array(rows, dtype=np.float64).reshape(len(draws), len(self._scales))

    def similarity(
        self, a: Floats, b: Floats, columns: Sequence[int] | None = None
    ) -> Floats:
        """(n, m) kernel between encoded draws (n, d) and (m, d), of all or some parameters."""
        chosen = range(a.shape[1]) if columns is None else columns
        if not len(chosen):
            return np.ones((len(a), len(b)))
        total = np.zeros((len(a), len(b)))
        product = np.ones_like(total)
        for column in chosen:
            is_label = self.is_label[column]
            x, y = a[:, column, None], b[None, :, column]
            own = (x == y) if is_label else np.exp(-(((x - y) / _LENGTH) ** 2) / 2)
            lacking = np.isnan(x) | np.isnan(y)
            each = np.where(lacking, np.isnan(x) & np.isnan(y), own)
            total += each
            product *= each
        return np.asarray((total / len(chosen) + product) / 2)


Scale = dict[Any, float] | tuple[float, float, bool]
"""Of labels: their indices. Of numbers: least, largest, and whether the scale is logarithmic."""


def _scale_of(distribution: BaseDistribution) -> Scale:
    """The scale of a parameter; a list of numbers is a range, logarithmic if all are positive."""
    if not isinstance(distribution, CategoricalDistribution):
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        return distribution.low, distribution.high, distribution.log
    choices = distribution.choices
    numbers = [float(c) for c in choices if isinstance(c, int | float)]
    if len(numbers) < len(choices) or any(isinstance(c, bool) for c in choices):
        return {choice: float(index) for index, choice in enumerate(choices)}
    return min(numbers), max(numbers), min(numbers) > 0


def _position(scale: Scale, value: Any) -> float:
    """A label's index, or where a number lies in its range, from 0 to 1."""
    if isinstance(scale, dict):
        return scale[value]
    low, high, is_log = scale
    if high <= low:
        return 0.0
    if is_log:
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


class Surrogate:
    """Posterior of several quantities that were observed at the same draws."""

    def __init__(
        self,
        encoder: Encoder,
        x: Floats,
        values: Floats,
        columns: Sequence[int] | None = None,
    ) -> None:
        """Learn from at least one row.

        Args:
            x: (n, d) encoded draws.
            values: (n, q) what was observed there.
            columns: of the parameters that decide it; default: all.
        """
        self._encoder, self._x, self._columns = encoder, x, columns
        self._center = values.mean(axis=0)
        spread = values.std(axis=0)
        self._scale = np.where(spread > 0, spread, 1.0)
        standard = (values - self._center) / self._scale
        kernel = encoder.similarity(x, x, columns)
        eigen, self._vectors = np.linalg.eigh(kernel)
        rotated = self._vectors.T @ standard
        best = np.full(values.shape[1], np.inf)
        self._alpha = np.zeros_like(standard)
        self._inverse = np.ones((values.shape[1], len(eigen)))
        for noise in _NOISES:
            inverse = 1 / (np.maximum(eigen, 0.0) + noise)
            alpha = self._vectors @ (inverse[:, None] * rotated)
            diagonal = (self._vectors**2 * inverse).sum(axis=1)
            error = ((alpha / diagonal[:, None]) ** 2).sum(axis=0)
            take = error < best
            best = np.where(take, error, best)
            self._alpha[:, take] = alpha[:, take]
            self._inverse[take] = inverse
        quadratic = (standard * self._alpha).mean(axis=0)
        self._amplitude = np.maximum(quadratic, 1e-6)

    def predicted(self, x: Floats) -> tuple[Floats, Floats]:
        """(m, q) means and standard deviations of the noiseless quantities at encoded draws."""
        cross = self._encoder.similarity(x, self._x, self._columns)
        mean = cross @ self._alpha
        rotated = (cross @ self._vectors) ** 2
        left = np.maximum(1 - rotated @ self._inverse.T, 1e-9)
        sd = np.sqrt(left * self._amplitude)
        return self._center + self._scale * mean, self._scale * sd


def expected_improvement(mean: Floats, sd: Floats, best: Floats) -> Floats:
    """EI of quantities to minimise; all broadcast."""
    from scipy.special import ndtr

    z = (best - mean) / sd
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return np.asarray((best - mean) * ndtr(z) + sd * density)
