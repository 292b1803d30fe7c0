"""Whether a search has what was asked for: a configuration that keeps every bound, with certainty.

A configuration whose mean is within the bounds may be there by luck. What counts is the
probability that its true objectives are, as `analysis.certainty` estimates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.certainty import CERTAIN, bounds_probability
from analysis.configurations import configurations_of
from analysis.contract import BASELINE, CLASSES_FILE, LATENCY_FILE, Objective
from analysis.fronts import noise_columns
from analysis.paired import Hits, hits_in, hits_of, paired_errors
from sweeps.run.record import TrialRecord
from trainers.files import read_json

_COUNTS = ("images", "test_images")


class Goal:
    """What the complete trials of a run gave, as far as it decides about the bounds.

    It is what `analysis.load` would read of them, kept so that each file is read once.

    Args:
        relative: metrics whose bounds are relative to the source.
    """

    def __init__(self, relative: Sequence[str] = ()) -> None:
        self._relative = relative
        self._source: dict[str, Hits] = {}
        self._hits: dict[str, dict[str, Hits]] = {}
        self._trials: dict[str, dict[str, Any]] = {}
        self._classes: dict[str, pd.DataFrame] = {}

    def note(self, record: TrialRecord) -> None:
        """Take a trial that ended."""
        if record.status != "complete" or record.trial_id == BASELINE:
            return
        name = record.trial_id
        again = (read_json(record.folder / LATENCY_FILE) or {}).get("metrics", {})
        given = record.outcome.metrics | again  # latencies measured after the search
        metrics = {f"metric/{k}": v for k, v in given.items()}
        self._trials[name] = metrics | {
            "trial_id": name,
            "number": record.plan.number,
            "ended": record.ended,
        }
        content = read_json(record.folder / CLASSES_FILE) or {}
        if self._relative:
            self._source = self._source or hits_in(record.folder.parents[1] / BASELINE)
            self._hits[name] = hits_of(content)
        rows = content.get("classes", [])
        counts = [{count: row.get(count) for count in _COUNTS} for row in rows]
        self._classes[name] = pd.DataFrame(counts).assign(trial_id=name)

    def may_be_met_by(
        self, record: TrialRecord, objectives: Sequence[Objective]
    ) -> bool:
        """Whether a trial that was noted keeps all bounds by itself."""
        metrics = self._trials.get(record.trial_id)
        if metrics is None:
            return False
        values = [metrics.get(f"metric/{o.metric}") for o in objectives]
        return all(
            isinstance(value, int | float) and objective.excess(value) <= 0
            for value, objective in zip(values, objectives, strict=True)
        )

    def is_met(self, objectives: Sequence[Objective]) -> bool:
        """Whether some configuration keeps all bounds with certainty."""
        if not self._trials:
            return False
        trials = pd.DataFrame([*self._trials.values()])
        wanted = [o.metric for o in objectives]
        for objective in objectives:
            wanted += noise_columns(objective)
        named = dict.fromkeys(f"metric/{name}" for name in wanted)
        columns = [name for name in named if name in trials]
        rows = configurations_of(
            trials[["trial_id", "number", "ended", *columns]], objectives
        )
        if rows.empty:
            return False
        classes = pd.concat([*self._classes.values()])
        paired = paired_errors(
            self._relative, rows, objectives, self._source, self._hits.__getitem__
        )
        chances = bounds_probability(rows, objectives, classes, paired)
        return bool(chances.max() >= CERTAIN)
