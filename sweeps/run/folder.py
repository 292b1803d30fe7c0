"""Where things lie in a run folder. File names come from `analysis.contract`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from analysis.contract import BASELINE, TRIALS_FOLDER
from analysis.files import inside

TENSORBOARD_FOLDER = "tensorboard"
"""Event files of TensorBoard, a folder a trial."""

TUNE_FOLDER = "tune"
"""What Ray Tune writes. It is deleted when the sweep has ended."""

WORKERS_FOLDER = "workers"
"""What Ray Train's worker groups write. It is deleted when the sweep has ended."""


def trial_folder(run: Path, trial_id: str) -> Path:
    """The folder of one trial, whether or not it exists."""
    return run / trial_place(trial_id)


def trial_place(trial_id: str) -> str:
    """Where in the run folder the files of a trial lie."""
    return BASELINE if trial_id == BASELINE else f"{TRIALS_FOLDER}/{trial_id}"


def trial_ids(run: Path) -> Iterator[str]:
    """The names of all folders of trials, in order, without the baseline's."""
    trials = run / TRIALS_FOLDER
    if trials.is_dir():
        yield from sorted(path.name for path in trials.iterdir() if path.is_dir())


def refuse_links(run: Path) -> None:
    """Refuse to write into a run folder, perhaps of somebody else, that has a link to elsewhere.

    Raises:
        ValueError: names the link.
    """
    for folder, subfolders, files in os.walk(run):
        for name in (*subfolders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                inside(run, path)


def trial_name(number: int, replicate: int, replicates: int) -> str:
    """The id of a trial: its configuration's number and, of several, its replicate.

    Args:
        replicates: that each configuration of the search has. The first is named alike with one,
            so that a race can be added to a search that has ended.
    """
    if replicates == 1 and replicate == 0:
        return f"{number:05d}"
    return f"{number:05d}-r{replicate}"


def full_trial_id(given: str) -> str:
    """A trial's id as a user may shorten it: 7 is 00007, and 7-r1 is 00007-r1."""
    found = re.fullmatch(r"([0-9]+)(-r[0-9]+)?", given)
    return given if found is None else f"{int(found[1]):05d}{found[2] or ''}"
