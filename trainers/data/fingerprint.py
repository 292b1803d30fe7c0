"""What tells a data set, as a model sees it, from another one or from itself after a change."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.config import DataConfig
from trainers.data.decoding import Decoding
from trainers.data.inspection import image_size as size_of_images
from trainers.data.inspection import inspect
from trainers.data.open import open_dataset
from trainers.hashing import values_to_hash

# raised when streamed images become other pixels for the same seed
STREAMING_VERSION = 2


@dataclass(frozen=True)
class PresentData:
    """A data set as it is now.

    Attributes:
        fingerprints: what `Data.fingerprint` may be: of images in memory, and of images that
            stream. Which of them it is shows only when all are decoded.
        num_classes: its classes.
        image_size: side of the square that the model sees, px.
    """

    fingerprints: tuple[str, str]
    num_classes: int
    image_size: int


def present_data(config: DataConfig, cache_dir: Path) -> PresentData:
    """Look at a data set anew, whatever this process remembers of it; no image is decoded that
    `load_data` would not decode.

    Args:
        cache_dir: a folder in which the hash of a large file may be remembered.

    Raises:
        ValueError: as `load_data`.
    """
    dataset = open_dataset(config)
    found = inspect(dataset, config)
    side, _, _ = size_of_images(config, found)
    content = dataset.content_hash(cache_dir)
    decoded, streamed = (
        fingerprint(config, side, content, in_memory, found.decoding)
        for in_memory in (True, False)
    )
    return PresentData((decoded, streamed), len(dataset.class_names), side)


def fingerprint(
    config: DataConfig,
    image_size: int,
    content: str,
    in_memory: bool,
    decoding: Decoding,
) -> str:
    """Hex SHA-256 over a data set's contents and every option that changes the splits or what a
    model sees.

    Args:
        image_size: side of the square that the model sees, px.
        content: `Dataset.content_hash`.
        in_memory: whether the images are decoded once; else they stream.
        decoding: how they become pixels.
    """
    loading = {
        "dataset",
        "root",
        "download",
        "in_memory",
        "workers",
        "pin_memory",
        "max_unreadable",
        "image_size",
        # both are in the decoding
        "exif_rotation",
        "white_level",
        # what these choose is in `content`
        "name",
        "subset",
        "revision",
        "streaming",
        "train_split",
        "test_split",
        "val_from",
        "label_column",
        "class_names",
    }
    facts: dict[str, Any] = {
        "source": content,
        "image_size": image_size,
        "decoded": in_memory,
        "options": values_to_hash(config, mode="json", exclude=loading),
    }
    if not in_memory:
        facts["streaming"] = STREAMING_VERSION
    if decoding.key():
        facts["decoding"] = decoding.key()
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
