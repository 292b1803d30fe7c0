"""The digits lie where we look, and are those that scikit-learn gives."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from trainers.data import sklearn_internals
from trainers.data.sklearn_internals import digits_file, load_digits


def test_the_file_is_in_its_place() -> None:
    assert digits_file() is not None, "scikit-learn has moved it; see DIGITS_FILE"


@pytest.mark.parametrize("found", [True, False])
def test_they_are_those_of_scikit_learn(
    found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not found:
        monkeypatch.setattr(sklearn_internals, "digits_file", lambda: None)
    images, labels = load_digits()
    theirs = datasets.load_digits()
    assert images.dtype == theirs.images.dtype
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(images, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)


def test_opening_them_imports_no_scikit_learn() -> None:
    code = (
        "import sys; from trainers.config import DataConfig;"
        " from trainers.data.open import open_digits; open_digits(DataConfig());"
        " print('sklearn' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
