"""Whether a search has what was asked for: a configuration that keeps every bound, with certainty.

A configuration whose mean is within the bounds may be there by luck. What counts is the
probability that its true objectives are, as `analysis.certainty` estimates it.
"""

from pathlib import Path

import analysis
from analysis.certainty import CERTAIN, bounds_probability


def is_met(run: Path) -> bool:
    """Whether some configuration of a run keeps all bounds with certainty."""
    found = analysis.load(run)
    rows = found.configurations()
    if rows.empty:
        return False
    chances = bounds_probability(rows, found.objectives, found.classes)
    return bool(chances.max() >= CERTAIN)
