"""What a metric is: a name, a description and a unit."""

import math
from collections.abc import Mapping
from typing import NamedTuple

Value = float | int | str
TEXT = "text"
"""The unit of a metric that is a word; it is recorded and can be no objective."""


class Metric(NamedTuple):
    """A measured number.

    Attributes:
        name: as in a record and in `objectives`.
        description: what was measured, in one phrase.
        unit: of the value: "1" for counts and ratios, "fraction" for shares from 0 to 1,
            `TEXT` for a word.
        is_time: whether it is a time or made of times, so that no two runs give it twice.
        range: the smallest and the largest value that it can have; None: as its unit says.
        has_ratio_scale: whether results compare its values by their ratio (a model is half as
            large) instead of their difference; None: as its unit says, which "1" leaves open.
    """

    name: str
    description: str
    unit: str
    is_time: bool = False
    range: tuple[float, float] | None = None
    has_ratio_scale: bool | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value that it can have, in its unit."""
        return self.range or _LIMITS.get(self.unit, (-math.inf, math.inf))


_LIMITS: Mapping[str, tuple[float, float]] = {
    "fraction": (0, 1),
    **dict.fromkeys(
        ("nats", "10^9", "bits per weight", "bytes", "ms", "MB"), (0, math.inf)
    ),
}
"""Unit → what values in it can be. A number without a unit can be anything."""
