"""Numbers as text: each rule, its ties and its ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (0.92413, "0.9241"),
        (0.5, "0.5"),
        (-12.3456, "-12.35"),
        (1234.5, "1 235"),
        (12345.6, "12 346"),
        (52000, "52 000"),
        (999.96, "1 000"),
        (0.00012346, "0.0001235"),
        (0.0001, "0.0001"),
        (0.00009999, "9.999e-5"),
        (3.2e-7, "3.2e-7"),
        (999_999_999_999_999, "999 999 999 999 999"),
        (1e15, "1e15"),
        (1.23456e20, "1.235e20"),
        (0.0625 + 2**-14, "0.06256"),
        (None, "–"),
        (math.nan, "–"),
        (-math.inf, "–"),
    ],
)
def test_number(value, text):
    assert numbers.number(value) == text.replace(" ", numbers.THIN_SPACE)


def test_significant_digits():
    assert numbers.significant(0.0) == "0"
    assert numbers.significant(math.nan) == "–"
    assert numbers.significant(38.46, 2) == "38"
    assert numbers.significant(1234.5, 2) == "1\u202f235"


def test_a_tie_is_rounded_away_from_zero_and_no_number_twice():
    assert numbers.fixed(0.125, 2) == "0.13"
    assert numbers.fixed(-0.125, 2) == "-0.13"
    assert numbers.fixed(-0.001, 1) == "0.0"
    # to six digits first it would be 0.123450, and then 0.1235
    assert numbers.number(0.12344996) == "0.1234"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.92413, "fraction", "92.41 %"),
        (1.5, "ms", "1.5 ms"),
        (52000, "1", "52\u202f000"),
        (0.389, "10^9", "0.389"),
        (0.5, "", "0.5"),
        (math.nan, "ms", "–"),
    ],
)
def test_quantity(value, unit, text):
    assert numbers.quantity(value, unit) == text


@pytest.mark.parametrize(
    ("value", "spread", "unit", "text"),
    [
        (0.92413, 0.00641, "fraction", "92.41 ± 0.64 %"),
        (0.9, 0.123, "fraction", "90 ± 12 %"),
        (12345.6, 120.0, "1", "12\u202f346 ± 120"),
        (1.5, 0.0, "ms", "1.5 ms"),
        (1.5, math.nan, "ms", "1.5 ms"),
        (1.5, None, "ms", "1.5 ms"),
        (None, 0.1, "ms", "–"),
        (1.5, 0.25, "ms", "1.50 ± 0.25 ms"),
        (0.389, 0.0206, "10^9", "0.389 ± 0.021"),
    ],
)
def test_plus_minus(value, spread, unit, text):
    assert numbers.plus_minus(value, spread, unit) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("none", "none"),
        (True, "true"),
        (12000, "12000"),
        (12000.0, "12000"),
        (0.001234567, "0.001235"),
        (1e-5, "1e-5"),
        (np.float64(2.5), "2.5"),
        (np.int64(7), "7"),
        (math.inf, "inf"),
        ([1, 2], "[1, 2]"),
    ],
)
def test_plain(value, text):
    assert numbers.plain(value) == text


def test_labels_and_counts():
    assert numbers.label("latency_ms", "ms") == "latency_ms"
    assert numbers.label("gmacs", "10^9") == "gmacs (10⁹)"
    assert numbers.label("accuracy", "fraction") == "accuracy"
    assert numbers.plural(1, "trial") == "1 trial"
    assert numbers.plural(1200, "trial") == "1\u202f200 trials"
    assert numbers.percent(0.5) == "50.0 %"
    assert numbers.percent(None) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (59.6, "1 min"),
        (130, "2 min 10 s"),
        (3600, "1 h"),
        (11100, "3 h 5 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_duration(seconds, text):
    assert numbers.duration(seconds) == text
