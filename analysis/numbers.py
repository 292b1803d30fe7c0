"""Numbers as text: one rule for the report, its scripts, Markdown, figures and the terminal.

A measured value keeps four significant digits. The thousands of large numbers are set apart by
a narrow space, as the SI asks. Numbers below 0.0001 are written with an exponent. A fraction is
shown as a percentage with two decimals. `assets/report.js` follows the same rules, and a test
compares the two.

Every function rounds the number itself, once: a value that was rounded before can come out one
digit off.
"""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any

DIGITS = 4
"""Significant digits of a measured value."""
MISSING = "–"
"""Shown for what was not measured, and for what is not a finite number."""
THIN_SPACE = "\u202f"

_EXACT = Context(prec=400)
_SMALLEST = 1e-4
_LARGEST = 1e15
_HIDDEN_UNITS = {"", "1", "10^9"}
"""Units that stand in no value: counts, and 10⁹ of what the metric's name says."""


def fixed(value: float, decimals: int) -> str:
    """`value` with this many decimals, its thousands set apart; a tie is rounded away from zero."""
    step = Decimal(1).scaleb(-decimals)
    rounded = Decimal(value).quantize(step, ROUND_HALF_UP, _EXACT)
    unsigned = rounded if rounded else abs(rounded)  # no "-0.0"
    return f"{unsigned:,f}".replace(",", THIN_SPACE)


def significant(value: float, digits: int = DIGITS) -> str:
    """`value` with at most this many significant digits, without trailing zeros.

    Whole digits are never dropped: of four digits, 123456.7 is 123 457.
    """
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if not _SMALLEST <= abs(value) < _LARGEST:
        return _scientific(value, digits)
    text = fixed(value, max(0, digits - 1 - _exponent(value, digits)))
    return text.rstrip("0").rstrip(".") if "." in text else text


def _exponent(value: float, digits: int) -> int:
    """Power of ten of the first digit of `value` once it is rounded."""
    rounding = Context(prec=digits, rounding=ROUND_HALF_UP)
    return rounding.create_decimal(Decimal(value)).adjusted()


def _scientific(value: float, digits: int) -> str:
    rounding = Context(prec=digits, rounding=ROUND_HALF_UP)
    rounded = rounding.create_decimal(Decimal(value))
    exponent = rounded.adjusted()
    mantissa = f"{rounded.scaleb(-exponent):f}"
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{exponent}"


def number(value: float | None) -> str:
    """A measured value: '0.9241', '1.235', '52 000', '12 346', '3.2e-5'; `MISSING` for none."""
    if value is None or not math.isfinite(value):
        return MISSING
    if float(value).is_integer() and abs(value) < _LARGEST:
        return fixed(float(value), 0)
    return significant(float(value))


def percent(share: float | None, decimals: int = 1) -> str:
    """A share of one as a percentage: '92.4 %'."""
    if share is None or not math.isfinite(share):
        return MISSING
    return f"{fixed(100 * share, decimals)} %"


def figure(value: float | None, unit: str) -> str:
    """A value of a metric whose unit stands elsewhere; fractions are percentages: '92.41 %'."""
    return percent(value, 2) if unit == "fraction" else number(value)


def quantity(value: float | None, unit: str) -> str:
    """A value of a metric with its unit: '92.41 %', '1.5 ms', '52 000 bytes'."""
    text = figure(value, unit)
    shown = text == MISSING or unit == "fraction" or unit in _HIDDEN_UNITS
    return text if shown else f"{text} {unit}"


def plus_minus(mean: float | None, spread: float | None, unit: str) -> str:
    """A mean and its standard deviation, to two digits of the latter: '92.41 ± 0.64 %'.

    Without a spread that can be seen, the mean alone (see `quantity`).
    """
    if (
        mean is None
        or spread is None
        or not math.isfinite(mean)
        or not spread > 1e-9 * abs(mean)
    ):
        return quantity(mean, unit)
    scale = 100.0 if unit == "fraction" else 1.0
    decimals = min(max(1 - math.floor(math.log10(scale * spread)), 0), 9)
    text = f"{fixed(scale * mean, decimals)} ± {fixed(scale * spread, decimals)}"
    if unit in _HIDDEN_UNITS:
        return text
    return f"{text} %" if unit == "fraction" else f"{text} {unit}"


def plain(value: Any) -> str:
    """A parameter's value, as a spec would state it: no thousands set apart, text as it is."""
    if hasattr(value, "item"):  # a number of NumPy's
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        if value.is_integer() and abs(value) < _LARGEST:
            return str(int(value))
        return significant(value).replace(THIN_SPACE, "")
    return str(value)


def label(name: str, unit: str) -> str:
    """A metric's name with its unit, where the name does not end with it: 'gmacs (10⁹)'."""
    if unit in ("", "1", "fraction") or name.endswith(f"_{unit}"):
        return name
    return f"{name} ({unit.replace('10^9', '10⁹')})"


def duration(seconds: float) -> str:
    """Seconds in words: '0.4 s', '35 s', '2 min 10 s', '3 h 5 min', '2 d 4 h'."""
    if seconds < 9.95:
        return f"{fixed(seconds, 1)} s"
    whole = round(seconds)
    for size, name, smaller, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def points_said(share: float) -> str:
    """A loss of a share, as a limit: '1 point', '0.25 points'."""
    return f"{100 * share:g} point{'' if share == 0.01 else 's'}"


def plural(count: int, word: str) -> str:
    """'1 trial', '12 trials'."""
    return f"{number(count)} {word}" + ("" if count == 1 else "s")
