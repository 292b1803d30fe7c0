"""The one private door of scikit-learn that we use: where its wheel keeps the digits."""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

DIGITS_FILE = Path("datasets") / "data" / "digits.csv.gz"
"""Inside the package: 64 grey values of 0 to 16 and a label in each line."""


def digits_file() -> Path | None:
    """The file, found without importing scikit-learn; None where it is not in its place."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / DIGITS_FILE
    return path if path.is_file() else None


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images float64 (1797, 8, 8) from 0 to 16 and labels int64 (1797,).

    They are those of `sklearn.datasets.load_digits`, whose import takes a second in every
    process that opens this data set; it is asked only where the file has moved.
    """
    path = digits_file()
    if path is None:
        from sklearn import datasets

        bunch: Any = datasets.load_digits()
        return bunch.images, bunch.target.astype(np.int64)
    with gzip.open(path, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
