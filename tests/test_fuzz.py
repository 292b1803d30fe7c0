"""`benchmarks/fuzz.py`: a few cases of each quick kind, the same ones every time."""

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

before = dict(os.environ)
from fuzz import fuzz  # noqa: E402 (needs the folder above)
from fuzz_material import Material  # noqa: E402

os.environ.clear()
os.environ.update(before)

CASES = {"coded": 60, "checkpoints": 30, "pickles": 8, "records": 2, "queries": 2}


@pytest.mark.parametrize("kind", CASES)
def test_a_clean_refusal_or_a_right_result(kind: str, tmp_path: Path) -> None:
    found = fuzz(kind, range(CASES[kind]), 0, Material(tmp_path))
    assert found.faults == {}
    assert found.cases == CASES[kind] == found.refused + found.right
