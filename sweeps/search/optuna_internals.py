"""What we need of Optuna beyond its documented interface. Each door has a test that fails when
the door moves (`tests/sweeps/test_internals.py`).
"""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial


def enqueued_parameters(trial: FrozenTrial) -> dict[str, Any] | None:
    """The parameters that `Study.enqueue_trial` was given for a trial; None of a drawn trial.

    Optuna documents that it uses them, but not where it keeps them.
    """
    found = trial.system_attrs.get("fixed_params")
    return None if found is None else dict(found)
