"""The driver: a checked spec becomes trials on Ray, and a run folder with records, tables
and a report.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.tune
import yaml

import analysis
from sweeps.drive.cluster import LOCAL, check_nodes, connected
from sweeps.drive.interrupt import Interrupt, quiet
from sweeps.drive.progress import Progress
from sweeps.drive.trackers import Watchers, make_listeners
from sweeps.resume import refuse_changes, reopen
from sweeps.run.code_version import code_version
from sweeps.run.driving import driving, refuse_second_driver
from sweeps.run.record import (
    SCHEMA,
    RecordTakenError,
    TrialRecord,
    is_storage_fault,
    now,
    to_json,
    trial_folder,
    trial_records,
)
from sweeps.run.storage import RunPlace, run_place
from sweeps.search.searcher import ENDED, StudySearch
from sweeps.search.stopping import EpochScheduler
from sweeps.space.dimension import config_keys
from sweeps.space.sweep import Sweep
from sweeps.spec.model import Resources
from sweeps.spec.yaml_text import SpecError
from sweeps.trial.attempt import run_trial
from sweeps.trial.epoch_curve import prune
from trainers.files import default_data_cache, read_json, write_atomic
from trainers.remote import is_uri

TrialFunction = Callable[..., dict[str, Any]]
"""`run_trial`, or what a test puts in its place."""

_DISTRIBUTED_TRIAL_BYTES = 2**20  # Tune refuses a trial that holds nothing


@dataclass(frozen=True)
class Outcome:
    """How a run stands after `run_sweep`. `interrupted`: by Ctrl-C; `stopped`: by `sweeps stop`."""

    folder: Path
    interrupted: bool
    stopped: bool
    report: Path


def run_sweep(
    checked: Sweep,
    *,
    overwrite: bool = False,
    command: Sequence[str] = (),
    trial: TrialFunction = run_trial,
    progress: Progress | None = None,
    address: str = LOCAL,
    ship: bool = True,
    retry: Literal["failed", "pruned"] | None = None,
) -> Outcome:
    """Run, or go on with, the sweep of a spec.

    A run folder that holds the same sweep is continued: complete trials are kept, others
    run. One that holds another sweep is refused unless `overwrite`, which deletes it (the
    stage cache stays).

    Args:
        address: "local", "auto" or host:port (see `sweeps.drive.cluster.connected`).
        ship: send our packages to the nodes of a cluster.
        retry: run trials that ended like this again, under their numbers.

    Raises:
        SpecError: the run folder holds another sweep or is being run, no cluster, or full storage.
    """
    run = checked.spec.run_folder.absolute()
    place = run_place(checked.spec.storage, run)
    progress = progress or Progress(checked)
    try:
        refuse_second_driver(run)
        place.pull()
        _prepare(checked, place, overwrite, command)
        with driving(run):
            if retry is not None:
                reopen(run, retry)
            return _drive(checked, place, trial, progress, address, ship)
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
    checked: Sweep,
    place: RunPlace,
    trial: TrialFunction,
    progress: Progress,
    address: str,
    ship: bool,
) -> Outcome:
    run = place.run
    _mark_interrupted(place)
    with connected(address, checked.spec.resources.cpus, ship=ship):
        if address != LOCAL:
            for line in check_nodes(run if place.shared else None):
                progress.note(line)
        search = StudySearch(checked, run, _common(checked, run))
        for line in search.notes:
            progress.note(line)
        progress.resume(r for r in trial_records(run) if r.status in ENDED)
        interrupted = False
        if search.num_trials > 0:
            interrupted = _tune(checked, place, search, trial, progress)
    place.pull()  # what nodes wrote as they were stopped
    _mark_interrupted(place)
    report = analysis.write_report(analysis.gather(run))
    place.push_run(everything=True)
    return Outcome(run, interrupted, search.halted and not interrupted, report)


def _prepare(
    checked: Sweep, place: RunPlace, overwrite: bool, command: Sequence[str]
) -> None:
    spec, run = checked.spec, place.run
    earlier = read_json(run / "run.json")
    if earlier is None and run.exists() and any(run.iterdir()):
        raise SpecError(
            f"storage/name: {run} exists and is not a run; choose another name"
        )
    if overwrite and earlier is not None:
        place.delete()
        earlier = None
    if earlier is not None:
        refuse_changes(run, earlier.get("spec", {}), spec)
    note = {
        "schema": SCHEMA,
        "name": spec.name,
        "created": (earlier or {}).get("created", now()),
        "seed": spec.seed,
        "objectives": [asdict(o) for o in spec.objectives],
        "params": list(
            dict.fromkeys(k for d in checked.space.dimensions for k in config_keys(d))
        ),
        "command": " ".join(command),
        "spec": spec.raw,
    }
    write_atomic(run / "run.json", to_json(note))
    write_atomic(
        run / "spec.yaml",
        yaml.safe_dump(spec.raw, sort_keys=False, allow_unicode=True).encode(),
    )
    place.push_run()


def _common(checked: Sweep, run: Path) -> dict[str, Any]:
    """The part of a plan that all trials share."""
    spec = checked.spec
    cuda = spec.resources.gpus_per_worker > 0 and spec.resources.device != "cpu"
    return {
        "run": str(run),
        "cache": str(spec.cache_folder.absolute()),
        "data_cache": str(default_data_cache().absolute()),
        "measure": spec.measure.model_dump(mode="json"),
        "device": "cuda" if cuda else "cpu",
        "threads": spec.resources.cpus_per_worker,
        "max_failures": spec.search.max_failures,
        "workers": spec.resources.workers,
        "gpus_per_worker": spec.resources.gpus_per_worker,
        "keep_workers": spec.resources.worker_group == "keep",
        "objectives": [asdict(o) for o in spec.objectives],
        "code": code_version(),
        "remote": spec.storage if is_uri(spec.storage) else None,
    }


def _trainable(
    trial: TrialFunction, distributed: bool
) -> Callable[[dict[str, Any]], None]:
    """The Tune function: one plan in, one report out."""

    # nested, so that it is pickled by value: a trial's process need not import the driver
    def trainable(config: dict[str, Any]) -> None:
        from ray import tune

        from sweeps.run.storage import place_of

        plan = config["plan"]
        options: dict[str, Any] = {}
        if distributed:
            from sweeps.trial.workers import execute_on_workers

            options["execute"] = execute_on_workers
        if plan.get("watch") is not None:

            def on_epoch(row: dict[str, Any]) -> None:
                place_of(plan).push_trial(
                    plan["trial_id"]
                )  # who gives the trial up shall have its record
                tune.report(row)  # a stop is a SystemExit out of it

            options["on_epoch"] = on_epoch
        try:
            outcome = trial(plan, **options)
        finally:
            place_of(plan).push_trial(plan["trial_id"])
        tune.report(
            {key: outcome[key] for key in ("status", "fault") if key in outcome}
        )  # the record has the rest

    return trainable


class _Watch(ray.tune.Callback):
    """Finalises records that their trials cannot, draws progress and tells the watchers."""

    def __init__(
        self,
        place: RunPlace,
        search: StudySearch,
        progress: Progress,
        watchers: Watchers,
    ) -> None:
        self.place, self.search, self.progress, self.watchers = (
            place,
            search,
            progress,
            watchers,
        )
        self.fault: str | None = None
        self._resources: Any = (
            None  # what a trial holds: the same for all, so that one object will do
        )

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its settings at the start; it never loads them here

    def _folder(self, trial: Any) -> Path:
        return trial_folder(self.place.run, trial.config["plan"]["trial_id"])

    def prune(self, plan: dict[str, Any], report: dict[str, Any]) -> None:
        """The scheduler gives a trial up: its record says so before its process is told."""
        folder = trial_folder(self.place.run, plan["trial_id"])
        self.place.pull_trial(plan["trial_id"])
        prune(TrialRecord.read(folder) or TrialRecord.begin(folder, plan), report)

    def on_trial_start(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        self.progress.started()
        self.watchers.started(trial.config["plan"]["trial_id"])

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.watchers.look()

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if "status" in result:  # before the searcher reads the record
            self.place.pull_trial(trial.config["plan"]["trial_id"])
            self.place.push_run()
        if "fault" in result:
            self.fault, self.search.halted = result["fault"], True

    def on_trial_recover(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        self.progress.failed_over(trial.config["plan"]["trial_id"])

    def on_trial_complete(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        self._ended(trial, TrialRecord.read(self._folder(trial)))

    def on_trial_error(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        self.place.pull_trial(trial.config["plan"]["trial_id"])
        record = TrialRecord.read(self._folder(trial)) or TrialRecord.begin(
            self._folder(trial), trial.config["plan"]
        )
        if record.status == "running":
            record.finish(
                "failed",
                error=(
                    f"the trial's process died {record.content['attempts']} times; out"
                    " of memory?"
                ),
            )
            self.place.push_trial(record.folder.name)
        self._ended(trial, record)

    def _ended(self, trial: Any, record: TrialRecord | None) -> None:
        self.progress.ended(record)
        self.watchers.ended(trial.config["plan"]["trial_id"])
        self._slim(trial)

    def _slim(self, trial: Any) -> None:
        """Tune keeps every trial to the end of the sweep, with seven copies of its plan;
        one that has ended needs none of them.
        """
        rest = {"plan": {"trial_id": trial.config["plan"]["trial_id"]}}
        trial.config, trial.evaluated_params, trial.experiment_tag = rest, {}, ""
        trial._Trial__unresolved_config, trial._default_result_or_future = rest, None
        trial.placement_group_factory = self._resources = (
            self._resources or trial.placement_group_factory
        )
        seen = trial.run_metadata
        seen.last_result = {
            k: v for k, v in seen.last_result.items() if k != "experiment_tag"
        } | {"config": rest}
        seen.metric_analysis, seen.metric_n_steps = {}, {}
        trial.invalidate_json_state()


def _tune(
    checked: Sweep,
    place: RunPlace,
    search: StudySearch,
    trial: TrialFunction,
    progress: Progress,
) -> bool:
    """Run what the searcher suggests; True if the user interrupted."""
    run, wanted, distributed = (
        place.run,
        checked.spec.resources,
        checked.spec.distributed,
    )
    fit_at_once = _fit_at_once(wanted)
    concurrent = wanted.concurrent or fit_at_once
    # one that waited for its workers would give up; others may wait for nodes to come
    if distributed:
        concurrent = min(concurrent, fit_at_once)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    held = {"cpu": wanted.cpus_per_worker, "gpu": wanted.gpus_per_worker}
    if distributed:
        # its workers hold the cores; a trial that held one too could starve them for ever
        held = {"cpu": 0, "memory": _DISTRIBUTED_TRIAL_BYTES}
    trainable = ray.tune.with_resources(_trainable(trial, distributed), held)
    interrupt = Interrupt()
    watchers = Watchers(run, make_listeners(checked.spec, run), progress.note)
    watch = _Watch(place, search, progress, watchers)
    rule = checked.spec.search.early_stopping
    scheduler = (
        EpochScheduler(rule, checked.spec.seed, trial_records(run), watch.prune)
        if rule is not None
        else None
    )
    tuner = ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=search,
            num_samples=search.num_trials,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            scheduler=scheduler,
            trial_dirname_creator=lambda t: t.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=place.tune_storage(),
            verbose=0,
            callbacks=[watch],
            failure_config=ray.tune.FailureConfig(
                max_failures=checked.spec.search.max_failures
            ),
        ),
    )
    with interrupt, progress.drawn(search.num_trials), quiet():
        tuner.fit()
    watchers.close()
    if watch.fault is not None:
        raise SpecError(_full(run, watch.fault))
    place.delete("tune", "workers")
    return interrupt.seen


def _fit_at_once(wanted: Resources) -> int:
    """Trials that the cluster has room for, a worker never across nodes.

    Raises:
        SpecError: not even one.
    """
    have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    slots = sum(_workers_on(node, wanted) for node in have)
    if slots < wanted.workers:
        nodes = ", ".join(
            f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs"
            for node in have
        )
        raise SpecError(
            f"resources: a trial needs {wanted.workers} x ({wanted.cpus_per_worker}"
            f" CPUs, {wanted.gpus_per_worker:g} GPUs), each within a node; the cluster"
            f" has room for {slots} of them (nodes: {nodes}); lower resources"
        )
    return slots // wanted.workers


def _workers_on(node: dict[str, float], wanted: Resources) -> int:
    room = node.get("CPU", 0) // wanted.cpus_per_worker
    if wanted.gpus_per_worker:
        room = min(
            room, node.get("GPU", 0) / wanted.gpus_per_worker + 1e-9
        )  # 3 x 1/3 is one GPU
    return int(room)


def _mark_interrupted(place: RunPlace) -> None:
    """Records still `running` belong to no process now."""
    for record in trial_records(place.run):
        if record.status == "running":
            with contextlib.suppress(
                RecordTakenError
            ):  # a process that outlived its driver ends it itself
                record.finish(
                    "interrupted", error="the sweep ended before the trial did"
                )
            place.push_trial(record.folder.name)
