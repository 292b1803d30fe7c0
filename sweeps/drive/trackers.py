"""Where trials are shown while they run: TensorBoard, MLflow, Weights & Biases.

The driver follows the records of running trials and tells listeners of every epoch and of
every end; trials know nothing of it. A listener that fails (a server is away) is dropped
with a warning: it never ends a sweep.
"""

import importlib.util
import math
import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from sweeps.run.record import TrialRecord, read_epochs, trial_folder
from sweeps.spec.model import Spec, Trackers
from sweeps.spec.yaml_text import SpecError

_SECONDS_BETWEEN_LOOKS = 2.0
_NO_SCALARS = ("epoch", "step", "cached")

Scalars = dict[str, float]


class Listener(ABC):
    """Shows trials. Of one trial, `begin`, epochs and `end` come in this order; `begin`
    again starts it anew.
    """

    @abstractmethod
    def begin(self, record: dict[str, Any]) -> None:
        """A trial's first epoch is about to be told, or a restarted trial's."""

    @abstractmethod
    def epoch(self, trial_id: str, scalars: Scalars, step: int) -> None:
        """An epoch; scalars by "stage/name", `step` counts the stage's epochs from 1."""

    @abstractmethod
    def end(self, record: dict[str, Any]) -> None:
        """The trial has ended, however it did."""


class _EventFile:
    """Scalars of one trial in TensorBoard's format.

    tensorboardX's SummaryWriter would do, but for its exit handler, which keeps every
    writer until the sweep ends.
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


class TensorBoard(Listener):
    """Event files under RUN/tensorboard/TRIAL."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "tensorboard"
        self._writers: dict[str, _EventFile] = {}

    def begin(self, record: dict[str, Any]) -> None:
        identity = record["trial_id"]
        if identity in self._writers:
            self._writers.pop(identity).close()
        shutil.rmtree(self.folder / identity, ignore_errors=True)
        self._writers[identity] = _EventFile(self.folder / identity)

    def epoch(self, trial_id: str, scalars: Scalars, step: int) -> None:
        self._writers[trial_id].add(scalars, step)

    def end(self, record: dict[str, Any]) -> None:
        writer = self._writers.pop(record["trial_id"])
        writer.add(
            {
                f"final/{name}": value
                for name, value in _finite(record["metrics"]).items()
            },
            0,
        )
        writer.close()


class MlflowRuns(Listener):
    """A run of an MLflow experiment for each trial."""

    _STATUS: ClassVar = {
        "complete": "FINISHED",
        "pruned": "KILLED",
        "interrupted": "KILLED",
        "failed": "FAILED",
    }

    def __init__(self, spec: Spec) -> None:
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

    def begin(self, record: dict[str, Any]) -> None:
        identity = record["trial_id"]
        if identity in self._runs:
            self.client.set_terminated(self._runs[identity], "KILLED")
        tags = {
            "mlflow.runName": identity,
            "sweep": self.sweep,
            "seed": str(record.get("seed")),
        }
        run = self.client.create_run(self.experiment, tags=tags)
        self._runs[identity] = run.info.run_id
        for name, value in record.get("params", {}).items():
            self.client.log_param(run.info.run_id, name.replace("*", "any"), value)

    def epoch(self, trial_id: str, scalars: Scalars, step: int) -> None:
        for name, value in scalars.items():
            self.client.log_metric(self._runs[trial_id], name, value, step=step)

    def end(self, record: dict[str, Any]) -> None:
        run = self._runs.pop(record["trial_id"])
        for name, value in _finite(record["metrics"]).items():
            self.client.log_metric(run, f"final/{name}", value)
        self.client.set_tag(run, "status", record["status"])
        self.client.set_terminated(run, self._STATUS[record["status"]])


class WandbRuns(Listener):
    """A run of a Weights & Biases project for each trial, grouped by the sweep."""

    def __init__(self, spec: Spec, run: Path) -> None:
        import wandb

        assert spec.trackers.wandb is not None
        self.wandb, self.sweep, self.folder, self.options = (
            wandb,
            spec.name,
            run,
            spec.trackers.wandb,
        )
        self._runs: dict[str, Any] = {}

    def begin(self, record: dict[str, Any]) -> None:
        identity = record["trial_id"]
        if identity in self._runs:
            self._runs.pop(identity).finish(exit_code=1)
        self._runs[identity] = self.wandb.init(
            project=self.options.project or self.sweep,
            entity=self.options.entity,
            mode=self.options.mode,
            name=identity,
            group=self.sweep,
            config=record.get("config", {}),
            dir=str(self.folder),
            reinit="create_new",
            settings=self.wandb.Settings(silent=True),
        )

    def epoch(self, trial_id: str, scalars: Scalars, step: int) -> None:
        self._runs[trial_id].log(scalars)

    def end(self, record: dict[str, Any]) -> None:
        run = self._runs.pop(record["trial_id"])
        run.summary.update(
            {f"final/{n}": v for n, v in _finite(record["metrics"]).items()}
            | {"status": record["status"]}
        )
        run.finish(exit_code=0 if record["status"] in ("complete", "pruned") else 1)


def check_trackers(trackers: Trackers) -> None:
    """Refuse what is not installed.

    Raises:
        SpecError: names the extra to install.
    """
    for name, wanted in (("mlflow", trackers.mlflow), ("wandb", trackers.wandb)):
        if wanted is not None and importlib.util.find_spec(name) is None:
            raise SpecError(
                f"trackers.{name}: {name} is not installed; pip install"
                f" 'compression-sweeps[{name}]'"
            )


def make_listeners(spec: Spec, run: Path) -> list[Callable[[], Listener]]:
    """Makers of TensorBoard and what the spec asks for."""
    makers: list[Callable[[], Listener]] = [lambda: TensorBoard(run)]
    if spec.trackers.mlflow is not None:
        makers.append(lambda: MlflowRuns(spec))
    if spec.trackers.wandb is not None:
        makers.append(lambda: WandbRuns(spec, run))
    return makers


def _finite(values: dict[str, Any]) -> Scalars:
    numbers = {
        k: v
        for k, v in values.items()
        if isinstance(v, int | float) and not isinstance(v, bool)
    }
    return {k: float(v) for k, v in numbers.items() if math.isfinite(v)}


@dataclass
class _Followed:
    """How far a running trial's epochs were told."""

    token: str
    offset: int = 0
    steps: Counter[str] = field(default_factory=Counter)


class Watchers:
    """Tells listeners what the records of a run's trials gain."""

    def __init__(
        self,
        run: Path,
        makers: Sequence[Callable[[], Listener]],
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.run, self.warn = run, warn
        self.listeners: list[Listener] = []
        self._followed: dict[str, _Followed | None] = {}
        self._next_look = 0.0
        for make in makers:
            self._safely(partial(self._add, make), None)

    def _add(self, make: Callable[[], Listener]) -> None:
        self.listeners.append(make())

    def started(self, trial_id: str) -> None:
        """A trial runs from now on, or again."""
        self._followed.setdefault(trial_id, None)

    def look(self) -> None:
        """Tell what is new, if the last look was a while ago."""
        if time.monotonic() < self._next_look:
            return
        for trial_id in list(self._followed):
            self._follow(trial_id)
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS

    def ended(self, trial_id: str) -> None:
        """A trial has ended."""
        record = self._follow(trial_id)
        if self._followed.pop(trial_id, None) is not None and record is not None:
            self._tell(lambda listener: listener.end(record.content))

    def close(self) -> None:
        """The driver ends: so do the trials that still run."""
        for trial_id in list(self._followed):
            self.ended(trial_id)

    def _follow(self, trial_id: str) -> TrialRecord | None:
        folder = trial_folder(self.run, trial_id)
        record = TrialRecord.read(folder)
        if record is None:
            return None
        followed = self._followed.get(trial_id)
        if followed is None or followed.token != record.content.get("token", ""):
            followed = self._followed[trial_id] = _Followed(
                record.content.get("token", "")
            )
            self._tell(lambda listener: listener.begin(record.content))
        rows, followed.offset = read_epochs(folder, followed.offset)
        for row in rows:
            stage = str(row.get("stage"))
            followed.steps[stage] += 1
            scalars = {
                f"{stage}/{n}": v
                for n, v in _finite(row).items()
                if n not in _NO_SCALARS
            }
            step = followed.steps[stage]
            self._tell(lambda listener: listener.epoch(trial_id, scalars, step))  # noqa: B023
        return record

    def _tell(self, what: Callable[[Listener], None]) -> None:
        for listener in list(self.listeners):
            self._safely(lambda listener=listener: what(listener), listener)  # type: ignore[misc]

    def _safely(self, call: Callable[[], None], listener: Listener | None) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001
            # the boundary: whatever a server or its library raises
            if listener is not None:
                self.listeners.remove(listener)
            name = type(listener).__name__ if listener is not None else "a watcher"
            self.warn(
                f"{name} is left out from here on: {type(error).__name__}: {error}"
            )
