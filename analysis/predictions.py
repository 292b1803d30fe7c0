"""What a trial's predictions show: `predictions.json` in its folder. Nothing in it is trusted."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.contract import PREDICTIONS_FILE, TRIALS_FOLDER
from analysis.tables.json_files import read_json, trial_label

LARGEST_BYTES = 2_000_000
"""A larger file is not read: thumbnails of 100 images have a tenth of it."""
MOST_PAIRS = 2_000
MOST_BINS = 100
MOST_SAMPLES = 100
LARGEST_THUMBNAIL = 16_000
"""Bytes of a thumbnail."""
LARGEST_SIDE = 96
"""Pixels of a thumbnail's side: a small file can hold a picture that fills the memory."""
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Predictions:
    """What a trial's final model predicts.

    Attributes:
        part: of the data, "validation" or "test".
        confusion: (class, predicted class, images), the most frequent first; classes are numbers.
        calibration: (images, accuracy, mean confidence) of each bin by confidence.
        samples: (class, predicted class, confidence, PNG in base64), the largest loss first.
    """

    part: str
    confusion: list[tuple[int, int, int]]
    calibration: list[tuple[int, float, float]]
    samples: list[tuple[int, int, float, str]]

    @property
    def calibration_error(self) -> float:
        """Mean over images of the gap between accuracy and confidence of their bin; NaN of none."""
        images = sum(n for n, _, _ in self.calibration)
        gaps = sum(n * abs(right - said) for n, right, said in self.calibration)
        return gaps / images if images else math.nan


def read_predictions(run: Path, trial_id: str) -> Predictions | None:
    """What a trial has kept; None where it has kept nothing.

    Raises:
        ValueError: the file is malformed, too large, or lies outside the run folder; says which.
    """
    path = run / TRIALS_FOLDER / trial_id / PREDICTIONS_FILE
    label = f"{trial_label(trial_id)}/{PREDICTIONS_FILE}"
    if not path.is_file():
        return None
    if not path.resolve().is_relative_to(run.resolve()):
        raise ValueError(f"{label}: a link leads out of the run folder; it is not read")
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(
            f"{label}: larger than {LARGEST_BYTES:,} bytes; it is not read"
        )
    problems: list[str] = []
    content = read_json(path, label, problems)
    if content is None:
        raise ValueError(problems[0])
    try:
        return Predictions(
            "test" if content["part"] == "test" else "validation",
            [
                (_count(label_), _count(predicted), _count(images))
                for label_, predicted, images in content["confusion"][:MOST_PAIRS]
            ],
            [
                (_count(images), _share(right), _share(said))
                for images, right, said in content["calibration"][:MOST_BINS]
            ],
            [
                (_count(label_), _count(predicted), _share(said), _thumbnail(png))
                for label_, predicted, said, png in content["samples"][:MOST_SAMPLES]
            ],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{label}: not what a trial keeps ({type(error).__name__}: {error})"
        ) from error


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is no share")
    if not 0 <= value <= 1:
        raise ValueError(f"{value!r:.40} is not from 0 to 1")
    return float(value)


def _thumbnail(text: Any) -> str:
    """Checked base64 of a small PNG."""
    if not isinstance(text, str) or len(text) > LARGEST_THUMBNAIL * 4 // 3 + 4:
        raise ValueError("a thumbnail is no text, or too long")
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a thumbnail is not base64: {error}") from error
    if not content.startswith(_PNG) or content[12:16] != b"IHDR" or len(content) < 33:
        raise ValueError("a thumbnail is no PNG")
    if max(struct.unpack(">II", content[16:24])) > LARGEST_SIDE:
        raise ValueError(f"a thumbnail has a side above {LARGEST_SIDE} px")
    return text
