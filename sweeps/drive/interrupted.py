"""Trials whose driver ended before they did."""

from __future__ import annotations

import contextlib
from itertools import chain

from analysis.contract import BASELINE
from sweeps.run.faults import RecordTakenError
from sweeps.run.folder import trial_folder
from sweeps.run.record import TrialRecord, trial_records
from sweeps.run.storage import RunStorage


def mark_interrupted(storage: RunStorage, left_over: bool = False) -> None:
    """Records still `running` belong to no process now.

    Args:
        left_over: they are of a driver that was killed, perhaps long ago, and ended with their last
            sign.
    """
    baseline = TrialRecord.read(trial_folder(storage.run, BASELINE))
    for record in chain(trial_records(storage.run), [baseline]):
        if record is None or record.status != "running":
            continue
        # a process that outlived its driver may end it itself meanwhile
        with contextlib.suppress(RecordTakenError):
            record.finish(
                "interrupted",
                error="the sweep ended before the trial did",
                ended=record.last_sign() if left_over else None,
            )
        storage.push_trial(record.trial_id)
