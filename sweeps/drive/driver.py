"""The driver: a sweep becomes trials on Ray, and a run folder with records, tables and a report."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray.tune
import yaml

import analysis
from analysis.contract import ENDED, RECORD_SCHEMA, RUN_FILE, SPEC_FILE
from sweeps.drive.cluster import LOCAL, connected
from sweeps.drive.interrupt import Interrupt, quiet
from sweeps.drive.metrics import described_metrics, units
from sweeps.drive.node_checks import check_nodes, trials_at_once
from sweeps.drive.progress import Progress
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
from sweeps.resume import refuse_changed_plugins, refuse_changes, reopen
from sweeps.run.code_version import code_version
from sweeps.run.driving import driving, refuse_second_driver
from sweeps.run.folder import TUNE_FOLDER, WORKERS_FOLDER
from sweeps.run.plan import Site
from sweeps.run.record import (
    RecordTakenError,
    is_storage_fault,
    now,
    to_json,
    trial_records,
)
from sweeps.run.storage import RunStorage, run_storage
from sweeps.search.searcher import StudySearch
from sweeps.search.stopping import EarlyStopper
from sweeps.space.dimension import config_keys
from sweeps.space.sweep import Sweep
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError
from sweeps.trial.attempt import run_trial
from trainers.files import default_data_cache, read_json, write_atomic
from trainers.remote import is_uri

_DISTRIBUTED_TRIAL_BYTES = 2**20  # Tune refuses a trial that holds nothing


@dataclass(frozen=True)
class SweepResult:
    """How a run stands after `run_sweep`.

    Attributes:
        folder: the run folder.
        interrupted: by Ctrl-C.
        stopped: by `sweeps stop`.
        report: the HTML page.
    """

    folder: Path
    interrupted: bool
    stopped: bool
    report: Path


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
        SpecError: the run folder holds another sweep or is being run, no cluster, or full storage.
    """
    run = sweep.spec.run_folder.absolute()
    storage = run_storage(sweep.spec.storage, run)
    progress = progress or Progress(sweep.spec.objectives, units(sweep))
    try:
        refuse_second_driver(run)
        storage.pull()
        _prepare(sweep, storage, overwrite, command)
        with driving(run):
            if retry is not None:
                reopen(run, retry)
            _mark_interrupted(storage)
            with connected(address, sweep.spec.resources.cpus, ship=ship):
                return _drive(sweep, storage, trial, progress, address)
    except OSError as error:
        if not is_storage_fault(error):
            raise
        raise SpecError(_full(run, str(error))) from error


def _full(run: Path, error: str) -> str:
    return (
        f"storage: {error}; all that was recorded is kept: make room, then `sweeps"
        f" resume {run}` goes on from here"
    )


def _drive(
    sweep: Sweep,
    storage: RunStorage,
    trial: TrialFunction,
    progress: Progress,
    address: str,
) -> SweepResult:
    """Run all trials, then write tables and report."""
    run = storage.run
    if address != LOCAL:
        for line in check_nodes(run if storage.shared else None):
            progress.note(line)
    search = StudySearch(sweep, storage)
    for line in search.notes:
        progress.note(line)
    progress.resume(r for r in trial_records(run) if r.status in ENDED)
    interrupted = False
    if search.num_trials > 0:
        interrupted = _run_trials(sweep, storage, search, trial, progress)
    storage.pull()  # what nodes wrote as they were stopped
    _mark_interrupted(storage)
    report = analysis.write_report(analysis.gather(run))
    storage.push_run(everything=True)
    return SweepResult(run, interrupted, search.halted and not interrupted, report)


def _prepare(
    sweep: Sweep, storage: RunStorage, overwrite: bool, command: Sequence[str]
) -> None:
    """Write what the sweep is into its run folder, unless that holds something else."""
    run = storage.run
    earlier = read_json(run / RUN_FILE)
    if earlier is None and run.exists() and any(run.iterdir()):
        raise SpecError(
            f"storage/name: {run} exists and is not a run; choose another name"
        )
    if overwrite and earlier is not None:
        storage.delete()
        earlier = None
    if earlier is not None:
        refuse_changes(run, earlier.get("spec", {}), sweep.spec)
        refuse_changed_plugins(run)
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
        gpus_per_worker=wanted.gpus_per_worker,
        keep_workers=wanted.worker_group == "keep",
        max_failures=spec.search.max_failures,
        objectives=tuple(spec.objectives),
        code=code_version(),
        plugins=sweep.plugins,
    )


def _run_trials(
    sweep: Sweep,
    storage: RunStorage,
    search: StudySearch,
    trial: TrialFunction,
    progress: Progress,
) -> bool:
    """Run what the searcher hands out; True if the user interrupted."""
    spec, run = sweep.spec, storage.run
    trackers = TrackerFeed(run, wanted_trackers(spec, run), progress.note)
    stopper = None
    if spec.search.early_stopping is not None:
        rule, earlier = spec.search.early_stopping, trial_records(run)
        stopper = EarlyStopper(rule, spec.seed, earlier)
    events = TrialEvents(storage, search, stopper, progress, trackers)
    interrupt = Interrupt()
    trainable = trainable_of(trial, site_of(sweep, run), spec.distributed)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # records say it
    with interrupt, progress.drawn(search.num_trials), quiet():
        ray.tune.run(
            trainable,
            name=TUNE_FOLDER,
            storage_path=storage.tune_storage(),
            resources_per_trial=_held(spec),
            num_samples=search.num_trials,
            max_concurrent_trials=_concurrent(spec),
            search_alg=TuneSearcher(events),
            scheduler=TuneScheduler(events),
            callbacks=[TuneCallback(events)],
            stop=StopWhen(lambda: interrupt.seen),
            max_failures=spec.search.max_failures,
            raise_on_failed_trial=False,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
            verbose=0,
        )
    trackers.close()
    if events.fault is not None:
        raise SpecError(_full(run, events.fault))
    storage.delete(TUNE_FOLDER, WORKERS_FOLDER)
    return interrupt.seen


def _held(spec: Spec) -> dict[str, float]:
    """What a trial's own process holds of a node."""
    if spec.distributed:
        # its workers hold the cores; a trial that held one too could starve them for ever
        return {"cpu": 0, "memory": _DISTRIBUTED_TRIAL_BYTES}
    wanted = spec.resources
    return {"cpu": wanted.cpus_per_worker, "gpu": wanted.gpus_per_worker}


def _concurrent(spec: Spec) -> int:
    """Trials at a time.

    A distributed one that waited for its workers would give up; others may wait for nodes to come.
    """
    room = trials_at_once(spec.resources)
    concurrent = spec.resources.concurrent or room
    return min(concurrent, room) if spec.distributed else concurrent


def _mark_interrupted(storage: RunStorage) -> None:
    """Records still `running` belong to no process now."""
    for record in trial_records(storage.run):
        if record.status != "running":
            continue
        # a process that outlived its driver may end it itself meanwhile
        with contextlib.suppress(RecordTakenError):
            record.finish("interrupted", error="the sweep ended before the trial did")
        storage.push_trial(record.trial_id)
