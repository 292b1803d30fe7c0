"""Workers of a distributed trial: Ray Train's TorchTrainer, kept between trials.

Starting a TorchTrainer takes some 12 s, a job on a group that is up a few hundredths. So
one long `fit` runs in a thread of the process that asks for jobs; its workers take jobs
from a mailbox, one after another, and send back what they see. Rank 0 speaks for all; the
mailbox is an actor that needs no CPU.
"""

import atexit
import math
import os
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from trainers.training import distributed

Event = dict[str, Any]
Job = Callable[[Any, Callable[[Event], None]], Any]
"""(payload, emit) → result, called on every rank; `emit` is called at the same points on
every rank.
"""

_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}
_POLL_SECONDS = 0.05
_LAST_WORDS_SECONDS = 20.0
# ranks wait for rank 0 while another trial computes a stage that this one needs
_PATIENCE = timedelta(days=7)


class WorkersDied(RuntimeError):
    """The workers of a trial ended before its job did."""


class JobStopped(Exception):
    """Raised by `emit` on every rank: the job is no longer wanted."""


@dataclass(frozen=True)
class GroupShape:
    """How many workers, and what each holds."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float

    @property
    def backend(self) -> str:
        """NCCL needs a GPU for each rank by itself."""
        return "nccl" if self.gpus_per_worker >= 1 else "gloo"


class _Mailbox:
    """Carries jobs and answers to rank 0, and events of all ranks back. Every call returns
    at once.
    """

    def __init__(self) -> None:
        self.jobs: list[Any] = []
        self.events: list[Any] = []
        self.answer: str | None = None
        self.closed = False

    def put_job(self, job: Any) -> None:
        self.events.clear()
        self.answer = None
        self.jobs.append(job)

    def take_job(self) -> Any:
        if self.jobs:
            return self.jobs.pop(0)
        return "closed" if self.closed else None

    def put_event(self, event: Any) -> None:
        self.events.append(event)

    def take_events(self) -> list[Any]:
        events, self.events = self.events, []
        return events

    def put_answer(self, answer: str) -> None:
        self.answer = answer

    def take_answer(self) -> str | None:
        answer, self.answer = self.answer, None
        return answer

    def close(self) -> None:
        self.closed = True


class WorkerGroup:
    """Workers that outlive their jobs. One job at a time; not for several threads."""

    def __init__(
        self,
        shape: GroupShape,
        storage: str,
        deterministic: tuple[type[BaseException], ...] = (),
    ) -> None:
        """`storage`: a folder for Ray Train's own files. `deterministic`: errors that would
        come again.
        """
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        self.shape = shape
        self.failure: BaseException | None = None
        self._closed = False
        # Any: a handle's methods have `remote`, which the class's have not
        self.mailbox: Any = ray.remote(num_cpus=0)(_Mailbox).remote()
        self._trainer = TorchTrainer(
            _serve,
            train_loop_config={"mailbox": self.mailbox, "deterministic": deterministic},
            torch_config=TorchConfig(
                backend=shape.backend, timeout_s=int(_PATIENCE.total_seconds())
            ),
            scaling_config=ScalingConfig(
                num_workers=shape.workers,
                use_gpu=shape.gpus_per_worker > 0,
                resources_per_worker={"CPU": shape.cpus_per_worker}
                | ({"GPU": shape.gpus_per_worker} if shape.gpus_per_worker else {}),
            ),
            run_config=RunConfig(
                name=f"workers-{uuid.uuid4().hex[:12]}",
                storage_path=storage,
                # its types are those of Ray Train's first version
                failure_config=FailureConfig(
                    max_failures=0,
                    controller_failure_limit=1,  # type: ignore[call-arg]
                ),
            ),
        )
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # noqa: BLE001 (whoever waits for a job hears of it)
            self.failure = error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    def run(self, job: Job, payload: Any, on_event: Callable[[Event], None]) -> Any:
        """Run a job on all workers; `on_event` sees what they emit, here, and ends the job
        by raising.

        Returns:
            What the job returned on rank 0.

        Raises:
            RankFailed: it raised on a worker.
            WorkersDied: a worker's process ended.
        """
        # bytes: the ranks pass them on, and a notebook's own functions travel by value
        ray.get(self.mailbox.put_job.remote(ray.cloudpickle.dumps((job, payload))))
        ended: dict[int, Event] = {}
        unwanted: BaseException | None = None
        give_up_at = math.inf
        while len(ended) < self.shape.workers:
            events = ray.get(self.mailbox.take_events.remote())
            for rank, kind, event in events:
                if kind != "event":
                    ended[rank] = {"kind": kind} | event
                elif unwanted is None:
                    unwanted = self._note(event, on_event)
            if give_up_at == math.inf and (
                unwanted or any(e["kind"] == "failed" for e in ended.values())
            ):
                give_up_at = (
                    time.monotonic() + _LAST_WORDS_SECONDS
                )  # a rank may wait for a failed one for ever
            if time.monotonic() > give_up_at:
                self.close()
                break
            if not events:
                if not self.alive:
                    self.close()
                    raise WorkersDied(
                        f"the trial's {self.shape.workers} workers ended:"
                        f" {self.failure}"
                    )
                time.sleep(0.02)
        if unwanted is not None:
            raise unwanted
        failed = [event for event in ended.values() if event["kind"] == "failed"]
        if failed:
            raise self._failed(failed[0])
        return ended[0]["result"]

    def _note(
        self, event: Event, on_event: Callable[[Event], None]
    ) -> BaseException | None:
        """Show an event and answer the workers, who wait; what `on_event` raised."""
        unwanted: BaseException | None = None
        try:
            on_event(event)
        except BaseException as error:  # noqa: BLE001 (raised again once the workers have stopped)
            unwanted = error
        ray.get(self.mailbox.put_answer.remote("go" if unwanted is None else "stop"))
        return unwanted

    @staticmethod
    def _failed(event: Event) -> distributed.RankFailed:
        details = {key: event[key] for key in ("type", "message", "traceback")}
        return distributed.RankFailed(details, event["deterministic"])

    def close(self) -> None:
        """End the workers; those that hang are killed with their mailbox."""
        if self._closed or not ray.is_initialized():
            return
        self._closed = True
        try:
            ray.get(self.mailbox.close.remote(), timeout=5)
            self._thread.join(timeout=5)
        finally:
            ray.kill(self.mailbox)  # a worker that asks a dead mailbox ends


def _serve(config: dict[str, Any]) -> None:
    """What each worker does until the mailbox closes: take a job, run it, tell how it ended."""
    mailbox = config["mailbox"]
    rank = distributed.rank()
    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())

    def tell(kind: str, event: Event) -> None:
        ray.get(mailbox.put_event.remote((rank, kind, event)))

    def emit(event: Event) -> None:
        answer = "go"
        if rank == 0:
            tell("event", event)
            answer = _poll(mailbox.take_answer, 0.005)
        if distributed.from_rank_0(answer) == "stop":
            raise JobStopped

    while True:
        found = distributed.from_rank_0(
            _poll(mailbox.take_job, 0.01) if rank == 0 else None
        )
        if found == "closed":
            return
        try:
            job, payload = ray.cloudpickle.loads(found)
            result = job(payload, emit)
            tell("done", {"result": result if rank == 0 else None})
        except JobStopped:
            tell("done", {"result": None})
        except Exception as error:  # noqa: BLE001
            # the boundary: raised, it would take the group down
            tell(
                "failed",
                {
                    "type": type(error).__name__,
                    "message": str(error),
                    "traceback": traceback.format_exc(),
                    "deterministic": isinstance(error, config["deterministic"]),
                },
            )


def _poll(method: Any, pause: float) -> Any:
    """What the mailbox has for us, as soon as it has something."""
    while (found := ray.get(method.remote())) is None:
        time.sleep(pause)
        pause = min(_POLL_SECONDS, pause * 1.2)
    return found


_kept: WorkerGroup | None = None


def kept_group(
    shape: GroupShape, storage: str, deterministic: tuple[type[BaseException], ...] = ()
) -> WorkerGroup:
    """This process's group of that shape, started where there is none or it died."""
    global _kept
    if _kept is not None and (not _kept.alive or _kept.shape != shape):
        drop_group()
    if _kept is None:
        _kept = WorkerGroup(shape, storage, deterministic)
    return _kept


def drop_group() -> None:
    """End this process's group, if any."""
    global _kept
    group, _kept = _kept, None
    if group is not None:
        group.close()


atexit.register(drop_group)
