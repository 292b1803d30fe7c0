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
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis.contract import CLASSES_FILE, RECOGNISED
from analysis.pareto import Floats
from analysis.tables.json_files import read_json


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


def variance(candidate: Hits, source: Hits) -> float | None:
    """Var D; None where the two cannot be compared."""
    if candidate.labels != source.labels or len(candidate.right) != len(source.right):
        return None
    images = len(source.right) + 2.0
    alone = float((candidate.right & ~source.right).sum()) + 0.5
    lost = float((source.right & ~candidate.right).sum()) + 0.5
    return ((alone + lost) - (alone - lost) ** 2 / images) / images**2


def differences(
    candidate: Mapping[str, Hits], source: Mapping[str, Hits]
) -> dict[str, float]:
    """Metric → Var D, of those metrics by which the two can be compared."""
    each = {m: variance(candidate[m], source[m]) for m in source if m in candidate}
    return {metric: value for metric, value in each.items() if value is not None}


def paired_variances(
    metrics: Iterable[str],
    replicates: Sequence[Sequence[str]],
    of: Callable[[str], Mapping[str, float]],
) -> dict[str, Floats]:
    """Metric → (n,) variance of a single trial's difference to the source, of each configuration;
    without metrics by which one of them cannot be compared.

    Args:
        replicates: for each configuration the ids of its trials.
        of: trial id → what `differences` gives.
    """
    found = {}
    for metric in metrics:
        each = [[of(name).get(metric) for name in names] for names in replicates]
        if all(value is not None for values in each for value in values):
            found[metric] = np.array([np.mean(np.array(v, float)) for v in each])
    return found
