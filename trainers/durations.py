"""Durations of a training: epochs, steps, or a part of the whole."""

import re
from typing import Annotated

from pydantic import AfterValidator

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(epochs?|steps?|%)\s*$")


def _check_duration(value: float | str) -> float | str:
    if isinstance(value, str):
        match = _DURATION.match(value)
        if match is None:
            raise ValueError(
                f"a duration is a number of epochs, 'N steps' or 'N%'; got {value!r}"
            )
        if match[2] == "%" and float(match[1]) > 100:
            raise ValueError(f"a duration in percent is at most 100%; got {value!r}")
    elif value < 0:
        raise ValueError(f"a duration is not negative; got {value}")
    return value


Duration = Annotated[float | str, AfterValidator(_check_duration)]
"""Epochs as a number, or "N epochs", "N steps", "N%" (of the whole fit)."""


def duration_in_steps(
    duration: float | str, steps_per_epoch: int, total_steps: int
) -> int:
    """A duration as a number of optimiser steps, rounded."""
    if not isinstance(duration, str):
        return round(duration * steps_per_epoch)
    match = _DURATION.match(duration)
    assert match is not None, duration
    amount, unit = float(match[1]), match[2]
    if unit == "%":
        return round(total_steps * amount / 100)
    return (
        round(amount * steps_per_epoch) if unit.startswith("epoch") else round(amount)
    )
