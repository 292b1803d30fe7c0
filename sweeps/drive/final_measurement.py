"""When the search has ended: the front and its nearest rivals, measured once more in turns.

What is found lies beside each trial's record, which stays as it is (`trials/<id>/latency.json`);
`analysis` takes the latency from there. All of them are measured on one node, since times of
different machines cannot be compared.

A machine's speed drifts while a search runs, so milliseconds of different hours are not the same.
All trials with the same source on such a device are therefore given in one time of that source, the
median of all its measurements in the run: latency_ms = latency_ratio × that time.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import analysis
from analysis.contract import BASELINE, LATENCY_FILE, Objective
from analysis.fronts import front_and_rivals
from analysis.numbers import plural
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site
from sweeps.run.record import TrialRecord, now, to_json
from sweeps.run.storage import RunStorage
from sweeps.trial.final_latency import MAX_SECONDS, measure_in_turns
from trainers import plugins
from trainers.files import read_json, write_atomic

REFERENCE = "reference_latency_ms"
LATENCIES = ("latency_ms", "latency_ratio", "p95_latency_ms", "throughput")
"""Metrics that are measured again."""
MOST_TRIALS = 40
START_SECONDS = 120.0
"""For the process to start and to read the models."""
_SECONDS_BETWEEN_LOOKS = 0.5


def measure_front(
    storage: RunStorage,
    site: Site,
    objectives: Sequence[Objective],
    prefixes: Sequence[str] = ("",),
    note: Callable[[str], None] = lambda line: None,
    is_unwanted: Callable[[], bool] = lambda: False,
) -> str | None:
    """Measure the front, its rivals and the baseline again, unless that has been done.

    Args:
        prefixes: what the metrics of each runtime begin with (`MeasureConfig.runtimes`).
        note: says that it is done, which takes a minute in which nothing else is seen.
        is_unwanted: asked meanwhile whether the user has interrupted; then nothing is written.

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
    known = {objective.metric: objective for objective in run.objectives}
    bounded = [known.get(objective.metric, objective) for objective in objectives]
    configurations = front_and_rivals(run.configurations(), bounded, next(iter(wanted)))
    chosen = [name for ids in configurations["trial_ids"] for name in ids][:MOST_TRIALS]
    hosts = dict(zip(run.trials["trial_id"], run.trials["host"], strict=True))
    every = list(hosts)
    if run.baseline is not None:
        # what the front is compared with is measured beside it
        chosen.append(BASELINE)
        every.append(BASELINE)
    if len(chosen) < 2 or _done(storage, chosen):
        return None
    host = Counter(hosts[name] for name in chosen if name in hosts).most_common(1)[0][0]
    runtimes = list(dict.fromkeys(wanted.values()))
    note(f"timing {plural(len(chosen), 'model')} of the front once more, in turns")
    found = _measured_on(host, chosen, site, runtimes, is_unwanted)
    if isinstance(found, str):
        return found
    facts = {key: found[key] for key in ("host", "alone", "rounds")}
    _write(storage, chosen, _in_common_time(storage, every, found, runtimes), facts)
    missing = [name for name in chosen if name not in found["metrics"]]
    if not missing:
        return None
    return (
        f"the models of {', '.join(missing)} are no longer in the stage cache of"
        f" {found['host']}, so they could not be measured beside the others; their latency"
        " is what the trial recorded"
    )


def _measured_on(
    host: str,
    chosen: list[str],
    site: Site,
    runtimes: list[str],
    is_unwanted: Callable[[], bool],
) -> dict[str, Any] | str:
    """What `measure_in_turns` gives on this node; a line about it where it failed."""
    task = ray.remote(
        num_cpus=site.threads, num_gpus=site.gpus_per_worker, max_retries=1
    )(_measure)
    node = _node_of(host)
    if node is not None:
        where = NodeAffinitySchedulingStrategy(node, soft=True)
        task = task.options(scheduling_strategy=where)
    running = task.remote(chosen, site.model_dump(mode="json"), runtimes)
    until = time.monotonic() + START_SECONDS + 3 * MAX_SECONDS * len(runtimes)
    while not ray.wait([running], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
        if is_unwanted() or time.monotonic() > until:
            ray.cancel(running, force=True)
            why = "interrupted" if is_unwanted() else "not done in time"
            return (
                f"the front's latencies were not measured again ({why}); they are those that"
                " the trials recorded, and the same command tries again"
            )
    try:
        found: dict[str, Any] = ray.get(running)
        return found
    except ray.exceptions.RayError as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return (
            f"the front's latencies could not be measured again ({said}); they are those"
            " that the trials recorded"
        )


def _write(
    storage: RunStorage,
    together: list[str],
    metrics: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> None:
    """The latency file of each trial."""
    for name, values in metrics.items():
        content = {
            "schema": 1,
            "trial_id": name,
            "measured": now(),
            "together": together,
            "again": name in together,
            **facts,
            "metrics": values,
        }
        write_atomic(trial_folder(storage.run, name) / LATENCY_FILE, to_json(content))
        storage.push_trial(name)


def _in_common_time(
    storage: RunStorage,
    trial_ids: Iterable[str],
    found: Mapping[str, Any],
    prefixes: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Latencies of all trials, measured again or not, in one time of their source."""
    measured: dict[str, dict[str, Any]] = {}
    alike: dict[str, str] = {}
    times = defaultdict[tuple[str, str], list[float]](list)
    for name in sorted(trial_ids):
        record = TrialRecord.read(trial_folder(storage.run, name))
        if record is None or record.status != "complete":
            continue
        again = found["metrics"].get(name, {})
        measured[name] = {**record.outcome.metrics, **again}
        alike[name] = _alike(record)
        for prefix in prefixes:
            for values in (record.outcome.metrics, again):
                if prefix + REFERENCE in values:
                    times[alike[name], prefix].append(values[prefix + REFERENCE])
    results = {name: dict(values) for name, values in found["metrics"].items()}
    for name, values in measured.items():
        for prefix in prefixes:
            known = times[alike[name], prefix]
            if known and f"{prefix}latency_ratio" in values:
                scaled = _scaled(values, prefix, float(np.median(known)))
                results.setdefault(name, {}).update(scaled)
    return results


def _alike(record: TrialRecord) -> str:
    """Equal for trials whose sources take equally long."""
    plan = record.plan
    parts = (plan.source, plan.measure, plan.data)
    device = record.machine.device.model_dump() if record.machine else None
    return json.dumps([*(part.model_dump(mode="json") for part in parts), device])


def _scaled(
    values: Mapping[str, Any], prefix: str, reference_ms: float
) -> dict[str, Any]:
    """Times of a trial, were its source as fast as `reference_ms`."""
    latency_ms = reference_ms * values[f"{prefix}latency_ratio"]
    factor = latency_ms / values[f"{prefix}latency_ms"]
    times = ("latency_ms", "latency_p25_ms", "latency_p75_ms", "p95_latency_ms")
    found = {prefix + name: values[prefix + name] * factor for name in times}
    found[f"{prefix}throughput"] = values[f"{prefix}throughput"] / factor
    return found | {prefix + REFERENCE: reference_ms}


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
