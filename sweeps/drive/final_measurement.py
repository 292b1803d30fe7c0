"""When the search has ended: the front and its nearest rivals, measured once more in turns.

What is found lies beside each trial's record, which stays as it is (`trials/<id>/latency.json`);
`analysis` takes the latency from there. All of them are measured on one node, since times of
different machines cannot be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import analysis
from analysis.contract import LATENCY_FILE, Objective
from analysis.fronts import front_and_rivals
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site
from sweeps.run.record import now, to_json
from sweeps.run.storage import RunStorage
from sweeps.trial.final_latency import MAX_SECONDS, measure_in_turns
from trainers import plugins
from trainers.files import read_json, write_atomic

LATENCIES = ("latency_ms", "latency_ratio", "p95_latency_ms", "throughput")
"""Metrics that are measured again."""
MOST_TRIALS = 40
START_SECONDS = 120.0
"""For the process to start and to read the models."""


def measure_front(
    storage: RunStorage,
    site: Site,
    objectives: Sequence[Objective],
    prefixes: Sequence[str] = ("",),
) -> str | None:
    """Measure the front and its rivals again, unless that has been done.

    Args:
        prefixes: what the metrics of each runtime begin with (`MeasureConfig.runtimes`).

    Returns:
        A line about trials that could not be measured; None where there is nothing to say.
    """
    wanted = {
        objective.metric: prefix
        for objective in objectives
        for prefix in prefixes
        if objective.metric in [prefix + name for name in LATENCIES]
    }
    if not wanted:
        return None
    run = analysis.load(storage.run)
    configurations = front_and_rivals(
        run.configurations(), objectives, next(iter(wanted))
    )
    chosen = [name for ids in configurations["trial_ids"] for name in ids][:MOST_TRIALS]
    if len(chosen) < 2 or _done(storage, chosen):
        return None
    hosts = dict(zip(run.trials["trial_id"], run.trials["host"], strict=True))
    task = ray.remote(
        num_cpus=site.threads, num_gpus=site.gpus_per_worker, max_retries=1
    )(_measure)
    node = _node_of(Counter(hosts[name] for name in chosen).most_common(1)[0][0])
    if node is not None:
        where = NodeAffinitySchedulingStrategy(node, soft=True)
        task = task.options(scheduling_strategy=where)
    runtimes = list(dict.fromkeys(wanted.values()))
    running = task.remote(chosen, site.model_dump(mode="json"), runtimes)
    patience = START_SECONDS + 3 * MAX_SECONDS * len(runtimes)
    try:
        found: dict[str, Any] = ray.get(running, timeout=patience)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(running, force=True)
        return (
            "the front's latencies could not be measured again in time; they are those that"
            " the trials recorded, and `sweeps resume` tries again"
        )
    except ray.exceptions.RayError as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return (
            f"the front's latencies could not be measured again ({said}); they are those"
            " that the trials recorded"
        )
    facts = {key: found[key] for key in ("host", "alone", "rounds")}
    for name, metrics in found["metrics"].items():
        content = {"schema": 1, "trial_id": name, "measured": now(), "together": chosen}
        path = trial_folder(storage.run, name) / LATENCY_FILE
        write_atomic(path, to_json(content | facts | {"metrics": metrics}))
        storage.push_trial(name)
    missing = [name for name in chosen if name not in found["metrics"]]
    if not missing:
        return None
    return (
        f"the latency of {', '.join(missing)} is the one that the trial recorded: the stage"
        f" cache of {found['host']} has its model no more, so it could not be measured beside"
        " the others"
    )


def _measure(
    trial_ids: list[str], site_json: dict[str, Any], prefixes: list[str]
) -> dict[str, Any]:
    site = Site.model_validate(site_json)
    plugins.load(site.plugins)
    return measure_in_turns(trial_ids, site, prefixes)


def _done(storage: RunStorage, chosen: Sequence[str]) -> bool:
    """Whether these trials have been measured together before."""
    files = (read_json(trial_folder(storage.run, n) / LATENCY_FILE) for n in chosen)
    return all(file is not None and file.get("together") == chosen for file in files)


def _node_of(host: str) -> str | None:
    """Ray's name of the node on which most of the trials ran."""
    names = {
        node["NodeManagerHostname"]: node["NodeID"]
        for node in ray.nodes()
        if node["Alive"]
    }
    return names.get(host)
