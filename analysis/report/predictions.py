"""What the page says of the predictions of trials: of few of them, since thumbnails have weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from analysis.predictions import read_predictions
from analysis.report.columns import compact
from analysis.run import Run

MAX_TRIALS = 60
"""Trials whose predictions the page knows, those of the front first."""
MAX_THUMBNAILS = 1_000_000
"""Characters of thumbnails that the page carries; an image that several trials show counts once."""


def shown_predictions(
    run: Run, trials: Iterable[str], row_of: Mapping[str, int]
) -> dict[str, Any]:
    """For the page: `names`, lists of class names; `images`, thumbnails in base64; `trials`, by
    row what `trial_predictions` gives.
    """
    images: dict[str, int] = {}
    names: dict[tuple[str, ...], int] = {}
    found = {}
    for trial in trials:
        entry = trial_predictions(run, trial)
        if entry is None:
            continue
        own = tuple(entry.pop("names", ()))
        if own:
            entry["names"] = names.setdefault(own, len(names))
        entry["samples"] = _numbered(entry.get("samples", []), images)
        found[str(row_of[trial])] = entry
        if len(found) == MAX_TRIALS:
            break
    return {"names": list(map(list, names)), "images": list(images), "trials": found}


def _numbered(
    samples: list[tuple[int, int, float, str]], images: dict[str, int]
) -> list[tuple[int, int, float, int]]:
    """The samples with the number of their image among `images`, as far as these have room."""
    weight = sum(map(len, images))
    kept = []
    for label, predicted, confidence, image in samples:
        if image not in images:
            weight += len(image)
            if weight > MAX_THUMBNAILS:
                break
        kept.append(
            (label, predicted, confidence, images.setdefault(image, len(images)))
        )
    return kept


def trial_predictions(run: Run, trial: str) -> dict[str, Any] | None:
    """One trial's part, confusion, calibration with its error, samples, and names of the classes;
    where they cannot be read, `problem` alone.
    """
    folder, name = run.source_of(trial)
    try:
        kept = read_predictions(folder, name)
    except (OSError, ValueError) as error:
        return {"problem": str(error)}
    if kept is None:
        return None
    classes = run.classes.loc[run.classes["trial_id"] == trial, ["index", "class"]]
    return {
        "part": kept.part,
        "confusion": kept.confusion,
        "calibration": [[n, compact(a), compact(c)] for n, a, c in kept.calibration],
        "error": compact(kept.calibration_error),
        "samples": kept.samples,
        "names": [str(text) for text in classes.sort_values("index")["class"]],
    }
