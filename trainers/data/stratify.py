"""A seeded order of images in which every prefix has the classes in about their proportions."""

import numpy as np
from numpy.typing import NDArray

from trainers.data.parts import Labels

TEST_FRACTION = 0.2  # of the sets that come without a test part (digits, eurosat)
TEST_SEED = 0


def stratified_order(labels: Labels, seed: int) -> NDArray[np.int64]:
    """A seeded order of 0..N-1 whose every prefix holds the classes in about their proportions.

    The k-th image of a shuffled class of c images has the key (k + u) / c, u uniform: sorting by it
    spreads each class evenly.
    """
    rng = np.random.default_rng([seed, len(labels)])
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, counts = np.unique(
        labels[by_class], return_index=True, return_counts=True
    )
    position = np.arange(len(labels)) - np.repeat(starts, counts)
    keys = (position + rng.random(len(labels))) / np.repeat(counts, counts)
    return by_class[np.argsort(keys, kind="stable")]


def stratified_test(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(train rows, test rows), ascending, for a set without a test part: fixed, 20 % of
    each class.
    """
    order = stratified_order(labels, TEST_SEED)
    cut = round(len(labels) * TEST_FRACTION)
    return np.sort(order[cut:]), np.sort(order[:cut])
