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
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self.distributions = dict(sorted(distributions.items()))
        self.is_label = np.array(
            [_ends_of(d) is None for d in self.distributions.values()], dtype=bool
        )

    def encoded(self, draws: Sequence[Mapping[str, Any]]) -> Floats:
        rows = [
            [
                _position(distribution, draw[name]) if name in draw else math.nan
                for name, distribution in self.distributions.items()
            ]
            for draw in draws
        ]
        return np.array(rows, dtype=np.float64).reshape(
            len(draws), len(self.distributions)
        )

    def similarity(self, a: Floats, b: Floats) -> Floats:
        """(n, m) kernel between encoded draws (n, d) and (m, d)."""
        if not a.shape[1]:
            return np.ones((len(a), len(b)))
        total = np.zeros((len(a), len(b)))
        product = np.ones_like(total)
        for column, is_label in enumerate(self.is_label):
            x, y = a[:, column, None], b[None, :, column]
            own = (x == y) if is_label else np.exp(-(((x - y) / _LENGTH) ** 2) / 2)
            lacking = np.isnan(x) | np.isnan(y)
            each = np.where(lacking, np.isnan(x) & np.isnan(y), own)
            total += each
            product *= each
        return np.asarray((total / a.shape[1] + product) / 2)


def _ends_of(distribution: BaseDistribution) -> tuple[float, float, bool] | None:
    """Least and largest number and whether their scale is logarithmic; None of labels. A list
    of numbers is a range, on a logarithmic scale where all are positive.
    """
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if any(isinstance(c, bool) or not isinstance(c, int | float) for c in choices):
            return None
        numbers = [float(c) for c in choices if isinstance(c, int | float)]
        return min(numbers), max(numbers), min(numbers) > 0
    assert isinstance(distribution, FloatDistribution | IntDistribution), distribution
    return distribution.low, distribution.high, distribution.log


def _position(distribution: BaseDistribution, value: Any) -> float:
    """A label's index, or where a number lies in its range, from 0 to 1."""
    ends = _ends_of(distribution)
    if ends is None:
        assert isinstance(distribution, CategoricalDistribution), distribution
        return float(distribution.choices.index(value))
    low, high, is_log = ends
    x = float(value)
    if is_log:
        low, x, high = math.log(low), math.log(x), math.log(high)
    return (x - low) / (high - low) if high > low else 0.0


class Surrogate:
    """Posterior of several quantities that were observed at the same draws."""

    def __init__(
        self, encoder: Encoder, draws: Sequence[Mapping[str, Any]], values: Floats
    ) -> None:
        """`values` are (n, q), at least one row."""
        self.encoder = encoder
        self._x = encoder.encoded(draws)
        self._center = values.mean(axis=0)
        spread = values.std(axis=0)
        self._scale = np.where(spread > 0, spread, 1.0)
        standard = (values - self._center) / self._scale
        kernel = encoder.similarity(self._x, self._x)
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

    def predicted(self, draws: Sequence[Mapping[str, Any]]) -> tuple[Floats, Floats]:
        """(m, q) means and standard deviations, of the noiseless quantities."""
        cross = self.encoder.similarity(self.encoder.encoded(draws), self._x)
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
