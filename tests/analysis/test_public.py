"""What `import analysis` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import analysis

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", analysis.__all__)
def test_every_public_name_is_there_and_is_no_module(name):
    assert type(getattr(analysis, name)).__name__ != "module"
    assert name in dir(analysis)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = analysis.absent


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import analysis", {"pydantic", "numpy", "pandas", "pyarrow"}),
        ("import analysis.contract, analysis.numbers", {"numpy", "pandas", "pyarrow"}),
        (
            "import analysis; analysis.load('tests/fixtures/run-0.1').front()",
            {"plotly", "matplotlib", "duckdb", "optuna", "sklearn", "torch", "ray"},
        ),
    ],
)
def test_only_what_is_used_is_imported(code, absent):
    check = f"{code}\nimport sys\nprint(sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run(
        [sys.executable, "-c", check],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "[]"
