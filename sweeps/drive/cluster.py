"""The Ray that a sweep runs on: a private one on this machine, or a cluster that is there.

Whatever is wrong with a cluster is told before a trial starts: an address where none
answers, other versions, nodes that lack a library or do not see the run folder.
"""

import contextlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.spec.yaml_text import SpecError

LOCAL = "local"

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": (
        "3600"
    ),  # our records are the safe source; Tune's snapshots only cost time
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": (
        "0"
    ),  # tracebacks of lost processes; the driver says it in a line
}
_PACKAGES = ("sweeps", "compress", "trainers", "analysis")
_LIBRARIES = ("torch", "timm", "numpy", "optuna")
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
_NODES_SECONDS = 180.0  # a node may have to fetch the code first


def set_environment() -> None:
    """Ray and Tune as we use them; what the user has set stays."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def start_ray(cpus: int | None = None) -> None:
    """A private Ray on this machine, quiet, with `cpus` cores (default: all)."""
    set_environment()
    os.environ.setdefault(
        "RAY_AUTH_MODE", "disabled"
    )  # private: no token under the home folder
    ray.init(
        "local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=True,
    )


@contextlib.contextmanager
def connected(
    address: str, cpus: int | None = None, *, ship: bool = True
) -> Iterator[None]:
    """A Ray for a sweep; one that this process is connected to already is used and left.

    Args:
        address: "local" starts a private one with `cpus` cores; "auto" or host:port is a
            cluster's head.
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
    if address == LOCAL:
        start_ray(cpus)
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
    """Connect to a cluster.

    Raises:
        SpecError: it does not take us.
    """
    set_environment()
    environment = (
        {"py_modules": package_folders(), "excludes": ["**/__pycache__/"]}
        if ship
        else {}
    )
    try:
        ray.init(
            address,
            runtime_env=environment,
            log_to_driver=not quiet,
            logging_level="ERROR",
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise SpecError(_told(address, str(error))) from error


def package_folders() -> list[str]:
    """The folders of our packages, as this process imports them."""
    return [
        str(Path(__file__).resolve().parent.parent.parent / name) for name in _PACKAGES
    ]


def check_address(address: str) -> None:
    """Find out in seconds, and in a process of its own: Ray itself tries for minutes, then
    ends its process.

    Raises:
        SpecError: nothing answers, something else does, or a Ray of another version.
    """
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            raise SpecError(
                f"--address {address}: write local, auto, host:port or ray://host:port"
            )
        try:
            socket.create_connection(
                (host, int(port)), timeout=_CONNECT_SECONDS
            ).close()
        except (OSError, OverflowError) as error:
            raise SpecError(
                f"--address {address}: nothing answers there ({error}); is the head"
                " node up, and its port open from here?"
            ) from error
    code = (
        f"import ray; ray.init({address!r}, log_to_driver=False,"
        " logging_level='CRITICAL')"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
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
        last = [line for line in done.stderr.splitlines() if line.strip()]
        raise SpecError(_told(address, "\n".join(last)))


def _told(address: str, error: str) -> str:
    if "ersion mismatch" in error:
        lines = [
            line.rpartition("ersion mismatch: ")[2].strip()
            for line in error.splitlines()
        ]
        kept = [
            line
            for line in lines
            if "Ray:" in line or "Python:" in line or "started" in line
        ]
        return (
            f"--address {address}: the cluster has other versions: {' '.join(kept)}; "
            "install the same Ray and Python here and there"
        )
    if "ray[client]" in error:
        return (
            f"--address {address}: ray:// needs gRPC; pip install"
            " 'compression-sweeps[client]'"
        )
    if "Could not find any running Ray" in error:
        return (
            f"--address {address}: no Ray runs on this machine; start one (`ray start"
            " --head`), give the head's host:port, or leave --address out for a"
            " private one"
        )
    return f"--address {address}: {error.splitlines()[-1] if error else 'no answer'}"


def _node_probe() -> Callable[[str, str], str]:
    # nested, so that it is pickled by value: it must run where our packages are not
    def probe(folder: str, token: str) -> str:
        import importlib.metadata
        import json
        import os
        import socket

        found: dict[str, Any] = {
            "host": socket.gethostname(),
            "versions": {},
            "problem": None,
        }
        for name in ("torch", "timm", "numpy", "optuna"):
            try:
                found["versions"][name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found["versions"][name] = None
        if not folder:
            return json.dumps(found)
        try:
            with open(os.path.join(folder, token)) as file:  # noqa: PTH118
                file.read()
            beside = os.path.join(folder, f"{token}.{os.getpid()}")  # noqa: PTH118
            with open(beside, "w") as file:
                file.write("x")
            os.unlink(beside)  # noqa: PTH108
        except OSError as error:
            found["problem"] = (
                f"{type(error).__name__}: {error.strerror}: {error.filename}"
            )
        return json.dumps(found)

    return probe


def check_nodes(run: Path | None) -> list[str]:
    """Ask every node whether it has the libraries and shares the run folder, if any; lines
    to warn the user with.

    Raises:
        SpecError: a node that could not run a trial, by name.
    """
    token = f".probe-{uuid.uuid4().hex[:8]}"
    if run is not None:
        (run / token).write_text("")
    task = ray.remote(num_cpus=0, max_retries=0)(_node_probe())
    nodes = [node for node in ray.nodes() if node["Alive"]]
    try:
        asked = [
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(
                    node["NodeID"], soft=False
                )
            ).remote(str(run or ""), token)
            for node in nodes
        ]
        answers = [json.loads(text) for text in ray.get(asked, timeout=_NODES_SECONDS)]
    except ray.exceptions.GetTimeoutError as error:
        raise SpecError(
            f"nodes of the cluster do not answer within {_NODES_SECONDS:.0f} s"
        ) from error
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise SpecError(
            f"a node could not set up our code: {error}; --no-ship uses what its"
            " image has"
        ) from error
    finally:
        if run is not None:
            (run / token).unlink()
    for answer in answers:
        lacking = [
            name for name, version in answer["versions"].items() if version is None
        ]
        if lacking:
            raise SpecError(
                f"node {answer['host']} lacks {', '.join(lacking)}; install our"
                " requirements in its image"
            )
        if answer["problem"]:
            raise SpecError(
                f"node {answer['host']} cannot write to {run} ({answer['problem']});"
                " storage must be a folder that every node has at the same path, or"
                " a URI"
            )
    mine = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return [
        f"node {a['host']} has {n} {a['versions'][n]}, this process {mine[n]}: results"
        " may differ in their last bits"
        for a in answers
        for n in _LIBRARIES
        if a["versions"][n] != mine[n]
    ]


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
