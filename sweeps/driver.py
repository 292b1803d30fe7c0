"""The driver: a checked spec becomes trials on Ray, and a run folder with records, tables and a report."""

import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.tune
import yaml

import analysis
from sweeps.check import Checked, default_data_cache
from sweeps.dimension import config_keys
from sweeps.progress import Progress
from sweeps.records import SCHEMA, TrialRecord, now, read_json, to_json, trial_folder, trial_records
from sweeps.search import StudySearch
from sweeps.trial import run_trial
from sweeps.yaml_file import SpecError
from trainers.files import write_atomic

TrialFunction = Callable[[dict[str, Any]], dict[str, Any]]

_RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # a private cluster on this machine: no token under the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # our records are the safe source; Tune's snapshots only cost time
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@dataclass(frozen=True)
class Outcome:
    """How a run stands after `run_sweep`."""

    folder: Path
    interrupted: bool
    report: Path


def run_sweep(
    checked: Checked,
    *,
    overwrite: bool = False,
    command: Sequence[str] = (),
    trial: TrialFunction = run_trial,
    progress: Progress | None = None,
) -> Outcome:
    """Run, or go on with, the sweep of a spec.

    A run folder that holds the same sweep is continued: complete trials are kept, others run. One that
    holds another sweep is refused unless `overwrite`, which deletes it (the stage cache stays).

    Raises:
        SpecError: the run folder holds another sweep.
    """
    spec = checked.spec
    run = spec.run_folder.absolute()
    _prepare(checked, run, overwrite, command)
    _mark_interrupted(run)
    with _local_ray(checked) as cpus:
        search = StudySearch(checked, run, _common(checked, run))
        interrupted = False
        if search.num_trials > 0:
            interrupted = _tune(checked, run, search, trial, progress or Progress(checked), cpus)
    _mark_interrupted(run)
    analysis.gather(run)
    return Outcome(run, interrupted, analysis.write_report(run))


def _prepare(checked: Checked, run: Path, overwrite: bool, command: Sequence[str]) -> None:
    spec = checked.spec
    earlier = read_json(run / "run.json")
    if earlier is None and run.exists() and any(run.iterdir()):
        raise SpecError(f"storage/name: {run} exists and is not a run; choose another name")
    if overwrite and earlier is not None:
        shutil.rmtree(run)
        earlier = None
    if earlier is not None and _meaning(earlier.get("spec", {})) != _meaning(spec.raw):
        raise SpecError(
            f"{run} holds another sweep (its spec differs in more than its budget); "
            "choose another name, or give --overwrite"
        )
    note = {
        "schema": SCHEMA, "name": spec.name, "created": (earlier or {}).get("created", now()), "seed": spec.seed,
        "objectives": [o.model_dump() for o in spec.objectives], "params": list(dict.fromkeys(k for d in checked.space.dimensions for k in config_keys(d))),
        "command": " ".join(command), "spec": spec.raw,
    }  # fmt: skip
    write_atomic(run / "run.json", to_json(note))
    write_atomic(run / "spec.yaml", yaml.safe_dump(spec.raw, sort_keys=False, allow_unicode=True).encode())


def _meaning(raw: dict[str, Any]) -> dict[str, Any]:
    """What of a spec decides what its trials mean: all but budgets, places and how many run at a time."""
    free = {"search": {"trials", "max_failures"}, "resources": {"concurrent", "cpus"}}
    parts = {k: v for k, v in raw.items() if k != "storage"}
    return parts | {name: {k: v for k, v in raw.get(name, {}).items() if k not in drop} for name, drop in free.items()}


def _common(checked: Checked, run: Path) -> dict[str, Any]:
    """The part of a plan that all trials share."""
    spec = checked.spec
    cuda = spec.resources.gpus_per_trial > 0 and spec.resources.device != "cpu"
    return {
        "run": str(run), "cache": str(spec.cache_folder.absolute()), "data_cache": str(default_data_cache().absolute()),
        "measure": spec.measure.model_dump(mode="json"), "device": "cuda" if cuda else "cpu",
        "threads": spec.resources.cpus_per_trial, "max_failures": spec.search.max_failures,
    }  # fmt: skip


def start_ray(cpus: int | None = None) -> None:
    """A private Ray on this machine, quiet, with `cpus` cores (default: all)."""
    for key, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR", configure_logging=True)


@contextlib.contextmanager
def _local_ray(checked: Checked) -> Iterator[int]:
    """A Ray of this machine for the sweep; one that is there already is used and left. Yields its cores."""
    started = not ray.is_initialized()
    if started:
        start_ray(checked.spec.resources.cpus)
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        if started:
            ray.shutdown()


def _trainable(trial: TrialFunction) -> Callable[[dict[str, Any]], None]:
    """The Tune function: one plan in, one report out."""

    # nested, so that it is pickled by value: a trial's process need not import the driver
    def trainable(config: dict[str, Any]) -> None:
        from ray import tune

        tune.report({"status": trial(config["plan"])["status"]})  # the record has the rest

    return trainable


class _Watch(ray.tune.Callback):
    """Finalises the records of trials whose process died, and draws progress."""

    def __init__(self, run: Path, progress: Progress) -> None:
        self.run, self.progress = run, progress

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its settings at the start; it never loads them here

    def _folder(self, trial: Any) -> Path:
        return trial_folder(self.run, trial.config["plan"]["trial_id"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.ended(TrialRecord.read(self._folder(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = TrialRecord.read(self._folder(trial)) or TrialRecord.begin(self._folder(trial), trial.config["plan"])
        if record.status == "running":
            record.finish(
                "failed", error=f"the trial's process died {record.content['attempts']} times; out of memory?"
            )
        self.progress.ended(record)


def _tune(
    checked: Checked, run: Path, search: StudySearch, trial: TrialFunction, progress: Progress, cpus: int
) -> bool:
    """Run what the searcher suggests; True if the user interrupted."""
    wanted = checked.spec.resources
    fit_at_once = max(1, cpus // wanted.cpus_per_trial)
    concurrent = min(wanted.concurrent or fit_at_once, fit_at_once)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    trainable = ray.tune.with_resources(_trainable(trial), {"cpu": wanted.cpus_per_trial, "gpu": wanted.gpus_per_trial})
    interrupt = _Interrupt()
    tuner = ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=search, num_samples=search.num_trials, max_concurrent_trials=concurrent, reuse_actors=True,
            trial_dirname_creator=lambda t: t.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name="tune", storage_path=str(run), verbose=0, callbacks=[_Watch(run, progress)],
            failure_config=ray.tune.FailureConfig(max_failures=checked.spec.search.max_failures),
        ),
    )  # fmt: skip
    with interrupt, progress.drawn(search.num_trials), _quiet():
        tuner.fit()
    shutil.rmtree(run / "tune", ignore_errors=True)
    return interrupt.seen


class _Interrupt:
    """First Ctrl-C (or SIGTERM): Tune ends its trials and `fit` returns. Second: at once."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> "_Interrupt":
        self._before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        signal.signal(signal.SIGUSR1, self._too_early)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return kind is not None and issubclass(kind, KeyboardInterrupt) and self.seen

    def _ask(self, number: int, frame: Any) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True
        print("\nstopping the running trials (again: at once)", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGUSR1)  # Tune's own handler for it ends the experiment cleanly

    def _too_early(self, number: int, frame: Any) -> None:
        raise KeyboardInterrupt  # Tune has not put its handler in this one's place yet


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Tune's own words on the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def _mark_interrupted(run: Path) -> None:
    """Records still `running` belong to no process now."""
    for record in trial_records(run):
        if record.status == "running":
            record.finish("interrupted", error="the sweep ended before the trial did")
