"""How much of an objective's variation parameters explain out of sample, and whether chance does.

Legend
    x      (n, d) parameters of n configurations: ranks of numbers, scaled to [0, 1], or labels
    y      (n, k) objectives, centred
    K      (n, n) kernel: half the mean over parameters of k(x, x'), half their product, where k is
           exp(-(x - x')^2 / 2 l^2) of numbers and 1 or 0 of equal or different labels
    H      (n, n) smoother of kernel ridge regression, K (K + λI)^-1
    r      leave-one-out residuals of a linear smoother: (y - H y) / (1 - diag H)
    R2     1 - Σ r^2 / Σ (y - mean of the others)^2, the best over four λ; below 0: nothing

Since H depends on x alone, a permutation of y costs one matrix product, and the same best-of-four
is taken of it: so the null distribution contains the choice of λ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.pareto import Floats

Codes = NDArray[np.int64]
Column = Floats | Codes
"""(n,) a parameter: floats are numbers, integers are labels."""

PERMUTATIONS = 199
_OF_COLUMN = 19
_LENGTH = 0.3
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


def explained(x: Sequence[Column], y: Floats) -> Floats:
    """(k,) R2 of each objective, at least 0."""
    return np.asarray(np.maximum(_r2(_kernel(x), _centred(y)), 0.0))


def chance(x: Sequence[Column], y: Floats, rng: np.random.Generator) -> Floats:
    """(k,) probability that parameters that decide nothing explain as much of one of the
    objectives, of whichever most.

    Rows of `y` are permuted together, so that what objectives have in common stays.
    """
    kernel, y = _kernel(x), _centred(y)
    n, k = y.shape
    orders = np.stack([rng.permutation(n) for _ in range(PERMUTATIONS)])
    shuffled = y[orders].transpose(1, 0, 2).reshape(n, -1)  # (n, permutations · k)
    null = _r2(kernel, shuffled).reshape(PERMUTATIONS, k).max(axis=1)
    beaten = (null[:, None] >= _r2(kernel, y)).sum(axis=0)
    return np.asarray((1 + beaten) / (PERMUTATIONS + 1))


def chance_of_column(
    x: Sequence[Column], y: Floats, column: int, rng: np.random.Generator
) -> float:
    """Probability that a parameter adds as much to what the others explain of `y` (n,) by chance.

    Its values are permuted; it is given up as soon as a permutation does as well.
    """
    y = _centred(y[:, None])
    own = _r2(_kernel(x), y)[0]
    beaten = 0
    for number in range(_OF_COLUMN):
        shuffled = [*x]
        shuffled[column] = rng.permutation(x[column])
        beaten += int(_r2(_kernel(shuffled), y)[0] >= own)
        if beaten:
            return float((1 + beaten) / (number + 2))
    return float((1 + beaten) / (_OF_COLUMN + 1))


def _kernel(x: Sequence[Column]) -> Floats:
    each = [_similarity(column) for column in x]
    return np.asarray((np.mean(each, axis=0) + np.prod(each, axis=0)) / 2)


def _similarity(column: Column) -> Floats:
    if column.dtype.kind == "i":
        return np.asarray(column[:, None] == column, dtype=np.float64)
    ranks = np.unique(column, return_inverse=True)[1]
    scaled = ranks / max(ranks.max(), 1)
    return np.asarray(np.exp(-(((scaled[:, None] - scaled) / _LENGTH) ** 2) / 2))


def _centred(y: Floats) -> Floats:
    return y - y.mean(axis=0)


def _r2(kernel: Floats, y: Floats) -> Floats:
    """(m,) R2 of the columns of `y` (n, m)."""
    n = len(y)
    # the regression has an intercept: kernel and objectives are centred
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(centring @ kernel @ centring)
    values = np.maximum(values, 0.0)
    rotated = vectors.T @ y
    total = ((y * n / (n - 1)) ** 2).sum(axis=0)
    best = np.full(y.shape[1], -np.inf)
    for ridge in _RIDGES:
        kept = values / (values + ridge * n)
        own = (vectors**2 * kept).sum(axis=1) + 1 / n
        left = (y - vectors @ (kept[:, None] * rotated)) / (1 - own)[:, None]
        share = 1 - np.divide(
            (left**2).sum(axis=0), total, out=np.ones_like(total), where=total > 0
        )
        best = np.maximum(best, share)
    return best
