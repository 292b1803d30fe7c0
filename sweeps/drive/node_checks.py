"""The nodes of a cluster: what they lack, and how many trials they have room for."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.spec.model import Resources, Spec
from sweeps.spec.yaml_text import SpecError
from trainers.leftovers import tag
from trainers.machine import usable_cores

_LIBRARIES = ("torch", "timm", "numpy", "optuna")
GIGABYTE = 1e9
_DISTRIBUTED_TRIAL_BYTES = 2**20  # Tune refuses a trial that holds nothing
_NODES_SECONDS = 180.0
"""A node may have to fetch the code first."""


def _node_probe() -> Callable[[str, str], str]:
    # nested, so that it is pickled by value: it must run where our packages are not
    def probe(folder: str, token: str) -> str:
        import importlib.metadata
        import json
        import os
        import socket

        versions: dict[str, str | None] = {}
        problem = None
        for name in ("torch", "timm", "numpy", "optuna"):
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = None
        try:
            if folder:
                with open(os.path.join(folder, token)) as file:  # noqa: PTH118
                    file.read()
                beside = os.path.join(folder, f"{token}.{os.getpid()}")  # noqa: PTH118
                with open(beside, "w") as file:
                    file.write("x")
                os.unlink(beside)  # noqa: PTH108
        except OSError as error:
            problem = f"{type(error).__name__}: {error.strerror}: {error.filename}"
        found = {
            "host": socket.gethostname(),
            "versions": versions,
            "problem": problem,
        }
        return json.dumps(found)

    return probe


def check_nodes(run: Path | None) -> list[str]:
    """Ask every node whether it has the libraries, and shares the run folder if there is one.

    Returns:
        Lines to warn the user with.

    Raises:
        SpecError: a node that could not run a trial, by name.
    """
    token = f".probe-{tag()}"
    if run is not None:
        (run / token).write_text("")
    try:
        answers = _ask_nodes(str(run or ""), token)
    finally:
        if run is not None:
            (run / token).unlink()
    for answer in answers:
        _refuse(answer, run)
    mine = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return [
        f"node {answer['host']} has {name} {answer['versions'][name]}, this process"
        f" {mine[name]}: results may differ in their last bits"
        for answer in answers
        for name in _LIBRARIES
        if answer["versions"][name] != mine[name]
    ]


def _ask_nodes(folder: str, token: str) -> list[dict[str, Any]]:
    task = ray.remote(num_cpus=0, max_retries=0)(_node_probe())
    asked = []
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append(task.options(scheduling_strategy=there).remote(folder, token))
    try:
        return [json.loads(text) for text in ray.get(asked, timeout=_NODES_SECONDS)]
    except ray.exceptions.GetTimeoutError as error:
        raise SpecError(
            f"nodes of the cluster do not answer within {_NODES_SECONDS:.0f} s"
        ) from error
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise SpecError(
            f"a node could not set up our code: {error}; --no-ship uses what its"
            " image has"
        ) from error


def _refuse(answer: dict[str, Any], run: Path | None) -> None:
    lacking = [name for name, version in answer["versions"].items() if version is None]
    if lacking:
        raise SpecError(
            f"node {answer['host']} lacks {', '.join(lacking)}; install our"
            " requirements in its image"
        )
    if answer["problem"]:
        raise SpecError(
            f"node {answer['host']} cannot write to {run} ({answer['problem']});"
            " storage must be a folder that every node has at the same path, or a URI"
        )


def trials_at_once(wanted: Resources) -> int:
    """Trials that the cluster has room for, a worker never across nodes.

    Raises:
        SpecError: not even one.
    """
    have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    slots = sum(_workers_on(node, wanted) for node in have)
    if slots < wanted.workers:
        nodes = ", ".join(
            f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs,"
            f" {node.get('memory', 0) / GIGABYTE:.1f} GB"
            for node in have
        )
        memory = "" if wanted.memory_gb is None else f", {wanted.memory_gb:g} GB"
        raise SpecError(
            f"resources: a trial needs {wanted.workers} x ({wanted.cpus_per_worker}"
            f" CPUs, {wanted.gpus_per_worker:g} GPUs{memory}), each within a node; the cluster"
            f" has room for {slots} of them (nodes: {nodes}); lower resources"
        )
    return slots // wanted.workers


def concurrent(spec: Spec, most: int | None = None) -> int:
    """Trials at a time.

    A distributed one that waited for its workers would give up; others may wait for nodes to come.

    Args:
        most: that memory has been found to hold; None: as many as fit.
    """
    room = trials_at_once(spec.resources)
    wanted = spec.resources.concurrent or room
    if spec.distributed:
        wanted = min(wanted, room)
    return wanted if most is None else min(wanted, most)


def held(spec: Spec) -> dict[str, float]:
    """What a trial's own process holds of a node."""
    if spec.distributed:
        # its workers hold the cores; a trial that held one too could starve them for ever
        return {"cpu": 0, "memory": _DISTRIBUTED_TRIAL_BYTES}
    wanted = spec.resources
    found = {"cpu": wanted.cpus_per_worker, "gpu": wanted.gpus_per_worker}
    if wanted.memory_gb is not None:
        found["memory"] = int(wanted.memory_gb * GIGABYTE)
    return found


def early_threads(spec: Spec) -> int | None:
    """Threads of a trial, if trials will take most of the processes that a Ray of this machine has
    waiting, one for each core; else None.
    """
    wanted, search = spec.resources, spec.search
    cores = wanted.cpus or usable_cores()
    room = 0 if spec.distributed else cores // wanted.cpus_per_worker
    trials = min(room, wanted.concurrent or room, search.trials * search.replicates)
    return wanted.cpus_per_worker if 2 * trials > cores else None


def _workers_on(node: dict[str, float], wanted: Resources) -> int:
    room = node.get("CPU", 0) // wanted.cpus_per_worker
    if wanted.gpus_per_worker:
        # 3 x 1/3 is one GPU
        room = min(room, node.get("GPU", 0) / wanted.gpus_per_worker + 1e-9)
    if wanted.memory_gb is not None:
        room = min(room, node.get("memory", 0) // (wanted.memory_gb * GIGABYTE))
    return int(room)
