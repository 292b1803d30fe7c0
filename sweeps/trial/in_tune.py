"""A trial in a process of Ray Tune: from its id to its status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune

from sweeps.run.faults import StorageFaultError
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site, read_plan
from sweeps.run.record import Outcome
from sweeps.run.storage import RunStorage, storage_of
from sweeps.trial.epoch_curve import EpochReport
from trainers import plugins
from trainers.machine import give_back_memory


def run_in_tune(
    trial: Callable[..., Outcome],
    trial_id: str,
    site_json: dict[str, Any],
    distributed: bool,
) -> None:
    """Run a trial, and report its epochs and its status to Tune; the record has the rest.

    Args:
        trial: `sweeps.trial.attempt.run_trial`, or what a test puts in its place.
        site_json: a `Site` as plain values, since plugins come before anything is validated.
        distributed: whether workers under Ray Train do the work.
    """
    site = Site.model_validate(site_json)
    plugins.load(site.plugins)
    storage = storage_of(site)
    storage.pull_plan(trial_id)
    plan = read_plan(trial_folder(site.run, trial_id))
    assert plan is not None, f"{trial_id} has a plan from before it was started"
    options: dict[str, Any] = {}
    if distributed:
        from sweeps.trial.workers import execute_on_workers

        options["execute"] = execute_on_workers
    if plan.stopping is not None:
        options["on_epoch"] = _Reporter(storage, trial_id)
    report: dict[str, Any]
    try:
        report = {"status": trial(plan, site, **options).status}
    except StorageFaultError as error:
        report = {"status": "interrupted", "fault": str(error)}
    finally:
        storage.push_trial(trial_id)
        give_back_memory()  # the process may wait for its next trial beside others
    tune.report(report)


class _Reporter:
    """Reports epochs to Tune; a stop is a SystemExit out of it."""

    def __init__(self, storage: RunStorage, trial_id: str) -> None:
        self.storage, self.trial_id = storage, trial_id

    def __call__(self, report: EpochReport) -> None:
        # who gives the trial up shall have its record
        self.storage.push_trial(self.trial_id)
        tune.report(report.to_row())
