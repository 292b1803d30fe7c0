"""What we need of Optuna beyond its documented interface.

Each of these uses has a test that fails when Optuna changes it (`tests/sweeps/test_internals.py`).

Optuna keeps two things in the system attributes of a trial. What `Study.enqueue_trial` was given
stands under a key of its own. The other attributes are what a sampler noted about a trial that it
drew, for example its generation; a trial that is enqueued has none of them, so that the sampler
would not count it among those that it drew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

_ENQUEUED = "fixed_params"


def enqueued_parameters(trial: FrozenTrial) -> dict[str, Any] | None:
    """The parameters that `Study.enqueue_trial` was given for a trial; None of a drawn trial."""
    found = trial.system_attrs.get(_ENQUEUED)
    return None if found is None else dict(found)


def sampler_notes(trial: FrozenTrial) -> dict[str, Any]:
    """What the sampler noted about a trial that it drew."""
    return {k: v for k, v in trial.system_attrs.items() if k != _ENQUEUED}


def enqueue_again(
    study: optuna.Study,
    parameters: Mapping[str, Any],
    notes: Mapping[str, Any],
    user_attrs: Mapping[str, Any],
) -> None:
    """As `Study.enqueue_trial`, for a trial that an earlier driver had drawn.

    Args:
        notes: what `sampler_notes` gave of the earlier trial.
    """
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            system_attrs={_ENQUEUED: dict(parameters), **notes},
            user_attrs=dict(user_attrs),
        )
    )
