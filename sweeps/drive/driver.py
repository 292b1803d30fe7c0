"""The driver: a sweep becomes trials on Ray, and a run folder with records, tables and a report."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray.tune
import yaml
from ray.tune import TuneError

import analysis
from analysis.contract import ENDED, RECORD_SCHEMA, RUN_FILE, SPEC_FILE
from analysis.numbers import plural
from sweeps.drive.cluster import LOCAL, RayLostError, connected, is_private
from sweeps.drive.final_measurement import measure_front
from sweeps.drive.interrupt import Interrupt, quiet
from sweeps.drive.interrupted import mark_interrupted
from sweeps.drive.metrics import described_metrics, units
from sweeps.drive.node_checks import check_nodes
from sweeps.drive.progress import Progress
from sweeps.drive.ray_internals import (
    deaths_of_processes,
    in_waiting_processes,
    kept_processes,
)
from sweeps.drive.room import (
    concurrent_trials,
    early_threads,
    resources_of_trial,
    trials_at_once,
)
from sweeps.drive.trackers import TrackerFeed, wanted_trackers
from sweeps.drive.trial_events import TrialEvents
from sweeps.drive.tune_adapter import (
    StopWhen,
    TrialFunction,
    TuneCallback,
    TuneScheduler,
    TuneSearcher,
    trainable_of,
)
from sweeps.drive.tune_run import TuneRun
from sweeps.resume import reopen, taken_up
from sweeps.run.code_version import code_version
from sweeps.run.driving import driving, refuse_second_driver
from sweeps.run.faults import StorageFaultError, innermost, is_storage_fault
from sweeps.run.folder import TUNE_FOLDER, WORKERS_FOLDER
from sweeps.run.plan import Site
from sweeps.run.record import now, to_json, trial_records
from sweeps.run.storage import RunStorage, run_storage
from sweeps.search.baseline import Baseline
from sweeps.search.searcher import StudySearch
from sweeps.search.stopping import EarlyStopper
from sweeps.space.dimension import config_keys
from sweeps.space.sweep import Sweep
from sweeps.spec.yaml_text import SpecError
from sweeps.trial.attempt import run_trial
from trainers.files import default_data_cache, write_atomic
from trainers.leftovers import remove_leftovers
from trainers.remote import is_uri
from trainers.words import one_line

MOST_IN_VAIN = 3
"""Attempts in a row that may end before their time without a trial that ended."""


class TooManyAtOnceError(Exception):
    """A trial was killed for memory while others ran; it runs again with fewer beside it."""


class TrialsGivenUpError(Exception):
    """Ray Tune has ended trials whose processes died, although they may fail more often."""


@dataclass(frozen=True)
class SweepResult:
    """How a run stands after `run_sweep`.

    Attributes:
        folder: the run folder.
        interrupted: by Ctrl-C, SIGTERM or SIGHUP.
        stopped: by `sweeps stop`.
        report: the HTML page.
        fault: what ended the sweep before its time, where that was neither; None for a sweep that
            came to its end.
    """

    folder: Path
    interrupted: bool
    stopped: bool
    report: Path
    fault: str | None = None


@dataclass
class _Drive:
    """A sweep that is being driven, over all attempts.

    Attributes:
        successor: says who drives the run instead of this process; None while nobody does.
        halted: no more trials were to start, because of `sweeps stop`.
        fault: why the last attempt ended, where it did not come to its end.
        has_begun: Ray was there and trials began.
        is_doomed: Ray ends this process within a minute.
        most: trials at a time that memory holds, once one was killed for it.
    """

    sweep: Sweep
    storage: RunStorage
    trial: TrialFunction
    progress: Progress
    address: str
    ship: bool
    interrupt: Interrupt
    successor: Callable[[], str | None]
    halted: bool = False
    fault: str | None = None
    has_begun: bool = False
    is_doomed: bool = False
    most: int | None = None

    def refuse_superseded(self) -> None:
        """Raises SpecError where the run belongs to another driver now."""
        said = self.successor()
        if said is not None:
            raise SpecError(said)


def run_sweep(
    sweep: Sweep,
    *,
    overwrite: bool = False,
    command: Sequence[str] = (),
    trial: TrialFunction = run_trial,
    progress: Progress | None = None,
    address: str = LOCAL,
    ship: bool = True,
    retry: Literal["failed", "pruned"] | None = None,
) -> SweepResult:
    """Run a sweep, or go on with one.

    A run folder that holds the same sweep is continued: complete trials are kept, others run. One
    that holds another sweep is refused unless `overwrite`, which deletes it, but not the stage
    cache.

    Args:
        command: what the user typed, for the run's records.
        trial: does the work of a trial.
        address: "local", "auto" or host:port (see `sweeps.drive.cluster.connected`).
        ship: send our packages to the nodes of a cluster.
        retry: run trials that ended like this again, under their numbers.

    Raises:
        SpecError: the run folder holds another sweep or is being run, its data or source models
            have changed, no cluster, or full storage.
    """
    run = sweep.spec.run_folder.absolute()
    storage = run_storage(sweep.spec.storage, run)
    progress = progress or Progress(sweep.spec.objectives, units(sweep))
    try:
        with Interrupt() as interrupt:
            refuse_second_driver(run)
            storage.pull()
            _prepare(sweep, storage, overwrite, command)
            with driving(run) as successor:
                remove_leftovers(run, below=True)
                if retry is not None:
                    reopen(run, retry)
                drive = _Drive(
                    sweep,
                    storage,
                    trial,
                    progress,
                    address,
                    ship,
                    interrupt,
                    successor,
                )
                return _drive(drive)
    except Exception as error:
        if not is_storage_fault(error):
            raise
        raise SpecError(_full(run, str(innermost(error)))) from error


def _full(run: Path, error: str) -> str:
    return (
        f"storage: {error}; all that was recorded is kept: make room, then `sweeps"
        f" resume {run}` goes on from here"
    )


def _drive(drive: _Drive) -> SweepResult:
    """Run all trials, in several attempts if need be; then write tables and report."""
    storage, interrupt = drive.storage, drive.interrupt
    mark_interrupted(storage, left_over=True)
    ended = [r for r in trial_records(storage.run) if r.status in ENDED]
    drive.progress.know(Baseline(drive.sweep, storage.run).objectives())
    drive.progress.resume(ended)
    in_vain = 0
    while True:
        before = len(ended)
        drive.fault = None
        try:
            _attempt(drive)
        finally:
            if drive.successor() is None:
                with contextlib.suppress(OSError):  # a full disk is spoken of elsewhere
                    mark_interrupted(storage)
        drive.refuse_superseded()
        if drive.fault is None or interrupt.seen or drive.is_doomed:
            break
        ended = [r for r in trial_records(storage.run) if r.status in ENDED]
        in_vain = 0 if len(ended) > before else in_vain + 1
        if in_vain == MOST_IN_VAIN:
            break
        drive.progress.note(
            f"{drive.fault}; the trials that ran are recorded as interrupted, and the sweep"
            " starts again from its records"
        )
    report = analysis.write_report(analysis.gather(storage.run))
    _push_all(drive)
    was_stopped = drive.halted and drive.fault is None and not interrupt.seen
    fault = None if interrupt.seen else drive.fault
    return SweepResult(storage.run, interrupt.seen, was_stopped, report, fault)


def _attempt(drive: _Drive) -> None:
    """Connect to Ray and run what is left to run; `drive.fault` says what ended it too early.

    Raises:
        SpecError: a mistake of the user's, full storage too.
    """
    with contextlib.ExitStack() as stack:
        spec = drive.sweep.spec
        cpus, threads = spec.resources.cpus, early_threads(spec)
        ray_there = connected(drive.address, cpus, threads, ship=drive.ship)
        try:
            with drive.interrupt.kept():
                stack.enter_context(ray_there)
            if not drive.interrupt.seen:
                _search_on(drive)
        except SpecError as error:
            if not drive.has_begun:
                raise
            drive.fault = str(error)  # a cluster that was there is gone
        except Exception as error:
            # the boundary: whatever Ray or one of its hooks raises ends this attempt alone
            if is_storage_fault(error):
                raise
            drive.fault = _ended_early(error)
            if isinstance(error, RayLostError) and error.ends_process:
                # at once: to shut down a Ray without a head takes long
                drive.is_doomed = True
                if drive.successor() is None:
                    with contextlib.suppress(OSError):
                        mark_interrupted(drive.storage)


def _ended_early(error: Exception) -> str:
    """A clause about what ended an attempt; with SWEEPS_TRACEBACK=1 also where it was raised."""
    if os.environ.get("SWEEPS_TRACEBACK"):
        traceback.print_exception(error)
    if isinstance(error, RayLostError):
        return str(error)
    if isinstance(error, TooManyAtOnceError):
        return f"a trial was killed for memory; {error} at a time from here on"
    # Tune raises its own error, with a traceback as its message, while it handles another
    handled = error.__context__ if isinstance(error, TuneError) else None
    first = innermost(handled or error)
    said = one_line(first)
    return f"the search was ended by {type(first).__name__}: {said}"


def _search_on(drive: _Drive) -> None:
    """Run what the search hands out; Ray is there."""
    sweep, storage, progress = drive.sweep, drive.storage, drive.progress
    if drive.address != LOCAL:
        for line in check_nodes(storage.run if storage.shared else None):
            progress.note(line)
    search = StudySearch(sweep, storage)
    if search.num_trials > 0:
        # what has no room at all is the user's mistake
        room = trials_at_once(sweep.spec.resources)
        search.budget.run_at_once(min(room, concurrent_trials(sweep.spec, drive.most)))
    plan = search.plan_line()
    for line in [*search.notes, *([] if plan is None else [plan])]:
        progress.note(line)
    progress.share_left = search.budget.share_left
    progress.restarted()
    if search.num_trials > 0:
        _search(drive, search)
    if not (search.halted or drive.interrupt.seen or drive.fault):
        if not progress.begun:
            progress.note(_nothing_left(search))
        _measure_front(drive)


def _nothing_left(search: StudySearch) -> str:
    """Why a search had no trial to run, and what goes on."""
    ended = {
        record.plan.number
        for record in trial_records(search.run)
        if record.plan.refines is None and record.status in ENDED
    }
    return search.budget.nothing_left(len(ended), search.sweep.num_configurations)


def _measure_front(drive: _Drive) -> None:
    """The last step of a sweep that came to its end: the front's latencies, side by side."""
    spec = drive.sweep.spec
    if not spec.measure.latency:
        return
    site = site_of(drive.sweep, drive.storage.run)
    runtimes = list(spec.measure.runtimes)
    note = drive.progress.note
    said = measure_front(
        drive.storage,
        site,
        spec.objectives,
        runtimes,
        note,
        is_unwanted=lambda: drive.interrupt.seen,
    )
    if said is not None:
        drive.progress.note(said)


def _search(drive: _Drive, search: StudySearch) -> None:
    """Run what the search hands out, and fetch what was recorded."""
    storage = drive.storage
    drive.has_begun = True
    try:
        _run_trials(drive, search)
    except KeyboardInterrupt:
        if not drive.interrupt.seen:
            raise
    finally:
        drive.halted = search.halted
        said = search.outcome_line() if drive.progress.begun else None
        if said is not None:
            drive.progress.note(said)
    storage.pull()  # what nodes wrote as they were stopped


def _push_all(drive: _Drive) -> None:
    """Show everything to other machines; a store that fails now has lost nothing."""
    try:
        drive.storage.push_run(everything=True)
    except OSError as error:
        drive.progress.note(
            f"storage: the last files could not be sent to {drive.sweep.spec.storage}"
            f" ({' '.join(str(error).split())}); this machine has all of them in"
            f" {drive.storage.run}, and the same command sends them again"
        )


def _prepare(
    sweep: Sweep, storage: RunStorage, overwrite: bool, command: Sequence[str]
) -> None:
    """Write what the sweep is into its run folder, unless that holds something else."""
    run = storage.run
    data_cache = default_data_cache().absolute()
    earlier = taken_up(sweep, storage, data_cache, overwrite=overwrite)
    header = run_header(sweep, command)
    if earlier is not None:
        header["created"] = earlier.get("created", header["created"])
    write_atomic(run / RUN_FILE, to_json(header))
    text = yaml.safe_dump(sweep.spec.raw, sort_keys=False, allow_unicode=True)
    write_atomic(run / SPEC_FILE, text.encode())
    storage.push_run()


def run_header(sweep: Sweep, command: Sequence[str]) -> dict[str, Any]:
    """What `run.json` holds: what the sweep is, and what its metrics mean."""
    spec = sweep.spec
    keys = dict.fromkeys(k for d in sweep.space.dimensions for k in config_keys(d))
    return {
        "schema": RECORD_SCHEMA,
        "name": spec.name,
        "title": spec.title,
        "created": now(),
        "seed": spec.seed,
        "objectives": [asdict(objective) for objective in spec.objectives],
        "params": list(keys),
        "metrics": described_metrics(sweep),
        "command": " ".join(command),
        "data": sweep.data,
        "remarks": list(sweep.remarks),
        "spec": spec.raw,
    }


def site_of(sweep: Sweep, run: Path) -> Site:
    """What all trials of a run share about place and resources."""
    spec, wanted = sweep.spec, sweep.spec.resources
    cuda = wanted.gpus_per_worker > 0 and wanted.device != "cpu"
    return Site(
        run=run,
        cache=spec.cache_folder.absolute(),
        data_cache=default_data_cache().absolute(),
        remote=spec.storage if is_uri(spec.storage) else None,
        device="cuda" if cuda else "cpu",
        threads=wanted.cpus_per_worker,
        workers=wanted.workers,
        strategy=wanted.strategy,
        gpus_per_worker=wanted.gpus_per_worker,
        keep_workers=wanted.worker_group == "keep",
        max_failures=spec.search.max_failures,
        objectives=tuple(spec.objectives),
        code=code_version(),
        plugins=sweep.plugins,
    )


def _run_trials(drive: _Drive, search: StudySearch) -> None:
    """Run Tune over what the searcher hands out.

    Raises:
        RayLostError: a part of Ray has died.
        StorageFaultError: the storage is full.
        Exception: whatever else ended it.
    """
    sweep, storage, progress = drive.sweep, drive.storage, drive.progress
    spec, run = sweep.spec, storage.run
    trackers = TrackerFeed(run, wanted_trackers(spec, run), progress.note)
    stopper = None
    if spec.search.early_stopping is not None:
        rule, earlier = spec.search.early_stopping, trial_records(run)
        stopper = EarlyStopper(rule, spec.seed, earlier)
    tune = TuneRun(lambda: drive.interrupt.seen, lambda: drive.successor() is not None)
    events = TrialEvents(storage, search, stopper, progress, trackers, tune.wants_end)
    fit = _fit(drive, search, events, tune)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # records say it
    try:
        with (
            progress.drawn(search.num_trials, run if storage.shared else None),
            quiet(),
            deaths_of_processes(events.process_failed),
            kept_processes(),
            in_waiting_processes() if is_private() else contextlib.nullcontext(),
        ):
            tune.wait(fit)
    finally:
        trackers.close()
    drive.refuse_superseded()
    if events.fault is not None:
        raise StorageFaultError(events.fault)
    if events.fitted is not None and not drive.interrupt.seen:
        drive.most = events.fitted
        raise TooManyAtOnceError(plural(drive.most, "trial"))
    if events.given_up and not drive.interrupt.seen:
        raise TrialsGivenUpError(", ".join(events.given_up))
    with contextlib.suppress(OSError):  # some files of Tune's then stay in the store
        storage.delete(TUNE_FOLDER, WORKERS_FOLDER)


def _fit(
    drive: _Drive, search: StudySearch, events: TrialEvents, tune: TuneRun
) -> Callable[[], object]:
    """Tune's run with our searcher, scheduler and callback, ready to be called."""
    spec, storage = drive.sweep.spec, drive.storage
    return functools.partial(
        ray.tune.run,
        trainable_of(drive.trial, site_of(drive.sweep, storage.run), spec.distributed),
        name=TUNE_FOLDER,
        storage_path=storage.tune_storage(),
        resources_per_trial=resources_of_trial(spec),
        num_samples=search.num_trials + search.asks_baseline,
        max_concurrent_trials=concurrent_trials(spec, drive.most),
        search_alg=TuneSearcher(events, tune),
        scheduler=TuneScheduler(events, tune),
        callbacks=[TuneCallback(events, tune)],
        stop=StopWhen(lambda: tune.wants_end() or events.fitted is not None),
        max_failures=spec.search.max_failures,
        raise_on_failed_trial=False,
        reuse_actors=True,
        trial_dirname_creator=lambda trial: trial.trial_id,
        verbose=0,
    )
