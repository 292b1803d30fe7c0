"""Constraints: what passes, and that nothing in them is ever run."""

from __future__ import annotations

import contextlib

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.where import where_mask

DATA = pd.DataFrame(
    {
        "metric/accuracy": [0.91, 0.85, None, 0.99],
        "metric/latency_ms": [4.0, 1.5, 2.0, 9.0],
        "config/init": pd.array(["none", "sws expand", None, "none"], dtype="string"),
        "config/finetune.lr": [1e-3, 1e-2, 1e-3, 1e-4],
        "config/amp": pd.array([True, False, None, True], dtype="boolean"),
        "status": pd.array(["complete"] * 4, dtype="string"),
    }
)


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("accuracy>=0.9", [0, 3]),
        ("accuracy >= 90%", [0, 3]),
        ("accuracy<0.9", [1]),
        ("accuracy!=0.91", [1, 3]),  # what a trial does not have passes no test
        ("accuracy>=0.9 and latency_ms<5", [0]),
        ("latency_ms<2 or latency_ms>5", [1, 3]),
        (
            "latency_ms<2 or accuracy>.9 and latency_ms>5",
            [1, 3],
        ),  # and binds more closely than or
        ("(latency_ms<2 or accuracy>.9) and init==none", [0, 3]),
        ("init='sws expand'", [1]),
        ("init!=none", [1]),
        ("finetune.lr<=1e-3 AND status=complete", [0, 2, 3]),
        ("amp==true", [0, 3]),
        ("'config/init'==none", [0, 3]),
        ("latency_ms>-1", [0, 1, 2, 3]),
    ],
)
def test_what_passes(expression: str, rows: list[int]) -> None:
    assert where_mask(expression, DATA).nonzero()[0].tolist() == rows


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "ends where a name should follow"),
        ("accuracy", "ends where an operator should follow"),
        ("accuracy>=", "ends where a value should follow"),
        ("acuracy>=0.9", "no metric, parameter or column 'acuracy'; near: accuracy"),
        ("accuracy>=high", "accuracy holds numbers, and 'high' is not one"),
        ("init>none", "init holds text; compare it by == or !="),
        (
            "accuracy>=0.9 latency_ms<5",
            "unexpected 'latency_ms'; join tests by and, or",
        ),
        ("(accuracy>=0.9", "a bracket is not closed"),
        ("accuracy>=0.9; drop table", "cannot read '; drop table'"),
        ("__import__('os').system('touch x')", "cannot read"),
        ("accuracy.__class__.__mro__==1", "no metric, parameter or column"),
        ("lambda: 0", "expected one of|cannot read"),
        ("@accuracy > 0", "cannot read"),
        ("accuracy>=0.9 and " * 200 + "accuracy>0", "more than 400 words"),
        ("(" * 1000, "more than 400 words"),
    ],
)
def test_what_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"where.*({message})"):
        where_mask(expression, DATA)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="accuraylten_ms ()<>=!'\"0.9%and or\n\\$", max_size=40))
def test_any_text_is_a_mask_or_a_message(expression: str) -> None:
    with contextlib.suppress(ValueError):
        assert where_mask(expression, DATA).shape == (4,)
