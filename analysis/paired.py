"""Errors of differences to the source, image by image.

A candidate and its source are evaluated on the same images, and most of these both recognise or
both miss. What a difference between their accuracies owes to chance comes from the others alone:

    N       images
    b, c    of them, recognised by the candidate alone, and by the source alone
    D       difference of the accuracies, (b - c) / N
    Var D = ((b + c) - (b - c)² / N) / N²

the variance of McNemar's test (1947). One half is added to each of the four cells of the table, as
Agresti and Min advise (Effects and non-effects of paired identical observations in comparing
proportions with binary matched-pairs data, Statistics in Medicine, 2004): without a single image in
which they differ the error would be 0.

The best of many candidates is the luckiest: on the images that chose it, it looks better than on
others. `flattery` says by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.configurations import objective_values
from analysis.contract import CLASSES_FILE, RECOGNISED, Objective
from analysis.pareto import Floats, eligible
from analysis.tables.json_files import read_json

_RESAMPLES = 200
_MOST_RIVALS = 50
"""Configurations among which one is chosen: what recognises less than so many others is not."""


class Hits(NamedTuple):
    """Which images a model recognises.

    Attributes:
        labels: a hash of the labels, in order; only models with the same can be compared.
        right: (N,) whether each is recognised.
    """

    labels: str
    right: np.ndarray


def hits_of(content: Any) -> dict[str, Hits]:
    """Metric → hits, from the content of a `classes.json`; what is malformed is left out."""
    listed = content.get(RECOGNISED) if isinstance(content, Mapping) else None
    if not isinstance(listed, Mapping):
        return {}
    found = {str(metric): _hits(value) for metric, value in listed.items()}
    return {metric: hits for metric, hits in found.items() if hits is not None}


def _hits(value: Any) -> Hits | None:
    if not isinstance(value, Mapping):
        return None
    images, labels, bits = (value.get(key) for key in ("images", "labels", "bits"))
    if (
        type(images) is not int
        or not isinstance(labels, str)
        or not isinstance(bits, str)
    ):
        return None
    try:
        packed = np.frombuffer(bytes.fromhex(bits), np.uint8)
    except ValueError:
        return None
    if images < 1 or len(packed) != (images + 7) // 8:
        return None
    return Hits(labels, np.unpackbits(packed, count=images).astype(bool))


def hits_in(folder: Path) -> dict[str, Hits]:
    """Metric → hits, of a trial's folder."""
    return hits_of(read_json(folder / CLASSES_FILE, CLASSES_FILE, []))


def variance(candidate: Hits | None, source: Hits | None) -> float | None:
    """Var D; None where the two cannot be compared."""
    if candidate is None or source is None or candidate.labels != source.labels:
        return None
    if len(candidate.right) != len(source.right):
        return None
    images = len(source.right) + 2.0
    alone = float((candidate.right & ~source.right).sum()) + 0.5
    lost = float((source.right & ~candidate.right).sum()) + 0.5
    return ((alone + lost) - (alone - lost) ** 2 / images) / images**2


def flattery(right: Floats, deviations: Floats) -> float:
    """By how much the best of several configurations looks better than it is, since the images that
    it is judged by are those that chose it; in standard deviations of its error, since what varies
    more is luckier where it is the best.

    The images are drawn anew, with replacement; what the best of the draw has on the images that
    were not drawn is what a choice is worth on new images (Tsamardinos, Greasidou and Borboudakis,
    Bootstrapping the out-of-sample predictions for efficient and accurate cross-validation, Machine
    Learning 107, 2018).

    Args:
        right: (n, N) share of each configuration's trials that recognise each image.
        deviations: (n,) of the errors of their differences to the source.
    """
    if len(right) < 2:
        return 0.0
    # how hard an image is for all of them is no difference
    apart, images = right - right.mean(axis=0), right.shape[1]
    rng = np.random.default_rng(0)
    chosen, new = [], []
    for _ in range(_RESAMPLES):
        weights = np.bincount(rng.integers(images, size=images), minlength=images)
        left = weights == 0
        if left.any():
            chosen.append((apart @ weights).argmax())
            new.append(apart[chosen[-1]][left].mean())
    if not new:
        return 0.0
    flattered = max(0.0, float(apart.mean(axis=1).max() - np.mean(new)))
    return flattered / float(deviations[chosen].mean())


class Paired(NamedTuple):
    """What is known of configurations' differences to the source.

    Attributes:
        variance: (n,) of a single trial's difference.
        flattery: (n,) by how much each looks better than it is, if it is the best of those that may
            be chosen.
    """

    variance: Floats
    flattery: Floats


def rivals(
    rows: pd.DataFrame, objectives: Sequence[Objective], metric: str
) -> np.ndarray:
    """(n,) whether each configuration keeps all bounds but the metric's own: the best of these is
    the one to choose.
    """
    others = [o for o in objectives if o.metric != metric]
    if not others:
        return np.full(len(rows), True)
    return eligible(objective_values(rows, others), others)


def paired_errors(
    metrics: Iterable[str],
    rows: pd.DataFrame,
    objectives: Sequence[Objective],
    source: Mapping[str, Hits],
    of: Callable[[str], Mapping[str, Hits]],
) -> dict[str, Paired]:
    """Metric → errors of the configurations' differences to the source, of those metrics by which
    all of them can be compared with it.

    Args:
        rows: (n) configurations.
        of: trial id → metric → hits.
    """
    found = {}
    for metric in metrics:
        trials = [
            [of(name).get(metric) for name in names] for names in rows["trial_ids"]
        ]
        errors = [
            [variance(hits, source.get(metric)) for hits in each] for each in trials
        ]
        if any(error is None for each in errors for error in each):
            continue
        rights = [[hits.right for hits in each if hits is not None] for each in trials]
        means = np.array([np.mean(each) for each in rights])
        means[~rivals(rows, objectives, metric)] = -np.inf
        best = np.argsort(-means, kind="stable")[:_MOST_RIVALS]
        shares = [np.mean(rights[i], axis=0) for i in best if means[i] > -np.inf]
        single = np.array([np.mean(np.array(each, float)) for each in errors])
        deviations = np.sqrt(single / [len(each) for each in trials])
        luck = flattery(np.array(shares), deviations[best[: len(shares)]])
        found[metric] = Paired(single, luck * deviations)
    return found
