"""The Ray that a sweep runs on: a private one on this machine, or a cluster that is there.

Whatever is wrong with a cluster is found before a trial starts: an address where none answers,
another version, and nodes that lack a library or do not see the run folder
(`sweeps.drive.node_checks`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.drive.ray_internals import (
    in_own_process_groups,
    tamed,
    waiting_with,
    with_variables,
    without_idle_processes,
)
from sweeps.spec.yaml_text import SpecError
from trainers.words import one_line

LOCAL = "local"


class RayLostError(Exception):
    """Ray did not start here, or a part of it without which nothing can go on has died.

    Attributes:
        ends_process: Ray ends this process within a minute, whatever it does.
    """

    def __init__(self, said: str, *, ends_process: bool = False) -> None:
        super().__init__(said)
        self.ends_process = ends_process


_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # our records are the safe source; Tune's snapshots only cost time
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # a private Ray has processes waiting, which would be ended before Tune asks for them
    "RAY_idle_worker_killing_time_threshold_ms": "10000",
    # tracebacks of dead processes; the driver says it in a line
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
OF_TRIALS = ("ray.tune", "sweeps.trial.in_tune")
"""What a trial's process imports for Tune, which takes a second. The rest, torch above all, would
fill the memory of processes that get no trial.
"""
_PACKAGES = ("sweeps", "compress", "trainers", "analysis")
_HOME = Path(__file__).resolve().parent.parent.parent
_SHARED_MEMORY = Path("/dev/shm")
_CONNECT_SECONDS = 5.0
_STARTED: set[str] = set()
"""Addresses of the heads of the Rays that this process has started."""
_ANSWER_SECONDS = 60.0


_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""For glibc, in the processes of trials: memory that was freed is kept and used again. By default
each tensor above 32 MB is taken from the system anew, which fills it with zeros page by page; on a
CPU that is up to half of the time of a step (benchmarks/kept_memory.py). A single arena, since only
the first one can hold such tensors, and Tune runs a trial in a thread.
"""


def keeping_freed_memory() -> contextlib.AbstractContextManager[None]:
    """Processes that start inside, and those that these start, keep memory (see `_ALLOCATOR`)."""
    return with_variables(_allocator())


def _allocator() -> dict[str, str]:
    """`_ALLOCATOR`, but for what the user has set."""
    return {name: os.environ.get(name, value) for name, value in _ALLOCATOR.items()}


def set_environment() -> None:
    """Ray and Tune as we use them; what the user has set stays."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def start_ray(cpus: int | None = None, threads: int | None = None) -> None:
    """A private Ray on this machine, quiet.

    Args:
        cpus: cores (default: all).
        threads: that each trial will have, where trials will take most of the processes that this
            Ray has waiting, one for each core: they then import while they wait what trials do.

    Raises:
        SpecError: this machine has no shared memory.
        RayLostError: it did not start.
    """
    if sys.platform == "linux" and not _SHARED_MEMORY.is_dir():
        # Ray takes another folder where this one is small, but does not start without it
        raise SpecError(
            f"this machine has no shared memory ({_SHARED_MEMORY}), which Ray needs; mount it"
            f" (mount -t tmpfs tmpfs {_SHARED_MEMORY}), or take a container that has it"
            " (docker run --shm-size=1g)"
        )
    set_environment()
    # private: no token under the home folder
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        with (
            keeping_freed_memory(),
            in_own_process_groups(),
            without_idle_processes(),
            contextlib.nullcontext()
            if threads is None
            else waiting_with(OF_TRIALS, _HOME, threads),
        ):
            ray.init(
                "local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                # an error is raised, and told in a line; Ray's log of it takes twenty
                logging_level=logging.CRITICAL,
                configure_logging=True,
            )
    except Exception as error:
        # the boundary: Ray raises a plain Exception where its processes take too long
        ray.shutdown()
        said = one_line(error)
        raise RayLostError(
            f"Ray did not start on this machine ({said}); is there room in /tmp and"
            " /dev/shm, and is the machine overloaded?"
        ) from error
    _STARTED.add(ray.get_runtime_context().gcs_address)


def is_private() -> bool:
    """Whether this process has started the Ray that it is connected to."""
    return ray.get_runtime_context().gcs_address in _STARTED


@contextlib.contextmanager
def connected(
    address: str,
    cpus: int | None = None,
    threads: int | None = None,
    *,
    ship: bool = True,
) -> Iterator[None]:
    """A Ray for a sweep; one that this process is connected to already is used and left.

    Args:
        address: "local" starts a private one with `cpus` cores; "auto" or host:port is a
            cluster's head.
        threads: see `start_ray`.
        ship: send the packages of this checkout to the nodes.

    Raises:
        SpecError: no cluster there, one with other versions, or another than this process
            is connected to.
    """
    if ray.is_initialized():
        if address not in (LOCAL, "auto"):
            _same_cluster(address)
        set_environment()
        yield
        return
    with tamed():
        if address == LOCAL:
            start_ray(cpus, threads)
        else:
            check_address(address)
            join(address, ship=ship)
        try:
            yield
        finally:
            ray.shutdown()


def _same_cluster(address: str) -> None:
    here = ray.get_runtime_context().gcs_address
    if address != here:
        check_address(address)
        raise SpecError(
            f"--address {address}: this process is connected to {here} already; give"
            " that address, or call ray.shutdown() first"
        )


def join(address: str, *, ship: bool, quiet: bool = True) -> None:
    """Connect to a cluster that `check_address` has heard of.

    Raises:
        SpecError: it does not take us.
    """
    set_environment()
    environment: dict[str, Any] = {"env_vars": _allocator()}
    if ship:
        environment["py_modules"] = package_folders()
        environment["excludes"] = ["**/__pycache__/"]
    try:
        ray.init(
            address,
            runtime_env=environment,
            log_to_driver=not quiet,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise SpecError(
            _explained(address, type(error).__name__, str(error))
        ) from error


def package_folders() -> list[str]:
    """The folders of our packages, as this process imports them."""
    return [str(_HOME / name) for name in _PACKAGES]


def check_address(address: str) -> None:
    """Find out in seconds, and in a process of its own: Ray itself tries for minutes, then ends its
    process.

    Raises:
        SpecError: nothing answers, something else does, or a Ray of another version.
    """
    if address != "auto":
        _check_port(address)
    if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise SpecError(
            f"--address {address}: ray:// needs gRPC; pip install"
            " 'compression-sweeps[client]'"
        )
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise SpecError(
            f"--address {address}: something listens there, but no Ray head answered in"
            f" {_ANSWER_SECONDS:.0f} s; the head's port is 6379 unless it was started"
            " with another, and 10001 with ray://"
        ) from None
    if done.returncode != 0:
        kind, message = _failure_of(done)
        raise SpecError(_explained(address, kind, message))


def _check_port(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise SpecError(
            f"--address {address}: write local, auto, host:port or ray://host:port"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise SpecError(
            f"--address {address}: nothing answers there ({error}); is the head node up,"
            " and its port open from here?"
        ) from error


_PROBE = """
import json, sys
import ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
    sys.exit(1)
"""
"""Connects, and says which error that raised; its type decides what the user reads."""


def _failure_of(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Type and message of the error that ended the probe.

    Ray may end its process by itself: then the last line that it wrote says why.
    """
    try:
        kind, message = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return "", lines[-1] if lines else f"Ray ended with code {done.returncode}"
    return str(kind), str(message)


def _explained(address: str, kind: str, message: str) -> str:
    """What a user reads where Ray does not connect, by the type of Ray's error."""
    if kind == ConnectionError.__name__ and address == "auto":
        return (
            f"--address {address}: no Ray runs on this machine; start one (`ray start"
            " --head`), give the head's host:port, or leave --address out for a"
            " private one"
        )
    said = " ".join(line.strip() for line in message.splitlines() if line.strip())
    if kind == RuntimeError.__name__:
        return (
            f"--address {address}: the cluster does not take this process, which has Ray"
            f" {ray.__version__} and Python {platform.python_version()}; the same"
            f" versions must be installed here and there. Ray says: {said}"
        )
    return (
        f"--address {address}: Ray does not connect: {said or 'no answer'}; a cluster that"
        " asks for a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here"
    )


def run_on_head(
    address: str, call: Callable[..., int], request: Any, *, ship: bool
) -> int:
    """Call a function of ours on the head node of a cluster that is reached through Ray's
    client; print what it prints.

    A driver at the far end of a client connection would end with it, and could not see the
    run folder.

    Raises:
        SpecError: no cluster there, or one with other versions.
    """
    check_address(address)
    join(address, ship=ship, quiet=False)
    try:
        head = next(
            node
            for node in ray.nodes()
            if node["Alive"] and "node:__internal_head__" in node["Resources"]
        )
        task = ray.remote(num_cpus=0, max_retries=0)(call)
        here = NodeAffinitySchedulingStrategy(head["NodeID"], soft=False)
        running = task.options(scheduling_strategy=here).remote(request)
        try:
            return int(ray.get(running))
        except KeyboardInterrupt:
            ray.cancel(running, force=False)  # the sweep takes it as a Ctrl-C
            return int(ray.get(running))
    finally:
        ray.shutdown()
