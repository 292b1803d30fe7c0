"""How sure a front is: the probability that a configuration is on it, from measured noise.

Legend
    m_c, n_c   mean of an objective over the n_c seeds of configuration c, and their number
    s2_c       variance of one trial of c about its true mean
    s2_0, d_0  what is expected of s2_c before its own seeds are looked at, and with how many
               degrees of freedom it counts
    t2         variance of the true means, over configurations, about their common mean

The variance of one trial is estimated as Smyth does for genes (Linear models and empirical Bayes
methods, 2004, section 3), whose few replicates are alike: s2_c = (d_0 s2_0 + sum of squares of
c) / (d_0 + n_c - 1). Here s2_0 pools all configurations with several seeds; where there are few,
an accuracy's s2_0 is mostly the binomial variance p (1 - p) / N of the N images that were
evaluated, which also is what a run without any replicates goes by. Of a metric that counts each
class for itself N are the images of the rarest class: for two classes no area under a ROC curve
varies more (Birnbaum and Klose, Bounds for the variance of the Mann-Whitney statistic, 1957), nor
does a balanced accuracy. Where an accuracy is compared with the source's, the images that only one
of the two recognises count instead (`analysis.paired`). A latency varies by its measured quartiles
at least, a throughput as much in proportion, and a ratio of latencies by its measured interval.
What is left is exact.

A plausible true mean is a draw of Student's t about m_c, after m_c was drawn in towards the
common mean as far as t2 and s2_c / n_c say (James and Stein): of many that are measured with an
error, the best is the luckiest. What the n means say of t2 + s2_c / n_c has n - 1 degrees of
freedom; so each draw takes a t2 that may be behind them, under a flat prior of the logarithm of
that sum where t2 is positive. One estimate for all draws, which may be 0, would say that all are
equal for certain. Of fewer than four configurations t2 is unknown, and nothing is drawn in.
The probability is the share of draws in which a configuration is on the front. Which images were
held out is an error that all configurations share; it moves the front as a whole, and is no part
of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import chi2

from analysis import pareto
from analysis.configurations import objective_values
from analysis.contract import Objective
from analysis.fronts import measured_values, noise_columns
from analysis.metrics import TEST_PREFIX
from analysis.paired import Paired
from analysis.pareto import Floats

DRAWS = 1000
"""Draws of a run of few configurations."""
_MOST_VALUES = 2_000_000
_QUICK_OBJECTIVES = 3
"""Up to so many a front is found without comparing each configuration with each."""
_MOST_COMPARISONS = 4_000_000_000
"""Of pairs of configurations, in all draws: some seconds."""
_FEWEST_DRAWS = 40
_PRIOR_FREEDOM = 8.0
"""d_0; its own three seeds then count for a fifth of a configuration's variance."""
_FEWEST_FOR_A_COMMON_MEAN = 4
"""Configurations from which shrinking towards their own mean helps (Efron and Morris, 1973)."""
_LEAST_SHARE = 1e-100
"""Of chi2's distribution, with which its quantiles are still exact."""
_AS_GOOD_AS_NORMAL = 1e6
"""Degrees of freedom with which Student's t cannot be told from a normal distribution."""
_QUARTILES = 1.349
"""Between the quartiles of a normal distribution, in standard deviations."""
_INTERVAL = 2 * 1.96
"""Between the ends of an interval of 95 %."""
_OF_IMAGES = ("accuracy", "top5_accuracy")
"""Shares of the images."""
_OF_RUNTIME = "runtime_accuracy"
"""Ends the name of such a share in a runtime; several runtimes have a prefix each."""
_BY_CLASS = {"auroc", "balanced_accuracy", "f1_macro"}
"""Shares that count each class for itself."""
CERTAIN = 0.95
"""Probability from which something is called certain."""


def plausible_values(
    rows: pd.DataFrame,
    objectives: Sequence[Objective],
    classes: pd.DataFrame,
    draws: int,
) -> Floats:
    """(draws, n, k) objectives as they may truly be; the same for the same run.

    Args:
        rows: (n) configurations.
        classes: of the run, for the number of images.
    """
    values = objective_values(rows, objectives)
    variances, freedom = error_variances(rows, objectives, classes)
    return drawn(values, variances, freedom, draws)


def worst_values(
    rows: pd.DataFrame, objectives: Sequence[Objective], classes: pd.DataFrame
) -> Floats:
    """(n, k) objectives of which one plausible value in twenty is worse."""
    values = plausible_values(rows, objectives, classes, DRAWS)
    signs = np.array([objective.sign for objective in objectives])
    return np.asarray(np.quantile(values * signs, 0.95, axis=0) * signs)


def drawn(values: Floats, variances: Floats, freedom: Floats, draws: int) -> Floats:
    """(draws, n, k) plausible true means.

    Args:
        values: (n, k) measured means.
        variances: (n, k) of their errors, 0 of an exact one.
        freedom: (n, k) degrees of freedom of these variances.
    """
    rng = np.random.default_rng(0)
    # NumPy draws NaN for infinitely many degrees of freedom
    known = np.minimum(freedom, _AS_GOOD_AS_NORMAL)
    noise = rng.standard_t(known, size=(draws, *values.shape))
    if len(values) < _FEWEST_FOR_A_COMMON_MEAN:
        return values + noise * np.sqrt(variances)
    truth = _drawn_truth(values, variances.mean(axis=0), draws, rng)
    total = truth[:, None] + variances
    # what is exact stays as it is
    kept = np.divide(truth[:, None], total, out=np.ones_like(total), where=total > 0)
    center = np.nanmean(values, axis=0)
    means = center + kept * (values - center)
    return means + noise * np.sqrt(kept * variances)


def _drawn_truth(
    values: Floats, error: Floats, draws: int, rng: np.random.Generator
) -> Floats:
    """(draws, k) plausible t2: S (n - 1) / chi2 less the error, S the variance of the means, and
    chi2 so small that something is left.

    Args:
        error: (k,) mean variance of the errors.
    """
    freedom = len(values) - 1
    squares = freedom * np.nanvar(values, axis=0, ddof=1)
    most = np.divide(squares, error, out=np.full_like(squares, np.inf), where=error > 0)
    below = chi2.cdf(most, freedom)
    quantile = rng.uniform(size=(draws, len(squares)))
    found = chi2.ppf(quantile * below, freedom)
    # where the means differ by less than their errors do, the density is that of a power
    tiny = most * quantile ** (2 / freedom)
    found = np.where(below < _LEAST_SHARE, tiny, found)
    total = np.divide(squares, found, out=np.zeros_like(found), where=found > 0)
    return np.asarray(np.maximum(total - error, 0.0))


def error_variances(
    rows: pd.DataFrame,
    objectives: Sequence[Objective],
    classes: pd.DataFrame,
    paired: Mapping[str, Paired] | None = None,
) -> tuple[Floats, Floats]:
    """(n, k) variances of the errors of configurations' means, and their degrees of freedom.

    Args:
        paired: metric → errors of the (n) differences to the source, for those that are compared
            with it.
    """
    n = rows["replicates"].to_numpy(dtype=np.float64)
    variances = np.zeros((len(rows), len(objectives)))
    freedom = np.full_like(variances, np.inf)
    for column, objective in enumerate(objectives):
        sd = rows[f"sd/{objective.metric}"].to_numpy(dtype=np.float64, na_value=np.nan)
        squares = np.where(n > 1, np.nan_to_num(sd) ** 2 * (n - 1), 0.0)
        if paired and objective.metric in paired:
            expected: Floats | None = paired[objective.metric].variance
        else:
            expected = _binomial(rows, objective, classes)
        single, own_freedom = _shrunk(squares, n - 1, expected)
        variances[:, column] = single / n
        freedom[:, column] = own_freedom
        timed = _timed(rows, objective)
        variances[:, column] = np.maximum(variances[:, column], timed)
    return variances, freedom


def _timed(rows: pd.DataFrame, objective: Objective) -> Floats:
    """(n,) variance of a time, of what is made of it, by the passes measured; 0 of what is none."""
    found = measured_values(rows, noise_columns(objective))
    if not found:
        return np.zeros(len(rows))
    low, high, *latency = found
    if objective.metric.endswith("_ratio"):
        return np.asarray(np.nan_to_num((high - low) / _INTERVAL) ** 2)
    deviation = (high - low) / _QUARTILES
    if latency:  # of a throughput: as many parts of it as of the latency
        whole = objective_values(rows, [objective])[:, 0]
        deviation = deviation / latency[0] * whole
    return np.asarray(np.nan_to_num(deviation) ** 2)


def _shrunk(
    squares: Floats, own: Floats, expected: Floats | None
) -> tuple[Floats, Floats]:
    """(n,) variance of one trial and its degrees of freedom.

    Args:
        squares: (n,) sum of squares of each configuration about its mean.
        own: (n,) its degrees of freedom, seeds less one.
        expected: (n,) what is expected without any replicates; None: nothing.
    """
    pooled_freedom = own.sum()
    if expected is None and not pooled_freedom:
        return np.zeros_like(squares), np.full_like(squares, np.inf)
    first = 0.0 if expected is None else _PRIOR_FREEDOM
    pooled = squares.sum() + first * (0.0 if expected is None else expected.mean())
    # what is expected differs between configurations, as an accuracy's error with the accuracy
    shape = np.ones_like(squares)
    if expected is not None and expected.mean() > 0:
        shape = expected / expected.mean()
    before = pooled / (first + pooled_freedom) * shape
    freedom = _PRIOR_FREEDOM + own
    variance = (_PRIOR_FREEDOM * before + squares) / freedom
    return variance, np.where(pooled_freedom > 0, freedom, np.inf)


def _counting_column(metric: str, classes: pd.DataFrame) -> str | None:
    """The column of `classes` that counts the images of a share; None of another metric, or where
    nothing was counted.
    """
    name = metric.removeprefix(TEST_PREFIX)
    column = "images" if name == metric else "test_images"
    is_share = name in (*_OF_IMAGES, *_BY_CLASS) or name.endswith(_OF_RUNTIME)
    return column if is_share and column in classes and len(classes) else None


def _binomial(
    rows: pd.DataFrame, objective: Objective, classes: pd.DataFrame
) -> Floats | None:
    """(n,) p (1 - p) / N of a share of N images; None of another metric or without a count."""
    column = _counting_column(objective.metric, classes)
    if column is None:
        return None
    images = classes.groupby("trial_id")[column]
    by_class = objective.metric.removeprefix(TEST_PREFIX) in _BY_CLASS
    if by_class:  # a class without an image says nothing, whatever the others say
        images = classes[classes[column] > 0].groupby("trial_id")[column]
    count = float((images.min() if by_class else images.sum()).median())
    if not count > 0:
        return None
    values = rows[f"metric/{objective.metric}"]
    # one success and one failure more (Laplace): of 20 images all right is not certain
    right = values.to_numpy(dtype=np.float64, na_value=np.nan) * count + 1
    share = right / (count + 2)
    return np.asarray(share * (1 - share) / count)


def front_probability(values: Floats, objectives: Sequence[Objective]) -> Floats:
    """(n,) share of draws, `values` (draws, n, k), in which a configuration is on the front."""
    masks = [pareto.front_mask(each, objectives) for each in values]
    return np.mean(masks, axis=0) if masks else np.zeros(values.shape[1])


def bounds_probability(
    rows: pd.DataFrame,
    objectives: Sequence[Objective],
    classes: pd.DataFrame,
    paired: Mapping[str, Paired] | None = None,
) -> Floats:
    """(n,) probability that a configuration's true objectives keep all bounds.

    Each configuration is judged by its own measurements: a bound is fixed, so nothing is drawn in
    towards the others' mean, which few configurations would give badly. From a difference to the
    source is taken what choosing the best flatters it by.

    Args:
        rows, classes: as in `plausible_values`.
        paired: as in `error_variances`, of metrics whose bounds are relative to the source.
    """
    values = objective_values(rows, objectives)
    variances, freedom = error_variances(rows, objectives, classes, paired)
    chances = np.ones(len(rows))
    for column, objective in enumerate(objectives):
        limit = objective.limit
        if limit is None:
            continue
        room = -objective.sign * (values[:, column] - limit)
        room = room - _flattery(rows, objective, paired)
        chances *= _likely(room, variances[:, column], freedom[:, column])
    return np.nan_to_num(chances)


def _flattery(
    rows: pd.DataFrame, objective: Objective, paired: Mapping[str, Paired] | None
) -> Floats:
    """(n,) what choosing the best adds to what was measured."""
    found = (paired or {}).get(objective.metric)
    return np.zeros(len(rows)) if found is None else found.flattery


def _likely(room: Floats, variance: Floats, freedom: Floats) -> Floats:
    """Probability that true values are on the side of a limit from which the measured ones are
    `room` away, of errors with these variances.
    """
    from scipy.stats import t

    spread = np.sqrt(variance)
    known = np.minimum(freedom, _AS_GOOD_AS_NORMAL)
    with np.errstate(divide="ignore", invalid="ignore"):
        likely = t.cdf(room / spread, known)
    return np.asarray(np.where(spread > 0, likely, room >= 0))


class Part(NamedTuple):
    """The images on which a metric was measured."""

    name: str
    images: int


def part_of(metric: str, classes: pd.DataFrame) -> Part | None:
    """On how many images of which part a share was measured; None where that is not known."""
    column = _counting_column(metric, classes)
    if column is None:
        return None
    count = float(classes.groupby("trial_id")[column].sum().median())
    if not count > 0:
        return None
    return Part("validation" if column == "images" else "test set", round(count))


class Change(NamedTuple):
    """How a configuration's value of a metric differs from a fixed one.

    Attributes:
        mean: what was measured less the fixed value, and less the flattery.
        low, high: ends of the 95 % interval, by the configuration's own error; both the mean
            where the metric is exact.
        variance, freedom: of that error.
        flattery: what choosing the best of several adds to what was measured.
    """

    mean: float
    low: float
    high: float
    variance: float
    freedom: float
    flattery: float = 0.0

    def kept(self, losses: Floats) -> Floats:
        """(n,) probability that no more than each of these (n,) losses is lost."""
        return _likely(
            self.mean + losses, np.array(self.variance), np.array(self.freedom)
        )


def changes(
    rows: pd.DataFrame,
    objective: Objective,
    classes: pd.DataFrame,
    before: float,
    paired: Mapping[str, Paired] | None = None,
) -> dict[Any, Change]:
    """Of each configuration, by its index, how its objective differs from `before`, each judged by
    its own measurements as in `bounds_probability`.
    """
    from scipy.stats import t

    variances, freedom = error_variances(rows, [objective], classes, paired)
    flattery = _flattery(rows, objective, paired)
    mean = objective_values(rows, [objective])[:, 0] - before - flattery
    known = np.minimum(freedom[:, 0], _AS_GOOD_AS_NORMAL)
    half = t.ppf(0.975, known) * np.sqrt(variances[:, 0])
    columns = (mean, mean - half, mean + half, variances[:, 0], freedom[:, 0], flattery)
    values = zip(*(column.tolist() for column in columns), strict=True)
    return {
        index: Change(*each) for index, each in zip(rows.index, values, strict=True)
    }


def draws_for(configurations: int, objectives: int) -> int:
    """How often the front is drawn: less often where it takes long."""
    most = _MOST_VALUES // max(configurations, 1)
    if objectives > _QUICK_OBJECTIVES:
        most = min(most, _MOST_COMPARISONS // max(configurations, 1) ** 2)
    return int(np.clip(most, _FEWEST_DRAWS, DRAWS))
