"""How many trials a cluster has room for, and what each of them takes of a node."""

import ray

from sweeps.spec.model import Resources, Spec
from sweeps.spec.yaml_text import SpecError
from trainers.machine import usable_cores

_GIGABYTE = 1e9
_DISTRIBUTED_TRIAL_BYTES = 2**20  # Tune refuses a trial that holds nothing


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
            f" {node.get('memory', 0) / _GIGABYTE:.1f} GB"
            for node in have
        )
        memory = "" if wanted.memory_gb is None else f", {wanted.memory_gb:g} GB"
        raise SpecError(
            f"resources: a trial needs {wanted.workers} x ({wanted.cpus_per_worker}"
            f" CPUs, {wanted.gpus_per_worker:g} GPUs{memory}), each within a node; the cluster"
            f" has room for {slots} of them (nodes: {nodes}); lower resources"
        )
    return slots // wanted.workers


def concurrent_trials(spec: Spec, most: int | None = None) -> int:
    """How many trials run at a time.

    A distributed one that waited for its workers would give up; others may wait for nodes to come.

    Args:
        most: that memory has been found to hold; None: as many as fit.
    """
    room = trials_at_once(spec.resources)
    wanted = spec.resources.concurrent or room
    if spec.distributed:
        wanted = min(wanted, room)
    return wanted if most is None else min(wanted, most)


def resources_of_trial(spec: Spec) -> dict[str, float]:
    """What a trial's own process holds of a node."""
    if spec.distributed:
        # its workers hold the cores; a trial that held one too could starve them for ever
        return {"cpu": 0, "memory": _DISTRIBUTED_TRIAL_BYTES}
    wanted = spec.resources
    found = {"cpu": wanted.cpus_per_worker, "gpu": wanted.gpus_per_worker}
    if wanted.memory_gb is not None:
        found["memory"] = int(wanted.memory_gb * _GIGABYTE)
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
        room = min(room, node.get("memory", 0) // (wanted.memory_gb * _GIGABYTE))
    return int(room)
