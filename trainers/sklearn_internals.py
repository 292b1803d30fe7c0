"""The digits that scikit-learn brings, read without importing it, which takes a second in every
process of a sweep. Private to scikit-learn, and held by a test: where the file lies, and that a row
is 64 grey levels of 0..16 and the digit.
"""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What `sklearn.datasets.load_digits` gives: images (1797, 8, 8) of 0..16, labels (1797,).

    Raises:
        ValueError: scikit-learn is not installed.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ValueError("data.dataset digits comes with scikit-learn; install it")
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
