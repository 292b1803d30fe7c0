"""Whether every node of a cluster could run a trial: its libraries, and the run folder."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.spec.yaml_text import SpecError
from trainers.leftovers import tag

_LIBRARIES = ("torch", "timm", "numpy", "optuna")
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
