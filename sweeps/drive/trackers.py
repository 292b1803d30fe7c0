"""Trackers: where trials are shown while they run (TensorBoard, MLflow, Weights & Biases).

The driver follows the records of running trials and passes on every epoch and every end; trials
know nothing of it. A tracker that fails, because its server is away for example, is dropped with a
warning: it never ends a sweep.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from analysis.contract import Status
from sweeps.run.folder import TENSORBOARD_FOLDER, trial_folder
from sweeps.run.record import Row, TrialRecord, read_epochs
from sweeps.spec.model import Spec
from sweeps.spec.tracker_options import Trackers
from sweeps.spec.yaml_text import SpecError, did_you_mean
from trainers import plugins

_SECONDS_BETWEEN_LOOKS = 2.0
_NO_SCALARS = ("epoch", "step", "cached")

Scalars = dict[str, float]


class Tracker(ABC):
    """Shows trials.

    Of one trial, `begin`, epochs and `end` come in this order; `begin` again starts it anew. A
    tracker is made as `Tracker(spec, run)`: the sweep's spec, and its run folder on this machine.
    """

    @abstractmethod
    def begin(self, record: TrialRecord) -> None:
        """A trial's first epoch is about to come, or a restarted trial's."""

    @abstractmethod
    def epoch(self, trial_id: str, scalars: Scalars, step: int) -> None:
        """An epoch of a trial.

        Args:
            scalars: value by "stage/name", finite ones only.
            step: counts the epochs of the stage, from 1.
        """

    @abstractmethod
    def end(self, record: TrialRecord) -> None:
        """The trial has ended, however it did."""


TrackerMaker = Callable[[Spec, Path], Tracker]


class _EventFile:
    """Scalars of one trial in TensorBoard's format.

    tensorboardX's SummaryWriter would do, but for its exit handler, which keeps every writer until
    the sweep ends.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True)
        self.events = EventsWriter(str(folder / "events"))

    def add(self, scalars: Scalars, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in scalars.items():
            self.events.write_event(
                Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            )
        self.events.flush()

    def close(self) -> None:
        self.events.close()


class TensorBoard(Tracker):
    """Event files under RUN/tensorboard/TRIAL."""

    def __init__(self, spec: Spec, run: Path) -> None:
        self.folder = run / TENSORBOARD_FOLDER
        self._writers: dict[str, _EventFile] = {}

    def begin(self, record: TrialRecord) -> None:
        trial_id = record.trial_id
        if trial_id in self._writers:
            self._writers.pop(trial_id).close()
        shutil.rmtree(self.folder / trial_id, ignore_errors=True)
        self._writers[trial_id] = _EventFile(self.folder / trial_id)

    def epoch(self, trial_id: str, scalars: Scalars, step: int) -> None:
        self._writers[trial_id].add(scalars, step)

    def end(self, record: TrialRecord) -> None:
        writer = self._writers.pop(record.trial_id)
        writer.add(_final(record), 0)
        writer.close()


class MlflowRuns(Tracker):
    """A run of an MLflow experiment for each trial."""

    _STATUS: ClassVar[dict[Status, str]] = {
        "complete": "FINISHED",
        "pruned": "KILLED",
        "interrupted": "KILLED",
        "running": "KILLED",
        "failed": "FAILED",
    }

    def __init__(self, spec: Spec, run: Path) -> None:
        from mlflow import MlflowClient

        assert spec.trackers.mlflow is not None
        self.sweep = spec.name
        self.client = MlflowClient(tracking_uri=spec.trackers.mlflow.tracking_uri)
        name = spec.trackers.mlflow.experiment or spec.name
        found = self.client.get_experiment_by_name(name)
        self.experiment = (
            found.experiment_id
            if found is not None
            else self.client.create_experiment(name)
        )
        self._runs: dict[str, str] = {}

    def begin(self, record: TrialRecord) -> None:
        trial_id = record.trial_id
        if trial_id in self._runs:
            self.client.set_terminated(self._runs[trial_id], "KILLED")
        tags = {
            "mlflow.runName": trial_id,
            "sweep": self.sweep,
            "seed": str(record.plan.seed),
        }
        run = self.client.create_run(self.experiment, tags=tags)
        self._runs[trial_id] = run.info.run_id
        for path, value in record.plan.configuration.items():
            self.client.log_param(run.info.run_id, mlflow_name(path), _as_text(value))

    def epoch(self, trial_id: str, scalars: Scalars, step: int) -> None:
        for name, value in scalars.items():
            self.client.log_metric(
                self._runs[trial_id], mlflow_name(name), value, step=step
            )

    def end(self, record: TrialRecord) -> None:
        run = self._runs.pop(record.trial_id)
        for name, value in _final(record).items():
            self.client.log_metric(run, mlflow_name(name), value)
        self.client.set_tag(run, "status", record.status)
        self.client.set_terminated(run, self._STATUS[record.status])


class WandbRuns(Tracker):
    """A run of a Weights & Biases project for each trial, grouped by the sweep."""

    def __init__(self, spec: Spec, run: Path) -> None:
        import wandb

        assert spec.trackers.wandb is not None
        self.wandb, self.sweep, self.folder = wandb, spec.name, run
        self.options = spec.trackers.wandb
        self._runs: dict[str, Any] = {}

    def begin(self, record: TrialRecord) -> None:
        trial_id = record.trial_id
        if trial_id in self._runs:
            self._runs.pop(trial_id).finish(exit_code=1)
        self._runs[trial_id] = self.wandb.init(
            project=self.options.project or self.sweep,
            entity=self.options.entity,
            mode=self.options.mode,
            name=trial_id,
            group=self.sweep,
            config=dict(record.plan.configuration) | {"seed": record.plan.seed},
            dir=str(self.folder),
            reinit="create_new",
            settings=self.wandb.Settings(silent=True),
        )

    def epoch(self, trial_id: str, scalars: Scalars, step: int) -> None:
        self._runs[trial_id].log(scalars)

    def end(self, record: TrialRecord) -> None:
        run = self._runs.pop(record.trial_id)
        run.summary.update(_final(record) | {"status": record.status})
        run.finish(exit_code=0 if record.status in ("complete", "pruned") else 1)


TRACKERS: dict[str, TrackerMaker] = {
    "tensorboard": TensorBoard,
    "mlflow": MlflowRuns,
    "wandb": WandbRuns,
}
"""Every tracker by its name."""

_NEEDS_SETTINGS = ("mlflow", "wandb")
"""Trackers of ours that need an extra and settings in the spec."""


def trackers() -> dict[str, TrackerMaker]:
    """`TRACKERS` and those that plugins offer.

    Raises:
        ValueError: a plugin's tracker has the name of one of ours, or cannot be called.
    """
    return plugins.merged(
        plugins.TRACKERS,
        TRACKERS,
        callable,
        "a class that is made from the spec and the run folder",
    )


def wanted_trackers(spec: Spec, run: Path) -> list[Callable[[], Tracker]]:
    """Makers of the trackers of a sweep: TensorBoard, and what its spec names.

    Raises:
        SpecError: the spec names a tracker that there is not.
    """
    check_trackers(spec.trackers)
    known = trackers()
    names = ["tensorboard"]
    names += [n for n in _NEEDS_SETTINGS if getattr(spec.trackers, n) is not None]
    return [partial(known[name], spec, run) for name in (*names, *spec.trackers.others)]


def check_trackers(settings: Trackers) -> None:
    """Refuse what is not there.

    Raises:
        SpecError: names the extra to install, or the trackers that there are.
    """
    known = [name for name in trackers() if name != "tensorboard"]
    for name in settings.others:
        if name not in known:
            raise SpecError(
                f"trackers.{name}: no such tracker; {did_you_mean(name, known)}valid:"
                f" {', '.join(known)}"
            )
    for name in _NEEDS_SETTINGS:
        is_wanted = getattr(settings, name) is not None
        if is_wanted and importlib.util.find_spec(name) is None:
            raise SpecError(
                f"trackers.{name}: {name} is not installed; pip install"
                f" 'compression-sweeps[{name}]'"
            )


def mlflow_name(name: str) -> str:
    """A name that MLflow takes: letters, digits, and _ - . space / only."""
    return re.sub(r"[^\w\-. /]", "_", name.replace("*", "any"))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _final(record: TrialRecord) -> Scalars:
    """The final metrics of a trial under `final/`."""
    metrics = _finite(record.outcome.metrics)
    return {f"final/{name}": value for name, value in metrics.items()}


def _finite(values: Mapping[str, Any]) -> Scalars:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


@dataclass
class _Followed:
    """How much of a running trial's epochs has been passed on."""

    token: str
    offset: int = 0
    steps: Counter[str] = field(default_factory=Counter)


class TrackerFeed:
    """Passes on to trackers what the records of a run's trials gain."""

    def __init__(
        self,
        run: Path,
        makers: Sequence[Callable[[], Tracker]],
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.run, self.warn = run, warn
        self.trackers: list[Tracker] = []
        self._followed: dict[str, _Followed | None] = {}
        self._next_look = 0.0
        for make in makers:
            self._safely(partial(self._add, make), None)

    def _add(self, make: Callable[[], Tracker]) -> None:
        self.trackers.append(make())

    def started(self, trial_id: str) -> None:
        """A trial runs from now on, or again."""
        self._followed.setdefault(trial_id, None)

    def look(self) -> None:
        """Pass on what is new, if the last look was a while ago."""
        if time.monotonic() < self._next_look:
            return
        for trial_id in list(self._followed):
            self._follow(TrialRecord.read(trial_folder(self.run, trial_id)))
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS

    def ended(self, record: TrialRecord) -> None:
        """A trial has ended."""
        self._follow(record)
        if self._followed.pop(record.trial_id, None) is not None:
            self._to_all(lambda tracker: tracker.end(record))

    def close(self) -> None:
        """The driver ends: so do the trials that still run."""
        for trial_id in list(self._followed):
            record = TrialRecord.read(trial_folder(self.run, trial_id))
            if record is not None:
                self.ended(record)

    def _follow(self, record: TrialRecord | None) -> None:
        if record is None or not record.attempts:  # planned, and not begun
            return
        followed = self._followed.get(record.trial_id)
        if followed is None or followed.token != record.token:
            followed = self._followed[record.trial_id] = _Followed(record.token)
            self._to_all(lambda tracker: tracker.begin(record))
        rows, followed.offset = read_epochs(record.folder, followed.offset)
        for row in rows:
            self._pass_on(record.trial_id, row, followed)

    def _pass_on(self, trial_id: str, row: Row, followed: _Followed) -> None:
        stage = str(row.get("stage"))
        followed.steps[stage] += 1
        scalars = {
            f"{stage}/{name}": value
            for name, value in _finite(row).items()
            if name not in _NO_SCALARS
        }
        step = followed.steps[stage]
        self._to_all(lambda tracker: tracker.epoch(trial_id, scalars, step))

    def _to_all(self, what: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            self._safely(partial(what, tracker), tracker)

    def _safely(self, call: Callable[[], None], tracker: Tracker | None) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001
            # the boundary: whatever a server or its library raises
            if tracker is not None:
                self.trackers.remove(tracker)
            name = type(tracker).__name__ if tracker is not None else "a tracker"
            self.warn(
                f"{name} is left out from here on: {type(error).__name__}: {error}"
            )
