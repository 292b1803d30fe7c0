"""A seeded order of images in which every prefix has the classes in about their proportions."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainers.config import DataConfig
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


def validation_size(total: int, config: DataConfig) -> int:
    """Images of the validation part.

    Raises:
        ValueError: none would be left to train on.
    """
    num_val = (
        max(1, round(total * config.val_fraction)) if config.val_fraction > 0 else 0
    )
    if num_val >= total:
        raise ValueError(
            f"{total} training images with val_fraction {config.val_fraction} leave"
            " none to train on; raise data.limit or lower data.val_fraction"
        )
    return num_val


class Rows(NamedTuple):
    """Which images are trained on, and which the search sees.

    Attributes:
        train: rows of the training part after `limit`: seeded, stratified.
        val: rows of the part `val_is_of`; of the training part they are none of `train`.
    """

    train: Labels
    val: Labels
    val_is_of: str


def rows_of_parts(labels: Mapping[str, Labels], config: DataConfig) -> Rows:
    """The split of a data set with these labels by part: its own validation part ("val") as it is,
    or a share of the training part.
    """
    order = stratified_order(labels["train"], config.split_seed)[: config.limit]
    if "val" in labels:
        return Rows(order, np.arange(len(labels["val"])), "val")
    num_val = validation_size(len(order), config)
    return Rows(order[num_val:], order[:num_val], "train")
