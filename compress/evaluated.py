"""What a trial keeps of the evaluations of its final model, besides their metrics.

They come from the evaluations and the runtimes that `compress.metrics.measure` used, which must be
called before.
"""

import base64
from typing import Any

from compress.metrics import FinalModel
from trainers.data.splits import Split

MOST_PAIRS = 2_000
"""Pairs of class and predicted class that a trial keeps."""


def class_rows(final: FinalModel) -> list[dict[str, Any]]:
    """How well each class is recognised: the rows of a run's `classes` table, in class order.

    They come from the evaluations that `measure` made, which must be called before. Accuracies
    are fractions; what was not evaluated, and the accuracy of a class without images, is None.
    """
    rows: list[dict[str, Any]] = [
        {"index": index, "class": name}
        for index, name in enumerate(final.data.class_names)
    ]
    nothing = [None] * len(rows)
    splits: dict[Split, str] = {"val": "", "test": "test_"}
    for split, prefix in splits.items():
        found = final.evaluations.get(split)
        images = nothing if found is None else found.class_images
        shares = nothing if found is None else found.class_accuracy
        for row, count, share in zip(rows, images, shares, strict=True):
            row |= {f"{prefix}images": count, f"{prefix}accuracy": share}
    return rows


def recognised_images(final: FinalModel) -> dict[str, dict[str, Any]]:
    """Metric → which images of its part are recognised (`trainers.data.recognised`); of the
    evaluations and the runtimes that `measure` used, which must be called before.
    """
    return {metric: each._asdict() for metric, each in final.recognised.items()}


def shown_predictions(final: FinalModel) -> dict[str, Any] | None:
    """What a trial's page shows of the predictions on the validation part (without one, on the test
    set): what `predictions.json` holds. None where nothing shall be kept.

    Returns:
        part: "validation" or "test"; confusion: [class, predicted class, images], at most
        `MOST_PAIRS`; calibration: [images, accuracy, confidence] of each bin; samples: [class,
        predicted class, confidence, PNG in base64]. Classes are numbers.
    """
    parts: dict[Split, str] = {"val": "validation", "test": "test"}
    for split, part in parts.items():
        found = final.evaluations.get(split)
        if found is not None and found.predictions is not None:
            shown = found.predictions
            return {
                "part": part,
                "confusion": shown.confusion[:MOST_PAIRS],
                "calibration": shown.bins,
                "samples": [
                    [*sample[:3], base64.b64encode(sample.thumbnail).decode("ascii")]
                    for sample in shown.samples
                ],
            }
    return None
